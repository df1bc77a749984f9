"""The workforce: the work that each worker has been given, how it ended, and what is given up."""

import asyncio
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any, TypeVar

from distributed import Client

from dbdask.data.block_provider import BlockProvider
from dbdask.errors import DataError, ModelError, RaisedInShard, StoreFailed
from dbdask.rpc.deadlines import deadline, retrieve_error
from dbdask.rpc.scheduler import has_scheduler
from dbdask.rpc.tasks import is_submitted
from dbdask.run.failures import TRAIN, Failures, Work, how_it_failed
from dbdask.run.gangs import Gangs
from dbdask.run.giving_up import late_workers, suspects, unreachable, why_unreachable
from dbdask.run.joint_work import ByParts, JointWork, PartReport
from dbdask.run.lost_tasks import LostTaskDetector
from dbdask.run.outstanding import Outstanding, Report
from dbdask.run.replica_places import ReplicaPlaces
from dbdask.run.roster import Roster
from dbdask.run.submitting import TaskSubmitter
from dbdask.schedule.awake import AwakeClock

R = TypeVar("R", bound=Report)


def _end_where_cancelled() -> None:
    """Where a task is cancelled just as its child fails, `asyncio.gather` raises the failure."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


@dataclass
class Workforce(ReplicaPlaces):
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
    gangs: Gangs | None = None
    """The places of replicas; None if every worker is one."""
    late_pushes_possible: bool = False
    """Whether a training task was given up that may still run, and push, somewhere."""
    failures: Failures = field(default_factory=Failures)

    def __post_init__(self) -> None:
        self.lost_tasks = LostTaskDetector(self.client)
        self._tasks = TaskSubmitter(self.client, self.job, self.providers)

    @property
    def clock(self) -> AwakeClock:
        """The clock by which workers are judged."""
        return self.roster.clock

    async def refresh(self, *, first: bool = False, now: bool = False) -> None:
        """See which workers are there, as `Roster.refresh` does.

        While some work is under way, no worker is lacking. Every loop of a run calls this method,
        so a run that is cancelled goes no further.
        """
        _end_where_cancelled()
        await self.roster.refresh(first=first, now=now)
        self.roster.note_lack("" if self.outstanding else self.lack)

    async def close(self) -> None:
        """End every wait, and let go of what the work held."""
        tasks = [out.task for out in self.outstanding]
        self.outstanding = []
        for task in tasks:
            task.cancel()
        closing = (self.roster.close(), self.lost_tasks.close())
        await asyncio.gather(*closing, *tasks, return_exceptions=True)
        self._tasks.close()

    @property
    def training(self) -> list[Outstanding[Any]]:
        """The training work that is under way."""
        return [out for out in self.outstanding if out.work.examples == TRAIN]

    def give(
        self,
        work: Work,
        function: Callable[..., R],
        order: object,
        place: str,
        *,
        take: Callable[[R | None], str],
        take_back: Callable[[], None],
        by_parts: "ByParts[Any] | None" = None,
    ) -> None:
        """Submit `function(order, job, *blocks)` for some work to a worker, or to all of a gang.

        Parameters
        ----------
        work
            The portion or bundle.
        function
            The task; its key is named by the last word of its name.
        order
            The first argument of the task.
        place
            Address of the worker, or name of the gang.
        take
            Takes the report of the task, or None if the task failed; returns why the run must
            recover, or ''.
        take_back
            Is called if the work is given up.
        by_parts
            How a gang does the work. Without it the place is a worker.
        """
        if self.gangs is None or not self.gangs.is_partitioned or by_parts is None:
            task, key = self._start(work, function, order, place)
            out = Outstanding(work, place, task, self.clock.seconds(), take, take_back, key)
            self.outstanding.append(out)
            return
        members = self.gangs.next_attempt(place)
        joint = JointWork(len(members), by_parts.merge, take, take_back)
        for member in members:
            own, worker = by_parts.order_of(member), member.workers[member.index]
            task, key = self._start(work, function, own, worker)
            self.outstanding.append(
                Outstanding(
                    work,
                    worker,
                    task,
                    self.clock.seconds(),
                    joint.take,
                    joint.take_back,
                    key,
                    place,
                    member.gang,
                    joint,
                )
            )

    def _start(
        self, work: Work, function: Callable[..., R], order: object, worker: str
    ) -> "tuple[asyncio.Task[R], str]":
        """Start to submit a task, and to wait for its end; return that with the task's key."""
        kind, (pass_number, number) = function.__name__.split("_")[-1], work.identity
        key = f"dbdask-{kind}-{self.run}-{pass_number}-{number}-{uuid.uuid4().hex[:6]}"
        task = asyncio.ensure_future(self._tasks.do(work, function, order, worker, key))
        task.add_done_callback(retrieve_error)  # another's error may end the run first
        return task, key

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
            if out.joint is None:
                continue
            if out.joint.has_failed:
                self._end_gang(out, report)
            elif out.joint.is_finished:
                self.failures.forget(out.work)
        await self.watch_silence()
        return trouble

    async def ended(self, seconds: float) -> list[tuple[Outstanding[Any], Any]]:
        """Wait up to `seconds` for work to end; return it with its report, or None if it failed.

        Raises
        ------
        DataError
            The data are wrong: no other worker would find them right. Or their store has failed
            some work `MOST_ATTEMPTS` times.
        ModelError
            The model does not keep its contract.
        WorkerError
            Some work failed `MOST_ATTEMPTS` times.
        """
        if not self.outstanding:
            self.roster.check_arrival(self.lack)
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
            if report.finished and out.joint is None:
                self.failures.forget(out.work)
            return report
        if isinstance(error, RaisedInShard):
            raise error.error
        if isinstance(error, (DataError, ModelError)) and not isinstance(error, StoreFailed):
            raise error
        is_counted = out.joint is None or out.joint.is_first_failure()
        if is_counted and has_scheduler(self.client):  # without one the client loses every future
            self.failures.note(out.work, out.worker, how_it_failed(error), error)
        return None

    def _blame(self, workers: set[str]) -> None:
        """Count a failure of the oldest training and validation work on lost or paused workers.

        Which work a worker had begun is not known. The work of a gang counts once.
        """
        for out in suspects(self.outstanding, workers):
            if out.joint is None or out.joint.is_first_failure():
                why = f"because {why_unreachable(out.worker, self.roster)}"
                self.failures.note(out.work, out.worker, why)

    def _restart_clocks(self, workers: Collection[str]) -> None:
        """Restart the time limit of all work on workers that have answered or ended a task."""
        now = self.clock.seconds()
        for out in self.outstanding:
            if out.worker in workers:
                out.since = now

    async def watch_silence(self) -> list[Work]:
        """Ping the workers of overdue work, and ask them for the task.

        Returns the work that is given up, after its `take_back` was called. Work is given up if its
        worker is silent, has left, or closes (Dask ends the tasks of a closing worker without an
        event); if it is overdue on a worker that Dask has paused, where it may never begin; and if
        scheduler and worker both say that no worker runs its task.

        Raises
        ------
        WorkerError
            Some work has failed `MOST_ATTEMPTS` times.
        """
        return self._give_up_unreachable(self.roster.ask(self._late))

    async def check_workers(self) -> list[Work]:
        """Ping every worker and wait; return the work that is given up."""
        return self._give_up_unreachable(await self.roster.ask_everyone())

    def _give_up_unreachable(self, answered: set[str]) -> list[Work]:
        """Give up the work that no worker will finish, and return it.

        It belongs to workers that are silent, closing or gone, is overdue on a paused worker, or
        its task was lost by Dask. Each of these counts as a failure of the work, except on a
        closing worker: its end says nothing of the work, where a worker may be paused because of
        it. The workers in `answered` get a new time limit.
        """
        self._restart_clocks(answered - self.roster.paused)
        lost = unreachable(self.outstanding, self.roster, self._late)
        self._blame(lost - self.roster.closing)
        given_up = self.give_up_on(lost | self.roster.closing)
        given_up += self._give_up_values_on(lost & self.roster.silent)
        self._search_long_tasks()
        return given_up + self._give_up(self._lost())

    def _give_up_values_on(self, lost: set[str]) -> list[Work]:
        """Give up work whose values lie on a worker that answers no ping; return it.

        Its own worker answers, and waits until Dask gives the other up, which takes minutes. The
        values are brought again with the next task. Of a worker that has left, Dask knows.
        """
        if not lost:
            return []
        given_up = self._give_up([out for out in self.outstanding if self._lies_on(out, lost)])
        for provider in self.providers.values():
            provider.forget(lost)
        return given_up

    def _lies_on(self, out: Outstanding[Any], workers: set[str]) -> bool:
        provider = self.providers[out.work.examples]
        return any(provider.lies_on(portion, workers) for portion in out.work.portions)

    @property
    def _late(self) -> set[str]:
        """Workers with overdue work: they have answered no ping for `dbdask.silence`."""
        return late_workers(self.outstanding, self.clock.seconds(), deadline("silence"))

    def _search_long_tasks(self) -> None:
        """Look for the tasks that are long under way, also if their workers do other work."""
        now, least = self.clock.seconds(), deadline("silence")
        long = [out for out in self.outstanding if now - out.looked > least]
        for worker in {out.worker for out in long}:
            self.lost_tasks.look(worker, [out.key for out in long if out.worker == worker])
        for out in long:
            out.looked = now

    def _lost(self) -> list[Outstanding[Any]]:
        """Count, and return, the work whose task is nowhere."""
        keys = self.lost_tasks.take_lost()
        lost = [out for out in self.outstanding if out.key in keys and not out.task.done()]
        for out in lost:
            if out.joint is None or out.joint.is_first_failure():
                self.failures.note(out.work, out.worker, "because Dask lost its task")
        return lost

    def give_up_on(self, workers: set[str]) -> list[Work]:
        """Give up the tasks of some workers: identity makes a second run of them safe."""
        return self._give_up([out for out in self.outstanding if out.worker in workers])

    def give_up_all(self, examples: str) -> None:
        """Give up every task of training, or of validation."""
        self._give_up([out for out in self.outstanding if out.work.examples == examples])

    def _end_gang(self, out: Outstanding[Any], report: PartReport | None) -> None:
        """End the gang of some work that failed, and give up all other work of it."""
        assert self.gangs is not None and out.joint is not None
        # If all tasks name another one, none has a cause: then the work itself is suspected, unless
        # the run has ended the gang.
        causes = ("peer", "another") if self.gangs.number_of(out.place) == out.gang else ("peer",)
        if report is not None and report.ended_by in causes and out.joint.is_first_failure():
            self.failures.note(out.work, out.place, f"because {report.gang_ended}")
        self.gangs.end([out.place])
        self._give_up([other for other in self.outstanding if other.gang == out.gang])

    def _with_gangs(self, given_up: list[Outstanding[Any]]) -> list[Outstanding[Any]]:
        """End the gangs that lose some of their work; return all of their work as well.

        A gang does its work in one order: after a gap none of it would be admitted.
        """
        ended = {out.gang: out.place for out in given_up if out.gang is not None}
        if self.gangs is not None:
            self.gangs.end(ended.values())
        others = [out for out in self.outstanding if out.gang in ended and out not in given_up]
        return given_up + others

    def _give_up(self, given_up: list[Outstanding[Any]]) -> list[Work]:
        given_up = self._with_gangs(given_up)
        self.outstanding = [out for out in self.outstanding if out not in given_up]
        for out in given_up:
            out.task.cancel()
            out.take_back()
            self.late_pushes_possible = self.late_pushes_possible or out.work.examples == TRAIN
        return [out.work for out in given_up]

    async def give_up_unbegun(self) -> list[Work]:
        """Give up training whose task no worker has begun: the tasks before it may never end."""
        found = await self.lost_tasks.find_all(_keys(self.training))
        waiting = {key for key, where in found.items() if where.has_not_begun}
        return self._give_up([out for out in self.training if out.key in waiting])

    async def waiting_for_blocks(self, examples: str, least: float) -> list[Work]:
        """Return the work that has waited for `least` seconds for blocks that Dask computes."""
        now = self.clock.seconds()
        held = [o for o in self.outstanding if o.work.examples == examples]
        long = [out for out in held if now - out.since > least]
        found = await self.lost_tasks.find_all(_keys(long))
        waiting = {key for key, where in found.items() if where.at_scheduler == "waiting"}
        return [out.work for out in long if out.key in waiting]

    def give_up_unsubmitted(self) -> list[Work]:
        """Give up training that no worker has been given yet: its data are still on their way."""
        return self._give_up([o for o in self.training if not is_submitted(self.client, o.key)])


def _keys(held: Iterable[Outstanding[Any]]) -> list[tuple[str, str]]:
    """Return the worker and the task of each of some work."""
    return [(out.worker, out.key) for out in held]
