"""The roster: which workers run, which of them take part, and which are silent."""

import asyncio
import logging
import time
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from distributed import Client

from dbdask.errors import WorkerError
from dbdask.rpc.arrivals import DEMAND_SECONDS, Demand
from dbdask.rpc.calls import worker_answers
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.scheduler import WorkerFacts, workers_now
from dbdask.run.preflight import WorkerSilent, check_worker
from dbdask.schedule.awake import AwakeClock

logger = logging.getLogger("dbdask")

REFRESH_SECONDS = 0.5


def _is_named(facts: WorkerFacts, names: Sequence[str] | None) -> bool:
    return names is None or any(facts.is_called(str(name)) for name in names)


@dataclass
class Roster:
    """The workers of one run.

    A worker takes part after it has passed a check, for as long as it answers and stays. Workers
    that only hold shards are checked too.
    """

    client: Client
    job: bytes
    checkpoint: str | None
    only: Sequence[str] | None  # names of those that may train; None: all
    holders: Sequence[str] | None = None  # names of those that may hold shards; None: all
    facts: dict[str, WorkerFacts] = field(default_factory=dict)
    clock: AwakeClock = field(default_factory=AwakeClock)  # by which the run judges others
    least: int = 1  # workers that a replica needs
    silent: set[str] = field(default_factory=set)
    closing: set[str] = field(default_factory=set)  # they close, and still answer
    leaving: set[str] = field(default_factory=set)  # asked to leave: they get nothing more
    _checked: set[str] = field(default_factory=set)
    _refused: set[str] = field(default_factory=set)
    _refreshed: float = -1e9
    _left: set[str] = field(default_factory=set)  # in the middle of their check
    _lacking_since: float | None = None  # or since one came; None while a worker works, or could
    _most_here: int = 0  # workers that could train, at most, while some are lacking
    _came: float = 0.0  # when the last check began
    _checking: "dict[str, asyncio.Task[None]]" = field(default_factory=dict)
    _asking: dict[str, "asyncio.Task[bool]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._demand = Demand(self.client)

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
    def useful(self) -> int:
        """How many of the workers that a replica needs are there."""
        return min(len(self.workers), self.least)

    @property
    def away(self) -> set[str]:
        """Workers that are running, but get neither portions nor shards.

        They are silent, paused, closing, asked to leave, refused, or not checked yet.
        """
        unchecked = self.facts.keys() - self._checked
        return self.silent | self.paused | self.closing | self.leaving | unchecked

    @property
    def paused(self) -> set[str]:
        """Workers that Dask has paused: they answer, and begin no task until memory is free."""
        return {address for address, facts in self.facts.items() if facts.is_paused}

    @property
    def expects_workers(self) -> bool:
        """Whether a worker is in its check that may hold shards afterwards."""
        checked = [self.facts[a] for a in self._checking if a in self.facts]
        return any(self._may_hold(facts) for facts in checked)

    def _may_train(self, facts: WorkerFacts) -> bool:
        return _is_named(facts, self.only)

    def _may_hold(self, facts: WorkerFacts) -> bool:
        return _is_named(facts, self.holders)

    async def refresh(self, *, first: bool = False, now: bool = False) -> None:
        """Ask the scheduler for its workers, and check the new ones beside training.

        Parameters
        ----------
        first
            The run begins: wait for the checks.
        now
            Ask the scheduler even if it was asked a moment ago.

        Raises
        ------
        WorkerError
            At the start (`first`): a worker answers and cannot take part, or no worker is left.
        """
        if first or now or time.monotonic() - self._refreshed >= REFRESH_SECONDS:
            await self._look()
        if first:
            await self._begin()
        self._take_checks(at_start=False)

    async def _look(self) -> None:
        self.facts = await workers_now(self.client)
        self.closing = {address for address, facts in self.facts.items() if facts.is_closing}
        self.leaving &= set(self.facts)
        self._start_checks()
        self._refreshed = time.monotonic()

    async def close(self) -> None:
        """Cancel every check and every ping, and ask for no more workers."""
        tasks = [*self._checking.values(), *self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._demand.end()

    # Checks

    async def _begin(self) -> None:
        """Wait for the checks, and then for workers that are missing to come or to answer again."""
        pending = set(self._checking.values())
        while pending:
            _, pending = await asyncio.wait(
                pending, timeout=DEMAND_SECONDS / 2, return_when=asyncio.FIRST_EXCEPTION
            )
            await self._look()  # a worker that fails its check may have left
            self._take_checks(at_start=True)
            self._keep_demand(self.lack)
        while lack := self.lack or self._lack_of_workers(self.away):
            self.check_arrival(lack)
            await asyncio.sleep(REFRESH_SECONDS)
            await self._look()
            self._take_checks(at_start=True)
            self.ask()

    def _start_checks(self) -> None:
        known = self._checked | self._refused | self._checking.keys() | self.silent | self.closing
        for address, facts in self.facts.items():
            trains = self._may_train(facts)
            if address not in known and (trains or self._may_hold(facts)):
                check = check_worker(
                    self.client.rpc, address, self.job, self.checkpoint, trains=trains
                )
                self._checking[address] = asyncio.ensure_future(check)
                self._came = self.clock.seconds()

    def _take_checks(self, *, at_start: bool) -> None:
        for address, check in list(self._checking.items()):
            if check.done():
                del self._checking[address]
                error = check.exception()
                if error is None:
                    self._checked.add(address)
                else:
                    self._note_failed_check(address, error, at_start)

    def _note_failed_check(self, address: str, error: BaseException, at_start: bool) -> None:
        """Note a failed check. A worker is refused only if it is there and reports the failure."""
        if address not in self.facts or address in self.closing:
            logger.warning("worker %s left while it was checked", address)
            self._left.add(address)
        elif isinstance(error, WorkerSilent):
            self._note_sign(address, False)
        elif at_start:
            raise error
        else:
            logger.warning("worker %s takes no part: %s", address, error)
            self._refused.add(address)

    # Lack of workers

    @property
    def lack(self) -> str:
        """Which workers are missing to train on now, in words; '' if there is one."""
        return self._lack_to_train(self.away)

    def _lack_to_train(self, away: Container[str]) -> str:
        """Return which workers are missing to train on, for an error.

        It is '' if there are enough workers besides those in `away`.
        """
        here = sum(self._may_train(facts) for a, facts in self.facts.items() if a not in away)
        if here >= self.least:
            return ""
        if here:
            named = "" if self.only is None else f" of workers={list(self.only)}"
            return (
                f"partitions={self.least} needs {self.least} workers{named} to train on, and "
                f"{here} can train now"
            )
        who = "no worker" if self.only is None else f"no worker of workers={list(self.only)}"
        return f"{who} is left to train on"

    def _lack_of_workers(self, away: Container[str]) -> str:
        """Return which workers are missing to hold shards; '' if one is not in `away`."""
        if any(self._may_hold(facts) for a, facts in self.facts.items() if a not in away):
            return ""
        return f"no worker of shard_workers={list(self.holders or ())} is left to hold shards"

    def note_lack(self, lack: str) -> float:
        """Return for how many seconds workers have been lacking, as far as is known.

        The time begins anew with each worker that comes, up to as many as a replica needs.
        """
        now = self.clock.seconds()
        self._keep_demand(lack)
        if not lack:
            self._lacking_since, self._most_here = None, 0
            self._left.clear()
        elif self._lacking_since is None or self.useful > self._most_here:
            self._lacking_since, self._most_here = now, self.useful
        return 0.0 if self._lacking_since is None else now - self._lacking_since

    def _keep_demand(self, lack: str) -> None:
        """While workers are lacking, show an adaptive cluster that they are wanted.

        If there are too few for a replica, tasks wait for more: what else the run has submitted is
        pinned to workers that have left. If one is checked a task keeps it busy: the cluster would
        take it away again.
        """
        if lack and (len(self.facts) < self.least or self._checking):
            self._demand.keep(self.clock.seconds(), self.least, len(self.facts))
        else:
            self._demand.drop()

    @property
    def is_hopeful(self) -> bool:
        """Whether a check is under way, or a worker came lately, that is worth waiting for.

        If a worker has left during its check, so may the next: it may have died of the check. Then
        others are waited for until workers have been lacking for `preflight`.
        """
        if not self._left or self._lacking_since is None:
            return bool(self._checking)
        now = self.clock.seconds()
        if now - self._lacking_since > deadline("preflight"):
            return False
        return bool(self._checking) or now - self._came <= deadline("arrival")

    def check_arrival(self, lack: str) -> None:
        """Raise if workers are lacking for too long.

        A check under way is waited for, as `is_hopeful` says: workers that die of the check, and
        are started again, would keep the run for ever.

        Raises
        ------
        WorkerError
            None came within the deadline `arrival`.
        """
        if self.note_lack(lack) > deadline("arrival") and not self.is_hopeful:
            reasons = [f"{a} answers no ping" for a in sorted(self.silent)]
            reasons += [f"{a} is paused: its memory is full" for a in sorted(self.paused)]
            reasons += [f"{a} left while it was checked" for a in sorted(self._left)]
            why = f" ({', '.join(reasons)})" if reasons else ""
            raise WorkerError(
                f"{lack}, and none came in {deadline('arrival'):g} s{why}: see that workers run "
                "and can be reached, or set dbdask.arrival if new ones take longer to come"
            )

    # Pings

    def ask(self, workers: Container[str] = ()) -> set[str]:
        """Ping some workers, and the silent ones; return those that have answered.

        The call does not wait: a worker that answers later is returned by a later call.
        """
        self._ask({a for a in self.facts if a in workers or a in self.silent})
        return self._take_answers()

    async def ask_everyone(self) -> set[str]:
        """Ping every worker and wait; return those that have answered.

        It takes at most the deadline of a ping, and no time if all answer. A worker that is known
        to be silent is pinged again, but not waited for.
        """
        self._ask(self.facts)
        waited_for = [asked for w, asked in self._asking.items() if w not in self.silent]
        if waited_for:
            await asyncio.wait(waited_for)
        return self._take_answers()

    def _ask(self, workers: Iterable[str]) -> None:
        for worker in workers:
            if worker not in self._asking:
                asked = asyncio.ensure_future(worker_answers(self.client.rpc, worker))
                self._asking[worker] = asked

    def _take_answers(self) -> set[str]:
        ended = {worker: asked for worker, asked in self._asking.items() if asked.done()}
        for worker, asked in ended.items():
            del self._asking[worker]
            self._note_sign(worker, asked.result())
        self.silent &= set(self.facts)
        return {worker for worker, asked in ended.items() if asked.result()}

    def _note_sign(self, worker: str, answers: bool) -> None:
        if answers:
            self.silent.discard(worker)
        elif worker not in self.silent:
            logger.warning("worker %s is silent; its work goes to others", worker)
            self.silent.add(worker)
