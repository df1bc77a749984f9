"""Downpour SGD on the coordinator's side: Algorithm 1.1 of the paper."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from dbdask.algorithms.barrier import Barrier
from dbdask.algorithms.stream import PortionStream
from dbdask.optim.optimizers import Optimizer
from dbdask.run.joint_work import ByParts
from dbdask.run.plan import Plan, SavedState
from dbdask.run.run import Memory, Reached, Run, ShardKind
from dbdask.schedule import policies
from dbdask.schedule.portions import Cut, Portion
from dbdask.status import Status
from dbdask.storage.checkpoint import Snapshot
from dbdask.worker.portion_order import PortionOrder, PortionReport, merged
from dbdask.worker.replica import train_portion
from dbdask.worker.shard import ParameterShard


class Downpour:
    """Replicas train on portions and push to the shards; none waits for another.

    Parameters
    ----------
    optimizer
        The update rule of the shards.
    cut
        Portions of the examples.
    seed
        Decides their order.
    epochs
        Passes over the data in all.
    warmstart
        Minibatches that one replica trains alone.
    target_loss
        A training loss of at most this stops the run; None if validation decides.
    max_refused
        Bad gradients after which the run stops.
    replica_bytes
        What a replica holds on its worker.
    last
        The snapshot to go on from.
    """

    rolls_back_alone = True
    progress_name = "step"
    snapshots_await_validation = False

    def __init__(
        self,
        optimizer: Optimizer,
        cut: Cut,
        seed: int,
        *,
        epochs: int,
        warmstart: int,
        target_loss: float | None,
        max_refused: int,
        replica_bytes: int,
        last: Snapshot | None,
    ) -> None:
        self.kind = ShardKind(ParameterShard, optimizer)
        self.epochs, self.warmstart, self.target_loss = epochs, warmstart, target_loss
        self.max_refused, self.replica_bytes = max_refused, replica_bytes
        state: SavedState = last.state if last else {"epoch": 0, "finished": []}

        def portions_of(epoch: int) -> Sequence[Portion]:
            return cut.portions(seed, epoch)

        self.stream = PortionStream(
            portions_of, epochs, state["epoch"], [tuple(done) for done in state["finished"]]
        )
        self.barrier = Barrier(self.stream, self._complete)

    @property
    def epoch(self) -> int:
        """The epoch that is under way."""
        return self.stream.epoch

    def memory(self, plan: Plan, length: int) -> Memory:
        """Return what a worker must hold with `length` elements of the flat vector."""
        slots, keeps_best = len(self.kind.optimizer.slots), plan.keep == "best"
        validates = plan.validation_cut is not None
        plain, copied = (
            policies.shard_bytes(length, slots, keeps_best, copied=copied, validates=validates)
            for copied in (False, True)
        )
        return Memory(self.replica_bytes, plain, copied)

    # Algorithm 1.1

    def has_ended(self, run: Run) -> bool:
        """Whether every epoch is finished, or the run was asked to stop."""
        return bool(run.stop_reason) or self.stream.done

    async def advance(self, run: Run) -> None:
        """Give portions to replicas that are free, take in their reports, and end the epoch."""
        self._hand_out(run)
        await run.take_in()
        await run.attend(epoch_ended=self.stream.epoch_finished)
        if self.stream.epoch_finished:
            self.stream.next_epoch()
            await run.server.command("close_epochs", self.stream.epoch)

    def _hand_out(self, run: Run) -> None:
        """Give its next portion to every worker that wants one."""
        for worker in run.workforce.free_places(self._replicas(run)):
            portion = self.stream.take(worker)
            if portion is None:
                return
            self._give(run, portion, worker)

    def _replicas(self, run: Run) -> int | None:
        """Return how many replicas may run now: one during the warm start."""
        return 1 if run.tally.steps < self.warmstart else run.plan.replicas

    def _give(
        self, run: Run, portion: Portion, worker: str, *, complete_only: bool = False
    ) -> None:
        """Submit a portion to a worker, as an order to its replica."""
        warm = self.warmstart - run.tally.steps
        order = PortionOrder(
            run.plan.run,
            run.server.handle,
            portion,
            self.stream.following(worker),
            run.workforce.places(worker, self._replicas(run)),
            warm if warm > 0 else None,
            complete_only,
        )
        run.workforce.give(
            portion,
            train_portion,
            order,
            worker,
            take=partial(self._take, run, portion, worker),
            take_back=partial(self.stream.hand_back, portion),
            by_parts=ByParts(lambda member: replace(order, member=member), merged),
        )

    def _take(self, run: Run, portion: Portion, worker: str, report: PortionReport | None) -> str:
        """Count what a replica did, and finish its portion or hand it back."""
        report = report or PortionReport(portion.epoch, portion.number, worker)
        if report.pushes or report.finished:  # a step that no shard took is no progress
            run.note_progress()
        run.tally.add(report, self.stream.epoch, *run.replicas)
        if report.finished:
            self.stream.finish(portion)
        else:
            self.stream.hand_back(portion)
        if run.tally.refused_since_start >= self.max_refused:
            run.request_stop("bad_gradients")
        if self.target_loss is not None and run.tally.last_loss <= self.target_loss:
            run.request_stop("target")
        return report.trouble

    # Rests and snapshots

    async def rest(self, run: Run) -> None:
        """Have every replica stop between two steps, and every shard hold the same steps."""
        await self.barrier.rest(run)

    def _complete(self, run: Run, portion: Portion, worker: str) -> None:
        self._give(run, portion, worker, complete_only=True)

    async def go_on(self, run: Run) -> None:
        """Let replicas go on."""
        await self.barrier.release(run)

    def vectors(self) -> list[str]:
        """Return the names of the parameters and the optimiser's state."""
        return ["parameters", *self.kind.optimizer.slots]

    def state(self) -> SavedState:
        """Return the position in the data, and the shards' progress, at the last rest."""
        progress = self.barrier.progress
        return {
            "epoch": self.stream.epoch,
            "finished": sorted(list(identity) for identity in self.stream.finished),
            "ledger": [list(row) for row in progress.rows],
            "applied": progress.applied,
        }

    def restore(self, run: Run, state: SavedState) -> None:
        """Go back to a snapshot: portions that were finished since are trained again."""
        run.tally.go_back(state)
        self.stream.restart(state["epoch"], [tuple(done) for done in state["finished"]])

    def reached(self, run: Run) -> Reached:
        """Return how many updates the shards have applied."""
        return Reached(run.tally.applied, f"after {run.tally.applied} updates")

    # The end

    def end(self, run: Run) -> Status:
        """Record what was counted last, and say why the run stopped."""
        run.tally.settle(min(self.stream.epoch, self.epochs - 1))
        reason = run.stop_reason or "epochs"
        messages = {
            "epochs": f"all {self.epochs} epochs are done",
            "target": f"the loss reached target_loss={run.plan.target_loss}",
            "callback": "a callback stopped the run",
            "interrupted": "the run was interrupted",
            "bad_gradients": (
                f"{run.tally.refused_since_start} gradients were refused, the last in "
                f"{run.tally.last_refusal}"
            ),
        }
        return Status(reason, messages[reason])
