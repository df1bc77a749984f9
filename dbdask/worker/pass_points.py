"""The vectors at which a batch method evaluates, fetched once for all tasks of a worker."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from dbdask.worker.vector_pool import VectorPool


class _Point:
    """Parameters at which a pass evaluates, and how many tasks are using them."""

    def __init__(self) -> None:
        self.vector = np.empty(0, np.float32)
        self.users = 0
        self.is_fetched = False
        self.lock = threading.Lock()


class PassPoints:
    """The points of the passes under way, or of the parts of them that this worker evaluates.

    Parameters
    ----------
    pool
        Gives the vectors.
    """

    def __init__(self, pool: VectorPool) -> None:
        self._pool = pool
        self._points: dict[tuple[int, int], _Point] = {}
        self._lock = threading.Lock()

    @contextmanager
    def hold(
        self, evaluation: int, part: int, size: int, fetch: Callable[[np.ndarray], None]
    ) -> Iterator[np.ndarray]:
        """Hold a vector, float32 (size,); the first task that asks for it fetches it.

        Parameters
        ----------
        evaluation, part
            The pass and the part of the model: points of earlier passes are dropped.
        size
            Elements of the vector.
        fetch
            Fills a vector, float32 (size,).
        """
        with self._lock:
            for key in [k for k, p in self._points.items() if k[0] < evaluation and not p.users]:
                past = self._points.pop(key)
                self._pool.give_back(*([past.vector] if past.is_fetched else []))
            point = self._points.setdefault((evaluation, part), _Point())
            point.users += 1
        try:
            with point.lock:
                if not point.is_fetched:
                    vector = self._pool.take(size)
                    fetch(vector)
                    point.vector, point.is_fetched = vector, True  # one given up is never used
            yield point.vector
        finally:
            with self._lock:
                point.users -= 1

    def clear(self) -> None:
        """Drop all points."""
        with self._lock:
            self._points = {}
