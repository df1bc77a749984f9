"""A model replica at work on one portion: Algorithm 1.1 of the paper, from the worker's side."""

from time import perf_counter
from typing import NamedTuple

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.data.block_provider import gather_blocks
from dbdask.data.feed import Minibatch
from dbdask.data.routes import Blocks, Piece
from dbdask.optim.gradients import clip
from dbdask.rpc.portable import portable_errors
from dbdask.worker.accrual import Accrual, AccruedGradients, Displacement, LocalRule
from dbdask.worker.context import Place, ReplicaSlot, WorkerContext, open_context
from dbdask.worker.link import Exchange, ServerLink
from dbdask.worker.portion_order import DownpourJob, PortionOrder, PortionReport
from dbdask.worker.reporting import reported, turn_of
from dbdask.worker.shard import Acknowledgement
from dbdask.worker.share import Beginning, Share, share_of
from dbdask.worker.timed_minibatches import TimedMinibatches


@portable_errors
def train_portion(order: PortionOrder, job: bytes, *blocks: Piece) -> PortionReport:
    """Train on one portion, from the step after the last that every shard has applied.

    Losing a shard, the end of the generation, or that of the gang ends the portion early with a
    report; only an error of the model or of the data raises.
    """
    began = perf_counter()
    context = open_context(order.run, job)
    report = PortionReport(order.portion.epoch, order.portion.number, context.worker.address)
    with (
        reported(order.member, report),
        turn_of(context, order.handle, order.member),
        context.replica_slot(order.replicas) as slot,
    ):
        _train(context, slot, order, report, gather_blocks(blocks), began)
    return report


def _train(
    context: WorkerContext,
    slot: ReplicaSlot,
    order: PortionOrder,
    report: PortionReport,
    blocks: Blocks,
    began: float,
) -> None:
    """Train in a slot, and note how long the set-up and everything else took."""
    portion = order.portion.identity
    share = share_of(context, order.handle, order.member, portion, report.spent)
    report.part = share.index
    try:
        beginning = share.begin(portion)
        if slot.ended is None:
            report.spent.set_up_since(began)
        report.first_step = report.next_step = beginning.first
        report.examples_before = beginning.first * context.job.batch_size
        if order.complete_only or not beginning.paused:
            _work(_Replica(context, slot, order, report, share, beginning), blocks)
    finally:
        report.spent.wait_since(began if slot.ended is None else slot.ended)
        slot.ended = perf_counter()


def _work(replica: "_Replica", blocks: Blocks) -> None:
    try:
        replica.work(blocks)
    finally:
        replica.give_up()


class _Fetch(NamedTuple):
    """A fetch under way, and the vector into which it goes."""

    exchange: Exchange[list[int]]
    vector: Float32Array


class _Push(NamedTuple):
    """A push under way: the last step that has accrued in it, and its vector."""

    exchange: Exchange[list[Acknowledgement]]
    step: int
    vector: Float32Array


class _Replica:
    """The loop of one portion: fetch, compute, push, with the buffers it runs on."""

    def __init__(
        self,
        context: WorkerContext,
        slot: ReplicaSlot,
        order: PortionOrder,
        report: PortionReport,
        share: Share,
        beginning: Beginning,
    ) -> None:
        self.context, self.slot, self.order, self.report = context, slot, order, report
        self.share = share
        assert isinstance(context.job, DownpourJob)
        self.job = context.job
        self.link: ServerLink = share.link
        self.fetching: _Fetch | None = None  # beside the computation
        self.pushing: _Push | None = None  # beside the computation
        self.first, self.paused = beginning.first, beginning.paused
        self.last = beginning.last if order.complete_only else 1 << 62  # step to do, at most
        self.batches = TimedMinibatches((), report.spent)
        self.is_fresh = False  # the last push brought the parameters along
        self.step = -1  # the last one done
        self.last_step = order.portion.steps(self.job.batch_size) - 1
        self.local, self.fetched = self._resumed(self.first)
        self.gradient = context.buffer(share.size)
        self.accrual = self._accrual(share.size)

    def work(self, blocks: Blocks) -> None:
        portion, job = self.order.portion, self.job
        reader = self.context.reader("train")
        batches = reader.minibatches(
            portion,
            job.batch_size,
            first_step=self.first,
            blocks=blocks,
            following=self.order.following,
        )
        self.batches = TimedMinibatches(batches, self.report.spent)
        self.report.finished = self._train(self.last)
        self._settle()
        self.report.left_out = reader.left_out(portion)
        self.report.magnitudes = reader.magnitudes
        if self.report.finished:
            in_all = self.report.examples if self.first == 0 else reader.kept(portion, blocks)
            self.report.examples_in_all, self.report.dropped = in_all, portion.rows - in_all
        kept = [] if self._stash() else [self.local]
        self.accrual.release()
        self.context.give_back(*kept, self.gradient)

    def _accrual(self, size: int) -> Accrual:
        """Return what this replica pushes: accrued gradients, or the displacement of own steps."""
        job = self.job
        if job.local_optimizer is None:
            return AccruedGradients(
                self.context,
                self.gradient,
                every_step=job.n_push == 1,
                local_rate=job.local_rate if job.n_fetch > 1 else 0.0,
            )
        trained = ((0, size),) if self.share.is_part else job.trained
        if self.slot.rule is None or self.slot.part != self.share.index:
            self.slot.rule = LocalRule(job.local_optimizer, size, trained)
            self.slot.part = self.share.index
        return Displacement(self.context, size, self.slot.rule)

    def _resumed(self, step: int) -> tuple[Float32Array, list[int]]:
        """Return the local parameters, and the versions of their fetch; none if a fetch is due.

        A replica that stopped before this step has kept its parameters, which the shards do not
        have. So one replica makes the same steps, whether snapshots stop it or not.
        """
        kept = self.context.resume(self._place(step))
        return (self.context.buffer(self.share.size), []) if kept is None else kept

    def _stash(self) -> bool:
        """Keep the local parameters for the task that resumes at the next step.

        Return whether they were kept. A replica that fetches before each step, or has finished,
        keeps none.
        """
        at_rest = self.report.next_step == self.step + 1 and not self.order.complete_only
        fetches_next = self.job.n_fetch == 1 or self.job.local_optimizer is not None
        if fetches_next or self.report.finished or not at_rest:
            return False
        self.context.stash(self._place(self.step + 1), self.local, self.fetched)
        return True

    def _place(self, step: int) -> Place:
        portion = self.order.portion
        generation = self.order.handle.generation
        return generation, portion.epoch, portion.number, step, self.share.index

    def _train(self, last: int) -> bool:
        """Work through the minibatches; True when the portion is finished."""
        most = self.order.most_steps
        step = self.report.next_step - 1
        for batch in self.batches:
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
        """Whether the portion goes back to the run here: at a boundary of fetches and pushes."""
        if len(self.report.refused) >= self.job.max_refused:
            self._flush(step)
            return True
        paused = self.share.is_pausing(self.paused)
        return paused and self._at_boundary(step) and not self.order.complete_only

    def _at_boundary(self, step: int) -> bool:
        """Whether nothing has accrued: a push never ends where a repeat of it would not."""
        return self.accrual.steps == 0 and (step + 1) % self.job.n_fetch == 0

    def _step(self, batch: Minibatch) -> None:
        """One minibatch: fetch when it is due, compute, judge, accrue, push when it is due."""
        with self.report.spent.on("fetching"):
            self._fetch_if_due(batch.step)
        if self.share.is_part and self._is_push_due(batch.step):
            self._await_push()  # before this step is decided: then no part pushes it too early
        with self.report.spent.on("computing"):
            self._compute(batch)
        if self.accrual.steps and self._is_push_due(batch.step):
            self._push(batch.step)

    def _is_push_due(self, step: int) -> bool:
        return (step + 1) % self.job.n_push == 0

    def _compute(self, batch: Minibatch) -> None:
        """Compute the gradient of a minibatch, judge it, and accrue it."""
        job, identity = self.job, self.order.portion.identity
        self.share.note_pause(self.paused)
        found = self.share.minibatch(
            self.local, batch, identity, gradient=self.gradient, as_mean=True
        )
        self.report.steps += 1
        self.report.examples += len(batch.inputs)
        if found.bad:
            self.report.refused.append((batch.step, found.bad))
        elif found.weight > 0:
            self._note(found.loss, found.weight, found.norm)
            clip(self.gradient, found.norm, job.clip_norm)
            self.accrual.add(self.local, self.gradient)
            self.share.write_buffers(self.local)

    def _fetch_if_due(self, step: int) -> None:
        """Have fresh parameters at the steps where the paper fetches.

        With n_fetch = 1, or steps of a local optimiser, the fetch is waited for. Otherwise it runs
        beside one minibatch and is installed before the next: at a fixed step, so that one replica
        is reproducible.
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
            self._fetch()
        elif step % self.job.n_fetch == 0:
            self._await_push()
            if self.job.n_fetch == 1 or self.job.local_optimizer is not None:
                self._fetch()
            else:
                vector = self.context.buffer(self.local.size)
                self.fetching = _Fetch(self.link.start_fetch(vector), vector)

    def _fetch(self) -> None:
        """Fetch the parameters and wait for them."""
        self.accrual.leaving(self.local)
        self.fetched = self.link.wait(self.link.start_fetch(self.local))
        self.accrual.arrived(self.local)

    def _note(self, loss: float, weight: float, norm: float) -> None:
        if not self.report.weight:
            self.report.first_loss = loss / weight
        self.report.loss += loss
        self.report.weight += weight
        self.report.squared_norms += norm * norm
        self.report.good += 1

    def _push(self, step: int) -> None:
        """Push what has accrued under the identity of its last step.

        A fetch under way ends first: what it brings is what was there before this push, however
        slow the network is.
        """
        self._await_push()
        if self.fetching is not None:
            self.link.wait(self.fetching.exchange)
        identity = (self.order.portion.epoch, self.order.portion.number, step)
        vector = self.accrual.take(self.local)
        if self.job.local_optimizer is not None and not self._is_finite(vector):
            self._start_anew(step, vector)
            return
        self.share.copy_buffers(vector, self.local)
        self.is_fresh = self._brings_parameters(step)
        into = self.local if self.is_fresh else None
        with self.report.spent.on("pushing"):
            exchange = self.link.start_push(identity, vector, self.fetched, into)
        self.pushing = _Push(exchange, step, vector)
        if self.job.n_push == 1 or self.is_fresh:
            self.batches.read_ahead()  # while the shards apply the gradient
            self._await_push()

    def _is_finite(self, vector: Float32Array) -> bool:
        """Whether a displacement is finite, in all parts."""
        return self.share.agrees(bool(np.isfinite(np.sum(vector, dtype=float))))

    def _start_anew(self, step: int, vector: Float32Array) -> None:
        """Refuse a displacement that is not finite, and forget where the local steps have led."""
        self.report.refused.append((step, "the displacement by local_optimizer"))
        self.accrual.pushed(vector)
        self.accrual.release()
        self.slot.rule, self.fetched = None, []
        self.accrual = self._accrual(self.local.size)

    def _brings_parameters(self, step: int) -> bool:
        """Whether the answer to a push brings the parameters, because the next step fetches."""
        job = self.job
        every_push = job.n_fetch == job.n_push and (job.n_push == 1 or job.local_optimizer)
        at_boundary = (step + 1) % job.n_push == 0
        return bool(every_push) and at_boundary and step < self.last_step and not self.paused

    def _await_push(self) -> None:
        """Wait until every shard has acknowledged the push under way."""
        if self.pushing is None:
            return
        exchange, step, vector = self.pushing
        with self.report.spent.on("pushing"):
            acknowledgements = self.link.wait(exchange)
        self.pushing = None
        self.accrual.pushed(vector)
        if self.is_fresh:
            self.fetched = [a.version for a in acknowledgements]
            self.accrual.arrived(self.local)
        self.report.next_step = step + 1
        self.report.staleness.extend(a.staleness for a in acknowledgements if a.staleness >= 0)
        is_repeat = any(a.staleness < 0 for a in acknowledgements)
        self.report.repeated += is_repeat
        self.report.pushes += not is_repeat
        self.paused = self.paused or any(a.pause for a in acknowledgements)

    def _flush(self, step: int) -> None:
        """Push what is left over when the portion ends between two pushes."""
        if self.accrual.steps:
            self._push(step)

    def give_up(self) -> None:
        """End the calls that an error has left under way; their buffers are never used again."""
        if self.fetching is not None:
            self.link.give_up(self.fetching.exchange)
        if self.pushing is not None:
            self.link.give_up(self.pushing.exchange)

    def _settle(self) -> None:
        """Leave no call under way."""
        self._await_push()
        if self.fetching is not None:
            exchange, vector = self.fetching
            self.link.wait(exchange)
            self.fetching = None
            self.context.give_back(vector)
