"""When a run validates, and what follows from the score."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from dbdask.errors import CheckpointError
from dbdask.metrics.scores import Score
from dbdask.rpc.deadlines import deadline, within
from dbdask.run.failures import VALIDATION
from dbdask.run.parameter_server import ParameterServer
from dbdask.run.plan import Plan
from dbdask.run.snapshots import Snapshots
from dbdask.run.tally import Tally
from dbdask.run.workforce import Workforce
from dbdask.schedule.portions import Portion
from dbdask.worker.validation import ValidationOrder, ValidationReport, score_validation

logger = logging.getLogger("dbdask")


@dataclass(frozen=True)
class ValidationPortion:
    """A portion of the validation examples, as work for one snapshot copy."""

    copy: int
    portion: Portion

    @property
    def examples(self) -> str:
        """The examples that it reads."""
        return VALIDATION

    @property
    def identity(self) -> tuple[int, int]:
        """Its name among the work of a run."""
        return self.copy, self.portion.number

    @property
    def portions(self) -> tuple[Portion, ...]:
        """The portions that its task reads."""
        return (self.portion,)

    @property
    def name(self) -> str:
        """Its name in errors."""
        return f"portion {self.portion.number} of validation (blocks {self.portion.blocks[:4]})"


@dataclass(eq=False)
class Validation:
    """One snapshot copy that is scored: the portions to hand out, and the sum so far."""

    copy: int
    epoch: int
    portions: Sequence[Portion]
    handed_out: int = 0
    """How many portions were handed out at least once, in their order."""
    returned: list[Portion] = field(default_factory=list)
    """Portions to hand out once more."""
    scored: int = 0
    score: Score = field(default_factory=Score)
    gave_up: str = ""
    """A read that did not come until the user stopped the run."""

    @property
    def is_scored(self) -> bool:
        """Whether every portion is in the sum."""
        return self.scored == len(self.portions)

    def next(self) -> Portion | None:
        """Return a portion to hand out, if one is left."""
        if self.returned:
            return self.returned.pop()
        if self.handed_out == len(self.portions):
            return None
        self.handed_out += 1
        return self.portions[self.handed_out - 1]

    def take(self, portion: Portion, report: ValidationReport | None) -> str:
        """Add the score of a portion, or take the portion back if its task failed."""
        if report is None or not report.finished:
            self.take_back(portion)
            if report is None:
                return ""
            self.gave_up = self.gave_up or report.gave_up
            return report.trouble
        self.scored += 1
        self.score += report.score
        return ""

    def take_back(self, portion: Portion) -> None:
        """Take back a portion that was given up."""
        self.returned.append(portion)


class Validator:
    """Scores snapshot copies beside training, one after the other.

    A validation is work of the workforce as training is: it is handed out a few portions at a
    time, given up with its worker, tried again, and named if it fails too often. The run's own
    loop takes in the scores and lets the shards keep the best parameters. The same loop copies,
    moves and makes shards, so a choice of the best always falls between two such changes.
    """

    def __init__(
        self,
        plan: Plan,
        workforce: Workforce,
        server: ParameterServer,
        snapshots: Snapshots,
        tally: Tally,
        request_stop: Callable[[str], None],
    ) -> None:
        self.plan, self.workforce, self.server = plan, workforce, server
        self.snapshots, self.tally, self.request_stop = snapshots, tally, request_stop
        last = self.plan.last
        self.best = finite_or_none(last.state.get("best")) if last else None
        self._choosing: tuple[int, float] | None = None  # a copy that not all shards may keep yet
        self._has_given_up = False  # a read that hangs: no other validation follows
        self._was_lost = False  # a shard, whose best went back with it to the last snapshot
        self._waiting: deque[Validation] = deque()  # the first one is under way
        self._steps = tally.steps if last else -1
        self._since = time.monotonic()

    @property
    def each_epoch(self) -> bool:
        """Whether validation follows the epochs."""
        return self.plan.validate_steps is None and self.plan.validate_seconds is None

    @property
    def is_busy(self) -> bool:
        """Whether a copy is being scored."""
        return bool(self._waiting)

    @property
    def due(self) -> bool:
        """Whether it is time for a validation by minibatches or by the clock."""
        if self.is_busy or self.plan.validation_cut is None or self.each_epoch:
            return False
        if self.plan.validate_steps is not None:
            return self.tally.steps - max(0, self._steps) >= self.plan.validate_steps
        return time.monotonic() - self._since >= (self.plan.validate_seconds or math.inf)

    @property
    def stale(self) -> bool:
        """Whether training has gone on since the last validation, and its data can be read."""
        return self.tally.steps != self._steps and not self._has_given_up

    @property
    def has_best(self) -> bool:
        """Whether the shards keep the best parameters so far."""
        return self.plan.keep == "best" and self.best is not None

    def start(self, number: int, epoch: int) -> None:
        """Begin to score a copy beside training, after those that wait already."""
        assert self.plan.validation_cut is not None
        self._since = time.monotonic()
        self._steps = self.tally.steps
        portions = self.plan.validation_cut.contiguous()
        self._waiting.append(Validation(number, epoch, portions))

    def hand_out(self) -> None:
        """Give portions of the validation under way to workers that want some."""
        if not self._waiting:
            return
        validation = self._waiting[0]
        for worker in self.workforce.validation_places():
            portion = validation.next()
            if portion is None:
                return
            self.workforce.give(
                ValidationPortion(validation.copy, portion),
                score_validation,
                ValidationOrder(self.plan.run, self.server.handle, validation.copy, portion),
                worker,
                take=partial(validation.take, portion),
                take_back=partial(validation.take_back, portion),
            )

    async def conclude(self) -> None:
        """Record the validation under way, and choose the best, if all its portions are scored.

        A validation that has given up a read ends without a score, and so do those that wait
        behind it.
        """
        if self._waiting and self._waiting[0].gave_up:
            await self._end_unscored(self._waiting[0].gave_up)
        if not self._waiting or not self._waiting[0].is_scored:
            return
        validation = self._waiting[0]
        summary = validation.score.summary()
        loss = summary["loss"]
        if self._is_best(loss):
            self._choosing = validation.copy, loss
            await self._choose()
        await self.snapshots.drop(validation.copy)
        self._waiting.popleft()
        self._record(validation.epoch, summary)

    async def give_up_waiting(self, least: float) -> None:
        """End validation if some of it has waited for `least` seconds for blocks of Dask's."""
        waiting = await self.workforce.waiting_for_blocks(VALIDATION, least)
        if waiting:
            await self._end_unscored(f"the blocks of {waiting[0].name}, which Dask computes")

    async def _end_unscored(self, read: str) -> None:
        """End every validation, because the run stops and a read does not come."""
        logger.warning(
            "the run stops, and a validation ends without a score: it waits for %s", read
        )
        self._has_given_up = True
        self.suspend()
        while self._waiting:
            await self.snapshots.drop(self._waiting.popleft().copy)

    def _is_best(self, loss: float) -> bool:
        """Whether a loss is the best so far; NaN and infinity never are."""
        if self.plan.keep != "best" or not math.isfinite(loss):
            return False
        return self.best is None or loss < self.best

    def _record(self, epoch: int, summary: dict[str, float]) -> None:
        values = {f"validation_{name}": value for name, value in summary.items() if name != "r2"}
        self.tally.record(epoch=epoch, **values)
        if self.plan.target_loss is not None and summary["loss"] <= self.plan.target_loss:
            self.request_stop("target")

    async def _choose(self) -> None:
        """Let every shard keep the copy that is the best so far; a repeat does no harm."""
        assert self._choosing is not None
        number, loss = self._choosing
        await self.server.order("keep_best", number)
        self.best, self._choosing = loss, None

    def suspend(self) -> None:
        """Give up the tasks under way, because shards are to move; later ones go on from there."""
        self.workforce.give_up_all(VALIDATION)

    def give_up(self) -> None:
        """Abandon every validation: a shard that held the copies may be lost."""
        self.suspend()
        if self._waiting:
            self._steps = -1
            self._waiting.clear()

    async def mend(self, *, lost: bool) -> None:
        """After a recovery, give all shards the same best again, and drop unneeded copies.

        If a shard was lost this is the last snapshot's best: the others go back to it. Else a
        choice that was under way is made again; its copy is still there.
        """
        self._was_lost = self._was_lost or lost
        if self._was_lost:
            self._steps = -1  # the parameters that were scored are gone
        if self._was_lost and self.plan.keep == "best":
            self.best, self._choosing = await self._restore_best(), None
        elif self._choosing is not None:
            await self._choose()
        await self.server.order("drop_all")
        self._was_lost = False

    async def _restore_best(self) -> float | None:
        """Let every shard take the last snapshot's best, if it has one; return its loss."""
        last = self.snapshots.committed
        assert last is not None  # a shard that was lost was made from it
        best = finite_or_none(last.state.get("best"))
        seconds = deadline("store", 4 * self.plan.size)
        try:
            async with within(seconds):
                await self.server.order("restore_best", last.path, last.group, best is not None)
        except TimeoutError as error:
            raise CheckpointError(
                f"checkpoint={last.path!r} gave no answer in {seconds:g} s (dbdask.store) while "
                f"shards read the best parameters; {self.snapshots.resume_hint()}"
            ) from error
        return best


def finite_or_none(best: float | None) -> float | None:
    """Return the best loss of a snapshot; None also if an older version kept one of NaN."""
    return best if best is not None and math.isfinite(best) else None
