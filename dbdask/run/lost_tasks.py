"""The search for lost tasks: their worker answers, and has never heard of them."""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Iterable

from distributed import Client

from dbdask.data.waiting import WARN_SECONDS, long_reads
from dbdask.rpc.calls import is_no_answer, run_on
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.scheduler import has_scheduler
from dbdask.rpc.tasks import Whereabouts, whereabouts

logger = logging.getLogger("dbdask")

MOST_MISSED = 2  # looks in a row: what scheduler and worker tell each other may be on its way


class LostTaskDetector:
    """Looks for tasks that are long under way, beside the run.

    A ping says nothing of a task. If the scheduler believes that a worker has a task, and the
    worker does not know the task, the run would wait for it as long as the worker lives.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._asking: dict[str, asyncio.Task[dict[str, Whereabouts]]] = {}  # by worker
        self._missed: Counter[str] = Counter()
        self._failed: set[str] = set()  # questions
        self._said: dict[tuple[str, str], float] = {}  # the seconds of the last warning

    def look(self, worker: str, keys: Collection[str]) -> None:
        """Begin to ask where the tasks of a worker are; a later `take_lost` knows."""
        if worker not in self._asking:
            self._asking[worker] = asyncio.ensure_future(self._look(worker, keys))

    async def _look(self, worker: str, keys: Collection[str]) -> dict[str, Whereabouts]:
        found = await self.find(worker, keys)
        for key, where in found.items():
            if where.at_scheduler == "waiting":
                logger.warning("%s waits for blocks that other tasks of Dask have to make", key)
        try:
            reads = await run_on(self.client.rpc, worker, long_reads, seconds=deadline("ping"))
            for what, seconds in reads:
                self._say(worker, what, seconds)
        except Exception as error:  # of a look nothing comes out
            self._note_failure("which reads take long", worker, error)
        return found

    async def find(self, worker: str, keys: Collection[str]) -> dict[str, Whereabouts]:
        """Ask where the tasks of a worker are; nothing is found if asking fails."""
        try:
            return await whereabouts(self.client, worker, keys)
        except Exception as error:  # it judges no worker
            self._note_failure("where tasks are", worker, error)
            return {}

    async def find_all(self, tasks: Iterable[tuple[str, str]]) -> dict[str, Whereabouts]:
        """Ask where tasks are that are given as (worker, key), all workers at once."""
        keys: dict[str, list[str]] = {}
        for worker, key in tasks:
            keys.setdefault(worker, []).append(key)
        looks = await asyncio.gather(*(self.find(*one) for one in keys.items()))
        return {key: where for look in looks for key, where in look.items()}

    def _note_failure(self, what: str, worker: str, error: Exception) -> None:
        """Log once a run what this search could not learn, unless a connection failed."""
        if what in self._failed or is_no_answer(error) or not has_scheduler(self.client):
            return
        self._failed.add(what)
        logger.warning(
            "the run cannot learn %s, and goes on without: worker %s, or the scheduler, answers "
            "with %r; see that client, scheduler and workers have the same version of distributed",
            what,
            worker,
            error,
        )

    def _say(self, worker: str, what: str, seconds: float) -> None:
        """Say what a worker has waited for, but not each time that it is looked at."""
        said = self._said.get((worker, what), 0.0)
        if not 0.0 <= seconds - said < WARN_SECONDS:
            self._said[worker, what] = seconds
            logger.warning("worker %s has waited for %s for %.0f s", worker, what, seconds)

    def take_lost(self) -> set[str]:
        """Return, once, the tasks that `MOST_MISSED` looks in a row have found nowhere."""
        for worker in [worker for worker, asking in self._asking.items() if asking.done()]:
            for key, found in self._asking.pop(worker).result().items():
                self._note(key, found)
        lost = {key for key, missed in self._missed.items() if missed >= MOST_MISSED}
        for key in lost:
            del self._missed[key]
        return lost

    def _note(self, key: str, found: Whereabouts) -> None:
        if not found.is_lost:
            del self._missed[key]
            return
        self._missed[key] += 1
        if self._missed[key] >= MOST_MISSED:
            logger.warning("no worker runs the task %s: %s", key, found)

    async def close(self) -> None:
        """Cancel every look."""
        for asking in self._asking.values():
            asking.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
