"""One pass over the data: bundles for free workers, backup copies at the tail, one sum."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic

from dbdask.metrics.magnitudes import Magnitude
from dbdask.run.joint_work import ByParts
from dbdask.run.run import Run
from dbdask.schedule.bundles import (
    Assignment,
    Bundle,
    BundleAttempt,
    Pace,
    bundle_length,
    choose_backup,
    work_out,
)
from dbdask.schedule.left_out import LeftOut
from dbdask.schedule.portions import Portion
from dbdask.worker.batch_replica import BundleOrder, BundleReport, accrue_bundle, merged

TURN_SECONDS = 0.1
LONE_BUNDLES = 8  # a pass of a lone replica
TOTALS = (
    "passes",
    "bundles",
    "backups_launched",
    "backups_won",
    "examples",
    "dropped",
    "repeated",
    "refused",
)


class Interrupted(Exception):
    """The pass is given up: the run was asked to stop, or shards have to move."""


@dataclass
class PassStatistics:
    """The totals over passes, and the measured speed of workers."""

    pace: Pace = field(default_factory=Pace)
    owners: dict[int, str] = field(default_factory=dict)  # portion number to worker
    evaluations: int = 0  # numbers given out; never reused
    passes: int = 0  # made to the end
    bundles: int = 0
    backups_launched: int = 0
    backups_won: int = 0
    examples: int = 0
    dropped: int = 0
    repeated: int = 0
    refused: int = 0
    refused_before: int = 0  # before a resume
    last_refusal: str = ""  # since the last good point
    left_out: LeftOut = field(default_factory=LeftOut)
    magnitudes: dict[str, tuple[Magnitude, ...]] = field(default_factory=dict)  # by worker

    def totals(self) -> dict[str, float]:
        """Return the totals that the history adds up over passes, for a resumed run."""
        return {name: getattr(self, name) for name in TOTALS}

    def go_on_from(self, totals: Mapping[str, float]) -> None:
        """Go on from the totals of an earlier run."""
        for name in TOTALS:
            setattr(self, name, totals.get(name, getattr(self, name)))
        self.refused_before = self.refused

    @property
    def refused_since_start(self) -> int:
        """Bad gradients since this run began or was resumed."""
        return self.refused - self.refused_before


@dataclass
class Sums:
    """The sums of a pass so far: scalars of the bundles that are done."""

    loss: float = 0.0
    weight: float = 0.0
    examples: int = 0
    rows: int = 0


class IdleTime:
    """Finds for how long replicas have nothing to do in a pass, from what all of them could do.

    Before the first replica has begun with a minibatch, all set themselves up: that is not counted.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._tally = run, run.tally
        self._spent_before = self._tally.spent.total
        self._possible = 0.0  # seconds of all replicas
        self._looked = monotonic()

    def look(self) -> None:
        """Count the time since the last look, by the replicas that there are now."""
        now, plan = monotonic(), self._run.plan
        workers = self._run.workforce.replicas_at_once(plan.replicas) * plan.partitions
        self._possible += workers * min(now - self._looked, self._tally.call.trained_for)
        self._looked = now

    def note(self) -> None:
        """Count as waiting the possible seconds that no task has reported."""
        spent = self._tally.spent
        spent.waiting += max(0.0, self._possible - (spent.total - self._spent_before))


class GradientPass:
    """The coordinator's side of one evaluation.

    A bundle is cut when it is handed out, and done when the first of its copies has been
    acknowledged by every shard. The shards add a bundle once, however many copies push it.
    """

    def __init__(
        self, run: Run, portions: Sequence[Portion], statistics: PassStatistics, point: str
    ) -> None:
        self.run, self.statistics, self.point = run, statistics, point
        self.number = statistics.evaluations
        statistics.evaluations += 1
        self.assignment = Assignment(self.number, portions, statistics.owners)
        self.count = len(portions)
        self.copies: list[BundleAttempt] = []
        self.done: dict[int, BundleReport] = {}
        self.portions_done = 0
        self.sums = Sums()
        self._is_open = True

    async def work(self) -> None:
        """Hand out and take in until every portion counts once.

        Raises
        ------
        Interrupted
            The run was asked to stop, or shards have to move.
        ShardLost
            A task lost a shard.
        """
        idle = IdleTime(self.run)
        try:
            while self.portions_done < self.count:
                if self.run.stop_reason or self.run.placement.due:
                    raise Interrupted
                self._hand_out()
                await self.run.take_in(TURN_SECONDS)
                idle.look()
        finally:
            self._is_open = False
            idle.note()
        self._tell_losers()
        self.statistics.passes += 1
        self.statistics.examples += self.sums.examples
        self.statistics.dropped += self.sums.rows - self.sums.examples

    def _hand_out(self) -> None:
        pace = self.statistics.pace
        for worker in self.run.workforce.idle_places(self.run.plan.replicas):
            now = self.run.clock.seconds()
            workers, length = self._share_of(worker, now)
            bundle = self.assignment.take(worker, length, workers)
            if bundle is not None:
                self._give(bundle, worker, is_backup=False)
                continue
            slowest = choose_backup(self._needed(), worker, pace, now)
            if slowest is not None:
                self.statistics.backups_launched += 1
                self._give(slowest.bundle, worker, is_backup=True)

    def _needed(self) -> list[BundleAttempt]:
        """Return the copies of bundles that are not done."""
        return [copy for copy in self.copies if copy.bundle.number not in self.done]

    def _share_of(self, worker: str, now: float) -> tuple[Sequence[str], int]:
        """Return the workers that a bundle is cut for, and its number of portions.

        A lone replica's bundles have a fixed length. If they followed its speed, two runs would
        not cut alike, and their sums would differ in the last bits.
        """
        workers, pace = self.run.workforce.teams, self.statistics.pace
        if self.run.workforce.replicas_at_once(self.run.plan.replicas) == 1:
            return [worker], math.ceil(self.count / LONE_BUNDLES)
        out = work_out(self._needed(), pace, now)
        return workers, bundle_length(self.assignment.remaining, out, worker, workers, pace)

    def _give(self, bundle: Bundle, worker: str, *, is_backup: bool) -> None:
        run = self.run
        places = run.workforce.places(worker, run.plan.replicas)
        order = BundleOrder(run.plan.run, run.server.handle, bundle, self.point, places)
        attempt = BundleAttempt(bundle, worker, self.run.clock.seconds(), is_backup)
        self.copies.append(attempt)
        run.workforce.give(
            bundle,
            accrue_bundle,
            order,
            worker,
            take=partial(self._take, attempt),
            take_back=partial(self._take_back, attempt),
            by_parts=ByParts(lambda member: replace(order, member=member), merged),
        )

    def _take(self, attempt: BundleAttempt, report: BundleReport | None) -> str:
        """Count a bundle, or hand it out again if its last copy failed."""
        self.copies.remove(attempt)
        if report is not None:
            self.statistics.repeated += report.repeated
            self.run.tally.spend(report.spent, report.by_part)
        if not self._is_open:
            return ""
        if report is not None and report.finished:
            self._count(attempt.bundle, report, attempt)
        else:
            self._hand_back(attempt.bundle)
        return "" if report is None else report.trouble

    def _take_back(self, attempt: BundleAttempt) -> None:
        """Hand out a bundle again if its last copy was given up; a push of it is a repeat."""
        self.copies.remove(attempt)
        self._hand_back(attempt.bundle)

    def _count(self, bundle: Bundle, report: BundleReport, copy: BundleAttempt) -> None:
        """Count the first finished copy of a bundle."""
        out = self.run.clock.seconds() - copy.since
        pace = self.statistics.pace
        pace.note(copy.worker, len(bundle.portions), report.working, report.pushing, out)
        if bundle.number in self.done:
            return
        self.done[bundle.number] = report
        self.portions_done += len(bundle.portions)
        self.statistics.bundles += 1
        self.statistics.backups_won += copy.is_backup
        self.sums.loss += report.loss
        self.sums.weight += report.weight
        self.sums.examples += report.examples
        self.sums.rows += report.rows
        self.statistics.left_out.add(report.left_out)
        if report.magnitudes:
            self.statistics.magnitudes[report.worker] = report.magnitudes
        self.statistics.refused += report.refused
        self.statistics.last_refusal = report.refusal or self.statistics.last_refusal
        for portion in bundle.portions:
            self.statistics.owners[portion.number] = copy.worker
        losers = [c.worker for c in self.copies if c.bundle.number == bundle.number]
        if losers:
            workers = self.run.workforce.workers_of(losers)
            self.run.server.notices.unwant(workers, [bundle.identity])

    def _hand_back(self, bundle: Bundle) -> None:
        """Hand a bundle out again, unless it is done or another copy of it is under way."""
        under_way = any(copy.bundle.number == bundle.number for copy in self.copies)
        if bundle.number not in self.done and not under_way:
            self.assignment.hand_back(bundle)

    def _tell_losers(self) -> None:
        """Tell the workers of copies that still run to stop them."""
        workers = sorted(self.run.workforce.workers_of({copy.worker for copy in self.copies}))
        identities = sorted({copy.bundle.identity for copy in self.copies})
        if workers:
            self.run.server.notices.unwant(workers, identities)
