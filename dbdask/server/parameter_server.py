"""The verb's side of the parameter server: it places shards, commands them, and replaces lost ones.

Runs on the client's event loop. The client sends numbered commands and receives scalars; vectors
stay in the shards.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dbdask.errors import ShardLost, Stale, WorkerError
from dbdask.numbers.layout import cut
from dbdask.numbers.optimizers import Optimizer
from dbdask.server.contact import (
    ActorPlace,
    answers_ping,
    call_actor,
    place_of,
    run_on,
    settled,
)
from dbdask.server.deadlines import deadline
from dbdask.server.farewell import add_farewell, forget_farewell, shard_prefix
from dbdask.server.initial import FromNeighbour
from dbdask.server.link import ServerHandle, ShardPlace
from dbdask.server.room import close_room, end_generation, unwant
from dbdask.server.shard import ParameterShard, ShardState

Initial = Callable[[int, int, Optimizer], ShardState]


class ParameterServer:
    """The shards of one run.

    Parameters
    ----------
    client
        The Dask client; its event loop runs every method.
    run
        The run's identity.
    size, count
        Length of the flat vector, and number of shards.
    optimizer
        The update rule that each shard applies to its own slice.
    kind
        The class of the shards.
    """

    def __init__(
        self,
        client: Any,
        run: str,
        size: int,
        count: int,
        optimizer: Optimizer,
        kind: type[ParameterShard] = ParameterShard,
    ) -> None:
        self.client, self.run, self.size = client, run, size
        self.kind = kind
        self.slices = cut(size, count)
        self.optimizer = optimizer
        self.generation = 0
        self._futures: list[Any] = [None] * len(self.slices)
        self._places: list[ActorPlace | None] = [None] * len(self.slices)
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
        shards = []
        for (start, stop), place in zip(self.slices, self._places, strict=True):
            assert place is not None
            shards.append(ShardPlace(start, stop, place))
        return ServerHandle(self.run, self.generation, self.size, tuple(shards))

    @property
    def workers(self) -> list[str]:
        """The worker of each shard."""
        return [place.worker if place else "" for place in self._places]

    async def place(self, initial: Initial, workers: Sequence[str]) -> None:
        """Make every shard, spread over `workers`."""
        await self.replace(range(len(self.slices)), initial, workers)

    async def replace(
        self, indices: Sequence[int], initial: Initial, workers: Sequence[str]
    ) -> None:
        """Make the named shards anew, each on the worker that holds the fewest."""
        chosen = self._choose(indices, workers)
        await asyncio.gather(
            *(self._make(index, initial, worker) for index, worker in chosen.items())
        )

    async def move(self, indices: Sequence[int], workers: Sequence[str]) -> None:
        """Move shards that still answer to other workers, under a new generation.

        No replica may be at work: what is still on its way is refused by the new generation.
        """
        await self.advance(range(len(self.slices)))
        sources = {index: self._places[index] for index in indices}
        before = [self._futures[index] for index in indices]  # keeps the old shards alive
        chosen = self._choose(indices, workers)
        await asyncio.gather(
            *(
                self._make(index, FromNeighbour(place), chosen[index])
                for index, place in sources.items()
                if place is not None
            )
        )
        for future in before:
            future.release()
        for place in sources.values():
            assert place is not None
            await self._until_forgotten(place.key)

    def _choose(self, indices: Sequence[int], workers: Sequence[str]) -> dict[int, str]:
        """For each shard, the worker that holds the fewest; the shards' places are given up."""
        for index in indices:
            self._places[index] = None
        loads = Counter(dict.fromkeys(workers, 0))
        loads.update(place.worker for place in self._places if place and place.worker in loads)
        chosen = {}
        for index in indices:
            chosen[index] = min(workers, key=lambda name: loads[name])
            loads[chosen[index]] += 1
        return chosen

    async def _until_forgotten(self, key: str) -> None:
        """Wait until the scheduler has dropped an actor: its worker can be retired only then."""
        until = time.monotonic() + deadline("ping")
        while await place_of(self.client, key) is not None and time.monotonic() < until:
            await asyncio.sleep(0.02)

    async def _make(self, index: int, initial: Initial, worker: str) -> None:
        start, stop = self.slices[index]
        key = f"{shard_prefix(self.run)}{index}-{uuid.uuid4().hex[:8]}"
        future = self.client.submit(
            self.kind,
            start,
            stop,
            self.optimizer,
            self.generation,
            initial,
            actor=True,
            key=key,
            workers=[worker],
            allow_other_workers=True,
            priority=100,
        )
        self._futures[index] = future
        try:
            status = await settled(self.client, future, deadline("placement"))
        except TimeoutError as error:
            raise WorkerError(
                f"no worker made parameter shard {index} within {deadline('placement'):g} s"
            ) from error
        if status != "finished":
            raise future._state.exception or WorkerError(f"shard {index} could not be made")
        address = await place_of(self.client, key)
        if address is None:
            raise ShardLost(f"shard {index} was lost while it was made")
        self._places[index] = ActorPlace(address, key)
        await self._tell([address], add_farewell, self.run)

    async def command(
        self,
        name: str,
        *arguments: Any,
        only: Sequence[int] | None = None,
        nbytes: int = 0,
        number: int | None = None,
    ) -> list[Any]:
        """Give a numbered command to all shards (or to some) and await every answer.

        With the `number` of a command that was given before it is a repeat: a shard that has done
        it only answers again.
        """
        number = self.new_number() if number is None else number
        indices = range(len(self.slices)) if only is None else only
        return await asyncio.gather(
            *(
                self.call(index, "command", number, name, *arguments, nbytes=nbytes)
                for index in indices
            )
        )

    def new_number(self) -> int:
        """Return the number of a new command."""
        self._command += 1
        return self._command

    async def call(self, index: int, method: str, *arguments: Any, nbytes: int = 0) -> Any:
        """Call one shard over a direct connection."""
        place = self._places[index]
        if place is None:
            raise ShardLost(f"shard {index} has no place")
        return await call_actor(self.client.rpc, place, method, *arguments, nbytes=nbytes)

    async def find_lost(self, workers: Sequence[str]) -> list[int]:
        """List the shards whose worker left, or that answer no ping."""

        async def is_lost(place: ActorPlace | None) -> bool:
            if place is None or place.worker not in workers:
                return True
            return not await answers_ping(self.client.rpc, place)

        lost = await asyncio.gather(*(is_lost(place) for place in self._places))
        return [index for index, gone in enumerate(lost) if gone]

    async def advance(self, survivors: Sequence[int]) -> list[list[tuple[int, int, int]]]:
        """Enter a new generation on the surviving shards; their ledgers come back."""
        self.generation += 1
        return await self.command("advance", self.generation, only=survivors)

    async def end_generation(self, workers: Sequence[str]) -> None:
        """End the calls of the current generation on every worker that answers."""
        await self._tell(workers, end_generation, self.run, self.generation)

    async def assign(self, values: np.ndarray, only: Sequence[int] | None = None) -> None:
        """Send each shard its slice of a vector that the client holds."""
        indices = range(len(self.slices)) if only is None else only
        number = self.new_number()
        await asyncio.gather(
            *(
                self.call(
                    index,
                    "command",
                    number,
                    "assign",
                    values[slice(*self.slices[index])],
                    nbytes=4 * self.chunk,
                )
                for index in indices
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

        Nothing waits for it: a worker that does not hear it works in vain, and no worse.
        """
        telling = asyncio.ensure_future(self._tell(workers, unwant, self.run, identities))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def release(self, workers: Sequence[str]) -> None:
        """Leave nothing on the cluster: rooms, then shards."""
        for telling in self._telling:
            telling.cancel()
        await self._tell(workers, close_room, self.run)
        await self._tell(workers, forget_farewell, self.run)
        for future in self._futures:
            if future is not None:
                future.release()
        self._futures = []

    async def _tell(
        self, workers: Sequence[str], function: Callable[..., Any], *arguments: Any
    ) -> None:
        async def tell(worker: str) -> None:
            await run_on(self.client.rpc, worker, function, *arguments, seconds=deadline("connect"))

        await asyncio.gather(*(tell(worker) for worker in workers), return_exceptions=True)


TROUBLE = (ShardLost, Stale)
"""What a call to the shards ends in when the run has to recover, rather than fail."""
