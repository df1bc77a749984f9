"""The workforce: the work that each worker has been given, how it ended, and what is given up."""

import asyncio
import textwrap
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from distributed import Client, Future

from dbdask.daemon_threads import beside_loop
from dbdask.data.block_provider import BlockProvider, why_cancelled
from dbdask.data.routes import Piece
from dbdask.errors import DataError, ModelError, RaisedInShard
from dbdask.rpc.deadlines import deadline, retrieve_error
from dbdask.rpc.scheduler import has_scheduler
from dbdask.rpc.tasks import Whereabouts, result_of, whereabouts
from dbdask.run.failures import TRAIN, VALIDATION, Failures, Work
from dbdask.run.lost_tasks import LostTaskDetector
from dbdask.run.roster import Roster
from dbdask.schedule.awake import AwakeClock
from dbdask.schedule.policies import places_for, tasks_for

VALIDATION_PRIORITY = 10
VALIDATION_TASKS = 4
"""Validation tasks that a worker has at once: small ones then do not wait for the client."""


class Report(Protocol):
    """The result of every task."""

    finished: bool
    trouble: str
    """Why the task ended early, if a shard or the generation was lost."""


R = TypeVar("R", bound=Report)


@dataclass(eq=False)
class Outstanding(Generic[R]):
    """Work that a worker has been given, and the two functions that hear of its end."""

    work: Work
    worker: str
    task: "asyncio.Task[R]"
    since: float
    """When the work was given, or when its worker last gave a sign of life."""
    take: Callable[[R | None], str]
    """Takes the report, or None if the task failed. Returns why the run must recover, or ''."""
    take_back: Callable[[], None]
    """Is called if the work is given up: it can be given out again."""
    key: str = ""
    """Of the Dask task."""
    looked: float = field(init=False)
    """When the work was given, or its task last looked for."""

    def __post_init__(self) -> None:
        self.looked = self.since


def _end_where_cancelled() -> None:
    """Where a task is cancelled just as its child fails, `asyncio.gather` raises the failure."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


MOST_WORDS = 1000  # characters of another's error in one of ours


def _how(error: BaseException) -> str:
    """Say how a task failed, in words that follow "failed"."""
    if isinstance(error, CancelledError):
        return f"because {why_cancelled(error)}"
    where = "".join(f"{note}, " for note in getattr(error, "__notes__", ()))
    return f"{where}with {textwrap.shorten(repr(error), MOST_WORDS, placeholder='...')}"


@dataclass
class Workforce:
    """The work of one run: training and validation alike.

    A replica is a stream of tasks on one worker of the roster. A worker that joins gets work. A
    worker that leaves, or does not answer, loses its work to the others.

    Parameters
    ----------
    client
        The Dask client.
    run
        Identity of the run.
    job
        What every task needs, pickled.
    providers
        Bring workers the examples that they cannot read themselves, by the name of the examples.
    roster
        The workers.
    """

    client: Client
    run: str
    job: bytes
    providers: Mapping[str, BlockProvider]
    roster: Roster
    outstanding: list[Outstanding[Any]] = field(default_factory=list)
    late_pushes_possible: bool = False
    """Whether a training task was given up that may still run, and push, somewhere."""
    failures: Failures = field(default_factory=Failures)

    def __post_init__(self) -> None:
        self.search = LostTaskDetector(self.client)

    @property
    def clock(self) -> AwakeClock:
        """By which workers are judged."""
        return self.roster.clock

    async def refresh(self, *, first: bool = False, now: bool = False) -> None:
        """See which workers are there, as `Roster.refresh` does.

        While some work is under way, no worker is lacking. Every loop of a run calls this method,
        so a run that is cancelled goes no further.
        """
        _end_where_cancelled()
        await self.roster.refresh(first=first, now=now)
        self.roster.note_lack("" if self.outstanding else self.roster.lack)

    async def close(self) -> None:
        """End every wait, and let go of what the work held."""
        tasks = [out.task for out in self.outstanding]
        self.outstanding = []
        for task in tasks:
            task.cancel()
        closing = (self.roster.close(), self.search.close())
        await asyncio.gather(*closing, *tasks, return_exceptions=True)

    @property
    def training(self) -> list[Outstanding[Any]]:
        """The training work that is under way."""
        return [out for out in self.outstanding if out.work.examples == TRAIN]

    def idle_places(self, replicas: int | None) -> list[str]:
        """List workers that have no training work, once for each replica that could begin there."""
        places = places_for(replicas, self.roster.workers)
        busy = Counter(out.worker for out in self.training)
        return [worker for worker, n in places.items() for _ in range(n - busy[worker])]

    def free_places(self, replicas: int | None) -> list[str]:
        """List workers that want a portion, the emptiest first, once for each portion wanted."""
        places = places_for(replicas, self.roster.workers)
        most = {worker: tasks_for(count, replicas) for worker, count in places.items()}
        return self._emptiest_first(most, TRAIN)

    def validation_places(self) -> list[str]:
        """List workers that want a validation portion, as `free_places` does for training.

        A worker has few of them at once, however small they are.
        """
        return self._emptiest_first(
            dict.fromkeys(self.roster.workers, VALIDATION_TASKS), VALIDATION
        )

    def _emptiest_first(self, most: Mapping[str, int], examples: str) -> list[str]:
        """List each worker once for each task that it lacks of `most`, the emptiest first."""
        busy = Counter(out.worker for out in self.outstanding if out.work.examples == examples)
        wanted = [(n, w) for w, count in most.items() for n in range(busy[w], count)]
        return [worker for _, worker in sorted(wanted)]

    def places(self, worker: str, replicas: int | None) -> int:
        """Return how many replicas run at once on a worker."""
        return max(1, places_for(replicas, self.roster.workers).get(worker, 1))

    def give(
        self,
        work: Work,
        function: Callable[..., R],
        order: object,
        worker: str,
        *,
        take: Callable[[R | None], str],
        take_back: Callable[[], None],
    ) -> None:
        """Submit `function(order, job, *blocks)` for some work to a worker.

        Parameters
        ----------
        work
            The portion or bundle.
        function
            The task; its key is named by the last word of its name.
        order
            The first argument of the task.
        worker
            Address of the worker.
        take
            Takes the report of the task, or None if the task failed; returns why the run must
            recover, or ''.
        take_back
            Is called if the work is given up.
        """
        kind, (pass_number, number) = function.__name__.split("_")[-1], work.identity
        key = f"dbdask-{kind}-{self.run}-{pass_number}-{number}-{uuid.uuid4().hex[:6]}"
        task = asyncio.ensure_future(self._do(work, function, order, worker, key))
        task.add_done_callback(retrieve_error)  # another's error may end the run first
        out = Outstanding(work, worker, task, self.clock.seconds(), take, take_back, key)
        self.outstanding.append(out)

    async def _do(
        self, work: Work, function: Callable[..., R], order: object, worker: str, key: str
    ) -> R:
        provider = self.providers[work.examples]
        blocks: list[Future[Piece]] = []
        future: Future[R] | None = None
        try:
            for portion in work.portions:
                blocks += await beside_loop(provider.futures, portion, [worker])
            future = self.client.submit(
                function,
                order,
                self.job,
                *blocks,
                key=key,
                # A validation holds a copy in every shard: its tasks overtake queued portions.
                priority=VALIDATION_PRIORITY if work.examples == VALIDATION else 0,
                # Nowhere else: Dask would steal it for a worker that is silent, and looks idle.
                workers=[worker],
            )
            return await result_of(self.client, future)
        finally:
            blocks.clear()  # the traceback of an error may keep the list for ever
            if future is not None:
                future.release()
            for portion in work.portions:
                provider.release(portion)

    async def turn(self, seconds: float) -> str:
        """Take one look at the cluster: hand over every report, and what is given up.

        Parameters
        ----------
        seconds
            How long to wait for a task to end.

        Returns
        -------
        str
            Why the run must recover, if a report says so, else ''.

        Raises
        ------
        DataError, ModelError, WorkerError
            As `ended` and `watch_silence` do.
        """
        await self.refresh()
        trouble = ""
        for out, report in await self.ended(seconds):
            trouble = out.take(report) or trouble
        await self.watch_silence()
        return trouble

    async def ended(self, seconds: float) -> list[tuple[Outstanding[Any], Any]]:
        """Wait up to `seconds` for work to end; return it with its report, or None if it failed.

        Raises
        ------
        DataError
            The data are wrong: no other worker would find them right.
        ModelError
            The model does not keep its contract.
        WorkerError
            Some work failed `MOST_ATTEMPTS` times.
        """
        if not self.outstanding:
            self.roster.check_arrival(self.roster.lack)
            await asyncio.sleep(min(seconds, 0.05))
            return []
        await asyncio.wait(
            [out.task for out in self.outstanding],
            timeout=seconds,
            return_when=asyncio.FIRST_COMPLETED,
        )
        done = [out for out in self.outstanding if out.task.done()]
        self.outstanding = [out for out in self.outstanding if not out.task.done()]
        return [(out, self._report_of(out)) for out in done]

    def _report_of(self, out: Outstanding[R]) -> R | None:
        """Return the report of a task, or None if it failed. Every kind of failure counts.

        Work that was given up is not outstanding, and does not come here.
        """
        self._restart_clocks([out.worker])
        error = CancelledError() if out.task.cancelled() else out.task.exception()
        if error is None:
            report = out.task.result()
            if report.finished:
                self.failures.forget(out.work)
            return report
        if isinstance(error, RaisedInShard):
            raise error.error
        if isinstance(error, (DataError, ModelError)):
            raise error
        if has_scheduler(self.client):  # without one the client loses every future
            self.failures.note(out.work, out.worker, _how(error), error)
        return None

    def _blame(self, workers: set[str]) -> None:
        """Count a failure of the work that lost or paused workers were at.

        That is the oldest on each, of training and of validation: which of the two the worker had
        begun is not known.
        """
        for worker in sorted(workers):
            held = [o for o in self.outstanding if o.worker == worker and not o.task.done()]
            oldest = {out.work.examples: out.work for out in reversed(held)}
            for work in oldest.values():
                self.failures.note(work, worker, f"because {self._how_it_failed(worker)}")

    def _how_it_failed(self, worker: str) -> str:
        """Say why a worker's work is given up, in words that follow "because"."""
        if worker not in self.roster.facts:
            return f"worker {worker} was lost"
        if worker in self.roster.paused - self.roster.silent:
            return f"Dask has paused worker {worker}, because its memory is nearly full"
        return f"worker {worker} gave no sign of life for {deadline('ping'):g} s (dbdask.ping)"

    def _restart_clocks(self, workers: Collection[str]) -> None:
        """Workers have answered, or ended a task: the work that waited behind it begins now."""
        now = self.clock.seconds()
        for out in self.outstanding:
            if out.worker in workers:
                out.since = now

    async def watch_silence(self) -> list[Work]:
        """Ask the workers of overdue work for a sign of life, and for the task.

        Returns the work that is given up, after its `take_back` was called. Work is given up if its
        worker is silent, has left, or closes (Dask ends the tasks of a closing worker without a
        word); if it is overdue on a worker that Dask has paused, where it may never begin; and if
        scheduler and worker both say that nobody is at work on its task.

        Raises
        ------
        WorkerError
            Some work has failed `MOST_ATTEMPTS` times.
        """
        return self._give_up_unreachable(self.roster.ask({out.worker for out in self._overdue()}))

    async def check_workers(self) -> list[Work]:
        """Ask every worker for a sign of life, and wait; return the work that is given up."""
        return self._give_up_unreachable(await self.roster.ask_everyone())

    def _give_up_unreachable(self, answered: set[str]) -> list[Work]:
        """Give up the work that no worker will finish, and return it.

        It belongs to workers that are silent, closing or gone, is overdue on a paused worker, or
        its task was lost by Dask. Each of these counts as a failure of the work, except on a
        closing worker: its end says nothing of the work, where a worker may be paused because of
        it. The workers in `answered` get a new time limit.
        """
        self._restart_clocks(answered - self.roster.paused)
        silent, closing = self.roster.silent, self.roster.closing
        left = {out.worker for out in self.outstanding} - set(self.roster.facts)
        stuck = {out.worker for out in self._overdue()} & self.roster.paused
        self._blame((silent | left | stuck) - closing)
        given_up = self.give_up_on(silent | closing | left | stuck)
        self._search_long_tasks()
        return given_up + self._give_up(self._lost())

    def _search_long_tasks(self) -> None:
        """Look for the tasks that are long under way, whatever else their workers do meanwhile."""
        now, least = self.clock.seconds(), deadline("silence")
        long = [out for out in self.outstanding if now - out.looked > least]
        for worker in {out.worker for out in long}:
            self.search.look(worker, [out.key for out in long if out.worker == worker])
        for out in long:
            out.looked = now

    def _lost(self) -> list[Outstanding[Any]]:
        """Count, and return, the work whose task is nowhere."""
        keys = self.search.take_lost()
        lost = [out for out in self.outstanding if out.key in keys and not out.task.done()]
        for out in lost:
            self.failures.note(out.work, out.worker, "because Dask lost its task")
        return lost

    def _overdue(self) -> list[Outstanding[Any]]:
        """Return the work whose worker has given no sign of life for `dbdask.silence`."""
        now, least = self.clock.seconds(), deadline("silence")
        return [out for out in self.outstanding if now - out.since > least]

    def give_up_on(self, workers: set[str]) -> list[Work]:
        """Give up the tasks of some workers: identity makes a second run of them safe."""
        return self._give_up([out for out in self.outstanding if out.worker in workers])

    def give_up_all(self, examples: str) -> None:
        """Give up every task of training, or of validation."""
        self._give_up([out for out in self.outstanding if out.work.examples == examples])

    def _give_up(self, given_up: list[Outstanding[Any]]) -> list[Work]:
        self.outstanding = [out for out in self.outstanding if out not in given_up]
        for out in given_up:
            out.task.cancel()
            out.take_back()
            self.late_pushes_possible = self.late_pushes_possible or out.work.examples == TRAIN
        return [out.work for out in given_up]

    async def give_up_unbegun(self) -> list[Work]:
        """Give up training whose task no worker has begun: the tasks before it may never end."""
        found = await self._whereabouts(self.training)
        waiting = {key for key, where in found.items() if where.has_not_begun}
        return self._give_up([out for out in self.training if out.key in waiting])

    async def waiting_for_blocks(self, examples: str, least: float) -> list[Work]:
        """Return the work that has waited for `least` seconds for blocks that Dask computes."""
        now = self.clock.seconds()
        held = [o for o in self.outstanding if o.work.examples == examples]
        long = [out for out in held if now - out.since > least]
        found = await self._whereabouts(long)
        waiting = {key for key, where in found.items() if where.at_scheduler == "waiting"}
        return [out.work for out in long if out.key in waiting]

    async def _whereabouts(self, held: list[Outstanding[Any]]) -> dict[str, Whereabouts]:
        """Ask scheduler and workers where the tasks of some work are."""
        keys: dict[str, list[str]] = {}
        for out in held:
            keys.setdefault(out.worker, []).append(out.key)
        looks = await asyncio.gather(*(whereabouts(self.client, *one) for one in keys.items()))
        return {key: where for look in looks for key, where in look.items()}

    def give_up_unsubmitted(self) -> list[Work]:
        """Give up training that no worker has been given yet: its data are still on their way."""
        return self._give_up([o for o in self.training if o.key not in self.client.futures])
