"""When a run validates, and what it makes of the score."""

import asyncio
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError

from dbdask.errors import RECOVERABLE, CheckpointError, ShardLost, WorkerError
from dbdask.metrics.scores import Score
from dbdask.rpc.deadlines import deadline, within
from dbdask.rpc.tasks import result_of
from dbdask.run.failures import MOST_ATTEMPTS
from dbdask.run.parameter_server import ParameterServer
from dbdask.run.plan import Plan
from dbdask.run.snapshots import Snapshots
from dbdask.run.tally import Tally
from dbdask.run.workforce import Workforce
from dbdask.schedule.portions import Portion
from dbdask.worker.validation import evaluate_portion

logger = logging.getLogger("dbdask")

AHEAD = 4
"""Portions that are under way for each worker: of many, not all are submitted at once."""


class Validator:
    """Scores snapshot copies beside training, one at a time; a score of `target_loss` ends it."""

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
        self.best: float | None = last.state.get("best") if last else None
        self.choice = asyncio.Lock()  # held while the best changes, and while a copy is taken
        self._choosing: tuple[int, float] | None = None  # a copy that not all shards may keep yet
        self._was_lost = False  # a shard, whose best went back with it to the last snapshot
        self._task: asyncio.Task[None] | None = None
        self._steps = tally.steps if last else -1
        self._since = time.monotonic()

    @property
    def each_epoch(self) -> bool:
        """Whether validation follows the epochs."""
        return self.plan.validate_steps is None and self.plan.validate_seconds is None

    @property
    def is_busy(self) -> bool:
        """Whether a copy is being scored."""
        return self._task is not None and not self._task.done()

    @property
    def due(self) -> bool:
        """Whether it is time for a validation by minibatches or by the clock."""
        if self._task is not None or self.plan.validation_cut is None or self.each_epoch:
            return False
        if self.plan.validate_steps is not None:
            return self.tally.steps - max(0, self._steps) >= self.plan.validate_steps
        return time.monotonic() - self._since >= (self.plan.validate_seconds or math.inf)

    @property
    def stale(self) -> bool:
        """Whether training has gone on since the last validation."""
        return self.tally.steps != self._steps

    @property
    def has_best(self) -> bool:
        """Whether the shards keep the best parameters so far."""
        return self.plan.keep == "best" and self.best is not None

    def start(self, number: int, epoch: int) -> None:
        """Score a copy beside training."""
        self._since = time.monotonic()
        self._steps = self.tally.steps
        before, self._task = self._task, None
        self._task = asyncio.ensure_future(self._validate(number, epoch, before))

    async def _validate(self, number: int, epoch: int, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        score = await self._score(number)
        summary = score.summary()
        loss = summary["loss"]
        values = {f"validation_{n}": v for n, v in summary.items() if n != "r2"}
        if self.plan.keep == "best" and (self.best is None or loss < self.best):
            async with self.choice:
                self._choosing = number, loss
                await self._choose()
        await self.snapshots.drop(number)
        self.tally.record(epoch=epoch, **values)
        if self.plan.target_loss is not None and loss <= self.plan.target_loss:
            self.request_stop("target")

    async def _choose(self) -> None:
        """Let every shard keep the copy that is the best so far; a repeat does no harm."""
        assert self._choosing is not None
        number, loss = self._choosing
        await self.server.order("keep_best", number)
        self.best, self._choosing = loss, None

    async def mend(self, *, lost: bool) -> None:
        """After trouble all shards have the same best again, and no copy that nobody needs.

        Where a shard was lost this is the last snapshot's: the others go back to it. Else a
        choice that was under way is made again; its copy is still there.
        """
        self._was_lost = self._was_lost or lost
        if self._was_lost:
            self._steps = -1  # what was scored is there no more
        if self._was_lost and self.plan.keep == "best":
            self.best, self._choosing = await self._restore_best(), None
        elif self._choosing is not None:
            await self._choose()
        await self.server.order("drop_all")
        self._was_lost = False

    async def _restore_best(self) -> float | None:
        """Let every shard take the last snapshot's best; its loss comes back, None for none."""
        last = self.snapshots.committed
        assert last is not None  # a shard that was lost was made from it
        best: float | None = last.state.get("best")
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

    async def _score(self, number: int) -> Score:
        assert self.plan.validation_cut is not None
        total, under_way = Score(), deque[asyncio.Task[Score]]()
        try:
            for portion in self.plan.validation_cut.contiguous():
                under_way.append(asyncio.ensure_future(self._score_portion(number, portion)))
                if len(under_way) >= AHEAD * max(1, len(self.workforce.roster.workers)):
                    total += await under_way.popleft()
            while under_way:
                total += await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        return total

    async def _score_portion(self, number: int, portion: Portion) -> Score:
        """Score a portion, on another worker where the first one leaves or falls silent.

        Shards that move meanwhile take their copies along: then it is scored again from there.
        """
        for attempt in range(MOST_ATTEMPTS):
            workers = self.workforce.roster.workers or self.workforce.roster.answering
            if not workers:
                raise ShardLost("no worker is left to validate on")
            worker = workers[(portion.number + attempt) % len(workers)]
            score = await self._score_on(worker, number, portion)
            if score is not None:
                return score
        raise WorkerError(f"{portion.name} of validation was lost with {MOST_ATTEMPTS} workers")

    async def _score_on(self, worker: str, number: int, portion: Portion) -> Score | None:
        client, handle = self.workforce.client, self.server.handle
        supply = self.plan.validation_supply
        assert supply is not None
        blocks = await asyncio.to_thread(supply.futures, portion, workers=[worker])
        name = f"{self.plan.run}-{number}-{portion.number}-{uuid.uuid4().hex[:6]}"
        key = f"dbdask-validation-{name}"
        future = client.submit(
            evaluate_portion,
            self.plan.run,
            handle,
            number,
            portion,
            self.plan.job,
            *blocks,
            key=key,
            priority=10,
            workers=[worker],
        )
        task = asyncio.ensure_future(result_of(client, future))
        try:
            return task.result() if await self.workforce.attend(task, worker, key) else None
        except CancelledError:  # of the future: Dask knows nothing of it
            return None
        except RECOVERABLE:
            if self.server.holders == [[c.worker for c in s.copies] for s in handle.shards]:
                raise
            return None
        finally:
            blocks.clear()  # the traceback of an error may keep the list for ever
            task.cancel()
            future.release()
            supply.release(portion)

    async def check(self) -> None:
        """Take in a validation that ended; an error in the data comes out."""
        if self._task is not None and self._task.done():
            await self.settle()

    async def settle(self) -> None:
        """Wait until the validation under way has ended."""
        task, self._task = self._task, None
        if task is not None:
            await task

    async def give_up(self) -> None:
        """Abandon a validation: a shard that held its copy is lost."""
        task, self._task = self._task, None
        if task is not None:
            self._steps = -1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
