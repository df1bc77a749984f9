"""One run of any method: its workers, its shards, its snapshots, and its work between two turns.

`Run` and `Method` stand in one module, because each names the other in its types.
"""

import queue
import threading
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from distributed import Client

from dbdask.errors import ShardLost
from dbdask.metrics.call_time import CallClock
from dbdask.metrics.history import Record
from dbdask.metrics.magnitudes import merged
from dbdask.optim.optimizers import Optimizer
from dbdask.rpc.deadlines import deadline
from dbdask.run.concluding import divergence
from dbdask.run.failures import TRAIN, VALIDATION
from dbdask.run.gangs import Gangs
from dbdask.run.outcome import read_if_small
from dbdask.run.parameter_server import Initial, ParameterServer
from dbdask.run.plan import Plan, SavedState
from dbdask.run.roster import Roster
from dbdask.run.shard_placement import ShardPlacement
from dbdask.run.slow_work import SlowWork
from dbdask.run.snapshots import Snapshots
from dbdask.run.tally import Tally
from dbdask.run.validating import Validator
from dbdask.run.workforce import Workforce
from dbdask.schedule.awake import AwakeClock
from dbdask.schedule.ledger import Row
from dbdask.status import Status
from dbdask.storage.checkpoint import VectorReference
from dbdask.worker.context import LONG_READ_SECONDS
from dbdask.worker.initial import FromModel, FromSnapshot, FromStored
from dbdask.worker.shard import ParameterShard

TURN_SECONDS = 0.25
STOPS_OF_USER = ("interrupted", "callback")


@dataclass(frozen=True)
class ShardKind:
    """The class and the update rule of a method's shards."""

    shard: type[ParameterShard]
    optimizer: Optimizer
    """The update rule that each shard applies to its own slice."""


class Memory(NamedTuple):
    """Bytes that a method needs on one worker."""

    replica: int
    shard: int
    """Of the fullest worker, while nothing is copied but the parameters."""
    copied_shard: int | None
    """The same while a snapshot copy is kept; None if the method writes without one."""


class Reached(NamedTuple):
    """How far a run has come, in the units that a loss of all shards takes back."""

    steps: int
    words: str
    """The same for an error: "after 12 updates"."""


class Method(Protocol):
    """A way of training: the part of a run that happens between two rests.

    A method has state of its own, and every call gives it the run that carries it. `advance` may
    raise `ShardLost` or `Stale` at any place. Then the run recovers, and calls `advance` again:
    with the state as it was then, or as `restore` has set it.
    """

    kind: ShardKind
    rolls_back_alone: bool
    """Whether one lost shard may go back to the last snapshot by itself; else all shards must."""
    progress_name: str
    """The name, for errors, of the progress that `Run.note_progress` counts: "step" or "pass"."""
    snapshots_await_validation: bool
    """Whether a snapshot is written only when the validation under way has ended."""

    @property
    def epoch(self) -> int:
        """Passes over the data before the one under way."""

    def memory(self, plan: Plan, length: int) -> Memory:
        """Return what a worker must hold with `length` elements of the flat vector."""

    def has_ended(self, run: "Run") -> bool:
        """Whether no work is left, or the run was asked to stop and may stop here."""

    async def advance(self, run: "Run") -> None:
        """Do the work of one turn; await `run.attend` where a snapshot may be taken."""

    async def rest(self, run: "Run") -> None:
        """Bring work in flight to a state that a snapshot may keep."""

    async def go_on(self, run: "Run") -> None:
        """Go on after a rest, or after a recovery."""

    def vectors(self) -> list[str]:
        """Return the names of the vectors that a snapshot keeps, `parameters` first."""

    def state(self) -> SavedState:
        """Return what a snapshot keeps of the method; it contains `applied`."""

    def restore(self, run: "Run", state: SavedState) -> None:
        """Go back to a snapshot's state, as all shards have done. The history keeps its counts."""

    def reached(self, run: "Run") -> Reached:
        """Return how far the run has come."""

    def end(self, run: "Run") -> Status:
        """Make the last record if one is due, and say why the run stopped."""


class Run:
    """Carries any method: roster, workforce, shards, snapshots, validation, and records.

    Nothing touches the cluster before `begin`.

    Parameters
    ----------
    client
        The Dask client.
    plan
        The arguments, checked and made whole.
    method
        The way of training.
    call
        The clock of the user's call; None starts one.
    """

    def __init__(
        self, client: Client, plan: Plan, method: Method, call: CallClock | None = None
    ) -> None:
        self.client, self.plan, self.method = client, plan, method
        self.records: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self.at_rest = threading.Event()  # set when nothing of the run is left on the cluster
        self.stop_reason = ""
        self.progress = 0
        self.has_room_for_copies = False
        self.call = CallClock() if call is None else call
        state = plan.last.state if plan.last else None
        self.tally = Tally(state, self.records.put, self.call, plan.partitions)
        roster = Roster(
            client,
            plan.job,
            plan.path,
            plan.workers,
            plan.shard_workers,
            least=plan.partitions,
        )
        self.roster = roster
        providers = {TRAIN: plan.provider}
        if plan.validation_provider is not None:
            providers[VALIDATION] = plan.validation_provider
        self.server = ParameterServer(
            client,
            plan.run,
            plan.size,
            method.kind.optimizer,
            method.kind.shard,
            plan.shard_copies,
            plan.trained,
            plan.buffers,
            plan.partition,
        )
        self.gangs = Gangs(
            client,
            plan.run,
            plan.job,
            roster,
            self.server.notices,
            lambda: self.server.handle,
            () if plan.partition is None else plan.partition.ranges,
            plan.replicas,
        )
        self.workforce = Workforce(client, plan.run, plan.job, providers, roster, gangs=self.gangs)
        self.slow_work = SlowWork()
        self.snapshots = Snapshots(
            self.server, plan.path, plan.snapshot_seconds, plan.last, plan.ownership
        )
        self.validator = Validator(
            plan, self.workforce, self.server, self.snapshots, self.tally, self.request_stop
        )
        self.placement = ShardPlacement(
            client,
            self.server,
            self.workforce,
            self.snapshots,
            self.tally,
            plan.shard_workers,
        )

    @property
    def clock(self) -> AwakeClock:
        """The clock of every deadline for others: it counts time in which this process ran."""
        return self.roster.clock

    @property
    def replicas(self) -> tuple[int, int | None]:
        """How many replicas the workers that are there can carry, and how many are wanted."""
        if self.plan.partition is None:
            return len(self.roster.workers), self.plan.replicas
        possible = len(self.roster.workers) // self.plan.partitions
        wanted = self.plan.replicas
        return possible, None if wanted is None else min(wanted, possible)

    def request_stop(self, reason: str) -> None:
        """Ask the run to come to rest; the first reason stays. Safe from any thread."""
        self.stop_reason = self.stop_reason or reason

    def forget_result(self) -> None:
        """Forget a reason to stop that the parameters gave, because the run goes back."""
        if self.stop_reason in ("target", "bad_gradients"):
            self.stop_reason = ""

    def note_progress(self) -> None:
        """Note progress that lasts: the next recovery is then not one in a row."""
        self.progress += 1

    def initial(self, start: np.ndarray | FromStored | None = None) -> Initial:
        """Return what shards are made from.

        Without a snapshot it is what the run starts from: parameters in a store, or the model's own
        numbers, which `start`, float32 (size,), replaces afterwards.
        """
        snapshot, partition = self.snapshots.committed, self.plan.partition
        table = None if partition is None else partition.table
        if snapshot is None:
            if isinstance(start, FromStored):
                return start
            return FromModel(self.plan.model, self.plan.seed, start is not None, table)
        state = snapshot.state
        rows = tuple(Row(*row) for row in state.get("ledger", ()))
        return FromSnapshot(
            snapshot.path, snapshot.group, state["applied"], rows, state.get("epoch", 0), table
        )

    # Work under way

    async def take_in(self, seconds: float = TURN_SECONDS) -> None:
        """Do one turn: take in the work that has ended, and take back what is given up.

        Parameters
        ----------
        seconds
            How long to wait for some work to end.

        Raises
        ------
        ShardLost
            A task lost a shard, or a worker left that held one.
        """
        self.validator.hand_out()
        await self.gangs.form(out.place for out in self.workforce.training)
        trouble = await self.workforce.turn(seconds)
        now, held = self.clock.seconds(), self.workforce.outstanding
        self.slow_work.look(now, held, stopping=bool(self.stop_reason))
        gone = set(self.server.workers) - set(self.roster.everyone)
        if gone and not trouble:
            trouble = f"worker {min(gone)} left, which held a shard"
        if trouble:
            raise ShardLost(trouble)
        await self.validator.conclude()

    async def check_workers(self) -> None:
        """Ask which workers are there and answer, so that no later step waits for a dead one."""
        await self.workforce.refresh(now=True)
        await self.workforce.check_workers()

    def give_up_long_reads(self) -> None:
        """Let tasks wait no longer for chunks that do not come, because the run is to stop.

        A validation that loses a read so ends without a score. This happens only if the user has
        stopped the run: a run that has reached its target waits for the score, up to `dbdask.read`.
        """
        names = [TRAIN, VALIDATION] if self.stop_reason in STOPS_OF_USER else [TRAIN]
        busy = {out.worker for out in self.workforce.outstanding if out.work.examples in names}
        self.server.notices.give_up_long_reads(sorted(busy & set(self.roster.answering)), names)

    async def end_training_tasks(self) -> None:
        """Cancel the workers' open calls to shards, and end every training task.

        A task whose call is cancelled ends with a report. Tasks that are still running after
        `dbdask.portion-end` are given up, and their work will be handed out again. No later call of
        this generation succeeds on those workers: the caller must advance the generation.
        """
        await self.server.notices.end_generation(self.roster.answering, self.server.generation)
        self.workforce.give_up_unsubmitted()
        until = self.clock.seconds() + deadline("portion-end")
        while self.workforce.training and self.clock.seconds() < until:
            await self.workforce.turn(TURN_SECONDS)
        self.workforce.give_up_all(TRAIN)
        self.gangs.end_all()

    # Work that is due when the method allows it

    async def attend(self, *, epoch_ended: bool) -> None:
        """Move shards, validate and write a snapshot, each if it is due.

        Parameters
        ----------
        epoch_ended
            Whether an epoch has ended, which a validation follows.
        """
        await self.attend_shards()
        follows = self.validator.due or (epoch_ended and self.validator.each_epoch)
        validate = self.plan.validation_cut is not None and follows
        if validate or self.snapshots.due:
            await self._rest_and_copy(validate, self.snapshots.due)
        await self.check_background()

    async def attend_shards(self) -> None:
        """Move the shards of leaving workers and make missing copies, while nothing is applied."""
        if not self.placement.due:
            return
        self.workforce.give_up_on(self.roster.closing)
        await self.method.rest(self)
        generation = self.server.generation
        self.validator.suspend()
        if self.workforce.training:  # the new shards need the workers' threads
            await self.end_training_tasks()
            generation += 1
        await self.placement.reconcile()
        if self.server.generation < generation:  # its calls were ended, and no shard has moved
            await self.server.advance()
        await self.method.go_on(self)

    async def _rest_and_copy(self, validate: bool, write: bool) -> None:
        """Have every shard copy its state at rest, to validate, to write, or both.

        If memory is short the shards write while the run rests, without a copy.
        """
        await self.method.rest(self)
        copied = write and self.has_room_for_copies
        if validate or copied:
            users = int(validate) + int(copied)
            number = await self.snapshots.copy(users=users, whole=copied)
        if validate:
            self.validator.start(number, self.method.epoch)
        if copied:
            self.snapshots.start_writing(number, *self._state(), self._why_not_good())
        if write and not copied:
            await self._write_at_rest()
        await self.method.go_on(self)

    async def _write_at_rest(self) -> None:
        if self.method.snapshots_await_validation:
            await self._finish_validation()
        await self.write()

    def _state(self) -> tuple[list[str], SavedState]:
        """Return the names of the vectors, and the state, that a snapshot taken now holds."""
        names = self.method.vectors()
        if self.validator.has_best:
            names.append("best")
        state = {
            **self.plan.settings,
            "run": self.plan.run,
            "generation": self.server.generation,
            "best": self.validator.best,
            **self.method.state(),
            **self.tally.state(),
        }
        return names, state

    async def write(self) -> None:
        """Write the shards as they are; the run is at rest."""
        await self.snapshots.write_live(*self._state(), self._why_not_good())

    async def write_end(self) -> str:
        """Write what the run ends with, and keep it if it is good; returns its group."""
        bad = "the run ends in bad_gradients" if self.stop_reason == "bad_gradients" else ""
        return await self.snapshots.write_end(*self._state(), bad or self._divergence())

    def _why_not_good(self) -> str:
        """Return why a snapshot that is taken now is not good, or ''. Refusals count once."""
        refused, self.tally.refused_lately = self.tally.refused_lately, 0
        if refused:
            return f"{refused} gradients were refused since the one before"
        return self._divergence()

    def _divergence(self) -> str:
        magnitudes = merged(list(self.tally.magnitudes.values()))
        return divergence(self.tally.history, self.plan.blind_loss(magnitudes))

    async def check_background(self) -> None:
        """Raise the error of a snapshot that was written beside training."""
        await self.snapshots.check()

    async def _finish_validation(self) -> None:
        """Return when no validation is under way."""
        while self.validator.is_busy:
            if self.stop_reason:
                self.give_up_long_reads()
            if self.stop_reason in STOPS_OF_USER:
                await self.validator.give_up_waiting(LONG_READ_SECONDS)
            await self.take_in()

    # Conclusion

    async def conclude(self) -> "np.ndarray | VectorReference":
        """Come to rest, validate for the last time, and return the parameters.

        They are float32 (parameters,), or a reference to them in the checkpoint.
        """
        plan = self.plan
        await self.method.rest(self)
        await self._finish_validation()
        await self.snapshots.settle()
        if plan.validation_cut is not None and self.validator.stale:
            number = await self.snapshots.copy(users=1, whole=False)
            self.validator.start(number, self.method.epoch)
            await self._finish_validation()
        self.call.enter("parameters")
        name = "best" if self.validator.has_best else "parameters"
        if plan.path is None:
            return plan.in_order_of_model(await self.server.read(name))
        assert self.snapshots.committed is not None
        group = self.snapshots.committed.group
        if plan.last is None or self.progress or self.stop_reason:
            group = await self.write_end()
        parameters = await read_if_small(VectorReference(plan.path, group, name), plan.size)
        if isinstance(parameters, np.ndarray):
            await self.snapshots.forget_bad(group)
        return parameters
