"""The shard's end of the transport between processes of one host."""

import contextlib
import pickle
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import numpy as np

from dbdask.arrays import Float32Array
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.portable import portable
from dbdask.rpc.same_host_messages import (
    IS_SUPPORTED,
    PACKET,
    PROBE,
    CallMessage,
    Place,
    check_peer,
    close_all,
    host_identity,
    new_socket_name,
    receive,
    send,
    socket_address,
)
from dbdask.rpc.shared_memory import map_vector
from dbdask.rpc.transport import Answering, Request

THREADS = "dbdask-channel"  # how the names of serving threads begin


class ChannelServer:
    """Serves the callers of one actor that are on its host, each on a thread of its own.

    It does not keep the actor alive, and it ends when the actor is dropped.

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
        """Begin to wait for one caller; return the name of the socket that it is to connect.

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
        name = new_socket_name()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.bind(socket_address(name))
            listener.listen(1)
            served = _CallerThread(self._answer, self._sockets, self._lock)
            threading.Thread(target=served.run, args=(listener,), name=THREADS, daemon=True).start()
        except BaseException:
            listener.close()
            raise
        return name

    def close(self) -> None:
        """End every connection, and so its thread."""
        self._end()


def _shut_down(sockets: set[socket.socket], lock: threading.Lock) -> None:
    """Wake the threads that serve connections: each closes its own."""
    with lock:
        for connection in sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _accepted(listener: socket.socket) -> socket.socket:
    """Return a connection from a process of this process's user; refuse others that come first.

    Raises
    ------
    OSError
        None came within the deadline `connect`, or the listener was shut down.
    """
    until = time.monotonic() + deadline("connect")
    while True:
        listener.settimeout(max(0.001, until - time.monotonic()))
        connection, _ = listener.accept()
        try:
            check_peer(connection)
            return connection
        except OSError:
            connection.close()


class _CallerThread:
    """Serves one caller: holds its connection, and maps the memory that it shares."""

    def __init__(
        self,
        answer: "weakref.WeakMethod[Callable[..., Any]]",
        sockets: set[socket.socket],
        lock: threading.Lock,
    ) -> None:
        self._answer, self._sockets, self._lock = answer, sockets, lock
        self._mapped: dict[int, Float32Array] = {}
        self._buffer = bytearray(PACKET)

    def run(self, listener: socket.socket) -> None:
        """Accept the caller, and serve it until one side ends the connection."""
        with contextlib.suppress(OSError, EOFError):
            with self._held(listener):
                connection = _accepted(listener)
            with self._held(connection):
                connection.settimeout(None)
                while self._answer() is not None:
                    self._serve_one(connection)

    @contextlib.contextmanager
    def _held(self, connection: socket.socket) -> Iterator[None]:
        """Close a socket at the end. Until then `ChannelServer.close` can shut it down."""
        with connection:
            with self._lock:
                self._sockets.add(connection)
            try:
                yield
            finally:
                with self._lock:
                    self._sockets.discard(connection)

    def _serve_one(self, connection: socket.socket) -> None:
        content, descriptors = receive(connection, self._buffer)
        message = CallMessage(*content)
        for number in message.gone:
            self._mapped.pop(number, None)
        new = list(message.new)
        try:
            while descriptors:
                self._mapped[new.pop(0)] = map_vector(descriptors.pop(0))
        finally:
            close_all(descriptors)
        sent, into = self._vector(message.sent), self._vector(message.into)
        send(connection, self._answered(Request(*message.request), sent, into))

    def _vector(self, place: Place | None) -> Float32Array | None:
        if place is None:
            return None
        number, start, stop = place
        return self._mapped[number][start:stop]

    def _answered(
        self, request: Request, sent: Float32Array | None, into: Float32Array | None
    ) -> bytes:
        """Return the message with the answer, or with the error of the shard's method.

        Raises
        ------
        EOFError
            The shard was dropped. The connection ends.
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
