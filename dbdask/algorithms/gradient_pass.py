"""One pass over the data: bundles to whoever is free, backup copies at the tail, one sum."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dbdask.errors import ShardLost
from dbdask.metrics.magnitudes import Magnitude
from dbdask.run.parameter_server import ParameterServer
from dbdask.run.workforce import Outstanding, Workforce
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
from dbdask.schedule.policies import places_for
from dbdask.schedule.portions import Portion
from dbdask.worker.batch_replica import BundleOrder, BundleReport, accrue_bundle

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
    """The pass is not wanted any more: the run was asked to stop, or a worker leaves."""


@dataclass
class PassStatistics:
    """What passes learn from each other, and their totals."""

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

    def totals(self) -> dict[str, int]:
        """What the history adds up over passes, for a resumed run to go on from."""
        return {name: getattr(self, name) for name in TOTALS}

    def go_on_from(self, totals: Mapping[str, Any]) -> None:
        """Go on from the totals of a run that was before."""
        for name in TOTALS:
            setattr(self, name, totals[name])
        self.refused_before = self.refused

    @property
    def refused_since_start(self) -> int:
        """Bad gradients since this run began or was resumed."""
        return self.refused - self.refused_before


@dataclass
class Sums:
    """What a pass has added up so far: scalars of the bundles that are done."""

    loss: float = 0.0
    weight: float = 0.0
    examples: int = 0
    rows: int = 0


class GradientPass:
    """The coordinator's side of one evaluation.

    A bundle is cut when it is handed out, and done when the first of its copies has been
    acknowledged by every shard. The shards add a bundle once, whichever copies push it.
    """

    def __init__(
        self,
        run: str,
        workforce: Workforce,
        server: ParameterServer,
        portions: Sequence[Portion],
        statistics: PassStatistics,
        point: str,
        replicas: int | None,
        give_up: Callable[[], bool],
    ) -> None:
        self.run, self.workforce, self.server = run, workforce, server
        self.statistics, self.point, self.replicas = statistics, point, replicas
        self.give_up = give_up
        self.number = statistics.evaluations
        statistics.evaluations += 1
        self.assignment = Assignment(self.number, portions, statistics.owners)
        self.count = len(portions)
        self.copies: dict[Outstanding, BundleAttempt] = {}
        self.done: dict[int, BundleReport] = {}
        self.portions_done = 0
        self.sums = Sums()

    async def work(self) -> Sums:
        """Hand out and take in until every portion counts once.

        Raises
        ------
        Interrupted
            `give_up` said so.
        ShardLost
            A task lost a shard.
        """
        while self.portions_done < self.count:
            if self.give_up():
                raise Interrupted
            await self.workforce.refresh()
            self._hand_out()
            for out, report in await self.workforce.ended(TURN_SECONDS):
                self._take_in(out, report)
            await self.workforce.watch_silence()
            self._take_back()
            gone = set(self.server.workers) - set(self.workforce.roster.everyone)
            if gone:
                raise ShardLost(f"worker {min(gone)} left, which held a shard")
        self._tell_losers()
        self.statistics.passes += 1
        self.statistics.examples += self.sums.examples
        self.statistics.dropped += self.sums.rows - self.sums.examples
        return self.sums

    def _hand_out(self) -> None:
        pace = self.statistics.pace
        for worker in self.workforce.idle_places(self.replicas):
            now = self.workforce.clock.seconds()
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
        """The copies of bundles that are not done; what lost may be out for as long as it likes."""
        return [copy for copy in self.copies.values() if copy.bundle.number not in self.done]

    def _share_of(self, worker: str, now: float) -> tuple[Sequence[str], int]:
        """The workers that a bundle is cut for, and its portions.

        A lone replica's are cut by their number: by its speed, no two runs would cut alike, nor
        add up to the same bits.
        """
        workers, pace = self.workforce.roster.workers, self.statistics.pace
        if sum(places_for(self.replicas, workers).values()) == 1:
            return [worker], math.ceil(self.count / LONE_BUNDLES)
        out = work_out(self._needed(), pace, now)
        return workers, bundle_length(self.assignment.remaining, out, worker, workers, pace)

    def _give(self, bundle: Bundle, worker: str, *, is_backup: bool) -> None:
        places = self.workforce.places(worker, self.replicas)
        order = BundleOrder(self.run, self.server.handle, bundle, self.point, places)
        out = self.workforce.give(bundle, accrue_bundle, order, worker)
        self.copies[out] = BundleAttempt(bundle, worker, self.workforce.clock.seconds(), is_backup)

    def _take_in(self, out: Outstanding, report: BundleReport | None) -> None:
        if report is not None:
            self.statistics.repeated += report.repeated
        copy = self.copies.pop(out, None)
        if copy is None:  # of an earlier pass
            return
        if report is not None and report.trouble:
            raise ShardLost(report.trouble)
        bundle = copy.bundle
        if report is not None and report.finished:
            self._count(bundle, report, copy)
        elif bundle.number not in self.done:
            self._hand_back(bundle)

    def _count(self, bundle: Bundle, report: BundleReport, copy: BundleAttempt) -> None:
        """The first finished copy of a bundle counts."""
        out = self.workforce.clock.seconds() - copy.since
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
        losers = [c.worker for c in self.copies.values() if c.bundle.number == bundle.number]
        if losers:
            self.server.unwant(losers, [bundle.identity])

    def _hand_back(self, bundle: Bundle) -> None:
        """A copy is lost: where it was the last one, the same bundle goes out again."""
        if all(copy.bundle.number != bundle.number for copy in self.copies.values()):
            self.assignment.hand_back(bundle)

    def _take_back(self) -> None:
        """Silent workers' copies are given up; what comes of them later is a repeat."""
        held = set(self.workforce.outstanding)
        for out in [out for out in self.copies if out not in held]:
            bundle = self.copies.pop(out).bundle
            if bundle.number not in self.done:
                self._hand_back(bundle)

    def _tell_losers(self) -> None:
        """Copies that are still running stop by themselves."""
        workers = sorted({copy.worker for copy in self.copies.values()})
        identities = sorted({copy.bundle.identity for copy in self.copies.values()})
        if workers:
            self.server.unwant(workers, identities)
