"""Snapshots: consistent copies in the shards, written to the checkpoint and committed.

A snapshot is *good* if its parameters are finite, no replica refused a gradient since the one
before, and the loss has not grown as that of a run that has diverged. A good one takes the place of
all before it. A finite snapshot that is not good is kept beside the last good one, for the case
that the run is lost; if the run ends badly it goes, and the last good one is what is left. If the
last good one was deleted meanwhile, the next that is committed takes its place, good or not.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dbdask.daemon_threads import DaemonThreadRunner
from dbdask.errors import CheckpointError, DataError, ModelError, StoreFailed, WorkerError
from dbdask.rpc.deadlines import deadline, within
from dbdask.run.outcome import resume_hint
from dbdask.run.ownership import Ownership
from dbdask.run.parameter_server import ParameterServer
from dbdask.schedule.stored_chunks import stored_chunk
from dbdask.storage import checkpoint
from dbdask.storage.checkpoint import Snapshot

T = TypeVar("T")

logger = logging.getLogger("dbdask")

MOST_NAMED = 3  # shards, in an error
MADE_ANEW = (DataError, StoreFailed, ModelError, WorkerError)  # to say more; exactly these types


class Deleted(CheckpointError):
    """The part of a snapshot that was written is gone: the checkpoint was deleted."""


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
    ownership
        The run's hold of the checkpoint; None if no other run can want it.
    """

    def __init__(
        self,
        server: ParameterServer,
        path: str | None,
        every: float,
        last: Snapshot | None,
        ownership: Ownership | None = None,
    ) -> None:
        self.server, self.path, self.every = server, path, every
        self.ownership = ownership
        self.committed = last
        self.last_good = last.last_good if last else ""  # its group
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

    def start_writing(
        self, number: int, names: list[str], state: dict[str, Any], doubt: str = ""
    ) -> None:
        """Write a copy beside training."""
        self._since = time.monotonic()
        self.writing = asyncio.ensure_future(self.write(number, names, state, doubt))

    async def write(
        self, number: int, names: list[str], state: dict[str, Any], doubt: str = ""
    ) -> None:
        """Write a copy, and commit it; `doubt` says why it is not a good one."""
        await self.forget_bad(await self._write(number, names, state, "write", number, doubt))
        await self.drop(number)

    async def write_live(self, names: list[str], state: dict[str, Any], doubt: str = "") -> None:
        """Write vectors that nothing changes meanwhile: without a copy of them."""
        self.number += 1
        group = await self._write(self.number, names, state, "write_vectors", names, doubt)
        await self.forget_bad(group)
        self._since = time.monotonic()

    async def write_end(self, names: list[str], state: dict[str, Any], bad: str) -> str:
        """Write the vectors that a run ends with; returns their group.

        `bad` says why they are no state to go on from, if so: then they are not committed, and the
        last good snapshot is all that a reader finds. So too if they are not finite. If no snapshot
        is left, because the checkpoint was deleted, `committed` is None afterwards.
        """
        self.number += 1
        group = await self._write(self.number, names, state, "write_vectors", names, "", bad)
        assert self.committed is not None
        if group != self.committed.group:
            await self._keep_last_good(group, self.committed)
        return group

    async def _write(
        self,
        number: int,
        names: list[str],
        state: dict[str, Any],
        method: str,
        what: int | list[str],
        doubt: str,
        bad: str = "",
    ) -> str:
        """Write vectors and commit them, but for those that are bad; returns their group.

        Where the checkpoint was deleted meanwhile it is begun anew, and all is written once more.
        """
        assert self.path is not None
        seconds = round(deadline("store", 4 * self.server.size * len(names)), 1)
        for is_last in (False, True):
            group = checkpoint.name_of(number, self.server.generation, self.server.run)
            writing = _Writing(self._store, self.server, self.path, group, names, self.ownership)
            try:
                async with within(seconds):
                    is_finite = await writing.write(method, what)
                    bad = bad or ("" if is_finite else "the parameters are not finite")
                    if bad and self.committed is not None:
                        self._say(number, bad, "it is not kept")
                        return group
                    good = self.last_good if doubt else group
                    state = await writing.commit(state, good)
                    break
            except TimeoutError as error:
                raise CheckpointError(
                    f"checkpoint={self.path!r} gave no answer in {seconds:g} s (dbdask.store) "
                    f"while {writing.step}; {self.resume_hint()}"
                ) from error
            except Deleted as error:
                if is_last:
                    raise CheckpointError(f"{error}; {self.resume_hint()}") from error
                logger.warning("%s: it is written once more", error)
                self.number = number = self.number + 1
            except CheckpointError as error:
                raise CheckpointError(f"{error}; {self.resume_hint()}") from error
        self.committed = Snapshot(self.path, group, number, state)
        if doubt:
            is_gone = self.committed.last_good != good
            so = "is gone, and it takes its place" if is_gone else "is kept beside it"
            self._say(number, doubt, f"the last good one {so}")
        self.last_good = self.committed.last_good
        await self._delete_older(number)
        return group

    def _say(self, number: int, why: str, so: str) -> None:
        logger.warning(
            "snapshot %d of checkpoint=%r is not good: %s; %s", number, self.path, why, so
        )

    async def _delete_older(self, number: int) -> None:
        """Delete what the snapshot of a number replaces; what stays behind only costs space."""
        await self._delete("older", lambda group: checkpoint.is_older(group, number))

    async def _keep_last_good(self, ended: str, last: Snapshot) -> None:
        """Delete every snapshot but the last good one, and what the run ended with.

        If the last good one is gone, the last committed one is kept in its place.
        """
        good = self.last_good

        def keep(path: str) -> str:
            there = [group for group in (good, last.group) if checkpoint.is_committed(path, group)]
            kept = {ended, *there[:1]}
            checkpoint.delete_all(path, [g for g in checkpoint.snapshots(path) if g not in kept])
            return there[0] if there else ""

        found = await self._tidy("other", keep)
        kept = good if found is None else found
        if kept != good:
            so = f"{kept} is kept in its place" if kept else "no snapshot is left"
            logger.warning("snapshot %s of checkpoint=%r is gone: %s", good, self.path, so)
        self.last_good = kept
        number = checkpoint.number_of(kept) if kept else 0
        self.committed = Snapshot(self.path, kept, number, {}) if kept else None

    async def forget(self, group: str) -> None:
        """Delete vectors that were written and not committed, once they were read."""
        await self._delete("read", group.__eq__)

    async def forget_bad(self, group: str) -> None:
        """Delete vectors that were not committed, once they were read; leave any others."""
        if self.committed is None or group != self.committed.group:
            await self.forget(group)

    async def _delete(self, which: str, is_unwanted: Callable[[str], bool]) -> None:
        """Delete snapshots, never the last good one."""
        good = self.last_good

        def delete(path: str) -> None:
            groups = [g for g in checkpoint.snapshots(path) if g != good and is_unwanted(g)]
            checkpoint.delete_all(path, groups)

        await self._tidy(which, delete)

    async def _tidy(self, which: str, delete: Callable[[str], T]) -> T | None:
        """Call a function that deletes snapshots; what stays behind only costs space.

        Returns what it does, or None if it fails.
        """

        def owned() -> T:
            assert self.path is not None
            if self.ownership is not None:
                self.ownership.confirm()
            return delete(self.path)

        try:
            async with within(deadline("store")):
                what = f"checkpoint={self.path!r} to delete {which} snapshots"
                return await self._store.do(owned, what=what)
        except Exception as error:
            logger.warning("%s snapshots could not be deleted: %r", which, error)
            self._store = DaemonThreadRunner()  # nothing waits for a deletion that hangs
            return None

    def resume_hint(self, *, copies_help: bool = True) -> str:
        """Name the last snapshot and the line that resumes it, or what would have helped."""
        return resume_hint(self.path, self.committed, copies_help=copies_help)

    def named_in(self, error: Exception) -> Exception:
        """Return an error that names the last snapshot, if there is one to go on from.

        One of dbdask's own is made anew with a longer message. Any other gets a note: a type of a
        user's own may be made of other arguments than its message.
        """
        stands = self.resume_hint()
        if self.committed is None or stands in str(error):
            return error
        if type(error) in MADE_ANEW:
            return type(error)(f"{error}; {stands}")
        error.add_note(stands)
        return error

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
        ownership: Ownership | None,
    ) -> None:
        self.store, self.server, self.path, self.group = store, server, path, group
        self.names, self.ownership = names, ownership
        self._step = "beginning"
        self._unwritten: set[int] = set()

    @property
    def step(self) -> str:
        """The writing that is under way, and the shards that write."""
        by = f" by {self._shards()}" if self._unwritten else ""
        return f"{self._step} snapshot {self.group}{by}"

    def _shards(self) -> str:
        holders = self.server.holders
        shards = [f"shard {i} on {' '.join(holders[i][:1])}" for i in sorted(self._unwritten)]
        named, others = shards[:MOST_NAMED], len(shards[MOST_NAMED:])
        return ", ".join(named) + (f" and {others} more" if others else "")

    async def write(self, method: str, what: int | list[str]) -> bool:
        """Make the vectors, and let every shard write its slice; returns whether all are finite.

        Raises
        ------
        Deleted
            The vectors are not there any more.
        """
        cut = self.server.size, stored_chunk(self.server.chunk), self.server.vector_order
        try:
            await self._do(checkpoint.begin, self.path, self.group, self.names, *cut)
            self._step, self._unwritten = "writing", set(range(len(self.server.slices)))
            finite = await asyncio.gather(
                *(self._write_one(i, method, what) for i in sorted(self._unwritten))
            )
        except CheckpointError as error:
            if await self._do(self._is_deleted):
                raise self._deleted() from error
            raise
        return all(finite)

    def _is_deleted(self) -> bool:
        if not checkpoint.is_begun(self.path):
            return True
        was_begun = self._step == "writing"
        return was_begun and not checkpoint.has_vectors(self.path, self.group, self.names)

    async def _write_one(self, index: int, method: str, what: int | list[str]) -> bool:
        nbytes = 4 * self.server.chunk * len(self.names)
        is_finite = await self.server.call(
            index, method, self.path, self.group, what, nbytes=nbytes
        )
        self._unwritten.discard(index)
        return bool(is_finite)

    async def commit(self, state: dict[str, Any], good: str) -> dict[str, Any]:
        """Put the commit, when all else is there; returns the state that it holds.

        The state names the last good snapshot: `good`, or this one if `good` was deleted.

        Raises
        ------
        Deleted
            Something of the snapshot is not there any more.
        CheckpointError
            Another run has taken the checkpoint.
        """
        self._step = "committing"
        return await self._do(self._commit, state, good)

    async def _do(self, function: Callable[..., T], *arguments: Any) -> T:
        what = f"an answer of checkpoint={self.path!r} while {self.step}"
        return await self.store.do(function, *arguments, what=what)

    def _commit(self, state: dict[str, Any], good: str) -> dict[str, Any]:
        order = self.server.vector_order
        if order is None:
            chunks = -(-self.server.size // stored_chunk(self.server.chunk))
        else:
            chunks = order.stored_size // order.chunk
        if self.ownership is not None:
            self.ownership.confirm()
        if not checkpoint.is_whole(self.path, self.group, self.names, chunks):
            raise self._deleted()
        if good != self.group and not checkpoint.is_committed(self.path, good):
            good = self.group
        state = {**state, checkpoint.LAST_GOOD: good}
        checkpoint.commit(self.path, self.group, state)
        return state

    def _deleted(self) -> Deleted:
        return Deleted(
            f"snapshot {self.group} of checkpoint={self.path!r} was deleted while it was written"
        )
