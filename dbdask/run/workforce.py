"""The workforce: what each worker has to do, what came of it, and what is given up."""

import asyncio
import textwrap
import uuid
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any, Protocol

from distributed import Client

from dbdask.data.block_provider import BlockProvider, why_cancelled
from dbdask.errors import DataError, ModelError, RaisedInShard
from dbdask.rpc.contact import has_scheduler, hear_out, worker_answers
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.tasks import result_of
from dbdask.run.daemon_threads import DaemonThreadRunner
from dbdask.run.failures import Failures, Work
from dbdask.run.lost_tasks import LostTaskDetector
from dbdask.run.roster import REFRESH_SECONDS, Roster
from dbdask.schedule.awake import AwakeClock
from dbdask.schedule.policies import places_for, tasks_for


class Report(Protocol):
    """What every task tells its verb."""

    finished: bool
    trouble: str
    """Why it ended early, if a shard or the generation was lost."""


@dataclass(eq=False)
class Outstanding:
    """Work that a worker has been given."""

    work: Work
    worker: str
    task: "asyncio.Task[Any]"
    since: float  # it was given, or its worker gave a sign of life
    key: str = ""  # of its Dask task
    looked: float = field(init=False)  # when it was given, or looked for

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
    """The replicas of one run, as the verb sees them.

    A replica is a stream of tasks on one worker of the roster. A worker that joins gets work; one
    that leaves, or answers nothing, loses it to the others.
    """

    client: Client
    run: str
    job: bytes
    supply: BlockProvider
    roster: Roster
    outstanding: list[Outstanding] = field(default_factory=list)
    abandoned: bool = False  # a task was given up that may still run somewhere
    failures: Failures = field(default_factory=Failures)

    def __post_init__(self) -> None:
        self.search = LostTaskDetector(self.client)

    @property
    def clock(self) -> AwakeClock:
        """By which workers are judged."""
        return self.roster.clock

    async def refresh(self, *, first: bool = False, now: bool = False) -> None:
        """See who is there, as `Roster.refresh` does; where somebody works, nobody is lacking.

        Every loop of a run comes by here: a run that is cancelled goes no further.
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

    def idle_places(self, replicas: int | None) -> list[str]:
        """List workers with nothing to do, once for each place: nothing is to wait behind work."""
        places = places_for(replicas, self.roster.workers)
        busy = Counter(out.worker for out in self.outstanding)
        return [worker for worker, n in places.items() for _ in range(n - busy[worker])]

    def free_places(self, replicas: int | None) -> list[str]:
        """List workers that want a portion, the emptiest first, once for each portion wanted."""
        places = places_for(replicas, self.roster.workers)
        wanted: list[tuple[int, str]] = []
        for worker, count in places.items():
            busy = sum(out.worker == worker for out in self.outstanding)
            wanted += [(n, worker) for n in range(busy, tasks_for(count, replicas))]
        return [worker for _, worker in sorted(wanted)]

    def places(self, worker: str, replicas: int | None) -> int:
        """How many replicas run at once on a worker."""
        return max(1, places_for(replicas, self.roster.workers).get(worker, 1))

    def give(
        self, work: Work, function: Callable[..., Any], order: Any, worker: str
    ) -> Outstanding:
        """Submit `function(order, job, *blocks)` for some work to a worker."""
        kind, (pass_number, number) = function.__name__.split("_")[-1], work.identity
        key = f"dbdask-{kind}-{self.run}-{pass_number}-{number}-{uuid.uuid4().hex[:6]}"
        task = asyncio.ensure_future(self._do(work, function, order, worker, key))
        task.add_done_callback(hear_out)  # where another's error ends the run first
        out = Outstanding(work, worker, task, self.clock.seconds(), key)
        self.outstanding.append(out)
        return out

    async def _do(
        self, work: Work, function: Callable[..., Any], order: Any, worker: str, key: str
    ) -> Any:
        blocks: list[Any] = []
        future = None
        try:
            for portion in work.portions:
                blocks += await DaemonThreadRunner().do(self.supply.futures, portion, [worker])
            future = self.client.submit(
                function,
                order,
                self.job,
                *blocks,
                key=key,
                # Nowhere else: Dask would steal it for a worker that is silent, and looks idle.
                workers=[worker],
            )
            return await result_of(self.client, future)
        finally:
            blocks.clear()  # the traceback of an error may keep the list for ever
            if future is not None:
                future.release()
            for portion in work.portions:
                self.supply.release(portion)

    async def attend(self, task: "asyncio.Task[Any]", worker: str, key: str) -> bool:
        """Wait until a task on a worker has ended.

        False where the worker left, stopped or is paused, or nobody is at work on `key`.
        """
        asked, search = self.clock.seconds(), LostTaskDetector(self.client)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=REFRESH_SECONDS)
                await self.refresh()
                gone = worker not in self.roster.facts or key in search.take_lost()
                if gone and not task.done():
                    return False
                if self.clock.seconds() - asked > deadline("silence"):
                    is_paused = worker in self.roster.paused
                    if is_paused or not await worker_answers(self.client.rpc, worker):
                        return False
                    search.look(worker, [key])
                    asked = self.clock.seconds()
            return True
        finally:
            await search.close()

    async def ended(self, seconds: float) -> list[tuple[Outstanding, Any]]:
        """Wait up to `seconds` for work to end; its report comes back, or None where it failed.

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

    def _report_of(self, out: Outstanding) -> Any:
        """Return what a task reports, or None where it failed: whatever the failure is, it counts.

        What is given up is outstanding no more, and does not come by here.
        """
        self._restart_clocks([out.worker])
        error = CancelledError() if out.task.cancelled() else out.task.exception()
        if error is None:
            report: Report = out.task.result()
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
        """Count what lost workers were at work on: what each has had for longest."""
        for worker in sorted(workers):
            held = [o for o in self.outstanding if o.worker == worker and not o.task.done()]
            if held:
                what = f"gave no sign of life for {deadline('ping'):g} s (dbdask.ping)"
                what = what if worker in self.roster.facts else "was lost"
                self.failures.note(held[0].work, worker, f"because worker {worker} {what}")

    def _restart_clocks(self, workers: Collection[str]) -> None:
        """Workers have answered, or ended a task: what waited behind it begins now."""
        now = self.clock.seconds()
        for out in self.outstanding:
            if out.worker in workers:
                out.since = now

    async def watch_silence(self) -> list[Work]:
        """Ask the workers of overdue work for a sign of life, and for it; return what is given up.

        That is what the silent held, what those held that have left, and what those held that
        close: Dask ends their tasks without a word. And what is overdue at a worker that Dask has
        paused: it may never begin; and what is overdue, and nobody is at work on.

        Raises
        ------
        WorkerError
            Some work has cost `MOST_ATTEMPTS` workers.
        """
        return self._give_up_lost(self.roster.ask({out.worker for out in self._overdue()}))

    async def look_around(self) -> list[Work]:
        """Ask every worker for a sign of life, and wait; return what is given up."""
        return self._give_up_lost(await self.roster.ask_everyone())

    def _give_up_lost(self, answered: set[str]) -> list[Work]:
        self._restart_clocks(answered - self.roster.paused)
        silent, closing = self.roster.silent, self.roster.closing
        left = {out.worker for out in self.outstanding} - set(self.roster.facts)
        self._blame((silent | left) - closing)
        overdue = {out.worker for out in self._overdue()}
        given_up = self.abandon(silent | closing | left | (overdue & self.roster.paused))
        self._look_for_tasks()
        return given_up + self._give_up(self._lost())

    def _look_for_tasks(self) -> None:
        """Look for what is long under way, whatever else its worker does meanwhile."""
        now, least = self.clock.seconds(), deadline("silence")
        long = [out for out in self.outstanding if now - out.looked > least]
        for worker in {out.worker for out in long}:
            self.search.look(worker, [out.key for out in long if out.worker == worker])
        for out in long:
            out.looked = now

    def _lost(self) -> list[Outstanding]:
        """Count, and return, the work that nobody is at."""
        keys = self.search.take_lost()
        lost = [out for out in self.outstanding if out.key in keys and not out.task.done()]
        for out in lost:
            self.failures.note(out.work, out.worker, "because Dask lost its task")
        return lost

    def _overdue(self) -> list[Outstanding]:
        """What its worker has had for longer than `dbdask.silence` without a sign of life."""
        now, least = self.clock.seconds(), deadline("silence")
        return [out for out in self.outstanding if now - out.since > least]

    def abandon(self, workers: set[str]) -> list[Work]:
        """Give up the tasks of some workers: identity makes a second run of them safe."""
        return self._give_up([out for out in self.outstanding if out.worker in workers])

    def _give_up(self, given_up: list[Outstanding]) -> list[Work]:
        self.outstanding = [out for out in self.outstanding if out not in given_up]
        for out in given_up:
            out.task.cancel()
            self.abandoned = True
        return [out.work for out in given_up]

    def give_up_unsubmitted(self) -> list[Work]:
        """Give up what no worker has been given yet: its data are still on their way."""
        return self._give_up([o for o in self.outstanding if o.key not in self.client.futures])

    def give_up_all(self) -> list[Work]:
        """Give up every task, where those that should have ended did not."""
        return self.abandon({out.worker for out in self.outstanding})
