"""Marks and numbers of each portion of an epoch, kept in arrays and reported as ranges."""

from collections.abc import Iterable, Sequence

import numpy as np

from dbdask.arrays import Int64Array

LEAST = 1024  # portions that a new table can hold


class Finished:
    """Marks of the portions of an epoch that are finished.

    Parameters
    ----------
    count
        Portions of the epoch.

    Examples
    --------
    >>> finished = Finished(9)
    >>> finished.add_range(0, 4), finished.add(7), finished.add(7)
    (None, True, False)
    >>> finished.ranges(2), finished.count, finished.first_open(0), 3 in finished
    ([(2, 0, 4), (2, 7, 8)], 5, 4, True)
    """

    def __init__(self, count: int) -> None:
        self._marks = bytearray(count)
        self.count = 0

    def __contains__(self, number: int) -> bool:
        return bool(self._marks[number])

    def add(self, number: int) -> bool:
        """Mark a portion; return False if it was marked before."""
        if self._marks[number]:
            return False
        self._marks[number] = 1
        self.count += 1
        return True

    def add_range(self, first: int, stop: int) -> None:
        """Mark the portions from `first` to before `stop`."""
        stop = min(stop, len(self._marks))
        self.count += self._marks.count(0, first, stop)
        self._marks[first:stop] = b"\1" * max(0, stop - first)

    def first_open(self, number: int) -> int:
        """Return the first unmarked portion from `number` on; their number if there is none."""
        found = self._marks.find(0, number)
        return len(self._marks) if found < 0 else found

    def ranges(self, epoch: int) -> list[tuple[int, int, int]]:
        """Return (epoch, first, past the last) of each range of marked portions."""
        edges = np.flatnonzero(np.diff(np.frombuffer(self._marks, np.int8), prepend=0, append=0))
        pairs = edges.reshape(-1, 2).tolist()
        return [(epoch, first, stop) for first, stop in pairs]


class PortionTable:
    """Two whole numbers for each portion of some epochs, the first of them not below 0.

    Examples
    --------
    >>> table = PortionTable()
    >>> for portion in (0, 1, 2, 5): table.put(3, portion, 7, 8)
    >>> table.get(3, 2), table.get(3, 4), table.rows()
    ((7, 8), None, [(3, 0, 7, 8, 3), (3, 5, 7, 8, 1)])
    """

    def __init__(self) -> None:
        self._epochs: dict[int, Int64Array] = {}  # -1 where nothing is known

    def get(self, epoch: int, portion: int) -> tuple[int, int] | None:
        """Return the numbers of a portion; None if there are none."""
        table = self._epochs.get(epoch)
        if table is None or portion >= len(table) or table[portion, 0] < 0:
            return None
        return int(table[portion, 0]), int(table[portion, 1])

    def put(self, epoch: int, portion: int, first: int, second: int, count: int = 1) -> None:
        """Set the numbers of `count` portions, of which `portion` is the first."""
        table = self._epochs.get(epoch)
        if table is None or portion + count > len(table):
            table = self._grown(epoch, portion + count)
        table[portion : portion + count] = first, second

    def _grown(self, epoch: int, size: int) -> Int64Array:
        old = self._epochs.get(epoch, np.empty((0, 2), np.int64))
        new = np.full((max(LEAST, size, 2 * len(old)), 2), -1, np.int64)
        new[: len(old)] = old
        self._epochs[epoch] = new
        return new

    def forget_before(self, epoch: int) -> None:
        """Forget the epochs before `epoch`."""
        self._epochs = {known: t for known, t in self._epochs.items() if known >= epoch}

    def copy(self) -> "PortionTable":
        """Return an independent copy."""
        other = PortionTable()
        other._epochs = {epoch: table.copy() for epoch, table in self._epochs.items()}
        return other

    def rows(self) -> list[tuple[int, int, int, int, int]]:
        """Return (epoch, portion, first, second, count): of runs of portions alike, in order."""
        return [row for epoch in sorted(self._epochs) for row in self._rows_of(epoch)]

    def _rows_of(self, epoch: int) -> list[tuple[int, int, int, int, int]]:
        table = self._epochs[epoch]
        known = np.flatnonzero(table[:, 0] >= 0)
        if not len(known):
            return []
        apart = (np.diff(known) != 1) | (np.diff(table[known], axis=0) != 0).any(axis=1)
        starts = np.concatenate([[0], np.flatnonzero(apart) + 1])
        counts = np.diff(np.append(starts, len(known))).tolist()
        heads = known[starts]
        firsts, seconds = table[heads].T.tolist()
        columns = zip(heads.tolist(), firsts, seconds, counts, strict=True)
        return [(epoch, *row) for row in columns]

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int]]) -> "PortionTable":
        """Rebuild a table from `rows()`, or from rows without a count."""
        table = cls()
        for epoch, portion, first, second, *count in rows:
            table.put(epoch, portion, first, second, *count)
        return table

    def steps(self, epoch: int, size: int) -> Int64Array:
        """Return the first number of each portion of an epoch, -1 for none: int64, (size,)."""
        return self._columns(epoch, size)[:, 0]

    def _columns(self, epoch: int, size: int) -> Int64Array:
        held = self._epochs.get(epoch, np.empty((0, 2), np.int64))[:size]
        rest = np.full((size - len(held), 2), -1, np.int64)
        return np.concatenate([held, rest])

    def merge_larger(self, other: "PortionTable") -> None:
        """Take over the numbers of each portion of which the other's first is larger."""
        for epoch in other._epochs:
            size = max(self.size(epoch), other.size(epoch))
            mine, yours = self._columns(epoch, size), other._columns(epoch, size)
            self._epochs[epoch] = np.where(yours[:, :1] > mine[:, :1], yours, mine)

    def size(self, epoch: int) -> int:
        """Return up to which portion of an epoch there may be numbers."""
        return len(self._epochs.get(epoch, ()))

    @property
    def epochs(self) -> list[int]:
        """The epochs of which a portion is known."""
        return sorted(self._epochs)

    def total(self) -> int:
        """Return the sum of the second numbers."""
        return sum(int(t[t[:, 0] >= 0, 1].sum()) for t in self._epochs.values())
