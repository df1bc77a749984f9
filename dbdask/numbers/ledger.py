"""The ledger: one number for each portion, so that nothing is applied twice."""

from collections.abc import Iterator


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
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], int] = {}
        self._first_open_epoch = 0

    def last(self, epoch: int, portion: int) -> int:
        """Return the last applied step of a portion; -1 where none was applied."""
        return self._last.get((epoch, portion), -1)

    def admit(self, epoch: int, portion: int, step: int) -> bool:
        """Note a step and return True, or return False where it was applied before."""
        if epoch < self._first_open_epoch or step <= self.last(epoch, portion):
            return False
        self._last[epoch, portion] = step
        return True

    def close_before(self, epoch: int) -> None:
        """Admit nothing more of the epochs before `epoch`, and forget their portions."""
        self._first_open_epoch = max(self._first_open_epoch, epoch)
        self._last = {key: step for key, step in self._last.items() if key[0] >= epoch}

    def rows(self) -> list[tuple[int, int, int]]:
        """Return (epoch, portion, last step), sorted: what a checkpoint keeps."""
        return sorted((epoch, portion, step) for (epoch, portion), step in self._last.items())

    @property
    def first_open_epoch(self) -> int:
        """The first epoch of which pushes are still admitted."""
        return self._first_open_epoch

    @classmethod
    def from_rows(cls, rows: list[tuple[int, int, int]], first_open_epoch: int) -> "Ledger":
        """Rebuild a ledger from `rows()`."""
        ledger = cls()
        ledger._first_open_epoch = first_open_epoch
        ledger._last = {(epoch, portion): step for epoch, portion, step in rows}
        return ledger

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return iter(self.rows())
