"""The client's side of the parameter server: it places, commands and replaces shards.

It runs on the client's event loop. The client sends numbered commands and receives scalars; vectors
stay in the shards.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client, Future

from dbdask.errors import ShardLost
from dbdask.models.layout import cut
from dbdask.optim.optimizers import Optimizer
from dbdask.rpc.contact import (
    ActorPlace,
    answers_ping,
    call_actor,
    has_scheduler,
    run_on,
)
from dbdask.rpc.deadlines import deadline, within
from dbdask.rpc.making import made, release_when_made, submit_actor
from dbdask.rpc.tasks import place_of
from dbdask.schedule.ledger import ShardProgress
from dbdask.schedule.placement import missing_copies
from dbdask.worker.context import (
    close_context,
    end_generation,
    give_up_long_reads,
    unwant,
)
from dbdask.worker.drain_on_close import add_drain, forget_drain, shard_prefix
from dbdask.worker.initial import FromNeighbour
from dbdask.worker.link import ServerHandle, ShardPlace
from dbdask.worker.shard import ParameterShard, ShardState

Initial = Callable[[int, int, Optimizer], ShardState]


@dataclass(frozen=True, eq=False)
class ShardCopy:
    """One copy of a shard: its actor, and the future that keeps it alive."""

    place: ActorPlace
    future: "Future[object]"


class ParameterServer:
    """The shards of one run, each in one copy or in several on different workers.

    Reads go to the first copy; pushes and commands go to all. If there are fewer workers than
    copies the run goes on with fewer copies, and makes the others when a worker comes.

    Parameters
    ----------
    client
        The Dask client; its event loop runs every method.
    run
        The run's identity.
    size
        Length of the flat vector.
    optimizer
        The update rule that each shard applies to its own slice.
    kind
        The class of the shards.
    copies
        How many copies of each shard there are to be.
    trained
        Ranges of the flat vector that updates may change; None is all of it.
    buffers
        Ranges that no update changes, and of which a push brings new values.
    """

    def __init__(
        self,
        client: Client,
        run: str,
        size: int,
        optimizer: Optimizer,
        kind: type[ParameterShard] = ParameterShard,
        copies: int = 1,
        trained: Sequence[tuple[int, int]] | None = None,
        buffers: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.client, self.run, self.size = client, run, size
        self.kind = kind
        self.slices: tuple[tuple[int, int], ...] = ()  # none before they are placed
        self.optimizer = optimizer
        self.wanted = copies
        self.trained, self.buffers = trained, buffers
        self.generation = 0
        self._copies: list[list[ShardCopy]] = []
        self._unwanted: list[asyncio.Task[None]] = []  # shards given up while they were made
        self._command = 0
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def chunk(self) -> int:
        """Elements of a shard (the last may hold fewer)."""
        start, stop = self.slices[0]
        return stop - start

    @property
    def handle(self) -> ServerHandle:
        """The frozen handle of the current generation, for replicas."""
        shards = tuple(
            ShardPlace(start, stop, tuple(copy.place for copy in copies))
            for (start, stop), copies in zip(self.slices, self._copies, strict=True)
        )
        assert all(shard.copies for shard in shards)
        return ServerHandle(self.run, self.generation, self.size, shards)

    @property
    def workers(self) -> list[str]:
        """Every worker that holds a copy of a shard."""
        return sorted({worker for holders in self.holders for worker in holders})

    @property
    def holders(self) -> list[list[str]]:
        """The workers of each shard's copies, the first copy's first."""
        return [[copy.place.worker for copy in copies] for copies in self._copies]

    @property
    def copies(self) -> int:
        """Copies of the shard that has the fewest."""
        return min(len(copies) for copies in self._copies)

    @property
    def gone(self) -> list[int]:
        """The shards of which no copy is left."""
        return [index for index, copies in enumerate(self._copies) if not copies]

    # Making, moving and losing shards

    async def place(self, count: int, initial: Initial, workers: Sequence[str]) -> None:
        """Cut the vector into `count` shards, and make every copy of each, over `workers`."""
        if not self.slices:
            self.slices = cut(self.size, count)
            self._copies = [[] for _ in self.slices]
        await self.replace(range(len(self.slices)), initial, workers)

    async def replace(
        self, indices: Sequence[int], initial: Initial, workers: Sequence[str]
    ) -> None:
        """Make every copy of the named shards anew."""
        self.give_up(indices)
        missing = self._missing(workers)
        await self._make_all([(i, initial, worker) for i, worker in missing if i in indices])

    def lacks_copies(self, workers: Sequence[str]) -> bool:
        """Whether a shard has fewer copies than it could have on `workers`."""
        return bool(self._missing(workers))

    async def add_copies(self, workers: Sequence[str]) -> None:
        """Make the copies that are missing, from those that are there; nothing may be applied."""
        missing = self._missing(workers)
        await self._make_all([(i, self._neighbour(i), worker) for i, worker in missing])

    def _neighbour(self, index: int) -> Initial:
        return FromNeighbour(self._copies[index][0].place)

    def can_leave(self, going: Collection[str], workers: Sequence[str]) -> bool:
        """Whether every shard still has a copy when the workers `going` have left."""
        return bool(workers) or all(set(holders) - set(going) for holders in self.holders)

    async def move(self, going: Collection[str], workers: Sequence[str]) -> None:
        """Free some workers of their copies, and make these anew on other workers if there are any.

        No replica may be at work. The new generation refuses pushes that are still on their way.
        """
        await self.advance()
        left = [[c for c in copies if c.place.worker in going] for copies in self._copies]
        stay = [[w for w in holders if w not in going] for holders in self.holders]
        eligible_workers = [worker for worker in workers if worker not in going]
        missing = missing_copies(stay, self.wanted, eligible_workers)
        await self._make_all([(i, self._neighbour(i), worker) for i, worker in missing])
        for index, copies in enumerate(left):
            self._let_go(index, copies)
        for copy in (copy for copies in left for copy in copies):
            await self._until_forgotten(copy.place.key)

    async def drop_lost(self, workers: Collection[str]) -> int:
        """Give up copies whose worker left, or that answer no ping; return how many.

        A copy that stopped and comes back later has an old generation, and is never called again.
        """

        async def is_lost(copy: ShardCopy) -> bool:
            if copy.place.worker not in workers:
                return True
            return not await answers_ping(self.client.rpc, copy.place)

        held = [(index, copy) for index, copies in enumerate(self._copies) for copy in copies]
        answers = await asyncio.gather(*(is_lost(copy) for _, copy in held))
        lost = [(index, copy) for (index, copy), gone in zip(held, answers, strict=True) if gone]
        for index, copy in lost:
            self._let_go(index, [copy])
        return len(lost)

    def give_up(self, indices: Iterable[int]) -> None:
        """Give up every copy of some shards, including those that answer."""
        for index in indices:
            self._let_go(index, self._copies[index])

    def _let_go(self, index: int, copies: Iterable[ShardCopy]) -> None:
        for copy in list(copies):
            self._copies[index].remove(copy)
            copy.future.release()

    def _missing(self, workers: Sequence[str]) -> list[tuple[int, str]]:
        return missing_copies(self.holders, self.wanted, workers)

    async def _until_forgotten(self, key: str) -> None:
        """Wait until the scheduler has dropped an actor: its worker can be retired only then."""
        with suppress(TimeoutError):
            async with within(deadline("ping")):
                while await place_of(self.client, key) is not None:
                    await asyncio.sleep(0.02)

    async def _make_all(self, plan: Sequence[tuple[int, Initial, str]]) -> None:
        """Make copies, all at once. If one fails the others stay, and none is on its way any more.

        Raises
        ------
        ShardLost
            A worker left meanwhile.
        WorkerError
            A copy could not be made in time.
        """
        made = await asyncio.gather(*(self._make(*one) for one in plan), return_exceptions=True)
        for (index, _, _), copy in zip(plan, made, strict=True):
            if isinstance(copy, ShardCopy):
                self._copies[index].append(copy)
        for failed in made:
            if isinstance(failed, BaseException):
                raise failed

    async def _make(self, index: int, initial: Initial, worker: str) -> ShardCopy:
        start, stop = self.slices[index]
        ranges = self.trained, self.buffers
        arguments = (start, stop, self.optimizer, self.generation, initial, *ranges)
        key = f"{shard_prefix(self.run)}{index}-{uuid.uuid4().hex[:8]}"
        nbytes = 4 * (stop - start) * (1 + len(self.optimizer.slots))
        future = submit_actor(self.client, self.kind, arguments, key, worker)
        try:
            address = await made(
                self.client, future, f"parameter shard {index}", worker, nbytes=nbytes
            )
        except BaseException:
            self._unwanted.append(release_when_made(self.client, future))
            raise
        await self._tell([address], add_drain, self.run)
        return ShardCopy(ActorPlace(address, key), future)

    # Talking to shards

    async def command(
        self,
        name: str,
        *arguments: object,
        only: Sequence[int] | None = None,
        nbytes: int = 0,
        number: int | None = None,
    ) -> list[Any]:
        """Give a numbered command to all shards (or to some); return an answer for each shard.

        Every copy carries it out. With the `number` of an earlier command it is a repeat: a shard
        that has carried it out only repeats its answer.
        """
        number = self.new_number() if number is None else number
        answers = await self._of_all("command", number, name, *arguments, only=only, nbytes=nbytes)
        return [copies[0] for copies in answers]

    async def order(
        self, name: str, *arguments: object, only: Sequence[int] | None = None
    ) -> list[Any]:
        """Give a command that is valid in this generation only: if it comes late it is refused.

        Such a command sets something that a later command may set differently.
        """
        answers = await self._order_copies(name, *arguments, only=only)
        return [copies[0] for copies in answers]

    async def _order_copies(
        self, name: str, *arguments: object, only: Sequence[int] | None = None
    ) -> list[list[Any]]:
        number, generation = self.new_number(), self.generation
        return await self._of_all("order", number, generation, name, *arguments, only=only)

    async def _of_all(
        self, method: str, *arguments: object, only: Sequence[int] | None = None, nbytes: int = 0
    ) -> list[list[Any]]:
        """Call every copy of all shards (or of some); return the answers by shard."""
        return await asyncio.gather(
            *(
                self._of_copies(index, method, *arguments, nbytes=nbytes)
                for index in self._indices(only)
            )
        )

    def _indices(self, only: Sequence[int] | None) -> Sequence[int]:
        return range(len(self.slices)) if only is None else only

    def new_number(self) -> int:
        """Return the number of a new command."""
        self._command += 1
        return self._command

    async def _of_copies(
        self, index: int, method: str, *arguments: object, nbytes: int = 0
    ) -> list[Any]:
        """Call every copy of a shard over direct connections."""
        copies = self._copies[index]
        if not copies:
            raise ShardLost(f"shard {index} has no place")
        return await asyncio.gather(
            *(
                call_actor(self.client.rpc, copy.place, method, *arguments, nbytes=nbytes)
                for copy in copies
            )
        )

    async def call(self, index: int, method: str, *arguments: object, nbytes: int = 0) -> Any:
        """Call the first copy of one shard."""
        copies = self._copies[index]
        if not copies:
            raise ShardLost(f"shard {index} has no place")
        return await call_actor(self.client.rpc, copies[0].place, method, *arguments, nbytes=nbytes)

    async def call_each(self, method: str, *arguments: object, nbytes: int = 0) -> list[Any]:
        """Call the first copy of every shard."""
        return await asyncio.gather(
            *(self.call(i, method, *arguments, nbytes=nbytes) for i in self._indices(None))
        )

    async def advance(self) -> list[ShardProgress]:
        """Enter a new generation on all shards that have a copy; return every copy's progress."""
        self.generation += 1
        there = [index for index, copies in enumerate(self._copies) if copies]
        number = self.new_number()
        answers = await self._of_all("command", number, "advance", self.generation, only=there)
        return [progress for copies in answers for progress in copies]

    async def pause(self) -> list[ShardProgress]:
        """Ask replicas to hand their portions back; return every copy's progress."""
        answers = await self._order_copies("pause", True)
        return [progress for copies in answers for progress in copies]

    async def end_generation(self, workers: Sequence[str]) -> None:
        """End the calls of the current generation on every worker that answers."""
        await self._tell(workers, end_generation, self.run, self.generation)

    async def assign(self, values: np.ndarray, only: Sequence[int] | None = None) -> None:
        """Send each shard its slice of a vector that the client holds."""
        number = self.new_number()
        await asyncio.gather(
            *(
                self._of_copies(
                    index,
                    "command",
                    number,
                    "assign",
                    values[slice(*self.slices[index])],
                    nbytes=4 * self.chunk,
                )
                for index in self._indices(only)
            )
        )

    async def read(self, name: str) -> np.ndarray:
        """Collect one vector in the client."""
        vector = np.empty(self.size, np.float32)

        async def collect(index: int) -> None:
            start, stop = self.slices[index]
            vector[start:stop] = await self.call(index, "read", name, nbytes=4 * (stop - start))

        await asyncio.gather(*(collect(index) for index in range(len(self.slices))))
        return vector

    def unwant(self, workers: Sequence[str], identities: list[tuple[int, int]]) -> None:
        """Tell workers that bundles are done, so that their copies stop by themselves.

        Nothing waits for the answer: a worker that misses it only works in vain.
        """
        telling = asyncio.ensure_future(self._tell(workers, unwant, self.run, identities))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    def give_up_long_reads(self, workers: Sequence[str]) -> None:
        """Tell workers that replicas are to wait no longer for chunks that do not come."""
        telling = asyncio.ensure_future(self._tell(workers, give_up_long_reads, self.run))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def release(self, workers: Sequence[str]) -> None:
        """Release everything on the cluster: contexts, then shards."""
        for telling in self._telling:
            telling.cancel()
        await self._tell(workers, close_context, self.run)
        await self._tell(workers, forget_drain, self.run)
        if self._unwanted and has_scheduler(self.client):
            await asyncio.wait(self._unwanted, timeout=deadline("connect"))
        keys = [copy.place.key for copies in self._copies for copy in copies]
        for index, copies in enumerate(self._copies):
            self._let_go(index, copies)
        if workers and keys:
            await self._flush(keys[-1])

    async def _flush(self, key: str) -> None:
        """Wait until the scheduler has forgotten a key, which was released last.

        If the scheduler is lost meanwhile the wait ends.
        """
        asking = asyncio.ensure_future(self._until_forgotten(key))
        until = time.monotonic() + deadline("connect")
        while not asking.done() and has_scheduler(self.client) and time.monotonic() < until:
            await asyncio.wait({asking}, timeout=0.1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    async def _tell(
        self, workers: Sequence[str], function: Callable[..., object], *arguments: object
    ) -> None:
        async def tell(worker: str) -> None:
            await run_on(self.client.rpc, worker, function, *arguments, seconds=deadline("connect"))

        await asyncio.gather(*(tell(worker) for worker in workers), return_exceptions=True)
