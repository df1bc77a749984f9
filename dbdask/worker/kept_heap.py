"""Freed memory that a process keeps while a run is at work in it, instead of handing it back.

Dask starts its workers with `MALLOC_TRIM_THRESHOLD_=65536`: every array of 128 KiB or more is then
mapped from the operating system when it is made, page by page, and handed back when it is freed. A
minibatch makes the same temporaries as the one before it, so a small network's step may take longer
in the operating system than in its arithmetic. While the context of a run is open on a worker, the
C library keeps what is freed, and when the last one is closed it gives all of it back.
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
KEPT = 2**28  # bytes: free memory beyond this is given back at once
LARGE = 2**25  # bytes: arrays of this size are mapped by themselves, as before
SHARES = 16, 64  # of a worker's memory limit, that these two are at most
GROWN = 2 * LARGE, LARGE  # glibc's own thresholds grow to this, if they are not set


class KeptHeap:
    """Lets the C library of this process keep freed memory for a while.

    The setting belongs to the process, and runs share it: the first one sets it, and the last one
    puts it back. Where the C library has no `mallopt` (it is glibc's), nothing happens.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._library = _glibc()

    @contextmanager
    def kept(self, limit: int | None = None) -> Iterator[None]:
        """Keep freed memory until the last of those ends that have asked for it.

        `limit` is the memory limit of the worker, in bytes: Dask pauses a worker near it, be its
        memory in use or kept. The first of those that ask decides.
        """
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._set(*thresholds(limit))
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._set(*_before())
                    self.give_back()

    def _set(self, trim: int, mmap: int) -> None:
        if self._library is not None:
            self._library.mallopt(TRIM_THRESHOLD, trim)
            self._library.mallopt(MMAP_THRESHOLD, mmap)

    def give_back(self) -> None:
        """Give freed memory back to the operating system now."""
        if self._library is not None:
            self._library.malloc_trim(0)


def thresholds(limit: int | None) -> tuple[int, int]:
    """Return the bytes of free memory to keep, and from which size on an array is not kept.

    Examples
    --------
    >>> thresholds(None) == thresholds(2**34) == (KEPT, LARGE)
    True
    >>> thresholds(2**28)
    (16777216, 4194304)
    """
    if not limit:
        return KEPT, LARGE
    return min(KEPT, limit // SHARES[0]), min(LARGE, limit // SHARES[1])


def _glibc() -> Any:
    """Return the C library, or None if it is another one than glibc."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
    except (OSError, TypeError, AttributeError):
        return None
    return library


def _before() -> tuple[int, int]:
    """Return the two thresholds of before, as far as a process can know them.

    glibc does not tell its thresholds. Those in the environment hold from the start, and a set
    threshold keeps glibc from changing the other, whose value then is 128 KiB.
    """
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    if not any(name in os.environ for name in names):
        return GROWN
    trim, mmap = (_whole(os.environ.get(name, "")) for name in names)
    return trim, mmap


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 2**17


kept_heap = KeptHeap()
"""That of this process."""
