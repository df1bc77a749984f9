"""A model replica at work on one portion: Algorithm 1.1 of the paper, from the worker's side."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dbdask.data.block_provider import gather_blocks
from dbdask.data.examples import Examples
from dbdask.data.feed import Minibatch
from dbdask.data.routes import Blocks, Piece
from dbdask.data.waiting import ReadGivenUp
from dbdask.errors import RECOVERABLE
from dbdask.metrics.magnitudes import Magnitude
from dbdask.models.evaluation import Evaluator
from dbdask.models.model import Model
from dbdask.optim.gradients import clip
from dbdask.optim.optimizers import Optimizer
from dbdask.rpc.portable import portable_errors
from dbdask.schedule.left_out import LeftOut
from dbdask.schedule.portions import Portion
from dbdask.worker.context import Place, WorkerContext, open_context
from dbdask.worker.link import ServerHandle, ServerLink


@dataclass(frozen=True)
class DownpourJob:
    """What every replica of a run needs; it travels pickled and is opened once a worker."""

    model: Model
    train: Examples
    validation: Examples | None
    deviation: np.ndarray | float  # one unit of a scaled target, in its own units
    batch_size: int
    n_fetch: int
    n_push: int
    local_rate: float
    clip_norm: float | None
    max_refused: int
    seed: int
    optimizer: Optimizer  # of the shards: a worker that cannot unpickle it is told so, and named


@dataclass(frozen=True)
class PortionOrder:
    """One portion to work through, and what its worker may begin to read."""

    run: str
    handle: ServerHandle
    portion: Portion
    following: Portion | None
    replicas: int  # places on this worker
    most_steps: int | None  # hand the portion back after so many steps (warm start)
    complete_only: bool  # only bring all shards to the last step that one of them has


@dataclass
class PortionReport:
    """What a portion's task tells the verb: scalars only."""

    epoch: int
    number: int
    worker: str
    first_step: int = 0  # the one it began with: those before had been applied
    examples_before: int = 0  # in the steps before it
    next_step: int = 0
    finished: bool = False
    trouble: str = ""  # why the portion ended early, when a shard or the generation was lost
    steps: int = 0
    pushes: int = 0  # acknowledged by every shard, and new to all of them
    examples: int = 0
    loss: float = 0.0  # summed over minibatches: mean loss times weight
    weight: float = 0.0
    squared_norms: float = 0.0
    staleness: list[int] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)  # step, parameter
    examples_in_all: int = 0  # of a portion that is finished, whoever trained on them
    dropped: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    repeated: int = 0
    first_loss: float = math.nan  # of the first minibatch that counts
    magnitudes: tuple[Magnitude, ...] = ()

    @property
    def ends_refused(self) -> bool:
        """Whether the last tenth of its steps, or more, was refused: it has diverged by then."""
        steps = {step for step, _ in self.refused}
        last = self.first_step + self.steps - 1
        tail = range(last, last - max(1, self.steps // 10), -1)
        return self.steps > 0 and all(step in steps for step in tail)


@portable_errors
def train_portion(order: PortionOrder, job: bytes, *blocks: Piece) -> PortionReport:
    """Train on one portion, from the step after the last that every shard has applied.

    Losing a shard, or the end of the generation, ends the portion early with a report; only an
    error of the model or of the data raises.
    """
    context = open_context(order.run, job)
    report = PortionReport(order.portion.epoch, order.portion.number, context.worker.address)
    with context.replica_slot(order.replicas):
        replica = _Replica(context, order, report)
        try:
            replica.work(gather_blocks(blocks))
        except RECOVERABLE as trouble:
            report.trouble = f"{type(trouble).__name__}: {trouble}"
        except ReadGivenUp:  # between two steps: the portion goes back as it is in the shards
            report.finished = False
        finally:
            replica.give_up()
    return report


class _Replica:
    """The loop of one portion: fetch, compute, push, with the buffers it runs on."""

    def __init__(self, context: WorkerContext, order: PortionOrder, report: PortionReport) -> None:
        self.context, self.order, self.report = context, order, report
        assert isinstance(context.job, DownpourJob)
        self.job = context.job
        self.evaluator = Evaluator(self.job.model, self.job.seed)
        self.link: ServerLink = context.link(order.handle)
        self.fetched: list[int] = []
        self.fetching: Any = None  # (exchange, vector) of a fetch beside the computation
        self.pushing: Any = None  # (exchange, step, vector) of a push beside the computation
        self.paused = False
        self.accrued_steps = 0
        self.is_fresh = False  # the last push brought the parameters along
        self.step = -1  # the last one done
        self.last_step = order.portion.steps(self.job.batch_size) - 1

    def work(self, blocks: Blocks) -> None:
        portion, job = self.order.portion, self.job
        first, last = self._resume_steps()
        if self.paused and not self.order.complete_only:
            return
        size = self.order.handle.size
        self._resume(first)
        self.gradient = self.context.buffer(size)
        self.accrued = self.gradient if job.n_push == 1 else self.context.buffer(size)
        reader = self.context.reader("train")
        batches = reader.minibatches(
            portion,
            job.batch_size,
            first_step=first,
            blocks=blocks,
            following=self.order.following,
        )
        self.report.finished = self._train(batches, last)
        self._settle()
        self.report.left_out = reader.left_out(portion)
        self.report.magnitudes = reader.magnitudes
        if self.report.finished:
            in_all = self.report.examples if first == 0 else reader.kept(portion, blocks)
            self.report.examples_in_all, self.report.dropped = in_all, portion.rows - in_all
        kept = [] if self._leave() else [self.local]
        self.context.give_back(*{id(v): v for v in (*kept, self.gradient, self.accrued)}.values())

    def _resume(self, step: int) -> None:
        """Go on with the parameters that were stopped with here: they are not yet those of shards.

        So one replica makes the same steps, whether snapshots stop it or not.
        """
        left = self.context.resume(self._place(step))
        self.local = self.context.buffer(self.order.handle.size) if left is None else left[0]
        self.fetched = [] if left is None else left[1]

    def _leave(self) -> bool:
        """Keep the parameters where this replica stops, and fetches only now and then."""
        at_rest = self.report.next_step == self.step + 1 and not self.order.complete_only
        if self.job.n_fetch == 1 or self.report.finished or not at_rest:
            return False
        self.context.stash(self._place(self.step + 1), self.local, self.fetched)
        return True

    def _place(self, step: int) -> Place:
        portion = self.order.portion
        return self.order.handle.generation, portion.epoch, portion.number, step

    def _resume_steps(self) -> tuple[int, int]:
        """The step to start with, and the last one to do (beyond any, unless completing)."""
        portion = self.order.portion
        progress = self.link.progress(portion.epoch, portion.number)
        steps = [shard.last_step for shard in progress]
        self.paused = any(shard.pause for shard in progress)
        first = self.report.first_step = self.report.next_step = min(steps) + 1
        self.report.examples_before = first * self.job.batch_size
        return first, max(steps) if self.order.complete_only else 1 << 62

    def _train(self, batches: Iterable[Minibatch], last: int) -> bool:
        """Work through the minibatches; True when the portion is finished."""
        most = self.order.most_steps
        step = self.report.next_step - 1
        for batch in batches:
            step = batch.step
            if step > last:
                return False
            self._step(batch)
            self.step = step
            if self._must_stop(step, last):
                return False
            if most is not None and self.report.steps >= most and self._at_boundary(step):
                return False
        self._flush(step)
        return not self.order.complete_only

    def _must_stop(self, step: int, last: int) -> bool:
        """Whether the portion goes back to the verb here: at a boundary of fetches and pushes."""
        if len(self.report.refused) >= self.job.max_refused:
            self._flush(step)
            return True
        return self.paused and self._at_boundary(step) and not self.order.complete_only

    def _at_boundary(self, step: int) -> bool:
        """Whether nothing has accrued: a push never ends where a repeat of it would not."""
        return self.accrued_steps == 0 and (step + 1) % self.job.n_fetch == 0

    def _step(self, batch: Minibatch) -> None:
        """One minibatch: fetch when it is due, compute, judge, accrue, push when it is due."""
        self._fetch_if_due(batch.step)
        job, portion = self.job, self.order.portion
        found = self.evaluator.minibatch(
            self.local, batch, portion.identity, gradient=self.gradient, as_mean=True
        )
        self.report.steps += 1
        self.report.examples += len(batch.inputs)
        if found.bad:
            self.report.refused.append((batch.step, found.bad))
        elif found.weight > 0:
            self._note(found.loss, found.weight, found.norm)
            clip(self.gradient, found.norm, job.clip_norm)
            self._accrue()
            self.evaluator.updates.write(self.local)
        if self.accrued_steps and (batch.step + 1) % job.n_push == 0:
            self._push(batch.step)

    def _fetch_if_due(self, step: int) -> None:
        """Have fresh parameters at the steps where the paper fetches.

        With n_fetch = 1 the fetch is waited for. Otherwise it runs beside one minibatch and is
        installed before the next: at a fixed step, so that one replica is reproducible.
        """
        if self.fetching is not None:
            exchange, vector = self.fetching
            self.fetched = self.link.wait(exchange)
            self.fetching = None
            self.context.give_back(self.local)
            self.local = vector
        if self.is_fresh:
            self.is_fresh = False
        elif not self.fetched:
            self.fetched = self.link.wait(self.link.start_fetch(self.local))
        elif step % self.job.n_fetch == 0:
            self._await_push()
            if self.job.n_fetch == 1:
                self.fetched = self.link.wait(self.link.start_fetch(self.local))
            else:
                vector = self.context.buffer(self.local.size)
                self.fetching = self.link.start_fetch(vector), vector

    def _note(self, loss: float, weight: float, norm: float) -> None:
        if not self.report.weight:
            self.report.first_loss = loss / weight
        self.report.loss += loss
        self.report.weight += weight
        self.report.squared_norms += norm * norm

    def _accrue(self) -> None:
        """Add the minibatch's mean gradient to the accrued one, and step the local copy."""
        if self.job.n_fetch > 1 and self.job.local_rate:
            self.local -= np.float32(self.job.local_rate) * self.gradient
        if self.accrued is not self.gradient:
            if self.accrued_steps == 0:
                np.copyto(self.accrued, self.gradient)
            else:
                self.accrued += self.gradient
        self.accrued_steps += 1

    def _push(self, step: int) -> None:
        """Push what has accrued under the identity of its last step.

        A fetch under way ends first: what it brings is what was there before this push, however
        slow the network is.
        """
        self._await_push()
        if self.fetching is not None:
            self.link.wait(self.fetching[0])
        identity = (self.order.portion.epoch, self.order.portion.number, step)
        every_step = self.job.n_fetch == 1 and self.job.n_push == 1
        self.is_fresh = every_step and step < self.last_step and not self.paused
        into = self.local if self.is_fresh else None
        self.evaluator.updates.copy(self.accrued, self.local)
        exchange = self.link.start_push(identity, self.accrued, self.fetched, into)
        self.pushing = exchange, step, self.accrued
        self.accrued_steps = 0
        if self.job.n_push == 1:
            self._await_push()
        else:
            self.accrued = self.context.buffer(self.gradient.size)

    def _await_push(self) -> None:
        """Wait until every shard has acknowledged the push under way."""
        if self.pushing is None:
            return
        exchange, step, vector = self.pushing
        acknowledgements = self.link.wait(exchange)
        self.pushing = None
        if vector is not self.gradient:
            self.context.give_back(vector)
        if self.is_fresh:
            self.fetched = [a.version for a in acknowledgements]
        self.report.next_step = step + 1
        self.report.staleness.extend(a.staleness for a in acknowledgements if a.staleness >= 0)
        is_repeat = any(a.staleness < 0 for a in acknowledgements)
        self.report.repeated += is_repeat
        self.report.pushes += not is_repeat
        self.paused = self.paused or any(a.pause for a in acknowledgements)

    def _flush(self, step: int) -> None:
        """Push what is left over when the portion ends between two pushes."""
        if self.accrued_steps:
            self._push(step)

    def give_up(self) -> None:
        """End the calls that an error has left under way; their buffers are never used again."""
        for started in (self.fetching, self.pushing):
            if started is not None:
                self.link.give_up(started[0])

    def _settle(self) -> None:
        """Leave no call under way."""
        self._await_push()
        if self.fetching is not None:
            exchange, vector = self.fetching
            self.link.wait(exchange)
            self.fetching = None
            self.context.give_back(vector)
