"""A pool of vectors for one run on one worker: a task takes some, and gives them back for later."""

import threading

import numpy as np

from dbdask.rpc.shared_memory import memory_of, shared_vector


class VectorPool:
    """Float32 vectors that no task uses now.

    Attributes
    ----------
    shares_memory
        Whether a shard, or another part of a replica, in another process may map a vector. Vectors
        that were made before do not serve then.
    """

    def __init__(self) -> None:
        self.shares_memory = False
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> np.ndarray:
        """Take a vector, float32 (size,); its content is arbitrary."""
        with self._lock:
            for position, vector in enumerate(self._free):
                if vector.size == size and self._serves(vector):
                    return self._free.pop(position)
        return shared_vector(size) if self.shares_memory else np.empty(size, np.float32)

    def _serves(self, vector: np.ndarray) -> bool:
        return not self.shares_memory or memory_of(vector) is not None

    def give_back(self, *vectors: np.ndarray) -> None:
        """Return vectors, float32 (size,), that no call reads any more.

        The vector of a call that was given up never comes back.
        """
        with self._lock:
            self._free.extend(vectors)

    def clear(self) -> None:
        """Drop all vectors."""
        with self._lock:
            self._free = []
