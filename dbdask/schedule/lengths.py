"""The lengths of the blocks along one dimension.

Regular blocks are two numbers, the length of a block and the sum; others are the positions of their
edges.
"""

from collections.abc import Iterator, Sequence
from typing import SupportsIndex, overload

import numpy as np

from dbdask.arrays import Int64Array


class Lengths(Sequence[int]):
    """The lengths of the blocks along one dimension, as a sequence that equals their tuple.

    Regular blocks (all of one length, but for a shorter last one) take no memory each.

    Examples
    --------
    >>> Lengths([4, 4, 2]), Lengths.regular(10, 4) == (4, 4, 2), Lengths([3, 5, 2]).edges
    ((4, 4, 2), True, array([ 0,  3,  8, 10]))
    """

    def __init__(self, lengths: Sequence[int] | Int64Array) -> None:
        given = np.asarray(lengths, np.int64)
        self._count = len(given)
        self._irregular: Int64Array | None = None  # edges
        self._chunk = max(1, int(given[0])) if len(given) else 1
        self.size = int(given.sum())
        if (given[:-1] != self._chunk).any() or not 0 < int(given[-1:].sum()) <= self._chunk:
            self._irregular = np.concatenate([np.zeros(1, np.int64), np.cumsum(given)])

    @classmethod
    def regular(cls, size: int, chunk: int) -> "Lengths":
        """Cut `size` positions into blocks of `chunk`; the last one may be shorter."""
        found = cls(())
        found._irregular, found._chunk = None, chunk
        found.size, found._count = size, -(-size // chunk)
        return found

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> int | tuple[int, ...]:
        if isinstance(index, slice):
            return tuple(self[n] for n in range(*index.indices(self._count)))
        place = range(self._count)[index]
        return self.edge(place + 1) - self.edge(place)

    def __iter__(self) -> Iterator[int]:
        return (self[n] for n in range(self._count))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Lengths):
            if (self.size, self._count) != (other.size, other._count):
                return False
            if self._irregular is None and other._irregular is None:
                return self._count <= 1 or self._chunk == other._chunk
            return np.array_equal(self.edges, other.edges)
        if isinstance(other, (tuple, list)):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))  # that of the tuple which it is equal to

    def __repr__(self) -> str:
        return repr(tuple(self)) if self._count <= 8 else f"({self[0]}, ..., {self[-1]})"

    def edge(self, place: int) -> int:
        """Return the begin of a block, or the end of the last one for the number of blocks."""
        if self._irregular is not None:
            return int(self._irregular[place])
        return min(place * self._chunk, self.size)

    @property
    def edges(self) -> Int64Array:
        """The begin of every block, and the end of the last one: int64, (blocks + 1,)."""
        if self._irregular is not None:
            return self._irregular
        return np.minimum(np.arange(self._count + 1) * self._chunk, self.size)

    def batches(self, most: int) -> Iterator[tuple[int, int]]:
        """Yield first and last (exclusive) of neighbouring blocks of at most `most` positions.

        A longer block is a batch of its own.

        Examples
        --------
        >>> list(Lengths([3, 3, 9, 1]).batches(6))
        [(0, 2), (2, 3), (3, 4)]
        """
        first = 0
        while first < self._count:
            last = max(first + 1, self._before(self.edge(first) + most))
            yield first, last
            first = last

    def _before(self, position: int) -> int:
        """Return how many blocks end at or before a position."""
        if self._irregular is not None:
            return int(np.searchsorted(self._irregular, position, side="right")) - 1
        return self._count if position >= self.size else position // self._chunk


def as_lengths(given: Sequence[int]) -> Lengths:
    """Return lengths as they are, or those of a sequence."""
    return given if isinstance(given, Lengths) else Lengths(given)
