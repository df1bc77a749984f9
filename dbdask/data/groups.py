"""Groups: equal neighbours that windows must not leave, such as the frames of an utterance."""

from bisect import bisect
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np

from dbdask.errors import DataError


def run_starts(values: np.ndarray) -> np.ndarray:
    """Return where runs of equal neighbours start.

    Examples
    --------
    >>> run_starts(np.array(["a", "a", "b"]))
    array([0, 2])
    """
    if len(values) == 0:
        return np.zeros(0, np.int64)
    return np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])


def group_bounds(values: np.ndarray, begin: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every value, the first position of its run and the position after its last."""
    starts = run_starts(values)
    ends = np.append(starts[1:], len(values))
    lengths = ends - starts
    return np.repeat(starts, lengths) + begin, np.repeat(ends, lengths) + begin


def _plain(value: Any) -> Any:
    """Return a group as a Python object; a date of NumPy's, which would become a number, as it is.

    Examples
    --------
    >>> _plain(np.int64(3)), _plain("a"), str(_plain(np.datetime64("2000-01-01", "ns")))
    (3, 'a', '2000-01-01T00:00:00.000000000')
    """
    is_number = isinstance(value, np.generic) and value.dtype.kind not in "mM"
    return value.item() if is_number else value


@dataclass
class GroupLedger:
    """Remembers where every group was seen, and raises when one returns later.

    From the first to the last position of a group there must be no other one; that shows in
    whatever order the chunks are read.
    """

    name: str
    _extent: dict[Any, tuple[int, int]] = field(default_factory=dict)
    _firsts: list[int] = field(default_factory=list)
    _values: dict[int, Any] = field(default_factory=dict)  # by first position
    _lock: Lock = field(default_factory=Lock)

    def note(self, values: np.ndarray, begin: int) -> None:
        """Take note of the groups at positions from `begin` on.

        Raises
        ------
        DataError
            When a value is seen again after another one.
        """
        starts = run_starts(values)
        ends = np.append(starts[1:], len(values))
        with self._lock:
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                self._extend(_plain(values[start]), begin + start, begin + end - 1)

    def _extend(self, value: Any, first: int, last: int) -> None:
        old = self._extent.get(value)
        if old is not None:
            if old[0] <= first and last <= old[1]:
                return
            self._forget(old[0])
            first, last = min(first, old[0]), max(last, old[1])
        place = bisect(self._firsts, first)
        for neighbour in self._firsts[max(0, place - 1) : place + 1]:
            other = self._values[neighbour]
            low, high = self._extent[other]
            if low <= last and high >= first:
                raise self._returned(*((value, other) if first < low else (other, value)))
        self._firsts.insert(place, first)
        self._values[first], self._extent[value] = value, (first, last)

    def _forget(self, first: int) -> None:
        self._firsts.remove(first)
        del self._values[first]

    def _returned(self, value: Any, between: Any) -> DataError:
        return DataError(
            f"groups: {self.name!r} is {value!r}, then {between!r}, then {value!r} again; equal "
            "neighbours form a group: sort the store by group, or give every group its own value"
        )
