"""The workforce: which workers there are, what each has to do, and who has fallen silent."""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Container, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any, Protocol

from dbdask.errors import DataError, WorkerError
from dbdask.numbers.policies import places_for, tasks_for
from dbdask.numbers.portions import Portion
from dbdask.server.contact import (
    WorkerFacts,
    has_scheduler,
    result_of,
    worker_answers,
    workers_now,
)
from dbdask.server.deadlines import deadline
from dbdask.verbs.failures import Failures
from dbdask.verbs.preflight import Unheard, check_worker

logger = logging.getLogger("dbdask")

REFRESH_SECONDS = 0.5


class Work(Protocol):
    """What a task works through: a portion, or a bundle of them."""

    @property
    def identity(self) -> tuple[int, int]: ...

    @property
    def portions(self) -> tuple[Portion, ...]: ...

    @property
    def name(self) -> str: ...


class Report(Protocol):
    """What every task tells its verb."""

    finished: bool


def _is_named(facts: WorkerFacts, names: Sequence[str] | None) -> bool:
    return names is None or any(facts.is_called(str(name)) for name in names)


@dataclass(eq=False)
class Outstanding:
    """Work that a worker has been given."""

    work: Any
    worker: str
    task: "asyncio.Task[Any]"
    since: float


@dataclass
class Workforce:
    """The replicas of one run, as the verb sees them.

    A replica is a stream of tasks on one worker. A worker that joins is checked and gets work; one
    that leaves, or answers nothing, loses it to the others. Those that only hold shards are
    checked too.
    """

    client: Any
    run: str
    job: bytes
    checkpoint: str | None
    replicas: int | None
    only: Sequence[str] | None
    supply: Any
    holders: Sequence[str] | None = None  # who may hold shards; None: everybody
    facts: dict[str, WorkerFacts] = field(default_factory=dict)
    outstanding: list[Outstanding] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    closing: set[str] = field(default_factory=set)  # on their way out, and still answering
    leaving: set[str] = field(default_factory=set)  # asked to leave: they get nothing more
    abandoned: bool = False  # a task was given up that may still run somewhere
    failures: Failures = field(default_factory=Failures)
    _checked: set[str] = field(default_factory=set)
    _refused: set[str] = field(default_factory=set)
    _refreshed: float = -1e9
    _left: set[str] = field(default_factory=set)  # in the middle of their check
    _lacking_since: float | None = None  # None while somebody works, or could
    _checking: "dict[str, asyncio.Task[None]]" = field(default_factory=dict)
    _asking: dict[str, "asyncio.Task[bool]"] = field(default_factory=dict)

    @property
    def everyone(self) -> list[str]:
        """Every running worker of the cluster."""
        return list(self.facts)

    @property
    def answering(self) -> list[str]:
        """Every running worker that is not silent."""
        return [address for address in self.facts if address not in self.silent]

    @property
    def workers(self) -> list[str]:
        """The workers that may be given portions now."""
        away = self.away
        return [a for a, facts in self.facts.items() if self._may_train(facts) and a not in away]

    @property
    def away(self) -> set[str]:
        """Workers that are running, but get neither portions nor shards.

        They are silent, closing, asked to leave, refused, or not checked yet.
        """
        return self.silent | self.closing | self.leaving | (self.facts.keys() - self._checked)

    @property
    def expects_homes(self) -> bool:
        """Whether a worker is checked that may then hold shards."""
        checked = [self.facts[a] for a in self._checking if a in self.facts]
        return any(self._may_hold(facts) for facts in checked)

    def _may_train(self, facts: WorkerFacts) -> bool:
        return _is_named(facts, self.only)

    def _may_hold(self, facts: WorkerFacts) -> bool:
        return _is_named(facts, self.holders)

    async def refresh(self, *, first: bool = False, now: bool = False) -> None:
        """See who is there; a new worker is checked, beside training, before it gets anything.

        Parameters
        ----------
        first
            The run begins: wait for the checks.
        now
            Ask the scheduler however lately it was asked.

        Raises
        ------
        WorkerError
            At the start (`first`), for any worker that answers and cannot take part, or where
            nobody is left.
        """
        if first or now or time.monotonic() - self._refreshed >= REFRESH_SECONDS:
            await self._look()
        if first:
            await self._begin()
        self._take_checks(at_start=False)
        self._note_lack("" if self.outstanding else self._lack(self.away))

    async def _look(self) -> None:
        self.facts = await workers_now(self.client)
        self.closing = {address for address, facts in self.facts.items() if facts.is_closing}
        self.leaving &= set(self.facts)
        self._start_checks()
        self._refreshed = time.monotonic()

    async def _begin(self) -> None:
        """Wait for the checks; where they leave nobody, for who comes, or answers again."""
        is_possible = not (self._lack(()) or self._lack_of_homes(()))
        pending = set(self._checking.values())
        while pending:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
            await self._look()  # one that fails its check may have left
            self._take_checks(at_start=True)
        while is_possible and (lack := self._lack(self.away) or self._lack_of_homes(self.away)):
            self._check_arrival(lack)
            await asyncio.sleep(REFRESH_SECONDS)
            await self._look()
            self._take_checks(at_start=True)
            await self.watch_silence()

    def _start_checks(self) -> None:
        known = self._checked | self._refused | self._checking.keys() | self.silent | self.closing
        for address, facts in self.facts.items():
            trains = self._may_train(facts)
            if address not in known and (trains or self._may_hold(facts)):
                check = check_worker(
                    self.client.rpc, address, self.job, self.checkpoint, trains=trains
                )
                self._checking[address] = asyncio.ensure_future(check)

    def _take_checks(self, *, at_start: bool) -> None:
        for address, check in list(self._checking.items()):
            if check.done():
                del self._checking[address]
                error = check.exception()
                if error is None:
                    self._checked.add(address)
                else:
                    self._turn_away(address, error, at_start)

    def _turn_away(self, address: str, error: BaseException, at_start: bool) -> None:
        """A check has failed: only a worker that is there, and says so itself, is refused."""
        if address not in self.facts or address in self.closing:
            logger.warning("worker %s left while it was checked", address)
            self._left.add(address)
        elif isinstance(error, Unheard):
            self._judge(address, False, time.monotonic())
        elif at_start:
            raise error
        else:
            logger.warning("worker %s takes no part: %s", address, error)
            self._refused.add(address)

    async def close(self) -> None:
        """End every wait, and let go of what the work held."""
        tasks = [*self._checking.values(), *self._asking.values()]
        tasks += [out.task for out in self.outstanding]
        self.outstanding = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def idle_places(self, replicas: int | None) -> list[str]:
        """List workers with nothing to do, once for each place: nothing is to wait behind work."""
        places = places_for(replicas, self.workers)
        busy = Counter(out.worker for out in self.outstanding)
        return [worker for worker, n in places.items() for _ in range(n - busy[worker])]

    def free_places(self, replicas: int | None) -> list[str]:
        """List workers that want a portion, the emptiest first, once for each portion wanted."""
        places = places_for(replicas, self.workers)
        wanted: list[tuple[int, str]] = []
        for worker, count in places.items():
            busy = sum(out.worker == worker for out in self.outstanding)
            wanted += [(n, worker) for n in range(busy, tasks_for(count, replicas))]
        return [worker for _, worker in sorted(wanted)]

    def places(self, worker: str, replicas: int | None) -> int:
        """How many replicas run at once on a worker."""
        return max(1, places_for(replicas, self.workers).get(worker, 1))

    def give(
        self, work: Work, function: Callable[..., Any], order: Any, worker: str
    ) -> Outstanding:
        """Submit `function(order, job, *blocks)` for some work to a worker."""
        task = asyncio.ensure_future(self._do(work, function, order, worker))
        out = Outstanding(work, worker, task, time.monotonic())
        self.outstanding.append(out)
        return out

    async def _do(self, work: Work, function: Callable[..., Any], order: Any, worker: str) -> Any:
        kind, (pass_number, number) = function.__name__.split("_")[-1], work.identity
        key = f"dbdask-{kind}-{self.run}-{pass_number}-{number}-{uuid.uuid4().hex[:6]}"
        blocks: list[Any] = []
        future = None
        try:
            for portion in work.portions:
                blocks += await asyncio.to_thread(self.supply.futures, portion, workers=[worker])
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

    async def attend(self, task: "asyncio.Task[Any]", worker: str) -> bool:
        """Wait until a task on a worker has ended; False where the worker left or fell silent."""
        asked = time.monotonic()
        while not task.done():
            await asyncio.wait({task}, timeout=REFRESH_SECONDS)
            await self.refresh()
            if worker not in self.facts and not task.done():
                return False
            if time.monotonic() - asked > deadline("silence"):
                if not await worker_answers(self.client.rpc, worker):
                    return False
                asked = time.monotonic()
        return True

    async def ended(self, seconds: float) -> list[tuple[Outstanding, Any]]:
        """Wait up to `seconds` for work to end; its report comes back, or None where it failed.

        Raises
        ------
        DataError
            The data are wrong: no other worker would find them right.
        WorkerError
            Some work failed `MOST_ATTEMPTS` times.
        """
        if not self.outstanding:
            self._check_arrival(self._lack(self.away))
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

    def _lack(self, away: Container[str]) -> str:
        """Who is missing to train on, in words; empty where there are others than those away."""
        if any(self._may_train(facts) for a, facts in self.facts.items() if a not in away):
            return ""
        who = "no worker" if self.only is None else f"no worker of workers={list(self.only)}"
        return f"{who} is left to train on"

    def _lack_of_homes(self, away: Container[str]) -> str:
        """Who is missing to hold shards, in words."""
        if any(self._may_hold(facts) for a, facts in self.facts.items() if a not in away):
            return ""
        return f"no worker of shard_workers={list(self.holders or ())} is left to hold shards"

    def _note_lack(self, lack: str) -> float:
        """Return for how long workers have been lacking, as far as anybody looked."""
        now = time.monotonic()
        if not lack:
            self._lacking_since = None
            self._left.clear()
        elif self._lacking_since is None:
            self._lacking_since = now
        return 0.0 if self._lacking_since is None else now - self._lacking_since

    def _check_arrival(self, lack: str) -> None:
        """Raise where workers are lacking for too long.

        A check under way is waited for, but not where others have left in theirs: workers that
        die of it, and are started again, would keep the run for ever.
        """
        is_hopeful = bool(self._checking) and not self._left
        if self._note_lack(lack) > deadline("arrival") and not is_hopeful:
            reasons = [f"{a} gives no sign of life" for a in sorted(self.silent)]
            reasons += [f"{a} left while it was checked" for a in sorted(self._left)]
            why = f" ({', '.join(reasons)})" if reasons else ""
            raise WorkerError(
                f"{lack}, and none came in {deadline('arrival'):g} s{why}: see that workers run "
                "and can be reached, or set dbdask.arrival where new ones take longer to come"
            )

    def _report_of(self, out: Outstanding) -> Any:
        self._restart_clocks(out.worker, time.monotonic())
        if out.task.cancelled():
            return None
        error = out.task.exception()
        if error is None:
            report: Report = out.task.result()
            if report.finished:
                self.failures.forget(out.work)
            return report
        if isinstance(error, DataError):
            raise error
        if isinstance(error, CancelledError) or not has_scheduler(self.client):
            return None  # the client lost the future: that says nothing of the work
        where = "".join(f"{note}, " for note in getattr(error, "__notes__", ()))
        self.failures.note(out.work, out.worker, f"{where}with {error!r}", error)
        return None

    def _blame(self, workers: set[str]) -> None:
        """Count what lost workers were at work on: what each has had for longest."""
        for worker in sorted(workers):
            held = [o for o in self.outstanding if o.worker == worker and not o.task.done()]
            if held:
                what = f"gave no sign of life for {deadline('ping'):g} s (dbdask.ping)"
                what = what if worker in self.facts else "was lost"
                self.failures.note(held[0].work, worker, f"because worker {worker} {what}")

    def _restart_clocks(self, worker: str, now: float) -> None:
        """What waited behind an ended portion begins now."""
        for out in self.outstanding:
            if out.worker == worker:
                out.since = now

    async def watch_silence(self) -> list[Any]:
        """Ask the workers of overdue work for a sign of life; return what is given up.

        That is what the silent held, what those held that have left, and what those held that
        close: Dask ends their tasks without a word.

        Raises
        ------
        WorkerError
            Some work has cost `MOST_ATTEMPTS` workers.
        """
        now = time.monotonic()
        least = deadline("silence")
        overdue = {out.worker for out in self.outstanding if now - out.since > least}
        self._ask(overdue | self.silent)
        return self._take_answers(now)

    def _ask(self, workers: set[str]) -> None:
        for worker in workers & set(self.facts):
            if worker not in self._asking:
                asked = asyncio.ensure_future(worker_answers(self.client.rpc, worker))
                self._asking[worker] = asked

    async def look_around(self) -> list[Any]:
        """Ask every worker for a sign of life, and wait; return what the silent held.

        It takes no longer than the deadline of a ping, and no time where all answer. Who is known
        to be silent is asked again, but not waited for.
        """
        self._ask(set(self.facts))
        waited_for = [asked for w, asked in self._asking.items() if w not in self.silent]
        if waited_for:
            await asyncio.wait(waited_for)
        return self._take_answers(time.monotonic())

    def _take_answers(self, now: float) -> list[Any]:
        for worker, asked in list(self._asking.items()):
            if asked.done():
                del self._asking[worker]
                self._judge(worker, asked.result(), now)
        self.silent &= set(self.facts)
        left = {out.worker for out in self.outstanding} - set(self.facts)
        self._blame((self.silent | left) - self.closing)
        return self.abandon(self.silent | self.closing | left)

    def _judge(self, worker: str, answers: bool, now: float) -> None:
        if answers:
            self.silent.discard(worker)
            self._restart_clocks(worker, now)
        elif worker not in self.silent:
            logger.warning("worker %s is silent; its work goes to others", worker)
            self.silent.add(worker)

    def abandon(self, workers: set[str]) -> list[Any]:
        """Give up the tasks of some workers: identity makes a second run of them safe."""
        given_up = [out for out in self.outstanding if out.worker in workers]
        self.outstanding = [out for out in self.outstanding if out.worker not in workers]
        for out in given_up:
            out.task.cancel()
            self.abandoned = True
        return [out.work for out in given_up]

    def give_up_all(self) -> list[Any]:
        """Give up every task, where those that should have ended did not."""
        return self.abandon({out.worker for out in self.outstanding})
