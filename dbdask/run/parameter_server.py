"""The parameter server, on the client's side: it makes, moves, gives up and replaces shards.

It runs on the client's event loop. The client sends numbered commands and receives scalars; vectors
stay in the shards.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress

from distributed import Client

from dbdask.models.layout import cut, cut_within
from dbdask.models.partition import Partition
from dbdask.optim.optimizers import Optimizer
from dbdask.rpc.calls import ActorPlace, answers_ping
from dbdask.rpc.deadlines import deadline, within
from dbdask.rpc.making import release_when_made, submit_actor, wait_until_made
from dbdask.rpc.scheduler import has_scheduler
from dbdask.rpc.tasks import place_of
from dbdask.run.shard_calls import ShardCalls, ShardCopy
from dbdask.run.worker_notices import WorkerNotices
from dbdask.schedule.placement import missing_copies
from dbdask.storage.cut_vectors import CutOrder, CutSlice
from dbdask.worker.drain_on_close import shard_prefix
from dbdask.worker.initial import FromNeighbour
from dbdask.worker.shard import ParameterShard
from dbdask.worker.shard_state import ShardState

Initial = Callable[[int, int, Optimizer], ShardState]


class ParameterServer(ShardCalls):
    """The shards of one run, each in one copy or in several on different workers.

    If there are fewer workers than copies, the run goes on with fewer copies, and makes the others
    when a worker joins.

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
    partition
        How the model is cut, if it is: then every shard is inside one part.
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
        partition: Partition | None = None,
    ) -> None:
        super().__init__(client, run, size)
        self.partition = partition
        self.notices = WorkerNotices(client, run)
        self.kind = kind
        self.optimizer = optimizer
        self.wanted = copies
        self.trained, self.buffers = trained, buffers
        self._releasing: list[
            asyncio.Task[None]
        ] = []  # releases of shards that failed while they were made

    @property
    def copies(self) -> int:
        """Copies of the shard that has the fewest."""
        return min(len(copies) for copies in self._copies)

    @property
    def gone(self) -> list[int]:
        """The shards of which no copy is left."""
        return [index for index, copies in enumerate(self._copies) if not copies]

    async def place(self, count: int, initial: Initial, workers: Sequence[str]) -> None:
        """Cut the vector into `count` shards, and make every copy of each, over `workers`."""
        if not self.slices:
            self.slices = self._cut(count)
            self._copies = [[] for _ in self.slices]
        await self.replace(range(len(self.slices)), initial, workers)

    def _cut(self, count: int) -> tuple[tuple[int, int], ...]:
        if self.partition is None:
            return cut(self.size, count)
        return cut_within(self.partition.ranges, count)

    @property
    def vector_order(self) -> CutOrder | None:
        """The order of the shards' vector, if it is that of a cut model."""
        if self.partition is None:
            return None
        edges = *(start for start, _ in self.slices), self.size
        segments = tuple(self.partition.table.segments())
        return CutOrder(edges, segments)

    def _cut_slice(self, index: int) -> CutSlice | None:
        if self.partition is None:
            return None
        order = self.vector_order
        assert order is not None
        segments = tuple(self.partition.table.segments(*self.slices[index]))
        return CutSlice(segments, order.stored(index))

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
        """Make the missing copies from existing ones. Meanwhile no update may be applied."""
        missing = self._missing(workers)
        await self._make_all([(i, self._neighbour(i), worker) for i, worker in missing])

    def _neighbour(self, index: int) -> Initial:
        return FromNeighbour(self._copies[index][0].place)

    def can_leave(self, going: Collection[str], workers: Sequence[str]) -> bool:
        """Whether every shard still has a copy when the workers `going` have left."""
        return bool(workers) or all(set(holders) - set(going) for holders in self.holders)

    async def move(self, going: Collection[str], workers: Sequence[str]) -> None:
        """Move the copies that the workers `going` hold to other workers, if there are any.

        No replica may be at work. The new generation refuses pushes that are still on their way.
        """
        await self.advance()
        left = [[c for c in copies if c.place.worker in going] for copies in self._copies]
        stay = [[w for w in holders if w not in going] for holders in self.holders]
        eligible_workers = [worker for worker in workers if worker not in going]
        missing = missing_copies(stay, self.wanted, eligible_workers)
        await self._make_all([(i, self._neighbour(i), worker) for i, worker in missing])
        for index, copies in enumerate(left):
            self._release_copies(index, copies)
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
            self._release_copies(index, [copy])
        return len(lost)

    def give_up(self, indices: Iterable[int]) -> None:
        """Give up every copy of some shards, including those that answer."""
        for index in indices:
            self._release_copies(index, self._copies[index])

    def _release_copies(self, index: int, copies: Iterable[ShardCopy]) -> None:
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
        """Make copies, all at once, and wait for all. If one fails, the others stay.

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
        more = self.trained, self.buffers, self._cut_slice(index)
        arguments = (start, stop, self.optimizer, self.generation, initial, *more)
        key = f"{shard_prefix(self.run)}{index}-{uuid.uuid4().hex[:8]}"
        nbytes = 4 * (stop - start) * (1 + len(self.optimizer.slots))
        future = submit_actor(self.client, self.kind, arguments, key, worker)
        try:
            address = await wait_until_made(
                self.client, future, f"parameter shard {index}", worker, nbytes=nbytes
            )
        except BaseException:
            self._releasing.append(release_when_made(self.client, future))
            raise
        await self.notices.add_drain(address)
        return ShardCopy(ActorPlace(address, key), future)

    async def release(self, workers: Sequence[str]) -> None:
        """Release everything on the cluster: contexts, then shards."""
        await self.notices.close_contexts(workers)
        if self._releasing and has_scheduler(self.client):
            await asyncio.wait(self._releasing, timeout=deadline("connect"))
        keys = [copy.place.key for copies in self._copies for copy in copies]
        for index, copies in enumerate(self._copies):
            self._release_copies(index, copies)
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
