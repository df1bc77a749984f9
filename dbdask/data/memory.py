"""Memory: how much this process may use, where that is known."""

from __future__ import annotations

import os
import sys
from functools import cache

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]


def memory_limit() -> int | None:
    """Return the bytes that this process may use; None where nothing says.

    The smallest of the machine's memory, the container's, the process's address space and, in a
    task of Dask, the worker's `memory_limit`.
    """
    limits = [limit for limit in (_of_machine(), _of_address_space(), _of_worker()) if limit]
    return min(limits, default=None)


@cache
def _of_machine() -> int | None:
    if "distributed" in sys.modules:
        from distributed.system import MEMORY_LIMIT  # knows of containers, too

        return int(MEMORY_LIMIT)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _of_address_space() -> int | None:
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else int(soft)


def _of_worker() -> int | None:
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return get_worker().memory_manager.memory_limit
    except (ValueError, AttributeError):
        return None
