"""Vectors of a cut model as a snapshot keeps them: part by part, as many chunks for each shard.

The shards of a cut model end where a part ends, so they are of unlike lengths. A snapshot keeps
each of them in as many chunks as the longest needs. It also keeps where every range of the shards'
vector is in the model's own vector, and a reader sees the latter only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.json_types import JsonObject
from dbdask.schedule.stored_chunks import stored_chunk
from dbdask.storage import sealed
from dbdask.storage.sealed import Place

Segments = Iterable[tuple[int, int, int]]
"""Elements that are contiguous in two vectors: where they begin in the shards' vector, where in the
model's, and how many."""


@dataclass(frozen=True)
class CutOrder:
    """The order of the shards' vector.

    Parameters
    ----------
    edges
        Where the slices of shards begin, and the end of the last one.
    segments
        Where ranges of the vector are in the model's own vector; together, all of it.
    """

    edges: tuple[int, ...]
    segments: tuple[tuple[int, int, int], ...]

    @property
    def _longest(self) -> int:
        """Elements of the longest slice."""
        return max(stop - start for start, stop in pairwise(self.edges))

    @property
    def chunk(self) -> int:
        """Elements of a chunk."""
        return stored_chunk(self._longest)

    @property
    def stride(self) -> int:
        """Elements from the first chunk of a slice to that of the next one."""
        return -(-self._longest // self.chunk) * self.chunk

    @property
    def stored_size(self) -> int:
        """Elements of a vector in a snapshot, padding counted."""
        return self.stride * (len(self.edges) - 1)

    def stored(self, index: int) -> tuple[int, int]:
        """Return where a slice begins in a vector of a snapshot, and where its padding ends."""
        return index * self.stride, (index + 1) * self.stride

    def table(self) -> JsonObject:
        """Return the order as JSON."""
        order = [list(segment) for segment in self.segments]
        return {"edges": list(self.edges), "order": order, "stride": self.stride}


@dataclass(frozen=True)
class CutSlice:
    """A shard's slice of the vector of a cut model.

    Parameters
    ----------
    segments
        Where the slice's elements are in the model's own vector, in the order of the slice.
    stored
        First element of the shard's chunks in a snapshot, and the one past the last.
    """

    segments: tuple[tuple[int, int, int], ...]
    stored: tuple[int, int]


def read_cut(place: Place, path: str, vectors: JsonObject, start: int, stop: int) -> Float32Array:
    """Return elements `start` to `stop` of the model's vector: float32, (stop - start,).

    Parameters
    ----------
    place, path
        The store, and the path of the vector.
    vectors
        What the snapshot says of its vectors: `chunk`, and `CutOrder.table()`.
    start, stop
        In the order of the model.
    """
    values = np.empty(stop - start, np.float32)
    for cut, whole, length in vectors["order"]:
        first, last = max(start, whole), min(stop, whole + length)
        if first < last:
            into = values[first - start : last - start]
            _read_shards(place, path, vectors, cut + first - whole, into)
    return values


def _read_shards(
    place: Place, path: str, vectors: JsonObject, start: int, into: Float32Array
) -> None:
    """Read elements of the shards' vector from `start` on into an array, float32 (n,)."""
    chunk, edges = vectors["chunk"], vectors["edges"]
    stride: int = vectors.get("stride") or chunk  # a snapshot without it has a chunk for each shard
    size, stop = stride * (len(edges) - 1), start + len(into)
    for number, (begin, end) in enumerate(pairwise(edges)):
        first, last = max(start, begin), min(stop, end)
        if first < last:
            at = number * stride + first - begin
            found = sealed.read_slice(place, path, at, at + last - first, size, chunk)
            into[first - start : last - start] = found
