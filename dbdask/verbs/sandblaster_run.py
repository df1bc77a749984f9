"""One Sandblaster run, on the client's event loop: drive L-BFGS over passes and shards."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dbdask.errors import ShardLost
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
from dbdask.numbers.vectors import Command, merge_answers
from dbdask.server.batch_shard import BatchShard
from dbdask.server.deadlines import deadline
from dbdask.server.initial import FromModel, FromSnapshot
from dbdask.server.parameter_server import TROUBLE, Initial, ParameterServer
from dbdask.status import Status
from dbdask.verbs.gradient_pass import Experience, GradientPass, Interrupted, Sums
from dbdask.verbs.homes import check_collectable, most_elements, shard_homes
from dbdask.verbs.leaving import Leaving
from dbdask.verbs.outcome import Outcome, leave_nothing, where_it_stands
from dbdask.verbs.preflight import check_memory
from dbdask.verbs.recovery import MOST_RECOVERIES, RunLost, wait_for_homes
from dbdask.verbs.session import needs_workers
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
    target_loss: float | None = None


class SandblasterRun:
    """Algorithm 1.2 as its coordinator sees it: scalars travel, vectors stay in the shards."""

    def __init__(self, client: Any, plan: BatchPlan) -> None:
        self.client, self.plan = client, plan
        self.records: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self.at_rest = threading.Event()
        self.stop_reason = ""
        self.tally = Tally(plan.last.state if plan.last else None, self.records.put)
        self.workforce = Workforce(
            client, plan.run, plan.job, plan.path, plan.replicas, plan.workers, plan.supply
        )
        self.leaving = Leaving(self)
        self.twins = Twins(self)
        self.experience = Experience()
        self.portions = plan.cut.contiguous()
        self.state = State()
        self.recoveries = 0
        self.evaluating = self.commanding = 0.0  # seconds
        if plan.last is not None:
            self._restore(plan.last)

    def _restore(self, snapshot: Snapshot) -> None:
        state = snapshot.state["method"]
        self.state = State(**state)
        self.experience.evaluations = max(self.experience.evaluations, self.state.evaluations)

    def request_stop(self, reason: str) -> None:
        """Ask the run to come to rest; the first reason stays. Safe from any thread."""
        self.stop_reason = self.stop_reason or reason

    async def work(self) -> Outcome:
        """Run to the end; whatever happens, leave nothing on the cluster."""
        try:
            await self._begin()
            reason, parameters = await self._to_the_end()
            return Outcome(parameters, self.tally.history, Status(*self._status(reason)))
        except RunLost as error:
            raise ShardLost(str(error)) from None
        except TROUBLE as error:
            raise ShardLost(f"{error}; {self.where_it_stands()}") from error
        finally:
            await asyncio.shield(asyncio.ensure_future(leave_nothing(self)))

    def where_it_stands(self) -> str:
        """What an error says of the run: its last snapshot, or what would have made one."""
        return where_it_stands(self.plan.path)

    # Beginning

    async def _begin(self) -> None:
        plan = self.plan
        await self.workforce.refresh(first=True)
        needs_workers(self.workforce.workers)
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
        )
        self.snapshots = Snapshots(self.server, plan.path, plan.snapshot_seconds, plan.last)
        self.validator = Validator(self)
        self.leaving.begin()
        await self.server.place(self._initial(), homes)
        self.twins.note()
        if plan.start is not None and plan.last is None:
            await self.server.assign(plan.start)
        if plan.path is not None and plan.last is None:
            await self._write()

    def _initial(self) -> Initial:
        """Where shards start: the last committed snapshot, else the model's own numbers."""
        snapshot = self.snapshots.committed
        if snapshot is None:
            return FromModel(self.plan.model, self.plan.seed)
        return FromSnapshot(snapshot.path, snapshot.group, 0, (), 0)

    def shard_homes(self) -> list[str]:
        """The workers that may be given shards now."""
        away = self.workforce.away | self.leaving.workers
        return shard_homes(self.workforce.facts, self.plan.shard_workers, away)

    def _check_memory(self, shards: int, homes: int) -> None:
        plan = self.plan
        check_collectable(plan.name, plan.size, plan.path)
        length = most_elements(plan.size, shards, homes, plan.shard_copies)
        shard = policies.batch_shard_bytes(length, plan.method.history_length, plan.keep == "best")
        replica = policies.replica_bytes(plan.size, 2, 1)
        check_memory(list(self.workforce.facts.values()), replica, shard, plan.name)

    # The method

    async def _to_the_end(self) -> tuple[str, Any]:
        """Minimise, and bring the parameters home; trouble goes back to the last snapshot."""
        while True:
            try:
                reason = await self._minimise()
                return reason, await self._through_trouble(self._last_words)
            except RunLost:
                raise
            except TROUBLE as error:
                await self._recover(str(error))

    async def _minimise(self) -> str:
        """Serve the method's requests until it stops."""
        method = minimise(self.state, self.plan.method)
        answer: Any = None
        try:
            while True:
                answer = await self._serve(method.send(answer))
        except StopIteration as done:
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

        return await self._through_trouble(give)

    async def _through_trouble(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do work that may be done again, until no trouble that cost no shard is in its way."""
        while True:
            try:
                return await work()
            except RunLost:
                raise
            except TROUBLE as error:
                await self._mend(error)

    async def _mend(self, error: Exception) -> None:
        """After trouble: return where every shard still has a copy, else let it come out.

        Then nothing goes back: what was under way is done again by its number or its identity.
        """
        while True:
            await self.workforce.refresh(now=True)
            await self.workforce.look_around()
            self.tally.lost += await self.server.drop_lost(self.workforce.answering)
            if self.server.gone:
                raise error
            self._count_recovery(str(error))
            logger.warning("recovering: %s", error)
            try:
                await self._end_flight()
                await self.validator.give_up()
                await self.twins.make_at_new_generation()
                return
            except TROUBLE as again:
                error = again

    def _count_recovery(self, why: str) -> None:
        self.recoveries += 1
        if self.recoveries > MOST_RECOVERIES:
            raise RunLost(
                f"{MOST_RECOVERIES} recoveries in a row without a pass: {why}; "
                f"{self.where_it_stands()}"
            )

    async def _evaluate(self, request: Evaluate) -> tuple[float, list[Any]]:
        """A pass over the data; it is made again after trouble that cost no shard."""
        began = time.monotonic()
        sums, work = await self._through_trouble(lambda: self._pass(request))
        while sums is None:
            sums, work = await self._through_trouble(lambda: self._pass(request))
        if sums.weight <= 0:
            raise ValueError("examples has no example with a weight above 0 that is not missing")
        answers = await self._repeat(
            "close_pass", work.number, len(work.done), sums.weight, request.into, request.after
        )
        self.evaluating += time.monotonic() - began
        self.recoveries = 0
        return sums.loss / sums.weight, merge_answers(request.after, answers)

    async def _pass(self, request: Evaluate) -> tuple[Sums | None, GradientPass]:
        """One try of a pass; no sums where it has to be made again."""
        await self._move_shards()
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
        await self.server.command("open_pass", work.number, request.before)
        try:
            return await work.work(), work
        except Interrupted:
            if self.stop_reason:
                raise
        return None, work

    async def _accept(self) -> bool:
        """A new point: note it, validate and write when due; True where the run is to stop."""
        self._note_point()
        await self._through_trouble(self._attend)
        return bool(self.stop_reason)

    def _note_point(self) -> None:
        state, experience = self.state, self.experience
        self.tally.steps, self.tally.examples = state.iteration, experience.examples
        self.tally.dropped = experience.dropped
        self.tally.record(
            epoch=max(0, state.evaluations - 1),
            loss=state.loss,
            gradient_norm=float(np.sqrt(state.squared_norm)),
            replicas=len(self.workforce.workers),
            iteration=state.iteration,
            step_length=state.step_length,
            evaluations=state.evaluations,
            bundles=experience.bundles,
            backups_launched=experience.backups_launched,
            backups_won=experience.backups_won,
            seconds_evaluating=self.evaluating,
            seconds_commanding=self.commanding,
        )

    async def _attend(self) -> None:
        """Whatever is due between two steps; it can be done again after trouble."""
        if self._validation_due():
            await self._validate()
        await self.validator.check()
        if self.snapshots.due:
            await self._write()
        await self._move_shards()

    def _validation_due(self) -> bool:
        if self.plan.validation_cut is None or self.validator.is_busy:
            return False
        return self.validator.each_epoch or self.validator.due

    async def _validate(self) -> None:
        number = await self.snapshots.copy(users=1, whole=False)
        self.validator.start(number, max(0, self.state.evaluations - 1))

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
            "applied": 0,
            "best": self.validator.best,
            **self.tally.state(),
        }
        await self.snapshots.write_live(names, state)

    # Workers that leave, shards that are lost

    async def _move_shards(self) -> None:
        """Move the shards of leaving workers and make missing copies, between two commands."""
        if self.leaving.due:
            await self._end_flight()
            await self.leaving.move()
        if self.twins.due:
            await self._end_flight()
            await self.twins.make_at_new_generation()

    async def _end_flight(self) -> None:
        """End every call, and wait for the tasks to come home."""
        await self.server.end_generation(self.workforce.answering)
        until = time.monotonic() + deadline("portion-end")
        while self.workforce.outstanding and time.monotonic() < until:
            await self.workforce.refresh()
            await self.workforce.ended(0.25)
            await self.workforce.watch_silence()
            self.workforce.abandon(self.workforce.closing)
        self.workforce.give_up_all()

    async def _recover(self, why: str) -> None:
        """Every shard goes back to the last committed iteration (rule 11), and so the method.

        Else curvature pairs, inner products and loss would belong to no point.
        """
        while True:
            self._count_recovery(why)
            logger.warning("recovering: %s", why)
            try:
                await self._go_back(why)
                return
            except RunLost:
                raise
            except TROUBLE as error:
                why = repr(error)

    async def _go_back(self, why: str) -> None:
        await self.workforce.refresh(now=True)
        await self.workforce.look_around()
        await self.snapshots.give_up()
        await self.validator.give_up()
        await self._end_flight()
        await self.workforce.refresh(now=True)
        self.tally.lost += await self.server.drop_lost(self.workforce.answering)
        gone = self.server.gone
        if self.plan.path is None:
            lost = f"shard {gone[0]} of {len(self.server.slices)} is gone" if gone else why
            raise RunLost(f"{lost}; {self.where_it_stands()}")
        await wait_for_homes(self)
        snapshot = self.snapshots.committed
        assert snapshot is not None
        everything = range(len(self.server.slices))
        iteration = self.state.iteration
        self.server.generation += 1
        await self.server.replace(everything, self._initial(), self.shard_homes())
        self.twins.note()
        self._restore(snapshot)
        self.tally.rolled_back += max(0, iteration - self.state.iteration)

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
        return VectorReference(self.plan.path, self.snapshots.committed.group, name)

    def _status(self, reason: str) -> tuple[str, str]:
        method, state = self.plan.method, self.state
        reason = self.stop_reason if reason == "stopped" else reason
        messages = {
            "iterations": f"all {method.iterations} iterations are done",
            "tolerance": (
                f"the largest component of the gradient is {state.largest:.3g}, at most "
                f"tolerance={method.tolerance:g}"
            ),
            "precision": "the loss has converged to float32 precision",
            "search_failed": "the line search found no lower point: is the loss smooth and finite?",
            "callback": "a callback stopped the run",
            "interrupted": "the run was interrupted",
        }
        return reason, f"{messages[reason]} (iteration {state.iteration}, loss {state.loss:.6g})"
