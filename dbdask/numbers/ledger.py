"""The ledger: two numbers for each portion, so that nothing is applied twice or goes uncounted."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """How far one portion has come in a shard."""

    epoch: int
    portion: int
    step: int  # the last one applied
    updates: int  # applied so far; fewer than steps where a push accrues several


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
    [Row(epoch=0, portion=3, step=1, updates=2)]
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], tuple[int, int]] = {}
        self._first_open_epoch = 0

    def last(self, epoch: int, portion: int) -> int:
        """Return the last applied step of a portion; -1 where none was applied."""
        return self._last.get((epoch, portion), (-1, 0))[0]

    def is_new(self, epoch: int, portion: int, step: int) -> bool:
        """Whether a step was not applied yet, and may be: its epoch is open."""
        return epoch >= self._first_open_epoch and step > self.last(epoch, portion)

    def admit(self, epoch: int, portion: int, step: int) -> bool:
        """Note a step and return True, or return False where it was applied before."""
        if not self.is_new(epoch, portion, step):
            return False
        updates = self._last.get((epoch, portion), (-1, 0))[1]
        self._last[epoch, portion] = step, updates + 1
        return True

    def close_before(self, epoch: int) -> None:
        """Admit nothing more of the epochs before `epoch`, and forget their portions."""
        self._first_open_epoch = max(self._first_open_epoch, epoch)
        self._last = {key: value for key, value in self._last.items() if key[0] >= epoch}

    def rows(self) -> list[Row]:
        """Return a row for each portion, sorted: what a checkpoint keeps."""
        return sorted(Row(*key, *value) for key, value in self._last.items())

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int]], first_open_epoch: int) -> "Ledger":
        """Rebuild a ledger from `rows()`."""
        ledger = cls()
        ledger._first_open_epoch = first_open_epoch
        ledger._last = {(row[0], row[1]): (row[2], row[3]) for row in rows}
        return ledger

    def copy(self) -> "Ledger":
        """Return a ledger that goes its own way from here."""
        return self.from_rows(self.rows(), self._first_open_epoch)


class Standing(NamedTuple):
    """What a shard says of itself when it is asked to rest: its ledger, and its updates."""

    rows: list[Row]
    applied: int


def furthest(standings: Iterable[Standing], first_epoch: int) -> Standing:
    """Return the standing of a shard that has everything that one of several shards has.

    Of each portion the row with the largest step; `applied` grows by the updates that the shard
    it was taken from lacks. Rows of epochs before `first_epoch`, which are closed, are left out.

    Examples
    --------
    >>> behind = Standing([Row(1, 1, 4, 5)], applied=15)
    >>> ahead = Standing([Row(0, 9, 9, 10), Row(1, 1, 5, 6), Row(1, 2, 0, 1)], applied=17)
    >>> furthest([behind, ahead], first_epoch=1) == Standing(ahead.rows[1:], applied=17)
    True
    """
    latest: dict[tuple[int, int], Row] = {}
    known = list(standings)
    for row in (Row(*row) for standing in known for row in standing.rows):
        held = latest.get(row[:2])
        if row.epoch >= first_epoch and (held is None or row.step > held.step):
            latest[row[:2]] = row
    one = known[0]
    has = sum(row[3] for row in one.rows if row[0] >= first_epoch)
    updates = sum(row.updates for row in latest.values())
    return Standing(sorted(latest.values()), one.applied + updates - has)
