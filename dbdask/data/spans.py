"""Spans: positions along one dimension as runs, in memory that does not grow with them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dbdask.arrays import BoolArray, Int64Array

PIECE = 1 << 20
"""Positions that are written out at a time, if all of them have to be."""


@dataclass(frozen=True, eq=False)
class Spans:
    """Runs of positions in ascending order; none is empty.

    A position's rank is its place among all positions of the runs, from 0.

    Parameters
    ----------
    starts, stops, steps
        Of every run, as in `range`: int64, (runs,). A run stops right after its last position.

    Examples
    --------
    >>> spans = Spans.of([(0, 4), (10, 12)])
    >>> spans.count, spans.at(np.array([3, 4])), spans.rank(np.array([2, 7, 11]))
    (6, array([ 3, 10]), array([2, 4, 5]))
    >>> spans.part(3, 6)
    Spans([(3, 4), (10, 12)])
    """

    starts: Int64Array
    stops: Int64Array
    steps: Int64Array

    @classmethod
    def of(cls, runs: Iterable[tuple[int, int]]) -> "Spans":
        """Return the spans of (start, stop) pairs."""
        pairs = np.array([run for run in runs if run[1] > run[0]], np.int64).reshape(-1, 2)
        return cls(pairs[:, 0], pairs[:, 1], np.ones(len(pairs), np.int64))

    def __getstate__(self) -> dict[str, Int64Array]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spans):
            return NotImplemented
        names = [field.name for field in fields(self)]
        return all(np.array_equal(getattr(self, n), getattr(other, n)) for n in names)

    def __hash__(self) -> int:
        return hash((self.starts.tobytes(), self.stops.tobytes(), self.steps.tobytes()))

    def __len__(self) -> int:
        """Runs."""
        return len(self.starts)

    def __repr__(self) -> str:
        shown = [
            (a, b) if step == 1 else (a, b, step)
            for a, b, step in zip(*(x[:4].tolist() for x in self._arrays()), strict=True)
        ]
        return f"Spans({shown}{f' and {len(self) - 4} more' if len(self) > 4 else ''})"

    def _arrays(self) -> tuple[Int64Array, Int64Array, Int64Array]:
        return self.starts, self.stops, self.steps

    @cached_property
    def ends(self) -> Int64Array:
        """The rank after the last position of every run: int64, (runs,)."""
        return np.cumsum((self.stops - self.starts - 1) // self.steps + 1)

    @cached_property
    def offsets(self) -> Int64Array:
        """The rank of the first position of every run: int64, (runs,)."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])[: len(self)]

    @property
    def count(self) -> int:
        """Positions in all."""
        return int(self.ends[-1]) if len(self) else 0

    def run_at(self, ranks: Int64Array) -> Int64Array:
        """Return the run that holds each rank: int64, of the shape of `ranks`."""
        return np.searchsorted(self.ends, ranks, side="right")

    def at(self, ranks: Int64Array) -> Int64Array:
        """Return the positions at ranks: int64, of the shape of `ranks`."""
        return self.inside(self.run_at(ranks), ranks)

    def inside(self, run: Int64Array, ranks: Int64Array) -> Int64Array:
        """Return the positions at ranks, given the run of each: int64, of their shape."""
        return self.starts[run] + self.steps[run] * (ranks - self.offsets[run])

    def positions(self, first: int = 0, last: int | None = None) -> Int64Array:
        """Return the positions at the ranks from `first` to before `last`: int64 (ranks,)."""
        return self.at(np.arange(first, self.count if last is None else last))

    def pieces(self, size: int = PIECE) -> Iterator[tuple[int, Int64Array]]:
        """Yield all positions in pieces, each after the rank of its first.

        A piece is int64 (n,), with n at most `size`.
        """
        for first in range(0, self.count, size):
            yield first, self.positions(first, min(first + size, self.count))

    def rank(self, positions: npt.ArrayLike) -> Int64Array:
        """Return how many positions of the spans are before each of `positions`.

        Both are int64, of the same shape.
        """
        given = np.asarray(positions, np.int64)
        if not len(self):
            return np.zeros(given.shape, np.int64)
        run = np.maximum(np.searchsorted(self.starts, given, side="right") - 1, 0)
        inside = -(-(given - self.starts[run]) // self.steps[run])
        offsets, ends = self.offsets[run], self.ends[run]
        return np.clip(offsets + inside, offsets, ends)

    def part(self, first: int, last: int) -> "Spans":
        """Return the positions at the ranks from `first` to before `last`, as runs."""
        return self.part_with_runs(first, last)[0]

    def part_with_runs(self, first: int, last: int) -> tuple["Spans", slice]:
        """Return the positions of a slice of ranks, and the runs that they were cut from."""
        if first >= last:
            return Spans.of([]), slice(0, 0)
        runs = slice(
            int(np.searchsorted(self.ends, first, side="right")),
            int(np.searchsorted(self.offsets, last, side="left")),
        )
        starts, stops, steps = (array[runs].copy() for array in self._arrays())
        starts[0], stops[-1] = self.at(np.array([first, last - 1])) + np.array([0, 1])
        return Spans(starts, stops, steps), runs

    def between(self, start: int, stop: int) -> "Spans":
        """Return the positions from `start` to before `stop`."""
        first, last = self.rank([start, stop]).tolist()
        return self.part(first, last)

    def every(self, first: int, last: int, step: int) -> "Spans":
        """Return the positions at the ranks ``range(first, last, step)``."""
        cut = self.part(first, last)
        if step == 1:
            return cut
        skipped = -cut.offsets % step
        starts, steps = cut.starts + skipped * cut.steps, cut.steps * step
        held = starts < cut.stops
        starts, stops, steps = starts[held], cut.stops[held], steps[held]
        return Spans(starts, starts + (stops - starts - 1) // steps * steps + 1, steps)

    def cut_at(self, ranks: Int64Array) -> tuple["Spans", Int64Array]:
        """Return the positions in runs cut at ranks, int64 (n,), and the old run of each.

        The old runs are int64 (runs,).
        """
        if not len(self):
            return self, np.zeros(0, np.int64)
        edges = distinct(np.sort(np.concatenate([self.offsets, ranks, self.ends[-1:]])))
        run = self.run_at(edges[:-1])
        starts = self.inside(run, edges[:-1])
        return Spans(starts, self.inside(run, edges[1:] - 1) + 1, self.steps[run]), run

    def pick(self, first: Int64Array, last: Int64Array) -> "Spans":
        """Return the positions whose ranks are in any of some ascending slices.

        The slices go from `first` to before `last`: int64, (slices,).
        """
        whole, _ = self.cut_at(np.concatenate([first, last]))
        begun, ended = (np.searchsorted(at, whole.offsets, side="right") for at in (first, last))
        held = begun > ended
        return Spans(*(array[held] for array in whole._arrays()))

    def take(self, ranks: Int64Array) -> "Spans":
        """Return the positions at ascending ranks, int64 of (n,); runs that were apart stay so."""
        if not len(ranks):
            return Spans.of([])
        run = self.run_at(ranks)
        positions = self.inside(run, ranks)
        apart = (np.diff(positions) != 1) | (np.diff(run) != 0)
        edges = np.concatenate([[0], np.flatnonzero(apart) + 1, [len(positions)]])
        starts = positions[edges[:-1]]
        return Spans(starts, positions[edges[1:] - 1] + 1, np.ones(len(starts), np.int64))


def joined(several: Iterable[Spans]) -> Spans:
    """Return runs one after the other, of which only `at` and ranks make sense."""
    parts = [spans._arrays() for spans in several]
    starts, stops, steps = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Spans(starts, stops, steps)


def distinct(ascending: Int64Array) -> Int64Array:
    """Return each of some ascending numbers, int64 (n,), once: faster than `numpy.unique`."""
    is_new: BoolArray = np.diff(ascending, prepend=ascending[:1] - 1) != 0
    return ascending[is_new]
