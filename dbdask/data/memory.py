"""Memory: what cannot fit this machine is said before it is asked for."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from dbdask.errors import DataError
from dbdask.numbers.lengths import Lengths

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_fits(name: str, nbytes: int, lengths: Mapping[str, Lengths]) -> None:
    """Refuse to read more at once than this machine has memory.

    Raises
    ------
    DataError
        Names the variable, its chunks, the bytes, and the remedy.
    """
    limit = memory_bytes()
    if limit and nbytes > limit:
        raise DataError(too_large(name, nbytes, lengths, f"of which there are {_gib(limit)}"))


def too_large(name: str, nbytes: int, lengths: Mapping[str, Lengths], why: str) -> str:
    """Say that a variable takes too much memory at once."""
    chunks = ", ".join(f"{dim}: {max(along, default=0):,}" for dim, along in lengths.items())
    return (
        f"variable {name!r} has chunks of up to ({chunks}), and reading one with its halo takes "
        f"{_gib(nbytes)} of memory, {why}: rechunk the store into smaller chunks"
    )


@cache
def memory_bytes() -> int:
    """Return the memory of this machine, or of the container that it is; 0 if unknown."""
    known = [_physical(), _of_container()]
    return min((nbytes for nbytes in known if nbytes), default=0)


def _physical() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not told by this system
        return 0


def _of_container() -> int:
    try:
        return int(CGROUP_LIMIT.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return 0


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:,.1f} GiB"
