"""Messages between processes of one host: packets on a Unix socket, and descriptors of memory."""

import array
import os
import pickle
import socket
import struct
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dbdask.rpc import shared_memory
from dbdask.rpc.transport import Request

PACKET = 65_536  # bytes; a message is packets of this length, the last of which is shorter
DESCRIPTORS = 4  # that travel with a message, at most

PROBE = Request("probe", None)
"""Let the shard copy the vector that was sent into the vector that is expected."""

IS_SUPPORTED = shared_memory.IS_SUPPORTED and hasattr(socket, "SO_PEERCRED")

Place = tuple[int, int, int]
"""Where a vector is: number of the memory, first element, one past the last."""

Reply = tuple[Any, Exception | None]
"""The message of a shard: its answer, or the error that its method raised."""


class CallMessage(NamedTuple):
    """The message of a caller, sent as a plain tuple. The descriptors of new memory go with it."""

    request: tuple[Any, ...]
    """A `Request`."""
    sent: Place | None
    """The vector that the shard reads."""
    into: Place | None
    """The vector that the shard writes."""
    new: list[int]
    """Numbers of the memory that the shard is to map."""
    gone: list[int]
    """Numbers of the memory that the shard is to forget."""


def host_identity() -> str:
    """Return an identity that two processes share only if one kernel runs both; "" if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def send(connection: socket.socket, message: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send a message; descriptors travel with its first packet."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    connection.sendmsg([message[:PACKET]], [rights] if descriptors else [])
    for start in range(PACKET, len(message) + 1, PACKET):
        connection.send(message[start : start + PACKET])


def receive(connection: socket.socket, buffer: bytearray) -> tuple[Any, list[int]]:
    """Receive one message; return its content and its descriptors, which the caller must close.

    Raises
    ------
    EOFError
        The other side has closed the connection, or is gone.
    OSError
        The connection broke, or the message was cut short.
    """
    length, ancillary, flags, _ = connection.recvmsg_into(
        [buffer], socket.CMSG_SPACE(4 * DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data[: len(data) // 4 * 4])
    try:
        if length == 0:
            raise EOFError("the other side is gone")
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            raise OSError("a message was cut short")
        return pickle.loads(_rest(connection, buffer, length)), list(descriptors)
    except BaseException:
        close_all(descriptors)
        raise


def _rest(connection: socket.socket, buffer: bytearray, length: int) -> memoryview | bytes:
    """Return a whole message, of which the first packet is in `buffer`."""
    if length < PACKET:
        return memoryview(buffer)[:length]
    whole = bytearray(buffer)
    while length == PACKET:
        packet = connection.recv(PACKET)
        length = len(packet)
        whole += packet
    return bytes(whole)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


def _peer(connection: socket.socket) -> int:
    """Return the user of the process at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    user: int = struct.unpack("3i", credentials)[1]
    return user


def check_peer(connection: socket.socket) -> None:
    """Check that the process at the other end belongs to this process's user.

    Raises
    ------
    PermissionError
        It belongs to another user.
    """
    user = _peer(connection)
    if user != os.getuid():
        raise PermissionError(f"the other end belongs to user {user}, not to {os.getuid()}")


def new_socket_name() -> str:
    """Return a name for a socket that no other socket has."""
    return f"dbdask-{uuid.uuid4().hex}"


def socket_address(name: str) -> str:
    """Return the address of a socket in the abstract namespace of Linux.

    The name is in no file system: it ends with the socket, and so with the process, however that
    ends. Any process of the same network namespace can connect, so both sides call `check_peer`.
    """
    return f"\0{name}"
