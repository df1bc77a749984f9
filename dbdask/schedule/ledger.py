"""The ledger: two numbers for each portion, so that every push is applied and counted once."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dbdask.schedule.portion_marks import PortionTable


class Row(NamedTuple):
    """The progress of one portion in a shard, or of several neighbours with the same progress."""

    epoch: int
    portion: int
    step: int  # the last one applied
    updates: int  # applied so far; fewer than steps if a push accrues several
    portions: int = 1  # from this one on


class Ledger:
    """The last applied step of every portion of the open epochs.

    A push is admitted once: when its step lies beyond the last one of its portion. Whole epochs
    are closed from below, so a push that arrives after its epoch ended is never admitted.

    Examples
    --------
    >>> ledger = Ledger()
    >>> ledger.admit(0, 3, 0), ledger.admit(0, 3, 0), ledger.admit(0, 3, 1)
    (True, False, True)
    >>> ledger.last(0, 3)
    1
    >>> ledger.rows()
    [Row(epoch=0, portion=3, step=1, updates=2, portions=1)]
    """

    def __init__(self) -> None:
        self._last = PortionTable()  # step, updates
        self._first_open_epoch = 0

    def last(self, epoch: int, portion: int) -> int:
        """Return the last applied step of a portion; -1 if none was applied."""
        return (self._last.get(epoch, portion) or (-1, 0))[0]

    def is_new(self, epoch: int, portion: int, step: int) -> bool:
        """Whether a step was not applied yet, and its epoch is open."""
        return epoch >= self._first_open_epoch and step > self.last(epoch, portion)

    def admit(self, epoch: int, portion: int, step: int) -> bool:
        """Record a step and return True; return False if it was applied before or is closed."""
        if not self.is_new(epoch, portion, step):
            return False
        updates = (self._last.get(epoch, portion) or (-1, 0))[1]
        self._last.put(epoch, portion, step, updates + 1)
        return True

    def close_before(self, epoch: int) -> None:
        """Admit nothing more of the epochs before `epoch`, and forget their portions."""
        self._first_open_epoch = max(self._first_open_epoch, epoch)
        self._last.forget_before(epoch)

    def rows(self) -> list[Row]:
        """Return sorted rows, one for each portion or run of equal neighbours, for a checkpoint."""
        return [Row(*row) for row in self._last.rows()]

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int]], first_open_epoch: int) -> "Ledger":
        """Rebuild a ledger from `rows()`."""
        ledger = cls()
        ledger._first_open_epoch = first_open_epoch
        ledger._last = PortionTable.from_rows(rows)
        return ledger

    def copy(self) -> "Ledger":
        """Return an independent copy."""
        other = Ledger()
        other._first_open_epoch, other._last = self._first_open_epoch, self._last.copy()
        return other


class ShardProgress(NamedTuple):
    """The progress of a shard at rest: the rows of its ledger, and its number of updates."""

    rows: list[Row]
    applied: int


def furthest(progresses: Iterable[ShardProgress], first_epoch: int) -> ShardProgress:
    """Return the progress of a shard that has applied all that any of several shards has.

    It has, for each portion, the row with the largest step; `applied` is that of the first shard
    and the updates that it lacks. Rows of epochs before `first_epoch`, which are closed, are left
    out.

    Examples
    --------
    >>> behind = ShardProgress([Row(1, 1, 4, 5)], applied=15)
    >>> ahead = ShardProgress([Row(0, 9, 9, 10), Row(1, 1, 5, 6), Row(1, 2, 0, 1)], applied=17)
    >>> furthest([behind, ahead], first_epoch=1) == ShardProgress(ahead.rows[1:], applied=17)
    True
    """
    known = list(progresses)
    latest, *others = (_open_rows(progress, first_epoch) for progress in known)
    has = latest.total()
    for other in others:
        latest.merge_larger(other)
    rows = [Row(*row) for row in latest.rows()]
    return ShardProgress(rows, known[0].applied + latest.total() - has)


def uneven(progresses: Iterable[ShardProgress], first_epoch: int) -> set[tuple[int, int]]:
    """Return (epoch, portion) of the portions that shards hold at different steps.

    Examples
    --------
    >>> one, other = ShardProgress([Row(1, 1, 4, 5)], 5), ShardProgress([Row(1, 0, 4, 5, 2)], 10)
    >>> uneven([one, other], first_epoch=1)
    {(1, 0)}
    """
    tables = [_open_rows(progress, first_epoch) for progress in progresses]
    found: set[tuple[int, int]] = set()
    for epoch in {epoch for table in tables for epoch in table.epochs}:
        size = max(table.size(epoch) for table in tables)
        first, *others = (table.steps(epoch, size) for table in tables)
        for steps in others:
            found.update((epoch, portion) for portion in np.flatnonzero(first != steps).tolist())
    return found


def _open_rows(progress: ShardProgress, first_epoch: int) -> PortionTable:
    """Return the rows of a progress of the epochs that are not closed."""
    return PortionTable.from_rows(row for row in progress.rows if row[0] >= first_epoch)
