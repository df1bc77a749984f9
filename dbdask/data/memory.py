"""The memory that this process may use, and the refusal of reads that do not fit in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from dbdask.errors import DataError
from dbdask.schedule.lengths import Lengths

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

VECTOR_SHARE = 4
"""A vector that takes more than one in so many bytes of a process's memory is read in pieces."""


def check_fits(name: str, nbytes: int, lengths: Mapping[str, Lengths]) -> None:
    """Raise if reading a variable takes more bytes at once than this process may use.

    Raises
    ------
    DataError
        Names the variable, its chunks, the bytes, and the remedy.
    """
    limit = memory_limit()
    if limit and nbytes > limit:
        raise DataError(too_large(name, nbytes, lengths, f"of which there are {_gib(limit)}"))


def too_large(name: str, nbytes: int, lengths: Mapping[str, Lengths], why: str) -> str:
    """Return the error text for a variable that takes too much memory at once."""
    chunks = ", ".join(f"{dim}: {max(along, default=0):,}" for dim, along in lengths.items())
    return (
        f"variable {name!r} has chunks of up to ({chunks}), and reading one with its halo takes "
        f"{_gib(nbytes)} of memory, {why}: rechunk the store into smaller chunks"
    )


def memory_limit() -> int | None:
    """Return the bytes that this process may use; None if no limit is known.

    It is the smallest of the machine's memory, the container's, the process's address space and,
    in a task of Dask, the worker's `memory_limit`.
    """
    limits = (_of_machine(), _of_container(), _of_address_space(), _of_worker())
    return min((limit for limit in limits if limit), default=None)


@cache
def _of_machine() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # this system does not say
        return None


@cache
def _of_container() -> int | None:
    try:
        return int(CGROUP_LIMIT.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _of_address_space() -> int | None:
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else int(soft)


def _of_worker() -> int | None:
    if "distributed" not in sys.modules:
        return None
    from dbdask.rpc.local_workers import memory_limit_here

    return memory_limit_here()


def has_room_for_vector(size: int, limit: int | None) -> bool:
    """Return whether a process may hold a vector of parameters, float32 (size,), as a whole.

    It leaves most of its memory to examples, activations and other threads. `limit` is the memory
    of the process in bytes; None if it is not known.
    """
    return limit is None or VECTOR_SHARE * 4 * size <= limit


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:,.1f} GiB"
