"""Snapshots: consistent copies in the shards, written to the checkpoint and committed."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from dbdask.errors import CheckpointError
from dbdask.rpc.deadlines import deadline, within
from dbdask.run.daemon_threads import DaemonThreadRunner
from dbdask.run.outcome import resume_hint
from dbdask.run.parameter_server import ParameterServer
from dbdask.storage import checkpoint
from dbdask.storage.checkpoint import Snapshot

logger = logging.getLogger("dbdask")

MOST_NAMED = 3  # shards, in an error


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
        self.number = last.highest if last else 0
        self.writing: asyncio.Task[None] | None = None
        self._users: dict[int, int] = {}
        self._store = (
            DaemonThreadRunner()
        )  # one after the other: a late commit is there when the next deletes
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
        await self.server.order("copy", self.number, whole)
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
        """Write a copy, commit it, and delete the snapshots before it."""
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
        writing = _Writing(self._store, server, path, group, names)
        seconds = round(deadline("store", 4 * server.size * len(names)), 1)
        try:
            async with within(seconds):
                await writing.begin()
                await writing.write(method, what)
                await writing.commit(state)
        except TimeoutError as error:
            raise CheckpointError(
                f"checkpoint={path!r} gave no answer in {seconds:g} s (dbdask.store) while "
                f"{writing.step}; {self.resume_hint()}"
            ) from error
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self.resume_hint()}") from error
        self.committed = Snapshot(path, group, number, state)
        await self._delete_older(path, number)

    async def _delete_older(self, path: str, number: int) -> None:
        """Delete what the snapshot of a number replaces; what stays behind only costs space."""
        try:
            async with within(deadline("store")):
                older = await self._store.do(checkpoint.older, path, number)
                await self._store.do(checkpoint.delete_all, path, older)
        except Exception as error:
            logger.warning("snapshots older than %d could not be deleted: %r", number, error)
            self._store = DaemonThreadRunner()  # nothing waits for a deletion that hangs

    def resume_hint(self, *, copies_help: bool = True) -> str:
        """Name the last snapshot and the line that resumes it, or what would have helped."""
        return resume_hint(self.path, self.committed, twins_help=copies_help)

    def named_in(self, error: Exception) -> Exception:
        """Return an error that names the last snapshot, if there is one to go on from."""
        stands = self.resume_hint()
        if self.committed is None or stands in str(error):
            return error
        return type(error)(f"{error}; {stands}")

    async def check(self) -> None:
        """Let an error of a writing that has ended come out."""
        if self.writing is not None and self.writing.done():
            await self.settle()

    async def settle(self) -> None:
        """Wait until what is being written is committed."""
        writing, self.writing = self.writing, None
        if writing is not None:
            await writing

    async def give_up(self) -> None:
        """Abandon copies and writing: a shard that held them is lost."""
        if self.writing is not None:
            self.writing.cancel()
            await asyncio.gather(self.writing, return_exceptions=True)
            self.writing = None
        self._users.clear()


class _Writing:
    """One snapshot on its way to the store, and the step whose answer is waited for."""

    def __init__(
        self,
        store: DaemonThreadRunner,
        server: ParameterServer,
        path: str,
        group: str,
        names: Sequence[str],
    ) -> None:
        self.store, self.server, self.path, self.group = store, server, path, group
        self.names = names
        self._step = "beginning"
        self._unwritten: set[int] = set()

    @property
    def step(self) -> str:
        """What is under way, and by whom."""
        by = f" by {self._shards()}" if self._unwritten else ""
        return f"{self._step} snapshot {self.group}{by}"

    def _shards(self) -> str:
        holders = self.server.holders
        shards = [f"shard {i} on {' '.join(holders[i][:1])}" for i in sorted(self._unwritten)]
        named, others = shards[:MOST_NAMED], len(shards[MOST_NAMED:])
        return ", ".join(named) + (f" and {others} more" if others else "")

    async def begin(self) -> None:
        """Make the empty vectors."""
        size, chunk = self.server.size, self.server.chunk
        await self.store.do(checkpoint.begin, self.path, self.group, self.names, size, chunk)

    async def write(self, method: str, what: Any) -> None:
        """Let every shard write its slice."""
        self._step, self._unwritten = "writing", set(range(len(self.server.slices)))
        await asyncio.gather(*(self._write_one(i, method, what) for i in sorted(self._unwritten)))

    async def _write_one(self, index: int, method: str, what: Any) -> None:
        nbytes = 4 * self.server.chunk * len(self.names)
        await self.server.call(index, method, self.path, self.group, what, nbytes=nbytes)
        self._unwritten.discard(index)

    async def commit(self, state: dict[str, Any]) -> None:
        """Put the commit, when all else is there."""
        self._step = "committing"
        await self.store.do(checkpoint.commit, self.path, self.group, state)
