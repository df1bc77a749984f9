"""One Downpour run, on the client's event loop: hand out portions, take barriers, recover."""

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dbdask.errors import ShardLost, WorkerError
from dbdask.numbers import policies
from dbdask.numbers.checkpoint import Snapshot, VectorReference
from dbdask.numbers.history import History, Record
from dbdask.numbers.optimizers import Optimizer
from dbdask.numbers.portions import Cut, Portion
from dbdask.server.deadlines import deadline
from dbdask.server.initial import FromModel, FromSnapshot
from dbdask.server.parameter_server import TROUBLE, Initial, ParameterServer
from dbdask.status import Status
from dbdask.verbs.preflight import check_memory
from dbdask.verbs.replica import PortionOrder, PortionReport
from dbdask.verbs.session import needs_workers
from dbdask.verbs.snapshots import Snapshots
from dbdask.verbs.stream import PortionStream
from dbdask.verbs.tally import Tally
from dbdask.verbs.validating import Validator
from dbdask.verbs.workforce import Workforce

logger = logging.getLogger("dbdask")

TURN_SECONDS = 0.25
MOST_RECOVERIES = 3  # without a step between them
LARGEST_WITHOUT_CHECKPOINT = 2**30  # bytes of parameters that are collected in the client


@dataclass(frozen=True)
class Plan:
    """Everything that `downpour` settled before the first task."""

    job: bytes
    model: bytes
    name: str
    size: int
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


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: where the parameters are, its history, and why it stopped."""

    parameters: Any
    history: History
    status: Status


class DownpourRun:
    """Algorithm 1.1 as its coordinator sees it."""

    def __init__(self, client: Any, plan: Plan) -> None:
        self.client, self.plan = client, plan
        self.records: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self.at_rest = threading.Event()
        self.stop_reason = ""
        self.tally = Tally(plan.last.state if plan.last else None, self.records.put)
        self.workforce = Workforce(
            client, plan.run, plan.job, plan.path, plan.replicas, plan.workers, plan.supply
        )
        state: dict[str, Any] = plan.last.state if plan.last else {"epoch": 0, "finished": []}
        self.stream = PortionStream(
            lambda epoch: plan.cut.portions(plan.seed, epoch),
            plan.epochs,
            state["epoch"],
            [tuple(identity) for identity in state["finished"]],
        )
        self.recoveries = 0

    def request_stop(self, reason: str) -> None:
        """Ask the run to come to rest; the first reason stays. Safe from any thread."""
        self.stop_reason = self.stop_reason or reason

    async def work(self) -> Outcome:
        """Run to the end; whatever happens, leave nothing on the cluster."""
        try:
            await self._begin()
            while not (self.stop_reason or self.stream.done):
                await self._guarded(self._turn)
            return await self._conclude()
        except TROUBLE as error:
            raise self._lost(error) from error
        finally:
            await asyncio.shield(asyncio.ensure_future(self._release()))

    # Beginning

    async def _begin(self) -> None:
        plan = self.plan
        await self.workforce.refresh(first=True)
        needs_workers(self.workforce.workers)
        homes = self._shard_homes()
        count = plan.shards or policies.shards_for(plan.size, len(homes))
        self._check_memory(count, len(homes))
        self.server = ParameterServer(self.client, plan.run, plan.size, count, plan.optimizer)
        self.snapshots = Snapshots(self.server, plan.path, plan.snapshot_seconds, plan.last)
        self.validator = Validator(self)
        await self.server.place(self._initial(), homes)
        if plan.start is not None and plan.last is None:
            await self.server.assign(plan.start)
        if plan.path is not None and plan.last is None:
            await self._write(await self.snapshots.copy(users=1))

    def _initial(self) -> Initial:
        """Where shards start: the last committed snapshot, else the model's own numbers."""
        snapshot = self.snapshots.committed
        if snapshot is None:
            return FromModel(self.plan.model, self.plan.seed)
        state = snapshot.state
        rows = tuple((int(a), int(b), int(c)) for a, b, c in state["ledger"])
        return FromSnapshot(snapshot.path, snapshot.group, state["applied"], rows, state["epoch"])

    def _shard_homes(self) -> list[str]:
        """The workers that may hold shards: named ones, else all that answer."""
        facts = self.workforce.facts
        wanted = self.plan.shard_workers
        homes = [
            address
            for address, worker in facts.items()
            if address not in self.workforce.silent
            and (wanted is None or any(worker.is_called(name) for name in wanted))
        ]
        if not homes and wanted is not None:
            raise WorkerError(f"shard_workers={list(wanted)} names no running worker")
        return homes

    def _check_memory(self, count: int, homes: int) -> None:
        plan = self.plan
        if plan.path is None and 4 * plan.size > LARGEST_WITHOUT_CHECKPOINT:
            raise ValueError(
                f"{plan.name} is larger than 1 GiB: give checkpoint=, where the shards write it"
            )
        length = math.ceil(plan.size / count) * math.ceil(count / homes)
        shard = policies.shard_bytes(length, len(plan.optimizer.slots), plan.keep == "best")
        facts = list(self.workforce.facts.values())
        check_memory(facts, plan.replica_bytes, shard, plan.name)

    # Training

    async def _guarded(self, part: Any, *arguments: Any) -> None:
        """Do a part of the run; trouble with the shards leads to a recovery, not out."""
        try:
            await part(*arguments)
        except TROUBLE as error:
            await self._recover(repr(error))

    async def _turn(self) -> None:
        """One turn: hand out, take in, and whatever is due."""
        await self.workforce.refresh()
        self._hand_out()
        trouble = await self._take_in(TURN_SECONDS)
        if trouble or self._shard_worker_left():
            await self._recover(trouble or "a shard's worker left")
        elif self.stream.epoch_finished:
            await self._end_epoch()
        elif self.snapshots.due or self.validator.due:
            await self._barrier(validate=self.validator.due, write=self.snapshots.due)
        await self._check_background()

    def _shard_worker_left(self) -> bool:
        return not set(self.server.workers) <= set(self.workforce.everyone)

    @property
    def replicas(self) -> int | None:
        """How many replicas may run now: one while the warm start lasts."""
        return 1 if self.tally.steps < self.plan.warmstart else self.plan.replicas

    def _hand_out(self) -> None:
        """Give every worker that wants one its next portion."""
        replicas = self.replicas
        for worker in self.workforce.free_places(replicas):
            portion = self.stream.take(worker)
            if portion is None:
                return
            self._give(portion, worker, replicas)

    def _give(
        self, portion: Portion, worker: str, replicas: int | None, *, complete_only: bool = False
    ) -> None:
        warm = self.plan.warmstart - self.tally.steps
        order = PortionOrder(
            self.plan.run,
            self.server.handle,
            portion,
            self.stream.following(worker),
            self.workforce.places(worker, replicas),
            warm if warm > 0 else None,
            complete_only,
        )
        self.workforce.give(order, worker)

    async def _take_in(self, seconds: float) -> str:
        """Take reports in; returns what went wrong with the shards, if anything did."""
        trouble = ""
        for portion, report in await self.workforce.ended(seconds):
            self._note(portion, report)
            trouble = trouble or report.trouble
        for portion in await self.workforce.watch_silence():
            self.stream.hand_back(portion)
        return trouble

    def _note(self, portion: Portion, report: PortionReport) -> None:
        if report.steps:
            self.recoveries = 0
        self.tally.add(report, self.stream.epoch, len(self.workforce.workers), self.plan.replicas)
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

    async def _end_epoch(self) -> None:
        """All portions of the epoch are in: validate, and open the next epoch."""
        validate = self.plan.validation_cut is not None and self.validator.each_epoch
        if validate or self.snapshots.due:
            await self._barrier(validate=validate, write=self.snapshots.due)
            if not self.stream.epoch_finished:
                return
        self.stream.next_epoch()
        await self.server.command("close_epochs", self.stream.epoch)

    async def _barrier(self, *, validate: bool, write: bool) -> None:
        """Bring replicas to rest between two steps, and let every shard take the same copy."""
        await self._rest()
        number = await self.snapshots.copy(users=int(validate) + int(write))
        if validate:
            self.validator.start(number)
        if write:
            names, state = self._state()
            self.snapshots.start_writing(number, names, state)
        await self.server.command("pause", False)

    async def _rest(self) -> None:
        """Return when no replica works and every shard has applied the same steps."""
        await self.server.command("pause", True)
        await self._empty()
        if self.workforce.abandoned:
            await self.server.advance(range(len(self.server.slices)))
            self.workforce.abandoned = False
        while True:
            ledgers = await self.server.command("pause", True)
            uneven = {
                (e, p)
                for rows in ledgers
                for e, p, _ in set(map(tuple, rows)) ^ set(map(tuple, ledgers[0]))
            }
            if not uneven:
                self.ledger = [list(row) for row in ledgers[0]]
                return
            await self._complete(uneven)

    async def _empty(self) -> None:
        """Take in until nothing is outstanding; trouble on the way comes out."""
        while self.workforce.outstanding:
            await self.workforce.refresh()
            trouble = await self._take_in(TURN_SECONDS)
            if trouble or self._shard_worker_left():
                raise ShardLost(trouble or "a shard's worker left")

    async def _complete(self, uneven: set[tuple[int, int]]) -> None:
        """Bring the shards that lack a step of a portion to the step that others have."""
        portions = {
            (p.epoch, p.number): p
            for p in self.plan.cut.portions(self.plan.seed, self.stream.epoch)
        }
        for identity, worker in zip(uneven, self.workforce.workers * len(uneven), strict=False):
            self._give(portions[identity], worker, self.plan.replicas, complete_only=True)
        await self._empty()

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
            "ledger": getattr(self, "ledger", []),
            "applied": self.tally.applied,
            "best": self.validator.best,
            **self.tally.state(),
        }
        return names, state

    async def _write(self, number: int) -> None:
        names, state = self._state()
        await self.snapshots.write(number, names, state)

    async def _check_background(self) -> None:
        """Let an error of writing or validating come out; trouble leads to recovery anyway."""
        writing = self.snapshots.writing
        if writing is not None and writing.done():
            self.snapshots.writing = None
            await writing
        await self.validator.check()

    # Recovery

    async def _recover(self, why: str) -> None:
        """End the portions in flight, rebuild what is lost, and go on (rules 10 to 14)."""
        self.recoveries += 1
        if self.recoveries > MOST_RECOVERIES:
            raise ShardLost(f"{MOST_RECOVERIES} recoveries in a row without a step: {why}")
        logger.warning("recovering: %s", why)
        try:
            await self._end_flight()
            await self.workforce.refresh(first=False)
            lost = await self.server.find_lost(self.workforce.everyone)
            self.tally.lost += len(lost)
            await self._rebuild(lost)
            await self.server.command("pause", False)
        except TROUBLE as error:
            await self._recover(repr(error))

    async def _end_flight(self) -> None:
        """End every call, wait for the tasks to come home, and hand their portions back."""
        await self.server.end_generation(self.workforce.everyone)
        await self.snapshots.give_up()
        await self.validator.give_up()
        until = time.monotonic() + deadline("portion-end")
        while self.workforce.outstanding and time.monotonic() < until:
            await self._take_in(TURN_SECONDS)
        for portion in self.workforce.give_up_all():
            self.stream.hand_back(portion)

    async def _rebuild(self, lost: list[int]) -> None:
        survivors = [i for i in range(len(self.server.slices)) if i not in lost]
        if lost and self.plan.path is None:
            raise self._lost(ShardLost(f"shard {lost[0]} is gone"))
        ledgers = await self.server.advance(survivors)
        self.workforce.abandoned = False
        if not lost:
            return
        await self._wait_for_homes()
        if not survivors:
            await self._go_back(lost)
            return
        await self._make_again(lost)
        await self._adopt(lost, ledgers)

    async def _wait_for_homes(self) -> None:
        until = time.monotonic() + deadline("portion-end")
        while not (self._shard_homes() and self.workforce.workers):
            if time.monotonic() > until:
                raise WorkerError("no worker is left to go on with")
            await asyncio.sleep(TURN_SECONDS)
            await self.workforce.refresh()
            await self.workforce.watch_silence()

    async def _make_again(self, lost: Sequence[int]) -> None:
        """Rebuild shards from the last snapshot, else from where the run started."""
        await self.server.replace(lost, self._initial(), self._shard_homes())
        if self.snapshots.committed is None and self.plan.start is not None:
            await self.server.assign(self.plan.start, only=lost)

    async def _adopt(self, lost: Sequence[int], ledgers: list[list[tuple[int, int, int]]]) -> None:
        """The survivors' numbers become the new shards': nothing is applied to them twice."""
        latest: dict[tuple[int, int], int] = {}
        for epoch, portion, step in (row for rows in ledgers for row in rows):
            latest[epoch, portion] = max(step, latest.get((epoch, portion), -1))
        rows = [(epoch, portion, step) for (epoch, portion), step in sorted(latest.items())]
        await self.server.command("adopt", rows, self.stream.epoch, only=lost)
        snapshot = self.snapshots.committed
        kept = snapshot.state["applied"] if snapshot else 0
        self.tally.rolled_back += max(0, self.tally.applied - kept) * len(lost)

    async def _go_back(self, lost: Sequence[int]) -> None:
        """Every shard is lost: the whole run goes back to the snapshot, and nothing is skipped."""
        snapshot = self.snapshots.committed
        state: dict[str, Any] = (
            snapshot.state if snapshot else {"epoch": 0, "finished": [], "applied": 0}
        )
        self.tally.go_back(state)
        finished = [tuple(identity) for identity in state["finished"]]
        self.stream.restart(state["epoch"], finished)
        await self._make_again(lost)

    def _lost(self, error: BaseException) -> ShardLost:
        if self.plan.path is None:
            return ShardLost(
                f"{error}; the run has no checkpoint to rebuild it from: give checkpoint=PATH "
                '(and resume="auto"), or shard_copies=2'
            )
        return ShardLost(
            f"{error}; the last snapshot is in {self.plan.path!r}: "
            f"go on with checkpoint={self.plan.path!r}, resume=True"
        )

    # Conclusion

    async def _conclude(self) -> Outcome:
        """Come to rest, validate for the last time, and bring the parameters home."""
        while True:
            try:
                parameters = await self._last_words()
                break
            except TROUBLE as error:
                await self._recover(repr(error))
        return Outcome(parameters, self.tally.history, Status(*self._reason()))

    async def _last_words(self) -> Any:
        await self._rest()
        await self.validator.settle()
        await self.snapshots.settle()
        if self.plan.validation_cut is not None and self.validator.stale:
            self.validator.start(await self.snapshots.copy(users=1))
            await self.validator.settle()
        best = self.plan.keep == "best" and self.validator.has_best
        name = "best" if best else "parameters"
        if self.plan.path is None:
            return await self.server.read(name)
        if not self.stream.done or self.tally.steps_since_start or self.plan.last is None:
            await self._write(await self.snapshots.copy(users=1))
        assert self.snapshots.committed is not None
        return VectorReference(self.plan.path, self.snapshots.committed.group, name)

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

    async def _release(self) -> None:
        try:
            for out in self.workforce.outstanding:
                out.task.cancel()
            if hasattr(self, "server"):
                await self.snapshots.give_up()
                await self.validator.give_up()
                await self.server.end_generation(self.workforce.everyone)
                await asyncio.to_thread(self.plan.supply.close)
                await self.server.release(self.workforce.everyone)
        finally:
            self.at_rest.set()
