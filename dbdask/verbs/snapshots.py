"""Snapshots: consistent copies in the shards, written to the checkpoint and committed."""

import asyncio
import logging
import time
from typing import Any

from dbdask.errors import CheckpointError
from dbdask.numbers import checkpoint
from dbdask.numbers.checkpoint import Snapshot
from dbdask.server.parameter_server import ParameterServer
from dbdask.verbs.outcome import how_to_go_on

logger = logging.getLogger("dbdask")


class Snapshots:
    """The snapshots of one run.

    Parameters
    ----------
    server
        The shards, which hold the copies and write them.
    path
        The checkpoint, or None: then copies only serve validation.
    every
        Seconds between two snapshots.
    last
        The committed snapshot that the run goes on from, if any.
    """

    def __init__(
        self, server: ParameterServer, path: str | None, every: float, last: Snapshot | None
    ) -> None:
        self.server, self.path, self.every = server, path, every
        self.committed = last
        self.number = last.number if last else 0
        self.writing: asyncio.Task[None] | None = None
        self._users: dict[int, int] = {}
        self._since = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for the next snapshot, and the one before was taken in."""
        if self.path is None or self.writing is not None:
            return False
        return time.monotonic() - self._since >= self.every

    async def copy(self, users: int, *, whole: bool) -> int:
        """Let every shard keep a copy, of everything or of the parameters alone.

        `users` will call `drop` when they need it no more.
        """
        self.number += 1
        await self.server.command("copy", self.number, whole)
        self._users[self.number] = users
        return self.number

    async def drop(self, number: int) -> None:
        """One user of a copy is done with it; the last one frees it."""
        self._users[number] -= 1
        if self._users[number] == 0:
            del self._users[number]
            await self.server.command("drop", number)

    def start_writing(self, number: int, names: list[str], state: dict[str, Any]) -> None:
        """Write a copy beside training."""
        self._since = time.monotonic()
        self.writing = asyncio.ensure_future(self.write(number, names, state))

    async def write(self, number: int, names: list[str], state: dict[str, Any]) -> None:
        """Write a copy, commit it, and delete the snapshot before it."""
        await self._write(number, names, state, "write", number)
        await self.drop(number)

    async def write_live(self, names: list[str], state: dict[str, Any]) -> None:
        """Write vectors that nothing changes meanwhile: without a copy of them."""
        self.number += 1
        await self._write(self.number, names, state, "write_vectors", names)
        self._since = time.monotonic()

    async def _write(
        self, number: int, names: list[str], state: dict[str, Any], method: str, what: Any
    ) -> None:
        assert self.path is not None
        server, path = self.server, self.path
        group = checkpoint.name_of(number, server.generation, server.run)
        try:
            await asyncio.to_thread(checkpoint.begin, path, group, names, server.size, server.chunk)
            nbytes = 4 * server.chunk * len(names)
            await server.call_each(method, path, group, what, nbytes=nbytes)
            await asyncio.to_thread(checkpoint.commit, path, group, state)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self._how_to_go_on()}") from error
        before, self.committed = self.committed, Snapshot(path, group, number, state)
        if before is not None:
            await asyncio.to_thread(_delete_quietly, before)

    def _how_to_go_on(self) -> str:
        return how_to_go_on(self.path, self.committed)

    async def settle(self) -> None:
        """Wait until what is being written is committed."""
        if self.writing is not None:
            await self.writing
            self.writing = None

    async def give_up(self) -> None:
        """Abandon copies and writing: a shard that held them is lost."""
        if self.writing is not None:
            self.writing.cancel()
            await asyncio.gather(self.writing, return_exceptions=True)
            self.writing = None
        self._users.clear()


def _delete_quietly(snapshot: Snapshot) -> None:
    """A snapshot that stays behind costs space, not correctness."""
    try:
        checkpoint.delete(snapshot.path, snapshot.group)
    except Exception as error:
        logger.warning("old snapshot %s could not be deleted: %r", snapshot.group, error)
