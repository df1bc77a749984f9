"""The BLAS threads of a process, which all replicas in it share."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import threadpoolctl


class BlasLimit:
    """Limits the process's BLAS threads while replicas run in it, to the fewest that one gets.

    The number of threads belongs to the process. If each replica set it and put it back by itself,
    the first one to end would leave the others with the number of before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: list[int] = []
        self._controller = threadpoolctl.ThreadpoolController()
        self._first: Any = None  # knows the numbers of before

    def look_again(self) -> None:
        """Find the libraries that have been loaded since, with a model for instance."""
        with self._lock:
            self._controller = threadpoolctl.ThreadpoolController()

    @property
    def limit(self) -> int | None:
        """The threads that libraries may use now; None if no replica runs in this process."""
        with self._lock:
            return min(self._wanted, default=None)

    @contextmanager
    def at_most(self, threads: int) -> Iterator[None]:
        """Give the process at most so many BLAS threads for a while."""
        with self._lock:
            self._wanted.append(threads)
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._wanted.remove(threads)
                self._set()

    def _set(self) -> None:
        _let_this_thread_set()
        if not self._wanted:
            self._first.restore_original_limits()
            self._first = None
        elif self._first is None:
            self._first = self._controller.limit(limits=self._wanted[0])
        else:
            self._controller.limit(limits=min(self._wanted))
        _let_this_thread_set()  # and any other after it


def _let_this_thread_set() -> None:
    """Make threadpoolctl heed this thread.

    From 3.8 on it heeds one thread of a process at a time, the first one to set a number, and
    silently ignores what all others set.
    """
    clear = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)


blas_limit = BlasLimit()
"""That of this process."""
