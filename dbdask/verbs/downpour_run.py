"""One Downpour run, on the client's event loop: hand out portions, take barriers, recover."""

import asyncio
import queue
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from dbdask.errors import TROUBLE, DataError, ShardLost, WorkerError
from dbdask.numbers import policies
from dbdask.numbers.checkpoint import Snapshot, VectorReference
from dbdask.numbers.history import Record
from dbdask.numbers.ledger import Row
from dbdask.numbers.optimizers import Optimizer
from dbdask.numbers.portions import Cut, Portion
from dbdask.server.initial import FromModel, FromSnapshot
from dbdask.server.parameter_server import Initial, ParameterServer
from dbdask.status import Status
from dbdask.verbs.barrier import Barrier
from dbdask.verbs.giving_up import RunLost
from dbdask.verbs.homes import most_elements, shard_homes, wait_for_homes
from dbdask.verbs.leaving import Leaving
from dbdask.verbs.outcome import (
    Outcome,
    brought_home,
    leave_nothing,
    where_it_stands,
    with_snapshot,
)
from dbdask.verbs.preflight import check_collectable, check_memory
from dbdask.verbs.recovery import Recovery
from dbdask.verbs.replica import PortionOrder, PortionReport, train_portion
from dbdask.verbs.roster import Roster
from dbdask.verbs.session import needs_workers
from dbdask.verbs.setting_up import set_up
from dbdask.verbs.snapshots import Snapshots
from dbdask.verbs.stream import PortionStream
from dbdask.verbs.tally import Tally
from dbdask.verbs.twins import Twins
from dbdask.verbs.validating import Validator
from dbdask.verbs.workforce import Workforce

TURN_SECONDS = 0.25


@dataclass(frozen=True)
class Plan:
    """Everything that `downpour` settled before the first task."""

    job: bytes
    model: bytes
    name: str
    size: int
    trained: tuple[tuple[int, int], ...]  # ranges of the flat vector; the rest are buffers
    optimizer: Optimizer
    cut: Cut
    validation_cut: Cut | None
    supply: Any
    validation_supply: Any
    start: np.ndarray | None
    run: str
    epochs: int
    batch_size: int
    warmstart: int
    target_loss: float | None
    replicas: int | None
    shards: int | None
    shard_copies: int
    workers: tuple[str, ...] | None
    shard_workers: tuple[str, ...] | None
    validate_steps: int | None
    validate_seconds: float | None
    keep: str
    path: str | None
    last: Snapshot | None
    snapshot_seconds: float
    max_refused: int
    replica_bytes: int
    seed: int
    settings: dict[str, Any]

    @property
    def total_examples(self) -> int:
        """Rows of all epochs together."""
        return self.epochs * int(self.settings["rows"])


class DownpourRun:
    """Algorithm 1.1 as its coordinator sees it."""

    def __init__(self, client: Any, plan: Plan) -> None:
        self.client, self.plan = client, plan
        self.records: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self.at_rest = threading.Event()
        self.stop_reason = ""
        self.tally = Tally(plan.last.state if plan.last else None, self.records.put)
        self.roster = Roster(client, plan.job, plan.path, plan.workers, plan.shard_workers)
        self.workforce = Workforce(client, plan.run, plan.job, plan.supply, self.roster)
        state: dict[str, Any] = plan.last.state if plan.last else {"epoch": 0, "finished": []}
        self.stream = PortionStream(
            lambda epoch: plan.cut.portions(plan.seed, epoch),
            plan.epochs,
            state["epoch"],
            [tuple(identity) for identity in state["finished"]],
        )
        self.barrier = Barrier(self)
        self.recovery = Recovery(self)
        self.leaving = Leaving(self)
        self.twins = Twins(self)

    def request_stop(self, reason: str) -> None:
        """Ask the run to come to rest; the first reason stays. Safe from any thread."""
        self.stop_reason = self.stop_reason or reason

    def forget_result(self) -> None:
        """The run goes back: a reason to stop that lay in its parameters is one no more."""
        if self.stop_reason in ("target", "bad_gradients"):
            self.stop_reason = ""

    async def work(self) -> Outcome:
        """Run to the end; whatever happens, leave nothing on the cluster."""
        try:
            await self._begin()
            return await self._to_the_end()
        except RunLost as error:
            raise ShardLost(str(error)) from None
        except TROUBLE as error:
            raise ShardLost(f"{error}; {self.where_it_stands()}") from error
        except (DataError, WorkerError) as error:
            raise with_snapshot(error, self) from error
        finally:
            await asyncio.shield(asyncio.ensure_future(leave_nothing(self)))

    # Beginning

    async def _begin(self) -> None:
        plan = self.plan
        await self.workforce.refresh(first=True)
        needs_workers(self.roster.workers)
        await wait_for_homes(self)
        homes = self.shard_homes()
        count = plan.shards or policies.shards_for(plan.size, len(homes))
        self._check_memory(count, len(homes))
        self.server = ParameterServer(
            self.client,
            plan.run,
            plan.size,
            count,
            plan.optimizer,
            copies=plan.shard_copies,
            trained=plan.trained,
        )
        self.snapshots = Snapshots(self.server, plan.path, plan.snapshot_seconds, plan.last)
        self.validator = Validator(self, plan.target_loss)
        self.leaving.begin()
        await set_up(self)

    async def make_shards(self) -> None:
        """Make every shard for the first time, and write the first snapshot."""
        plan = self.plan
        await self.server.place(self.initial(), self.shard_homes())
        self.twins.note()
        if plan.start is not None and plan.last is None:
            await self.server.assign(plan.start)
        if plan.path is not None and plan.last is None:
            await self._write()

    def initial(self) -> Initial:
        """Where shards start: the last committed snapshot, else the model's own numbers."""
        snapshot = self.snapshots.committed
        if snapshot is None:
            return FromModel(self.plan.model, self.plan.seed)
        state = snapshot.state
        rows = tuple(Row(*row) for row in state["ledger"])
        return FromSnapshot(snapshot.path, snapshot.group, state["applied"], rows, state["epoch"])

    def shard_homes(self) -> list[str]:
        """The workers that may be given shards now."""
        away = self.roster.away | self.leaving.workers
        return shard_homes(self.roster.facts, self.plan.shard_workers, away)

    def _check_memory(self, shards: int, homes: int) -> None:
        plan = self.plan
        check_collectable(plan.name, plan.size, plan.path)
        length = most_elements(plan.size, shards, homes, plan.shard_copies)
        slots, keeps_best = len(plan.optimizer.slots), plan.keep == "best"
        facts = list(self.roster.facts.values())
        copied = policies.shard_bytes(length, slots, keeps_best, copied=True)
        self.has_room_for_copies = all(
            plan.replica_bytes + copied <= worker.memory_limit or not worker.memory_limit
            for worker in facts
        )
        shard = policies.shard_bytes(length, slots, keeps_best, copied=False)
        check_memory(facts, plan.replica_bytes, shard, plan.name)

    # Training

    async def _turn(self) -> None:
        """One turn: hand out, take in, and whatever is due; trouble leads to a recovery."""
        try:
            self._hand_out()
            trouble = await self.take_in()
            if trouble:
                raise ShardLost(trouble)
            if self.leaving.due:
                await self.leaving.hand_on()
            elif self.twins.due:
                await self._make_twins()
            elif self.stream.epoch_finished:
                await self._end_epoch()
            elif self.snapshots.due or self.validator.due:
                await self._pause_and_copy(self.validator.due, self.snapshots.due)
            await self._check_background()
        except RunLost:
            raise
        except TROUBLE as error:
            await self.recovery.recover(str(error))

    @property
    def replicas(self) -> int | None:
        """How many replicas may run now: one while the warm start lasts."""
        return 1 if self.tally.steps < self.plan.warmstart else self.plan.replicas

    def _hand_out(self) -> None:
        """Give every worker that wants one its next portion."""
        for worker in self.workforce.free_places(self.replicas):
            portion = self.stream.take(worker)
            if portion is None:
                return
            self.give(portion, worker)

    def give(self, portion: Portion, worker: str, *, complete_only: bool = False) -> None:
        """Submit a portion to a worker, as an order to its replica."""
        warm = self.plan.warmstart - self.tally.steps
        order = PortionOrder(
            self.plan.run,
            self.server.handle,
            portion,
            self.stream.following(worker),
            self.workforce.places(worker, self.replicas),
            warm if warm > 0 else None,
            complete_only,
        )
        self.workforce.give(portion, train_portion, order, worker)

    async def take_in(self) -> str:
        """Take reports in; returns what went wrong with the shards, if anything did."""
        await self.workforce.refresh()
        trouble = ""
        for out, report in await self.workforce.ended(TURN_SECONDS):
            portion = out.work
            self._note(portion, report or PortionReport(portion.epoch, portion.number, out.worker))
            trouble = trouble or (report.trouble if report else "")
        for portion in await self.workforce.watch_silence():
            self.stream.hand_back(portion)
        gone = set(self.server.workers) - set(self.roster.everyone)
        return trouble or (f"worker {min(gone)} left, which held a shard" if gone else "")

    def _note(self, portion: Portion, report: PortionReport) -> None:
        if report.pushes or report.finished:  # a step that no shard took is none
            self.recovery.note_step()
        self.tally.add(report, self.stream.epoch, len(self.roster.workers), self.plan.replicas)
        if report.finished:
            self.stream.finish(portion)
        else:
            self.stream.hand_back(portion)
        if self.tally.refused >= self.plan.max_refused:
            self.request_stop("bad_gradients")
        if self.plan.validation_cut is None and self._reached(self.tally.last_loss):
            self.request_stop("target")

    def _reached(self, loss: float) -> bool:
        return self.plan.target_loss is not None and loss <= self.plan.target_loss

    # Barriers

    async def _make_twins(self) -> None:
        """A worker has come that can hold copies of shards: they are made while nothing moves."""
        await self.barrier.rest()
        await self.twins.make_at_new_generation()
        await self.barrier.release()

    async def _end_epoch(self) -> None:
        """All portions of the epoch are in: validate, and open the next epoch."""
        follows = self.validator.each_epoch or self.validator.due
        validate = self.plan.validation_cut is not None and follows
        if validate or self.snapshots.due:
            await self._pause_and_copy(validate, self.snapshots.due)
            if not self.stream.epoch_finished:
                return
        self.stream.next_epoch()
        await self.server.command("close_epochs", self.stream.epoch)

    async def _pause_and_copy(self, validate: bool, write: bool) -> None:
        """At a barrier every shard takes the same copy, to validate, to write, or both.

        Where memory is short the shards write while the run rests, without a copy.
        """
        await self.barrier.rest()
        copied = write and self.has_room_for_copies
        number = 0
        async with self.validator.choice:  # the best is the same one in every shard
            if validate or copied:
                users = int(validate) + int(copied)
                number = await self.snapshots.copy(users=users, whole=copied)
            if validate:
                self.validator.start(number, self.stream.epoch)
            if copied:
                names, state = self._state()
                self.snapshots.start_writing(number, names, state)
            elif write:
                await self._write()
        await self.barrier.release()

    def _state(self) -> tuple[list[str], dict[str, Any]]:
        """The vectors and the state that a snapshot taken now holds."""
        names = ["parameters", *self.plan.optimizer.slots]
        if self.validator.has_best:
            names.append("best")
        state = {
            **self.plan.settings,
            "run": self.plan.run,
            "generation": self.server.generation,
            "epoch": self.stream.epoch,
            "finished": sorted(list(identity) for identity in self.stream.finished),
            "ledger": [list(row) for row in self.barrier.standing.rows],
            "applied": self.barrier.standing.applied,
            "best": self.validator.best,
            **self.tally.state(),
        }
        return names, state

    async def _write(self) -> None:
        """Write the shards as they are; the run is at rest."""
        names, state = self._state()
        await self.snapshots.write_live(names, state)

    def where_it_stands(self) -> str:
        """What an error says of the run: its last snapshot, or what would have made one."""
        return where_it_stands(self)

    async def _check_background(self) -> None:
        """Let an error of writing or validating come out; trouble leads to recovery anyway."""
        writing = self.snapshots.writing
        if writing is not None and writing.done():
            self.snapshots.writing = None
            await writing
        await self.validator.check()

    # Conclusion

    async def _to_the_end(self) -> Outcome:
        """Train, and conclude; a loss on the way may have brought the run back into training."""
        while True:
            while not (self.stop_reason or self.stream.done):
                await self._turn()
            try:
                parameters = await self._last_words()
            except TROUBLE as error:
                await self.recovery.recover(repr(error))
            else:
                self.tally.settle(min(self.stream.epoch, self.plan.epochs - 1))
                return Outcome(parameters, self.tally.history, Status(*self._reason()))

    async def _last_words(self) -> Any:
        """Come to rest, validate for the last time, and bring the parameters home."""
        await self.barrier.rest()
        await self.validator.settle()
        await self.snapshots.settle()
        if self.plan.validation_cut is not None and self.validator.stale:
            number = await self.snapshots.copy(users=1, whole=False)
            self.validator.start(number, self.stream.epoch)
            await self.validator.settle()
        best = self.plan.keep == "best" and self.validator.has_best
        name = "best" if best else "parameters"
        if self.plan.path is None:
            return await self.server.read(name)
        if not self.stream.done or self.tally.steps_since_start or self.plan.last is None:
            await self._write()
        assert self.snapshots.committed is not None
        reference = VectorReference(self.plan.path, self.snapshots.committed.group, name)
        return await brought_home(reference, self.plan.size)

    def _reason(self) -> tuple[str, str]:
        reason = self.stop_reason or "epochs"
        messages = {
            "epochs": f"all {self.plan.epochs} epochs are done",
            "target": f"the loss reached target_loss={self.plan.target_loss}",
            "callback": "a callback stopped the run",
            "interrupted": "the run was interrupted",
            "bad_gradients": (
                f"{self.tally.refused} gradients were refused: {self.tally.last_refusal}"
            ),
        }
        return reason, messages[reason]
