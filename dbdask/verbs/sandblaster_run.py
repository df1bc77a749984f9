"""One Sandblaster run, on the client's event loop: drive L-BFGS over passes and shards."""

import asyncio
import logging
import math
import queue
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dbdask.errors import TROUBLE, DataError, ShardLost, WorkerError
from dbdask.numbers import policies
from dbdask.numbers.checkpoint import Snapshot, VectorReference
from dbdask.numbers.history import Record
from dbdask.numbers.lbfgs import (
    Accepted,
    Evaluate,
    Request,
    Round,
    Settings,
    State,
    X,
    minimise,
    names_of,
)
from dbdask.numbers.optimizers import sgd
from dbdask.numbers.portions import Cut
from dbdask.numbers.scores import NOTHING
from dbdask.numbers.vectors import Command, merge_answers
from dbdask.server.batch_shard import BatchShard
from dbdask.server.initial import FromModel, FromSnapshot
from dbdask.server.parameter_server import Initial, ParameterServer
from dbdask.verbs.batch_recovery import BatchRecovery
from dbdask.verbs.batch_status import batch_status
from dbdask.verbs.giving_up import RunLost
from dbdask.verbs.gradient_pass import Experience, GradientPass, Interrupted, Sums
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
from dbdask.verbs.roster import Roster
from dbdask.verbs.session import needs_workers
from dbdask.verbs.setting_up import set_up
from dbdask.verbs.snapshots import Snapshots
from dbdask.verbs.tally import Tally
from dbdask.verbs.twins import Twins
from dbdask.verbs.validating import Validator
from dbdask.verbs.workforce import Workforce

logger = logging.getLogger("dbdask")


@dataclass(frozen=True)
class BatchPlan:
    """Everything that `sandblaster` settled before the first task."""

    job: bytes
    model: bytes
    name: str
    size: int
    trained: tuple[tuple[int, int], ...]  # ranges of the flat vector; the rest are buffers
    method: Settings
    cut: Cut
    validation_cut: Cut | None
    supply: Any
    validation_supply: Any
    start: np.ndarray | None
    run: str
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
    seed: int
    settings: dict[str, Any]


class SandblasterRun:
    """Algorithm 1.2 as its coordinator sees it: scalars travel, vectors stay in the shards."""

    def __init__(self, client: Any, plan: BatchPlan) -> None:
        self.client, self.plan = client, plan
        self.records: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self.at_rest = threading.Event()
        self.stop_reason = ""
        self.tally = Tally(plan.last.state if plan.last else None, self.records.put)
        self.roster = Roster(client, plan.job, plan.path, plan.workers, plan.shard_workers)
        self.workforce = Workforce(client, plan.run, plan.job, plan.supply, self.roster)
        self.leaving = Leaving(self)
        self.twins = Twins(self)
        self.recovery = BatchRecovery(self)
        self.experience = Experience()
        self.portions = plan.cut.contiguous()
        self.state = State()
        self.evaluating = self.commanding = 0.0  # seconds
        if plan.last is not None:
            self.restore(plan.last)
            self._restore_totals(plan.last.state["totals"])

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot: the method's state. What the run has done stays counted."""
        self.state = State(**snapshot.state["method"])
        self.experience.evaluations = max(self.experience.evaluations, self.state.evaluations)

    def _totals(self) -> dict[str, float]:
        """What the history adds up over passes, for a resumed run to go on from."""
        seconds = {"evaluating": self.evaluating, "commanding": self.commanding}
        return self.experience.totals() | seconds

    def _restore_totals(self, totals: dict[str, float]) -> None:
        self.experience.go_on_from(totals)
        self.evaluating, self.commanding = totals["evaluating"], totals["commanding"]

    def request_stop(self, reason: str) -> None:
        """Ask the run to come to rest; the first reason stays. Safe from any thread."""
        self.stop_reason = self.stop_reason or reason

    async def work(self) -> Outcome:
        """Run to the end; whatever happens, leave nothing on the cluster."""
        try:
            await self._begin()
            reason, parameters = await self._to_the_end()
            reason = self.stop_reason if reason == "stopped" else reason
            status = batch_status(reason, self.plan.method, self.state, self.experience)
            return Outcome(parameters, self.tally.history, status)
        except RunLost as error:
            raise ShardLost(str(error)) from None
        except TROUBLE as error:
            raise ShardLost(f"{error}; {self.where_it_stands()}") from error
        except (DataError, WorkerError) as error:
            raise with_snapshot(error, self) from error
        finally:
            await asyncio.shield(asyncio.ensure_future(leave_nothing(self)))

    def where_it_stands(self) -> str:
        """What an error says of the run: its last snapshot, or what would have made one."""
        return where_it_stands(self)

    # Beginning

    async def _begin(self) -> None:
        plan = self.plan
        await self.workforce.refresh(first=True)
        needs_workers(self.roster.workers)
        await wait_for_homes(self)
        self.tally.note_replicas(len(self.roster.workers), plan.replicas)
        homes = self.shard_homes()
        count = plan.shards or policies.shards_for(plan.size, len(homes))
        self._check_memory(count, len(homes))
        optimizer = sgd(1.0)  # batch shards apply no update rule; this one keeps no state
        self.server = ParameterServer(
            self.client,
            plan.run,
            plan.size,
            count,
            optimizer,
            BatchShard,
            plan.shard_copies,
            plan.trained,
        )
        self.snapshots = Snapshots(self.server, plan.path, plan.snapshot_seconds, plan.last)
        self.validator = Validator(self)
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
        return FromSnapshot(snapshot.path, snapshot.group, 0, (), 0)

    def shard_homes(self) -> list[str]:
        """The workers that may be given shards now."""
        away = self.roster.away | self.leaving.workers
        return shard_homes(self.roster.facts, self.plan.shard_workers, away)

    def _check_memory(self, shards: int, homes: int) -> None:
        plan = self.plan
        check_collectable(plan.name, plan.size, plan.path)
        length = most_elements(plan.size, shards, homes, plan.shard_copies)
        shard = policies.batch_shard_bytes(length, plan.method.history_length, plan.keep == "best")
        replica = policies.replica_bytes(plan.size, 2, 1)
        check_memory(list(self.roster.facts.values()), replica, shard, plan.name)

    # The method

    async def _to_the_end(self) -> tuple[str, Any]:
        """Minimise, and bring the parameters home; trouble goes back to the last snapshot."""
        while True:
            try:
                reason = await self._minimise()
                return reason, await self.recovery.through(self._last_words)
            except RunLost:
                raise
            except TROUBLE as error:
                await self.recovery.go_back(str(error))

    async def _minimise(self) -> str:
        """Serve the method's requests until it stops."""
        method = minimise(self.state, self.plan.method)
        answer: Any = None
        try:
            while True:
                answer = await self._serve(method.send(answer))
        except StopIteration as done:
            if self.experience.refused > self.tally.refused:  # in a search that found no point
                self._note_point()
            return str(done.value)
        except Interrupted:
            return "stopped"

    async def _serve(self, request: Request) -> Any:
        if isinstance(request, Accepted):
            return await self._accept()
        if isinstance(request, Round):
            return await self._command(request.commands)
        return await self._evaluate(request)

    async def _command(self, commands: tuple[Command, ...]) -> list[Any]:
        """One round trip for a sequence of commands on all shards."""
        began = time.monotonic()
        answers = await self._repeat("carry_out", commands)
        self.commanding += time.monotonic() - began
        return merge_answers(commands, answers)

    async def _repeat(self, name: str, *arguments: Any) -> list[Any]:
        """Give a command until every shard has answered; its number makes a repeat harmless."""
        number = self.server.new_number()

        async def give() -> list[Any]:
            return await self.server.command(name, *arguments, number=number)

        return await self.recovery.through(give)

    async def _evaluate(self, request: Evaluate) -> tuple[float, list[Any]]:
        """A pass over the data; it is made again after trouble that cost no shard."""
        began = time.monotonic()
        sums, work = await self.recovery.through(lambda: self._pass(request))
        while sums is None:
            sums, work = await self.recovery.through(lambda: self._pass(request))
        if sums.weight <= 0:
            raise DataError(NOTHING)
        answers = await self._repeat(
            "close_pass", work.number, len(work.done), sums.weight, request.into, request.after
        )
        self.evaluating += time.monotonic() - began
        self.recovery.note_pass()
        return sums.loss / sums.weight, merge_answers(request.after, answers)

    async def _pass(self, request: Evaluate) -> tuple[Sums | None, GradientPass]:
        """One try of a pass; no sums where it has to be made again."""
        await self.recovery.move_shards()
        work = GradientPass(
            self.plan.run,
            self.workforce,
            self.server,
            self.portions,
            self.experience,
            request.point,
            self.plan.replicas,
            lambda: bool(self.stop_reason) or self.leaving.due or self.twins.due,
        )
        await self.server.order("open_pass", work.number, request.before)
        try:
            return await work.work(), work
        except Interrupted:
            if self.stop_reason:
                raise
        return None, work

    async def _accept(self) -> bool:
        """A new point: note it, validate and write when due; True where the run is to stop."""
        self._note_point()
        if math.isfinite(self.state.loss):
            self.experience.last_refusal = ""  # what was refused on the way here ended nothing
        await self.recovery.through(self._attend)
        return bool(self.stop_reason)

    def _note_point(self) -> None:
        state, experience = self.state, self.experience
        self.tally.steps, self.tally.examples = state.iteration, experience.examples
        self.tally.dropped, self.tally.repeated = experience.dropped, experience.repeated
        self.tally.refused = experience.refused
        self.tally.note_replicas(len(self.roster.workers), self.plan.replicas)
        self.tally.history.left_out = experience.left_out
        self.tally.magnitudes = experience.magnitudes
        self.tally.record(
            epoch=self._epoch,
            loss=state.loss,
            gradient_norm=float(np.sqrt(state.squared_norm)),
            iteration=state.iteration,
            step_length=state.step_length,
            evaluations=experience.passes,
            bundles=experience.bundles,
            backups_launched=experience.backups_launched,
            backups_won=experience.backups_won,
            seconds_evaluating=self.evaluating,
            seconds_commanding=self.commanding,
        )

    @property
    def _epoch(self) -> int:
        """Passes over the data before the last one; a rollback does not undo them."""
        return max(0, self.experience.passes - 1)

    async def _attend(self) -> None:
        """Whatever is due between two steps; it can be done again after trouble."""
        if self._validation_due():
            await self._validate()
        await self.validator.check()
        if self.snapshots.due:
            await self._write()
        await self.recovery.move_shards()

    def _validation_due(self) -> bool:
        if self.plan.validation_cut is None or self.validator.is_busy:
            return False
        return self.validator.each_epoch or self.validator.due

    async def _validate(self) -> None:
        number = await self.snapshots.copy(users=1, whole=False)
        self.validator.start(number, self._epoch)

    async def _write(self) -> None:
        """Write the vectors as they are: nothing changes them while the method waits."""
        await self.validator.settle()
        names = names_of(self.state)
        if self.validator.has_best:
            names.append("best")
        state = {
            **self.plan.settings,
            "run": self.plan.run,
            "generation": self.server.generation,
            "method": asdict(self.state),
            "totals": self._totals(),
            "applied": 0,
            "best": self.validator.best,
            **self.tally.state(),
        }
        await self.snapshots.write_live(names, state)

    # Conclusion

    async def _last_words(self) -> Any:
        """Validate for the last time, and bring the parameters home."""
        await self.validator.settle()
        if self.plan.validation_cut is not None and self.validator.stale:
            await self._validate()
            await self.validator.settle()
        best = self.plan.keep == "best" and self.validator.has_best
        name = "best" if best else X
        if self.plan.path is None:
            return await self.server.read(name)
        await self._write()
        assert self.snapshots.committed is not None
        reference = VectorReference(self.plan.path, self.snapshots.committed.group, name)
        return await brought_home(reference, self.plan.size)
