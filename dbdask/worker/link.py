"""What a replica holds of the parameter server: a frozen handle, and blocking calls over it."""

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Worker

from dbdask.errors import RECOVERABLE, RaisedInShard, ShardLost, Stale
from dbdask.rpc.contact import ActorPlace, call_actor, start_on, worker_loop
from dbdask.worker.shard import Acknowledgement, Progress


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """A slice of the flat vector and the actors that hold it: the first one, and its twins."""

    start: int
    stop: int
    copies: tuple[ActorPlace, ...]

    @property
    def first(self) -> ActorPlace:
        """The copy that is read from."""
        return self.copies[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the slice in float32."""
        return 4 * (self.stop - self.start)


@dataclass(frozen=True, slots=True)
class ServerHandle:
    """Where the shards of one generation are: small, frozen, and no dependency of any task."""

    run: str
    generation: int
    size: int
    shards: tuple[ShardPlace, ...]


@dataclass
class Calls:
    """The calls of one run that are under way on one worker, so that they can be ended."""

    ended_generation: int = -1

    def __post_init__(self) -> None:
        self._open: dict[concurrent.futures.Future[Any], int] = {}

    def start(
        self, loop: asyncio.AbstractEventLoop, generation: int, work: Coroutine[Any, Any, Any]
    ) -> concurrent.futures.Future[Any]:
        """Start a call of a generation; one of an ended generation is refused."""
        if generation <= self.ended_generation:
            work.close()
            raise Stale(f"generation {generation} has ended")
        future = start_on(loop, work)
        self._open[future] = generation
        future.add_done_callback(self._forget)
        return future

    def _forget(self, future: concurrent.futures.Future[Any]) -> None:
        self._open.pop(future, None)

    def end_generation(self, generation: int) -> None:
        """End every call of `generation` and of those before it."""
        self.ended_generation = max(self.ended_generation, generation)
        for future, started in list(self._open.items()):
            if started <= generation:
                future.cancel()


class ServerLink:
    """Blocking calls on all shards at once, for the thread of a task.

    Every method ends: in the answer, in `ShardLost`, in `Stale` when the generation ended, or in
    `RaisedInShard` with the error of a shard's own method.
    What is read comes from the first copy of each shard; what is pushed goes to every copy, and
    is acknowledged when all of them have it.
    """

    def __init__(self, handle: ServerHandle, worker: Worker, calls: Calls) -> None:
        self.handle = handle
        self._pool = worker.rpc
        self._loop = worker_loop(worker)
        self._calls = calls

    def progress(self, epoch: int, portion: int) -> list[Progress]:
        """Ask every copy of every shard for the last step it applied of a portion."""

        async def ask(shard: ShardPlace) -> list[Progress]:
            return await self._every_copy(shard, "progress", epoch, portion)

        answers = self.wait(self._calls.start(self._loop, self.handle.generation, self._all(ask)))
        return [progress for copies in answers for progress in copies]

    def start_fetch(self, into: np.ndarray) -> concurrent.futures.Future[list[int]]:
        """Start to fetch the parameters into a vector; the versions come back, a shard each."""

        async def fetch(shard: ShardPlace) -> int:
            values, version = await _call(
                self._pool, shard.first, "fetch", self.handle.generation, nbytes=shard.nbytes
            )
            np.copyto(into[shard.start : shard.stop], values)
            return version

        return self._calls.start(self._loop, self.handle.generation, self._all(fetch))

    def start_push(
        self,
        identity: tuple[int, int, int],
        gradient: np.ndarray,
        fetched: list[int],
        into: np.ndarray | None = None,
    ) -> concurrent.futures.Future[list[Acknowledgement]]:
        """Start to push a gradient to every shard under its identity (epoch, portion, step).

        With `into` the answers bring the parameters along, which saves a fetch.
        """
        versions = dict(zip(self.handle.shards, fetched, strict=True))

        async def push_to(shard: ShardPlace, copy: ActorPlace, fetch: bool) -> Acknowledgement:
            acknowledgement, values = await _call(
                self._pool,
                copy,
                "push",
                self.handle.generation,
                identity,
                gradient[shard.start : shard.stop],
                versions[shard],
                fetch,
                nbytes=shard.nbytes,
            )
            if fetch:
                assert into is not None
                np.copyto(into[shard.start : shard.stop], values)
            return acknowledgement

        async def push(shard: ShardPlace) -> Acknowledgement:
            wanted = into is not None
            pushes = (push_to(shard, c, wanted and c is shard.first) for c in shard.copies)
            return together(await _gather(pushes))

        return self._calls.start(self._loop, self.handle.generation, self._all(push))

    def fetch_vector(self, name: str, into: np.ndarray) -> None:
        """Fetch one named vector of batch shards."""

        async def fetch(shard: ShardPlace) -> None:
            values = await _call(
                self._pool,
                shard.first,
                "fetch_vector",
                self.handle.generation,
                name,
                nbytes=shard.nbytes,
            )
            np.copyto(into[shard.start : shard.stop], values)

        self.wait(self._calls.start(self._loop, self.handle.generation, self._all(fetch)))

    def contribute(self, identity: tuple[int, int], gradient: np.ndarray) -> bool:
        """Add a gradient, under its identity (evaluation, bundle), to every batch shard.

        False where it was a repeat for one of them: for any copy of any shard.
        """

        async def push(shard: ShardPlace) -> bool:
            part = gradient[shard.start : shard.stop]
            return all(
                await self._every_copy(shard, "contribute", *identity, part, nbytes=shard.nbytes)
            )

        future = self._calls.start(self._loop, self.handle.generation, self._all(push))
        return all(self.wait(future))

    def fetch_copy(self, number: int, into: np.ndarray) -> None:
        """Fetch the parameters of a snapshot copy into a vector."""

        async def fetch(shard: ShardPlace) -> None:
            values = await _call(self._pool, shard.first, "fetch_copy", number, nbytes=shard.nbytes)
            np.copyto(into[shard.start : shard.stop], values)

        self.wait(self._calls.start(self._loop, self.handle.generation, self._all(fetch)))

    async def _all(self, one: Callable[[ShardPlace], Coroutine[Any, Any, Any]]) -> list[Any]:
        return await _gather(one(shard) for shard in self.handle.shards)

    async def _every_copy(
        self, shard: ShardPlace, method: str, *arguments: Any, nbytes: int = 0
    ) -> list[Any]:
        """Call a method that is given the generation on every copy of a shard."""
        generation = self.handle.generation
        return await _gather(
            _call(self._pool, copy, method, generation, *arguments, nbytes=nbytes)
            for copy in shard.copies
        )

    def wait(self, future: concurrent.futures.Future[Any]) -> Any:
        """Wait for a call that was started; its own deadlines bound the wait.

        Raises
        ------
        ShardLost, Stale
            A shard was lost, or the generation has ended.
        RaisedInShard
            A method of a shard raised an error.
        """
        try:
            return future.result()
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise Stale(f"generation {self.handle.generation} has ended") from None
        except RuntimeError as error:
            if isinstance(error, RECOVERABLE):
                raise
            raise ShardLost(f"a call to a shard failed: {error!r}") from error


async def _call(pool: Any, place: ActorPlace, method: str, *arguments: Any, nbytes: int = 0) -> Any:
    """Call a shard; what its method raises is told apart from errors of the task that calls."""
    try:
        return await call_actor(pool, place, method, *arguments, nbytes=nbytes)
    except RECOVERABLE:
        raise
    except Exception as error:
        raise RaisedInShard(error) from error


async def _gather(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Await calls at once; where one fails the others are ended, none is left behind."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def together(copies: list[Acknowledgement]) -> Acknowledgement:
    """Return what the copies of one shard answered as one: a repeat for one of them is a repeat.

    Copies apply the updates of several replicas each in its own order, as Downpour allows, so
    that only the first one's numbers fit what was fetched from it.
    """
    first = copies[0]
    is_new = all(copy.staleness >= 0 for copy in copies[1:])
    return Acknowledgement(
        first.version, first.staleness if is_new else -1, any(copy.pause for copy in copies)
    )
