"""The search for lost tasks: their worker answers, and has never heard of them."""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection
from contextlib import suppress

from distributed import Client

from dbdask.data.waiting import WARN_SECONDS, long_reads
from dbdask.rpc.calls import run_on
from dbdask.rpc.deadlines import deadline
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
        self._said: dict[tuple[str, str], float] = {}  # the seconds of the last warning

    def look(self, worker: str, keys: Collection[str]) -> None:
        """Begin to ask where the tasks of a worker are; a later `take_lost` knows."""
        if worker not in self._asking:
            self._asking[worker] = asyncio.ensure_future(self._look(worker, keys))

    async def _look(self, worker: str, keys: Collection[str]) -> dict[str, Whereabouts]:
        found = await whereabouts(self.client, worker, keys)
        for key, where in found.items():
            if where.at_scheduler == "waiting":
                logger.warning("%s waits for blocks that other tasks of Dask have to make", key)
        with suppress(Exception):  # of a look nothing comes out
            reads = await run_on(self.client.rpc, worker, long_reads, seconds=deadline("ping"))
            for what, seconds in reads:
                self._say(worker, what, seconds)
        return found

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
            logger.warning("nobody is at work on %s: %s", key, found)

    async def close(self) -> None:
        """Cancel every look."""
        for asking in self._asking.values():
            asking.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
