"""Vectors in memory that another process of the same host can map.

The memory is a `memfd`: it has no name in any file system, and it is gone when the last process
that maps it is, however that process ends. Its size is sealed, so no process can cut it short
under another one.
"""

import itertools
import mmap
import os

import numpy as np

from dbdask.arrays import Float32Array

try:
    import fcntl

    SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    IS_SUPPORTED = hasattr(os, "memfd_create")
except (ImportError, AttributeError):  # not Linux
    IS_SUPPORTED = False

_numbers = itertools.count()


class Memory(mmap.mmap):
    """Mapped memory that remembers its descriptor, and under which number this process knows it."""

    number: int
    descriptor: int

    def __del__(self) -> None:
        os.close(self.descriptor)


def shared_vector(size: int) -> Float32Array:
    """Return a vector, float32 (size,), in memory that can be shared.

    Its content is arbitrary. If memory cannot be shared, the vector is an ordinary one.
    """
    try:
        descriptor = _sealed_memory(4 * size)
    except OSError:
        return np.empty(size, np.float32)
    try:
        memory = Memory(descriptor, 4 * size)
    except BaseException:
        os.close(descriptor)
        raise
    memory.descriptor, memory.number = descriptor, next(_numbers)
    return np.ndarray((size,), np.float32, buffer=memory)


def _sealed_memory(nbytes: int) -> int:
    """Return the descriptor of new memory, all of it there: none is missing when it is written.

    Raises
    ------
    OSError
        The system has no such memory, or not enough.
    """
    if not IS_SUPPORTED or nbytes == 0:
        raise OSError("no memory can be shared here")
    descriptor = os.memfd_create("dbdask", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def memory_of(vector: Float32Array) -> tuple[Memory, int] | None:
    """Return the shared memory of a contiguous vector and its offset there, in elements.

    The vector is float32 (n,). None if the vector is an ordinary one. A slice of a shared vector is
    a shared vector.
    """
    whole = vector
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    if not isinstance(whole.base, Memory):
        return None
    return whole.base, (_address(vector) - _address(whole)) // 4


def _address(vector: Float32Array) -> int:
    address: int = vector.__array_interface__["data"][0]
    return address


def map_vector(descriptor: int) -> Float32Array:
    """Map memory that another process shares, as float32 (n,); the descriptor is closed.

    Raises
    ------
    OSError
        It is not memory of a sealed size.
    """
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS != SEALS:
            raise OSError("shared memory must be sealed")
        size = os.fstat(descriptor).st_size // 4
        return np.ndarray((size,), np.float32, buffer=mmap.mmap(descriptor, 4 * size))
    finally:
        os.close(descriptor)
