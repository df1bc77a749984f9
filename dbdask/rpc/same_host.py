"""The transport between processes of one host: vectors stay in shared memory, messages are small.

A caller asks a shard, over Dask's connections, to listen for it. The shard makes a Unix socket in a
private directory, accepts one caller of its own user, and removes both. What follows goes over that
connection: a request names slices of memory whose descriptors were passed along, the shard reads
and writes there, and answers. Each connection has a thread of its own in the shard's process, and
carries one request at a time.

Whether it works is tried: a first message has the shard copy numbers from one place of a shared
memory to another. Where anything is missing (another host, another container, another system) the
caller goes on over Dask's connections.
"""

import array
import contextlib
import os
import pickle
import select
import shutil
import socket
import struct
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from dbdask.arrays import Float32Array
from dbdask.rpc import shared_memory
from dbdask.rpc.calls import MethodRaised
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.portable import portable
from dbdask.rpc.shared_memory import Memory, map_vector, memory_of, shared_vector
from dbdask.rpc.transport import Answering, PendingCall, Request, Transport

PACKET = 65_536  # bytes; a message is packets of this length, and one that is shorter
DESCRIPTORS = 4  # that travel with a message, at most
NAME = "socket"
THREADS = "dbdask-channel"  # how the names of serving threads begin
PROBE = Request("probe", None)
PROBED = 1024  # elements

IS_SUPPORTED = shared_memory.IS_SUPPORTED and hasattr(socket, "SO_PEERCRED")

Place = tuple[int, int, int]
"""Where a vector is: number of the memory, first element, one past the last."""


def host_identity() -> str:
    """Return what two processes share if, and only if, one kernel runs both; "" if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


# Messages


def _send(connection: socket.socket, message: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send a message; descriptors travel with its first packet."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    connection.sendmsg([message[:PACKET]], [rights] if descriptors else [])
    for start in range(PACKET, len(message) + 1, PACKET):
        connection.send(message[start : start + PACKET])


def _receive(connection: socket.socket, room: bytearray) -> tuple[Any, list[int]]:
    """Receive one message; return its content and its descriptors, which the caller must close.

    Raises
    ------
    EOFError
        The other side has closed the connection, or is gone.
    OSError
        The connection broke, or the message was cut short.
    """
    length, ancillary, flags, _ = connection.recvmsg_into(
        [room], socket.CMSG_SPACE(4 * DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data[: len(data) // 4 * 4])
    try:
        if length == 0:
            raise EOFError("the other side is gone")
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            raise OSError("a message was cut short")
        return pickle.loads(_rest(connection, room, length)), list(descriptors)
    except BaseException:
        _close(descriptors)
        raise


def _rest(connection: socket.socket, room: bytearray, length: int) -> memoryview | bytes:
    """Return a whole message, of which the first packet is in `room`."""
    if length < PACKET:
        return memoryview(room)[:length]
    whole = bytearray(room)
    while length == PACKET:
        packet = connection.recv(PACKET)
        length = len(packet)
        whole += packet
    return bytes(whole)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _peer(connection: socket.socket) -> int:
    """Return the user of the process at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    user: int = struct.unpack("3i", credentials)[1]
    return user


def _check_peer(connection: socket.socket) -> None:
    user = _peer(connection)
    if user != os.getuid():
        raise PermissionError(f"the other end belongs to user {user}, not to {os.getuid()}")


@contextlib.contextmanager
def _address(directory: str) -> Any:
    """Give the socket's address in a directory, of whatever length the directory's path is."""
    held = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{held}/{NAME}"
    finally:
        os.close(held)


# The side of the shard


class ChannelServer:
    """Serves the callers of one actor that are on its host, each on a thread of its own.

    Nothing of it keeps the actor alive, and it ends when the actor is dropped.

    Parameters
    ----------
    actor
        Answers the requests.
    """

    def __init__(self, actor: Answering) -> None:
        self._answer = weakref.WeakMethod(actor.answer)
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._end = weakref.finalize(actor, _shut_down, self._sockets, self._lock)
        self._end.atexit = False  # the process closes its sockets by itself

    def listen(self, host: str) -> str:
        """Begin to wait for one caller; return the directory of the socket that it is to connect.

        Parameters
        ----------
        host
            The caller's `host_identity`.

        Raises
        ------
        OSError
            No process of that host can be served from here.
        """
        if not IS_SUPPORTED or not host or host != host_identity():
            raise OSError("the caller is on another host, or this system shares no memory")
        directory = tempfile.mkdtemp(prefix="dbdask-")  # of mode 0700
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with _address(directory) as address:
                listener.bind(address)
            listener.listen(1)
            listener.settimeout(deadline("connect"))
            served = _Served(self._answer, self._sockets, self._lock)
            threading.Thread(
                target=served.run, args=(listener, directory), name=THREADS, daemon=True
            ).start()
        except BaseException:
            listener.close()
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return directory

    def close(self) -> None:
        """End every connection, and so its thread."""
        self._end()


def _shut_down(sockets: set[socket.socket], lock: threading.Lock) -> None:
    """Wake the threads that serve connections: each closes its own."""
    with lock:
        for connection in sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Served:
    """One caller: its connection, and the memory that it shares."""

    def __init__(
        self,
        answer: "weakref.WeakMethod[Callable[..., Any]]",
        sockets: set[socket.socket],
        lock: threading.Lock,
    ) -> None:
        self._answer, self._sockets, self._lock = answer, sockets, lock
        self._mapped: dict[int, Float32Array] = {}
        self._room = bytearray(PACKET)

    def run(self, listener: socket.socket, directory: str) -> None:
        """Accept the caller, and serve it until one side ends the connection."""
        with contextlib.suppress(OSError, EOFError):
            with self._kept(listener):
                try:
                    connection, _ = listener.accept()
                finally:
                    shutil.rmtree(directory, ignore_errors=True)
            with self._kept(connection):
                _check_peer(connection)
                connection.settimeout(None)
                while self._answer() is not None:
                    self._serve_one(connection)

    @contextlib.contextmanager
    def _kept(self, connection: socket.socket) -> Any:
        """Close a socket in the end, and let others shut it down before."""
        with connection:
            with self._lock:
                self._sockets.add(connection)
            try:
                yield
            finally:
                with self._lock:
                    self._sockets.discard(connection)

    def _serve_one(self, connection: socket.socket) -> None:
        message, descriptors = _receive(connection, self._room)
        request, sent, into, new, gone = message
        for number in gone:
            self._mapped.pop(number, None)
        try:
            while descriptors:
                self._mapped[new.pop(0)] = map_vector(descriptors.pop(0))
        finally:
            _close(descriptors)
        _send(connection, self._answered(Request(*request), self._vector(sent), self._vector(into)))

    def _vector(self, place: Place | None) -> Float32Array | None:
        if place is None:
            return None
        number, start, stop = place
        return self._mapped[number][start:stop]

    def _answered(
        self, request: Request, sent: Float32Array | None, into: Float32Array | None
    ) -> bytes:
        """Return the message with the answer, or with the error that there is instead.

        Raises
        ------
        EOFError
            The shard is not here any more: the connection ends.
        """
        answer = self._answer()
        if answer is None:
            raise EOFError("the shard was dropped")
        try:
            if request == PROBE:
                assert sent is not None and into is not None
                np.copyto(into, sent)
                return pickle.dumps((None, None))
            return pickle.dumps((answer(request, sent, into), None))
        except Exception as error:
            failure: bytes = cloudpickle.dumps((None, portable(error)))
            return failure


# The side of the caller


class Slice(NamedTuple):
    """A slice of shared memory."""

    memory: Memory
    start: int
    stop: int

    @property
    def place(self) -> Place:
        """The slice, as the other side knows it."""
        return self.memory.number, self.start, self.stop


def shared_slice(vector: Float32Array) -> Slice | None:
    """Return the slice of shared memory that a vector is; None for an ordinary one."""
    found = memory_of(vector)
    return None if found is None else Slice(found[0], found[1], found[1] + vector.size)


class Channel:
    """A connection to a shard, used by one call at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.room = bytearray(PACKET)
        self._known: dict[int, weakref.ref[Memory]] = {}
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, request: Request, sent: Slice | None, into: Slice | None) -> None:
        """Send a request, with the descriptors of memory that the other side does not know yet."""
        new: list[Memory] = []
        for part in (sent, into):
            if part is not None and part.memory.number not in self._known:
                self._known[part.memory.number] = weakref.ref(part.memory)
                new.append(part.memory)
        gone = [number for number, memory in self._known.items() if memory() is None]
        for number in gone:
            del self._known[number]
        message = (
            tuple(request),
            sent.place if sent is not None else None,
            into.place if into is not None else None,
            [memory.number for memory in new],
            gone,
        )
        _send(self.connection, pickle.dumps(message), [memory.descriptor for memory in new])

    def wait(self, seconds: float) -> bool:
        """Wait for the answer, or for the end of the connection."""
        return bool(self._poll.poll(1e3 * seconds))

    def receive(self) -> Any:
        """Return the answer that has come.

        Raises
        ------
        MethodRaised
            The shard's method raised an error.
        """
        answer, failure = _receive(self.connection, self.room)[0]
        if failure is not None:
            raise MethodRaised(failure)
        return answer


class SameHostCall:
    """A request that was sent, and its answer."""

    def __init__(self, channel: Channel, done: Callable[[Channel], None]) -> None:
        self._channel, self._done = channel, done
        self._lock = threading.Lock()
        self._is_waiting = self._has_ended = False
        self._answer: Any = None
        self._failure: Exception | None = None

    def wait(self, seconds: float) -> bool:
        """Wait on the connection, which ends when the shard's process does."""
        with self._lock:
            if self._has_ended:
                return True
            self._is_waiting = True
        came = self._channel.wait(seconds)
        answer, failure = self._received() if came else (None, None)
        with self._lock:
            self._is_waiting = False
            if self._has_ended:  # cancelled meanwhile
                self._channel.connection.close()
            elif came:
                self._has_ended = True
                self._answer, self._failure = answer, failure
                self._let_go()
            return self._has_ended

    def _received(self) -> tuple[Any, Exception | None]:
        """Take what has come from the connection; `cancel` ends that, too."""
        try:
            return self._channel.receive(), None
        except MethodRaised as raised:
            return None, raised
        except Exception as error:  # what was cut short can be any pickle
            return None, ConnectionResetError(f"the connection broke: {error!r}")

    def _let_go(self) -> None:
        """Leave a connection that is well to the next call."""
        if isinstance(self._failure, ConnectionResetError):
            self._channel.connection.close()
        else:
            self._done(self._channel)

    def result(self) -> Any:
        """Return the answer, or raise what came instead."""
        if self._failure is not None:
            raise self._failure
        return self._answer

    def cancel(self) -> None:
        """Give the call up, and its connection: the shard may still be at work on it."""
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
            self._failure = ConnectionAbortedError("the call was cancelled")
            connection = self._channel.connection
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            if not self._is_waiting:
                connection.close()


class SameHost:
    """The transport to a shard in another process of the host.

    Parameters
    ----------
    listen
        Asks the shard to listen (`ChannelServer.listen`); returns the directory.
    otherwise
        Carries vectors that are not in shared memory, and calls for which no connection is made.
    """

    is_direct = False

    def __init__(self, listen: Callable[[], str], otherwise: Transport) -> None:
        self._listen, self._otherwise = listen, otherwise
        self._idle: list[Channel] = []
        self._lock = threading.Lock()
        self._is_closed = False

    def prove(self) -> None:
        """Make a first connection, and try it.

        Raises
        ------
        OSError
            This transport does not work here.
        """
        self._give_back(self._open())

    def _open(self) -> Channel:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.settimeout(deadline("connect"))
            with _address(self._listen()) as address:
                connection.connect(address)
            _check_peer(connection)
            connection.settimeout(None)
            channel = Channel(connection)
            self._try(channel)
            return channel
        except BaseException as error:
            connection.close()
            if isinstance(error, (EOFError, MethodRaised)):
                raise OSError(f"memory cannot be shared: {error!r}") from error
            raise

    def _try(self, channel: Channel) -> None:
        """Have the shard copy one half of a shared memory to the other."""
        vector = shared_vector(2 * PROBED)
        if memory_of(vector) is None:
            raise OSError("there is no memory to share")
        vector[:PROBED], vector[PROBED:] = np.arange(PROBED), 0
        channel.send(PROBE, shared_slice(vector[:PROBED]), shared_slice(vector[PROBED:]))
        if not channel.wait(deadline("connect")):
            raise TimeoutError("the shard did not answer on its socket")
        channel.receive()
        if not np.array_equal(vector[:PROBED], vector[PROBED:]):
            raise OSError("memory is not shared")

    def start(
        self, request: Request, sent: Float32Array | None = None, into: Float32Array | None = None
    ) -> PendingCall:
        """Send the request over a connection of which nothing is under way."""
        slices = [None if vector is None else shared_slice(vector) for vector in (sent, into)]
        is_shared = (sent is None) == (slices[0] is None) and (into is None) == (slices[1] is None)
        channel = self._take() if is_shared else None
        if channel is None:
            return self._otherwise.start(request, sent, into)
        try:
            channel.send(request, *slices)
        except BaseException:
            channel.connection.close()
            raise
        return SameHostCall(channel, self._give_back)

    def _take(self) -> Channel | None:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        try:
            return self._open()
        except OSError:
            return None

    def _give_back(self, channel: Channel) -> None:
        with self._lock:
            if not self._is_closed:
                self._idle.append(channel)
                return
        channel.connection.close()

    def close(self) -> None:
        """Close the connections that are idle, and each other one when its call has ended."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for channel in idle:
            channel.connection.close()
