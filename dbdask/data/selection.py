"""Selections: the positions of the sample space that are examples, as spans and a mask.

A span is a run of positions along one dimension that was cut out; windows end at its edges. The
mask, over some of the sample dimensions, only says which positions are examples. Positions are
written out for one block at a time, never for a whole dimension.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from dbdask.arrays import Int64Array
from dbdask.data.edges import Edges
from dbdask.data.masks import Mask
from dbdask.data.spans import PIECE, Spans, joined
from dbdask.data.windows import Window
from dbdask.schedule.portions import Grid

__all__ = ["CentreRuns", "Centres", "Mask", "Selection", "Spans", "block_rows", "centres"]


@dataclass(frozen=True)
class Selection:
    """Spans per sample dimension, and a mask.

    Parameters
    ----------
    dims, spans, mask
        The sample dimensions, the spans along each, and which of their positions are examples.
    past
        Of some dimensions, the first position of a span, and an earlier one down to which its
        windows may see.
    """

    dims: tuple[str, ...]
    spans: tuple[Spans, ...]
    mask: Mask | None = None
    past: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def whole(cls, dims: Sequence[str], sizes: Sequence[int]) -> "Selection":
        """Select everything."""
        return cls(tuple(dims), tuple(Spans.of([(0, size)]) for size in sizes))

    def along(self, dim: str) -> Spans:
        """Return the spans of a dimension."""
        return self.spans[self.dims.index(dim)]

    def with_spans(self, dim: str, spans: Spans) -> "Selection":
        """Return the selection with other spans along one dimension."""
        axis = self.dims.index(dim)
        return replace(self, spans=(*self.spans[:axis], spans, *self.spans[axis + 1 :]))

    def begin(self, dim: str, rank: int) -> int:
        """Return the first position that the windows of a position, given by rank, may see."""
        spans = self.along(dim)
        start = int(spans.starts[spans.run_at(np.array(rank))])
        known, begin = self.past.get(dim, (start, start))
        return begin if known == start else start

    def seeing_past(self, dim: str, begin: int) -> "Selection":
        """Return the selection whose first span along `dim` may see down to `begin`."""
        start = int(self.along(dim).starts[0])
        return replace(self, past={**self.past, dim: (start, begin)})

    def masked(self, mask: Mask) -> "Selection":
        """Return the selection with one more mask."""
        return replace(self, mask=mask if self.mask is None else self.mask & mask)


@dataclass(frozen=True)
class Centres:
    """Centres of windows along one dimension, and the positions that each may see: int64, (n,)."""

    positions: Int64Array
    low: Int64Array  # first position that it may see
    high: Int64Array  # position after the last


@dataclass(frozen=True, eq=False)
class CentreRuns:
    """Centres of windows along one dimension as runs, and the positions that each run may see."""

    runs: Spans
    low: Int64Array
    high: Int64Array

    @property
    def count(self) -> int:
        """Centres in all."""
        return self.runs.count

    @cached_property
    def positions(self) -> Int64Array:
        """The position of every centre, of those in one block: int64, (count,)."""
        return self.runs.positions()

    def within(self, cut: slice) -> "CentreRuns":
        """Return the centres in a slice of positions."""
        first, last = self.runs.rank([cut.start, cut.stop]).tolist()
        spans, runs = self.runs.part_with_runs(first, last)
        return CentreRuns(spans, self.low[runs], self.high[runs])

    def at(self, ranks: Int64Array) -> Centres:
        """Return the centres at ranks: int64, (n,)."""
        run = self.runs.run_at(ranks)
        return Centres(self.runs.inside(run, ranks), self.low[run], self.high[run])

    def seen(self, first: int, last: int) -> tuple[int, int]:
        """Return the first position that any window sees, and the one after the last.

        `first` and `last` are the window's offsets.
        """
        ends = np.array([0, -1])  # all other windows lie between these two
        at = np.array([self.runs.starts[0] + first, self.runs.stops[-1] - 1 + last])
        begin, end = np.clip(at, self.low[ends], self.high[ends] - 1).tolist()
        return begin, end + 1

    def whole(self, first: int, last: int) -> "CentreRuns":
        """Return the centres that may see all of their windows, from offset `first` to `last`."""
        starts = np.maximum(self.runs.starts, self.low - first)
        stops = np.minimum(self.runs.stops, self.high - last)
        held = starts < stops
        runs = Spans(starts[held], stops[held], self.runs.steps[held])
        return CentreRuns(runs, self.low[held], self.high[held])

    def kept_within(self, starts: Int64Array, low: Int64Array, high: Int64Array) -> "CentreRuns":
        """Return the centres, each of which sees only positions of its group.

        Parameters
        ----------
        starts
            The position at which each group begins: int64, (groups,). The first group begins
            at or before the first centre.
        low, high
            The first position of each group, and the one after its last.
        """
        runs, old = self.runs.cut_at(self.runs.rank(starts))
        group = np.searchsorted(starts, runs.starts, side="right") - 1
        return CentreRuns(
            runs, np.maximum(self.low[old], low[group]), np.minimum(self.high[old], high[group])
        )


def side_by_side(several: Sequence[CentreRuns]) -> CentreRuns:
    """Return the centres of several blocks one after another, to be found by rank."""
    if len(several) == 1:
        return several[0]
    return CentreRuns(
        joined(one.runs for one in several),
        np.concatenate([one.low for one in several]),
        np.concatenate([one.high for one in several]),
    )


def centres(
    selection: Selection, window: Window, edges: Edges, sizes: Mapping[str, int]
) -> tuple[CentreRuns, ...]:
    """Return the centres along every dimension; for edges "drop", those of whole windows."""
    found = []
    for dim, spans in zip(selection.dims, selection.spans, strict=True):
        low, high = spans.starts, spans.stops
        if edges.of(dim) == "wrap":
            low, high = _on_circle(spans, sizes[dim])
        if dim in selection.past:
            low = np.minimum(low, np.insert(low[1:], 0, selection.begin(dim, 0)))
        runs = CentreRuns(spans, low, high)
        drops = edges.of(dim) == "drop"
        found.append(runs.whole(*window.reach(dim)) if drops else runs)
    return tuple(found)


def _on_circle(spans: Spans, size: int) -> tuple[Int64Array, Int64Array]:
    """Return the first position that each run's windows may see on a circle, and the end.

    Positions count on beyond both ends. The last run goes on in the first if both meet at the seam.
    """
    low, high = spans.starts.copy(), spans.stops.copy()
    if len(spans) and spans.starts[0] == 0 and spans.stops[-1] == size:
        low[0] = spans.starts[-1] - size
        high[-1] = spans.stops[0] + size
    return low, high


def bounds_of_blocks(grid: Grid, along: Sequence[CentreRuns]) -> list[Int64Array]:
    """Return, per dimension, the rank of each block's first centre, then the number of centres.

    Each is int64, (blocks along the dimension + 1,).
    """
    return [c.runs.rank(n.edges) for c, n in zip(along, grid.lengths, strict=True)]


def block_rows(grid: Grid, along: Sequence[CentreRuns], mask: Mask | None) -> Int64Array:
    """Return the number of examples in every block of the grid: int64, (blocks,)."""
    bounds = bounds_of_blocks(grid, along)
    counts = [np.diff(bound) for bound in bounds]
    if mask is None:
        return _outer(counts).reshape(-1)
    held = _kept_rows(grid, along, mask, bounds)
    for axis, dim in enumerate(grid.dims):
        if dim not in mask.dims:
            shape = [1] * len(grid.dims)
            shape[axis] = -1
            held = held * counts[axis].reshape(shape)
    return held.reshape(-1)


def _kept_rows(
    grid: Grid, along: Sequence[CentreRuns], mask: Mask, bounds: Sequence[Int64Array]
) -> Int64Array:
    """Return the positions that the mask keeps in each block; length 1 along dims it lacks."""
    dims = [axis for axis, dim in enumerate(grid.dims) if dim in mask.dims]
    shape = [n if axis in dims else 1 for axis, n in enumerate(grid.shape)]
    held = np.zeros(shape, np.int64)
    for batch in _batches(grid, dims):
        ranks = [bound[cut.start : cut.stop + 1] for bound, cut in zip(bounds, batch, strict=True)]
        positions = [
            c.runs.positions(int(rank[0]), int(rank[-1])) if axis in dims else np.zeros(1, int)
            for axis, (c, rank) in enumerate(zip(along, ranks, strict=True))
        ]
        part = mask.over(grid.dims, positions).astype(np.int64)
        for axis in dims:
            sums = np.insert(part.cumsum(axis), 0, 0, axis=axis)
            part = np.diff(sums.take(ranks[axis] - ranks[axis][0], axis), axis=axis)
        held[batch] = part
    return held


def _batches(grid: Grid, dims: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Yield slices of blocks, one per dimension, of at most `PIECE` positions if blocks allow."""
    cuts: list[list[slice]] = [[slice(0, 1)] for _ in grid.dims]
    most = PIECE
    for axis in reversed(dims):
        lengths = grid.lengths[axis]
        cuts[axis] = [slice(*batch) for batch in lengths.batches(most)]
        longest = max(lengths.edge(cut.stop) - lengths.edge(cut.start) for cut in cuts[axis])
        most = max(1, most // max(longest, 1))
    return itertools.product(*cuts)


def _outer(counts: Sequence[Int64Array]) -> Int64Array:
    product = np.ones((), np.int64)
    for count in counts:
        product = np.multiply.outer(product, count)
    return product
