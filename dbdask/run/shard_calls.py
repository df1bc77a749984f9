"""Where the shards of a run are, and the client's commands to them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client, Future

from dbdask.errors import ShardLost
from dbdask.rpc.calls import ActorPlace, call_actor
from dbdask.schedule.ledger import ShardProgress
from dbdask.worker.link import ServerHandle, ShardPlace

COMMAND_NAMES = {"command": 1, "order": 2}
"""Which argument of these methods of a shard is the name of the command."""


@dataclass(frozen=True, eq=False)
class ShardCopy:
    """One copy of a shard: its actor, and the future that keeps it alive."""

    place: ActorPlace
    future: "Future[object]"


class ShardCalls:
    """The shards as they are now, and calls of all their copies over direct connections.

    Reads go to the first copy of a shard, commands to all copies.

    Parameters
    ----------
    client
        The Dask client; its event loop runs every method.
    run
        The run's identity.
    size
        Length of the flat vector.
    """

    def __init__(self, client: Client, run: str, size: int) -> None:
        self.client, self.run, self.size = client, run, size
        self.slices: tuple[tuple[int, int], ...] = ()  # none before they are placed
        self.generation = 0
        self._copies: list[list[ShardCopy]] = []
        self._command = 0

    @property
    def chunk(self) -> int:
        """Elements of the longest shard."""
        return max(stop - start for start, stop in self.slices)

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
            raise ShardLost(f"shard {index} has no copy left")
        return await asyncio.gather(
            *(self._of_copy(copy, method, *arguments, nbytes=nbytes) for copy in copies)
        )

    async def call(self, index: int, method: str, *arguments: object, nbytes: int = 0) -> Any:
        """Call the first copy of one shard.

        Raises
        ------
        ShardLost
            The shard has no copy left, or the call shows that the copy is lost.
        """
        copies = self._copies[index]
        if not copies:
            raise ShardLost(f"shard {index} has no copy left")
        return await self._of_copy(copies[0], method, *arguments, nbytes=nbytes)

    async def _of_copy(
        self, copy: ShardCopy, method: str, *arguments: object, nbytes: int = 0
    ) -> Any:
        name = str(arguments[COMMAND_NAMES[method]]) if method in COMMAND_NAMES else method
        return await call_actor(
            self.client.rpc, copy.place, method, *arguments, nbytes=nbytes, called=name
        )

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

    async def assign(self, values: np.ndarray, only: Sequence[int] | None = None) -> None:
        """Send each shard its slice of a vector that the client holds, float32 (parameters,).

        Raises
        ------
        ShardLost
            A shard has no copy left.
        """
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
        """Return one vector of the shards, float32 (parameters,), in the order of the shards.

        Raises
        ------
        ShardLost
            A shard has no copy left.
        """
        vector = np.empty(self.size, np.float32)

        async def collect(index: int) -> None:
            start, stop = self.slices[index]
            vector[start:stop] = await self.call(index, "read", name, nbytes=4 * (stop - start))

        await asyncio.gather(*(collect(index) for index in range(len(self.slices))))
        return vector
