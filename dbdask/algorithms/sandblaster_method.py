"""Sandblaster L-BFGS on the coordinator's side: Algorithm 1.2 of the paper.

Scalars travel; vectors stay in the shards. L-BFGS is a generator: it yields requests, and is sent
the answers.
"""

import math
import time
from collections.abc import Generator
from dataclasses import asdict
from typing import Any

import numpy as np

from dbdask.algorithms.batch_status import batch_status
from dbdask.algorithms.gradient_pass import GradientPass, Interrupted, PassStatistics
from dbdask.errors import DataError
from dbdask.metrics.scores import NOTHING
from dbdask.optim.lbfgs import (
    Accepted,
    Evaluate,
    Request,
    Round,
    Settings,
    State,
    minimise,
    names_of,
)
from dbdask.optim.optimizers import sgd
from dbdask.optim.vectors import Command, merge_answers
from dbdask.run.plan import Plan, SavedState
from dbdask.run.run import Memory, Reached, Run, ShardKind
from dbdask.schedule import policies
from dbdask.schedule.portions import Cut
from dbdask.status import Status
from dbdask.storage.checkpoint import Snapshot
from dbdask.worker.batch_shard import BatchShard


class Sandblaster:
    """Serves the requests of L-BFGS: passes over the data, and commands on the shards' vectors.

    A request that trouble interrupts is served again if no shard is lost: a command under its
    number, which makes the repeat harmless, and a pass from its beginning.

    Parameters
    ----------
    settings
        The numbers of L-BFGS.
    cut
        Portions of the examples.
    last
        The snapshot to go on from.
    """

    kind = ShardKind(BatchShard, sgd(1.0))  # batch shards apply no update rule; sgd keeps no state
    rolls_back_alone = False  # curvature pairs, inner products and loss would belong to no point
    progress_name = "pass"
    snapshots_await_validation = True

    def __init__(self, settings: Settings, cut: Cut, last: Snapshot | None) -> None:
        self.settings = settings
        self.portions = cut.contiguous()
        self.statistics = PassStatistics()
        self.evaluating = self.commanding = 0.0  # seconds
        self.point = State()
        if last is not None:
            self._go_on_from(last.state)
        self._begin_anew()

    def _go_on_from(self, state: SavedState) -> None:
        totals = state["totals"]
        self._restore_point(state)
        self.statistics.go_on_from(totals)
        self.evaluating, self.commanding = totals["evaluating"], totals["commanding"]

    def _restore_point(self, state: SavedState) -> None:
        self.point = State(**state["method"])
        if not math.isfinite(self.point.loss):  # at the first point: it is evaluated anew
            self.point = State()
        passes = max(self.statistics.evaluations, self.point.evaluations)
        self.statistics.evaluations = passes  # their numbers are never used again

    def _begin_anew(self) -> None:
        """Begin L-BFGS anew at the current point."""
        self._steps: Generator[Request, Any, str] = minimise(self.point, self.settings)
        self._request: Request | None = None  # now served
        self._answer: Any = None  # to the request before
        self._number = 0  # of the command that serves the request; 0 before it is given
        self._whole: GradientPass | None = None  # a pass that the shards have yet to close
        self.reason = ""  # why L-BFGS has stopped

    @property
    def epoch(self) -> int:
        """Passes over the data before the last one; a rollback does not undo them."""
        return max(0, self.statistics.passes - 1)

    def memory(self, plan: Plan, length: int) -> Memory:
        """Return what a worker must hold with `length` elements of the flat vector."""
        keeps_best = plan.keep == "best"
        shard = policies.batch_shard_bytes(length, self.settings.history_length, keeps_best)
        return Memory(policies.replica_bytes(plan.replica_size, 2, 1), shard, None)

    # Algorithm 1.2

    def has_ended(self, run: Run) -> bool:
        """Whether L-BFGS has stopped."""
        return bool(self.reason)

    async def advance(self, run: Run) -> None:
        """Serve one request of L-BFGS: the next one, or the request that a loss has interrupted."""
        request = self._next_request(run) if self._request is None else self._request
        try:
            if isinstance(request, Evaluate):
                self._answer = await self._evaluate(run, request)
            elif isinstance(request, Round):
                self._answer = await self._command(run, request.commands)
            elif isinstance(request, Accepted):
                self._answer = await self._accept(run)
        except Interrupted:
            self.reason = "stopped" if run.stop_reason else ""
            return
        self._request = None

    def _next_request(self, run: Run) -> Request | None:
        """Send L-BFGS the last answer; return its next request, or None if it has stopped."""
        try:
            self._request = self._steps.send(self._answer)
        except StopIteration as done:
            self.reason = str(done.value)
            if self.statistics.refused > run.tally.refused:  # in a search that found no point
                self._note_point(run)
        else:
            self._number, self._whole = 0, None
            if isinstance(self._request, Accepted):
                self._note_point(run)
                if math.isfinite(self.point.loss):
                    self.statistics.last_refusal = ""  # what was refused before ended nothing
        return self._request

    async def _evaluate(self, run: Run, request: Evaluate) -> tuple[float, list[Any]]:
        """Accrue the gradient over the data: a pass, which the shards then close."""
        began = time.monotonic()
        try:
            work = self._whole = self._whole or await self._pass(run, request)
            sums, after = work.sums, request.after
            if sums.weight <= 0:
                raise DataError(NOTHING)
            found = work.number, len(work.done), sums.weight
            closing = *found, request.into, after, request.point
            answers = await self._repeatable(run, "close_pass", *closing)
        finally:
            self.evaluating += time.monotonic() - began
        run.note_progress()
        return sums.loss / sums.weight, merge_answers(after, answers)

    async def _pass(self, run: Run, request: Evaluate) -> GradientPass:
        """Try once to make a pass.

        Raises
        ------
        Interrupted
            The run was asked to stop, or shards have to move: then the pass is begun again.
        """
        await run.attend_shards()
        work = GradientPass(run, self.portions, self.statistics, request.point)
        await run.server.order("open_pass", work.number, request.before)
        await work.work()
        return work

    async def _command(self, run: Run, commands: tuple[Command, ...]) -> list[Any]:
        """Carry out commands on all shards, in one round trip."""
        began = time.monotonic()
        try:
            answers = await self._repeatable(run, "carry_out", commands)
        finally:
            self.commanding += time.monotonic() - began
        return merge_answers(commands, answers)

    async def _repeatable(self, run: Run, name: str, *arguments: Any) -> list[Any]:
        """Give the command that serves this request, under the number of its first try."""
        self._number = self._number or run.server.new_number()
        return await run.server.command(name, *arguments, number=self._number)

    async def _accept(self, run: Run) -> bool:
        """Validate and write at a new point, if due; return whether the run is to stop."""
        await run.attend(epoch_ended=not run.validator.is_busy)
        return bool(run.stop_reason)

    def _note_point(self, run: Run) -> None:
        point, statistics, tally = self.point, self.statistics, run.tally
        tally.steps, tally.examples = point.iteration, statistics.examples
        tally.dropped, tally.repeated = statistics.dropped, statistics.repeated
        tally.refused = statistics.refused
        tally.note_replicas(*run.replicas)
        tally.history.left_out = statistics.left_out
        tally.magnitudes = statistics.magnitudes
        tally.record(
            epoch=self.epoch,
            loss=point.loss,
            gradient_norm=float(np.sqrt(point.squared_norm)),
            iteration=point.iteration,
            step_length=point.step_length,
            evaluations=statistics.passes,
            bundles=statistics.bundles,
            backups_launched=statistics.backups_launched,
            backups_won=statistics.backups_won,
            seconds_evaluating=self.evaluating,
            seconds_commanding=self.commanding,
            **tally.seconds_columns(),
        )

    # Rests and snapshots

    async def rest(self, run: Run) -> None:
        """Do nothing: between two requests nothing changes the vectors."""

    async def go_on(self, run: Run) -> None:
        """Do nothing: a rest has held nothing up."""

    def vectors(self) -> list[str]:
        """Return the names of the point, its gradient, and the pairs."""
        return names_of(self.point)

    def state(self) -> SavedState:
        """Return the point's scalars, and the totals over passes."""
        seconds = {"evaluating": self.evaluating, "commanding": self.commanding}
        totals = self.statistics.totals() | seconds
        return {"method": asdict(self.point), "totals": totals, "applied": 0}

    def restore(self, run: Run, state: SavedState) -> None:
        """Go back to the last committed iteration. The history keeps its counts."""
        iteration = self.point.iteration
        self._steps.close()
        self._restore_point(state)
        self._begin_anew()
        run.tally.rolled_back += max(0, iteration - self.point.iteration)

    def reached(self, run: Run) -> Reached:
        """Return how many iterations were accepted."""
        return Reached(self.point.iteration, f"at iteration {self.point.iteration}")

    # The end

    def end(self, run: Run) -> Status:
        """Say why L-BFGS, or the run, stopped."""
        reason = run.stop_reason if self.reason == "stopped" else self.reason
        return batch_status(reason, self.settings, self.point, self.statistics)
