"""The messages that the parts of a partitioned replica send to a worker.

A mailbox stands among the actors of its worker, so the transports that lead to shards lead to it,
too. The scheduler does not know it, and it keeps no worker from leaving.

A message that is not of the present gang, or is of an attempt or a step that is over, is dropped.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from dbdask.daemon_threads import beside_loop
from dbdask.data.block_provider import leave_thread
from dbdask.rpc.same_host_server import ChannelServer
from dbdask.rpc.transport import Request
from dbdask.schedule.gangs import Member

LEAVE_SECONDS = 0.5
"""A task that waits for its peers for so long gives its thread to other tasks: among them may be
those of another run, whose peers wait for a thread that this run holds elsewhere."""


class GangEnded(Exception):
    """The gang of a task has ended: the task ends without a result.

    Attributes
    ----------
    by
        The cause of its end: "another" task of it, whose own report says why; a "peer" that
        cannot be reached; or this task "itself".
    """

    by = "another"


class PeerLost(GangEnded):
    """A member of the gang cannot be reached."""

    by = "peer"


class GangLeft(GangEnded):
    """The task leaves its gang, for a reason that its peers may not know."""

    by = "itself"


class Address(NamedTuple):
    """Which message this is. Of each there is one."""

    gang: int
    attempt: int
    portion: tuple[int, int]
    """Identity of the work: epoch and portion, or evaluation and bundle."""
    step: int
    """Which minibatch of the attempt, from 0; -1 before the first."""
    boundary: int
    direction: str
    sender: int
    """The part that sends it."""

    @property
    def place(self) -> tuple[int, int]:
        """Attempt and step: messages of a later place come while an earlier one is under way."""
        return self.attempt, self.step


class Note(NamedTuple):
    """The message that came to an address."""

    values: np.ndarray
    mark: bool
    """The sender's mark of the message (see `Peers`)."""


class Mailbox:
    """The messages to one worker, for one run.

    Attributes
    ----------
    lock
        Held while the state is read or changed.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._gang = self._ended = -1  # the newest gang; the newest that has ended
        self._generation = -1  # of the newest gang
        self._now = (0, -1)  # attempt and step that are under way
        self._kept: dict[Address, Note] = {}
        self._wanted: dict[Address, np.ndarray] = {}
        self._marks: dict[Address, bool] = {}
        self._channels = ChannelServer(self)

    # Messages of other workers

    def answer(
        self, request: Request, sent: np.ndarray | None = None, into: np.ndarray | None = None
    ) -> bool:
        """Take a message; return False if it is dropped.

        Parameters
        ----------
        request
            "deliver", with the address, the mark, the shape, and the values if they are few.
        sent
            The values, float32 (n,), if they are many. They are copied, in the shape of the
            message.
        into
            Unused: the answer brings no vector.

        Raises
        ------
        AttributeError
            The request is not "deliver".
        """
        if request.method != "deliver":
            raise AttributeError(f"a mailbox answers no request {request.method!r}")
        address, mark, shape, few = request.arguments
        values = few if sent is None else sent
        return self._deliver(Address(*address), bool(mark), values.reshape(shape))

    async def serve(
        self, request: tuple[str, int | None, tuple[Any, ...]], sent: np.ndarray | None, wants: bool
    ) -> tuple[bool, None]:
        """Take a message that came over Dask's connections; `sent` is as for `answer`."""
        return self.answer(Request(*request), sent), None

    async def ping(self) -> int:
        """Answer at once."""
        return self._gang

    async def open_channel(self, host: str) -> str:
        """Listen for one caller on this host, as a shard does."""
        return await beside_loop(self._channels.listen, host)

    async def may_send(self, gang: int, attempt: int) -> bool:
        """Whether this worker may yet send messages of an attempt: peers ask that wait for them.

        A worker that has gone on to a later attempt has sent all of this one.
        """
        with self.lock:
            return self._is_in(gang) and self._now[0] <= attempt

    def _is_in(self, gang: int) -> bool:
        return gang == self._gang > self._ended

    def _deliver(self, address: Address, mark: bool, values: np.ndarray) -> bool:
        with self.lock:
            if not self._is_in(address.gang) or address.place < self._now:
                return False
            if address in self._wanted:
                np.copyto(self._wanted.pop(address), values)
                self._marks[address] = mark
                self._changed.notify_all()
            elif address not in self._kept and address not in self._marks:
                self._kept[address] = Note(values.copy(), mark)
            return True

    # Calls of the tasks of this worker

    def expect(self, wanted: Mapping[Address, np.ndarray]) -> None:
        """Copy the values of messages into arrays of their shapes and dtypes, as soon as they come.

        Raises
        ------
        GangEnded
            The gang has ended.
        """
        with self.lock:
            self._check({address.gang for address in wanted})
            for address, into in wanted.items():
                note = self._kept.pop(address, None)
                if note is None:
                    self._wanted[address] = into
                else:
                    np.copyto(into, note.values)
                    self._marks[address] = note.mark

    def await_all(
        self, wanted: Mapping[Address, np.ndarray], ask: Callable[[], None], seconds: float
    ) -> dict[Address, bool]:
        """Wait for messages that are expected; return their marks.

        Parameters
        ----------
        wanted
            Arrays of the messages' shapes and dtypes, as given to `expect`.
        ask
            Is called each time `seconds` have passed; it raises if a message will not come.

        Raises
        ------
        GangEnded
            The gang has ended.
        """
        gangs = {address.gang for address in wanted}
        self._wait(lambda: all(a in self._marks for a in wanted), gangs, ask, seconds)
        with self.lock:
            self._check(gangs)  # it may have ended since, and its messages are dropped
            return {address: self._marks.pop(address) for address in wanted}

    def _wait(
        self, is_due: Callable[[], bool], gangs: set[int], ask: Callable[[], None], seconds: float
    ) -> None:
        if self._comes_within(LEAVE_SECONDS, is_due, gangs):
            return
        leave_thread()
        while not self._comes_within(seconds, is_due, gangs):
            self._ask(is_due, ask)

    def _comes_within(self, seconds: float, is_due: Callable[[], bool], gangs: set[int]) -> bool:
        """Wait until something is so; return False if that takes longer."""
        until = time.monotonic() + seconds
        with self._changed:
            while True:
                self._check(gangs)
                if is_due():
                    return True
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)

    def _ask(self, is_due: Callable[[], bool], ask: Callable[[], None]) -> None:
        """Ask without the lock, because messages come meanwhile: perhaps the last ones."""
        try:
            ask()
        except GangEnded:
            with self.lock:
                if not is_due():
                    raise

    def _check(self, gangs: set[int]) -> None:
        for gang in gangs:
            if not self._is_in(gang):
                raise GangEnded(f"gang {gang} has ended")

    def begin_step(self, gang: int, step: int) -> None:
        """Note that a step begins: what is left of the steps before is dropped.

        Raises
        ------
        GangEnded
            The gang has ended: its last task changes nothing of the gang that came after it.
        """
        with self.lock:
            self._check({gang})
            self._go_to((self._now[0], step))

    @contextmanager
    def admitted(self, member: Member, ask: Callable[[], None], seconds: float) -> Iterator[None]:
        """Hold the turn of an attempt: its tasks come in one order on all workers of the gang.

        Dask may begin the tasks of two attempts in one order here and in another order elsewhere.
        A task whose turn has not come gives its thread to the others. If the task does not end in
        order, the gang ends: no later attempt can take its turn.

        Raises
        ------
        GangEnded
            The gang has ended.
        """
        if not self._is_turn(member):
            leave_thread()
            self._wait(lambda: self._is_turn(member), {member.gang}, ask, seconds)
        try:
            yield
        except BaseException:
            self.end(member.gang)
            raise
        with self._changed:
            if self._is_in(member.gang):
                self._go_to((member.attempt + 1, -1))

    def _is_turn(self, member: Member) -> bool:
        with self.lock:
            self._check({member.gang})
            if self._now[0] > member.attempt:  # Dask runs a task again that has ended
                raise GangEnded(f"attempt {member.attempt} of gang {member.gang} is over")
            return self._now[0] == member.attempt

    def _go_to(self, place: tuple[int, int]) -> None:
        self._now = place
        for messages in (self._kept, self._wanted, self._marks):
            for address in [a for a in messages if a.place < place]:
                del messages[address]
        self._changed.notify_all()

    # Calls of the run

    def join(self, gang: int, generation: int) -> None:
        """Belong to a gang from now on; earlier ones end, and this one with its generation."""
        with self.lock:
            if gang > self._gang:
                self._generation = generation
                self._begin(gang)

    def end(self, gang: int) -> None:
        """End a gang and those before it: their waits end, and their messages are dropped."""
        with self.lock:
            self._ended = max(self._ended, gang)
            if not self._is_in(self._gang):
                self._begin(self._gang)

    def end_generation(self, generation: int) -> None:
        """End the gang if it is of this generation, or of one before it."""
        with self.lock:
            if self._generation <= generation:
                self.end(self._gang)

    def close(self) -> None:
        """End every gang, now and later, and all connections."""
        self.end(1 << 62)
        self._channels.close()

    def _begin(self, gang: int) -> None:
        self._gang = gang
        self._kept.clear()
        self._wanted.clear()
        self._marks.clear()
        self._go_to((0, -1))


def mailbox_key(run: str) -> str:
    """Return the key of a run's mailbox among the actors of a worker."""
    return f"dbdask-mailbox-{run}"
