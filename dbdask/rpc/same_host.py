"""The transport between processes of one host: vectors stay in shared memory, messages are small.

A caller asks a shard, over Dask's connections, to listen for it. The shard makes a Unix socket of a
new name, which is in no file system, accepts one caller of its own user, and closes the socket.
Each side asks the kernel for the other's user before it reads anything. What follows goes over that
connection: a request names slices of memory whose descriptors were passed along, the shard reads
and writes there, and answers. Each connection has a thread of its own in the shard's process, and
carries one request at a time.

A first message finds out whether this works: the shard copies numbers from one place of a shared
memory to another. If it does not work (another host, another container, another system) the caller
goes on over Dask's connections.

This module is the caller's end. The shard's end is `dbdask.rpc.same_host_server`, and the format of
the messages is in `dbdask.rpc.same_host_messages`.
"""

import contextlib
import pickle
import select
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.rpc.calls import MethodRaised
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.same_host_messages import (
    PACKET,
    PROBE,
    CallMessage,
    Place,
    Reply,
    check_peer,
    receive,
    send,
    socket_address,
)
from dbdask.rpc.shared_memory import Memory, memory_of, shared_vector
from dbdask.rpc.transport import PendingCall, Request, Transport

PROBED = 1024  # elements that the first message has the shard copy


class Slice(NamedTuple):
    """A slice of shared memory."""

    memory: Memory
    start: int
    stop: int

    @property
    def place(self) -> Place:
        """The slice, as the shard's process knows it."""
        return self.memory.number, self.start, self.stop


def shared_slice(vector: Float32Array) -> Slice | None:
    """Return the place of a vector, float32 (n,), in shared memory; None if it is not there."""
    found = memory_of(vector)
    return None if found is None else Slice(found[0], found[1], found[1] + vector.size)


class Channel:
    """A connection to a shard, used by one call at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = bytearray(PACKET)
        self._known: dict[int, weakref.ref[Memory]] = {}
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, request: Request, sent: Slice | None, into: Slice | None) -> None:
        """Send a request, with the descriptors of memory that the shard has not mapped yet."""
        new: list[Memory] = []
        for part in (sent, into):
            if part is not None and part.memory.number not in self._known:
                self._known[part.memory.number] = weakref.ref(part.memory)
                new.append(part.memory)
        gone = [number for number, memory in self._known.items() if memory() is None]
        for number in gone:
            del self._known[number]
        message = CallMessage(
            tuple(request),
            sent.place if sent is not None else None,
            into.place if into is not None else None,
            [memory.number for memory in new],
            gone,
        )
        content = pickle.dumps(tuple(message))
        send(self.connection, content, [memory.descriptor for memory in new])

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
        reply: Reply = receive(self.connection, self.buffer)[0]
        answer, failure = reply
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
        """Wait on the connection, which ends if the shard's process ends."""
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
                self._return_channel()
            return self._has_ended

    def _received(self) -> tuple[Any, Exception | None]:
        """Receive the answer or its error. `cancel` wakes this too."""
        try:
            return self._channel.receive(), None
        except MethodRaised as raised:
            return None, raised
        except Exception as error:  # a pickle that was cut short may raise any error
            return None, ConnectionResetError(f"the connection broke: {error!r}")

    def _return_channel(self) -> None:
        """Return a connection that is in order, for the next call."""
        if isinstance(self._failure, ConnectionResetError):
            self._channel.connection.close()
        else:
            self._done(self._channel)

    def result(self) -> Any:
        """Return the answer, or raise the error of the call."""
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
        Asks the shard to listen (`ChannelServer.listen`); returns the name of the socket.
    fallback
        Carries vectors that are not in shared memory, and calls for which no connection is made.
    """

    is_direct = False

    def __init__(self, listen: Callable[[], str], fallback: Transport) -> None:
        self._listen, self._fallback = listen, fallback
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
            connection.connect(socket_address(self._listen()))
            check_peer(connection)
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
        """Send the request over a connection that carries no other request.

        `sent` and `into` are float32 (n,), of the length of the shard.
        """
        slices = [None if vector is None else shared_slice(vector) for vector in (sent, into)]
        is_shared = (sent is None) == (slices[0] is None) and (into is None) == (slices[1] is None)
        channel = self._take() if is_shared else None
        if channel is None:
            return self._fallback.start(request, sent, into)
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
