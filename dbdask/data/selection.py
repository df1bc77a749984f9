"""Selections: which positions of the sample space are examples, as spans and a mask.

A span is a run of positions along one dimension that was cut out; windows end at its edges. The
mask, over some of the sample dimensions, only says which positions are examples.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from dbdask.data.windows import Window
from dbdask.numbers.portions import Grid

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Mask:
    """A packed truth value for every position along `dims`."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    packed: bytes

    @classmethod
    def of(cls, dims: Sequence[str], values: np.ndarray) -> "Mask":
        """Pack truth values."""
        packed = zlib.compress(np.packbits(values).tobytes(), 1)
        return cls(tuple(dims), values.shape, packed)

    @cached_property
    def values(self) -> np.ndarray:
        """The truth values."""
        bits = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        count = int(np.prod(self.shape))
        return np.unpackbits(bits, count=count).astype(bool).reshape(self.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {"dims": self.dims, "shape": self.shape, "packed": self.packed}

    def __and__(self, other: "Mask") -> "Mask":
        dims = (*self.dims, *(dim for dim in other.dims if dim not in self.dims))
        return Mask.of(dims, self._spread(dims) & other._spread(dims))

    def _spread(self, dims: tuple[str, ...]) -> np.ndarray:
        order = [self.dims.index(dim) for dim in dims if dim in self.dims]
        shape = [self.shape[self.dims.index(dim)] if dim in self.dims else 1 for dim in dims]
        return self.values.transpose(order).reshape(shape)

    def over(self, dims: Sequence[str], positions: Sequence[np.ndarray]) -> np.ndarray:
        """Truth values at the product of `positions`; length 1 along dims that it lacks."""
        own = [positions[list(dims).index(dim)] for dim in self.dims]
        part = self.values[np.ix_(*own)]
        order = [self.dims.index(dim) for dim in dims if dim in self.dims]
        shape = [len(p) if dim in self.dims else 1 for dim, p in zip(dims, positions, strict=True)]
        return part.transpose(order).reshape(shape)


@dataclass(frozen=True)
class Selection:
    """Spans per sample dimension, and a mask."""

    dims: tuple[str, ...]
    spans: tuple[Spans, ...]
    mask: Mask | None = None

    @classmethod
    def whole(cls, dims: Sequence[str], sizes: Sequence[int]) -> "Selection":
        """Select everything."""
        return cls(tuple(dims), tuple(((0, size),) for size in sizes))

    def positions(self, dim: str) -> np.ndarray:
        """Selected positions along a dimension."""
        return _positions(self.spans[self.dims.index(dim)])

    def with_spans(self, dim: str, spans: Spans) -> "Selection":
        """Return the selection with other spans along one dimension."""
        axis = self.dims.index(dim)
        return Selection(self.dims, (*self.spans[:axis], spans, *self.spans[axis + 1 :]), self.mask)

    def narrowed(self, dim: str, wanted: np.ndarray) -> "Selection":
        """Return the selection with the positions `wanted` (indices into it) of one dimension."""
        chosen = self.positions(dim)[wanted]
        old_starts = {start for start, _ in self.spans[self.dims.index(dim)]}
        return self.with_spans(dim, as_spans(chosen, old_starts))

    def masked(self, mask: Mask) -> "Selection":
        """Return the selection with one more mask."""
        return Selection(self.dims, self.spans, mask if self.mask is None else self.mask & mask)


@dataclass(frozen=True)
class Centres:
    """The centres of windows along one dimension, and the positions that each may see."""

    positions: np.ndarray
    low: np.ndarray  # first position of the span that holds the centre
    high: np.ndarray  # position after its last

    def within(self, cut: slice) -> "Centres":
        """Centres in a slice of positions."""
        first, last = np.searchsorted(self.positions, [cut.start, cut.stop])
        part = slice(int(first), int(last))
        return Centres(self.positions[part], self.low[part], self.high[part])


def centres(selection: Selection, window: Window, edges: str) -> tuple[Centres, ...]:
    """Return the centres along every dimension; with edges "drop" only those of whole windows."""
    found = []
    for dim, spans in zip(selection.dims, selection.spans, strict=True):
        first, last = window.reach(dim) if edges == "drop" else (0, 0)
        cut = [(max(s, s - first), max(s, min(e, e - last))) for s, e in spans]
        counts = [max(0, e - s) for s, e in cut]
        low = np.repeat([s for s, _ in spans], counts)
        high = np.repeat([e for _, e in spans], counts)
        found.append(Centres(_positions(tuple(cut)), low.astype(np.int64), high.astype(np.int64)))
    return tuple(found)


def block_rows(grid: Grid, along: Sequence[Centres], mask: Mask | None) -> np.ndarray:
    """Return the number of examples in every block of the grid."""
    edges = [np.concatenate([[0], np.cumsum(lengths)]) for lengths in grid.lengths]
    bounds = [np.searchsorted(c.positions, e) for c, e in zip(along, edges, strict=True)]
    counts = [np.diff(bound) for bound in bounds]
    if mask is None:
        return _outer(counts).reshape(-1)
    held = mask.over(grid.dims, [c.positions for c in along]).astype(np.int64)
    for axis, dim in enumerate(grid.dims):
        if dim in mask.dims:
            sums = (
                np.concatenate([np.zeros_like(held.take([0], axis)), held.cumsum(axis)], axis)
                if held.shape[axis]
                else np.zeros_like(held, shape=_grown(held.shape, axis))
            )
            held = np.diff(sums.take(bounds[axis], axis), axis=axis)
        else:
            shape = [1] * len(grid.dims)
            shape[axis] = -1
            held = held * counts[axis].reshape(shape)
    return held.reshape(-1)


def as_spans(positions: np.ndarray, cuts: set[int] | frozenset[int] = frozenset()) -> Spans:
    """Return sorted positions as runs of neighbours, with an edge kept before each of `cuts`.

    Examples
    --------
    >>> as_spans(np.array([0, 1, 2, 5, 6]), {2})
    ((0, 2), (2, 3), (5, 7))
    """
    if len(positions) == 0:
        return ()
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    kept = [int(np.searchsorted(positions, cut)) for cut in cuts]
    edges = sorted({0, len(positions), *breaks.tolist(), *kept})
    return tuple((int(positions[a]), int(positions[b - 1]) + 1) for a, b in pairwise(edges))


def _positions(spans: Spans) -> np.ndarray:
    runs = [np.arange(start, stop) for start, stop in spans]
    return np.concatenate([np.zeros(0, np.int64), *runs]).astype(np.int64)


def _outer(counts: Sequence[np.ndarray]) -> np.ndarray:
    product = np.ones((), np.int64)
    for count in counts:
        product = np.multiply.outer(product, count)
    return product


def _grown(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], shape[axis] + 1, *shape[axis + 1 :])
