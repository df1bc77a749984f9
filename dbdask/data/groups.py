"""Groups: equal neighbours that windows must not leave, such as the frames of an utterance."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np

from dbdask.arrays import BoolArray, Int64Array
from dbdask.data.missing import missing_group
from dbdask.data.spans import PIECE, Spans
from dbdask.data.variables import Variable
from dbdask.errors import DataError


def run_starts(values: np.ndarray) -> Int64Array:
    """Return the places at which runs of equal neighbours start: int64, (runs,).

    Examples
    --------
    >>> run_starts(np.array(["a", "a", "b"]))
    array([0, 2])
    """
    if len(values) == 0:
        return np.zeros(0, np.int64)
    return np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])


def known_groups(variable: Variable, stored: np.ndarray, begin: int) -> np.ndarray:
    """Return the groups at positions from `begin` on: decoded, (positions,).

    Python objects stay objects: all numbers of one block would become an array of numbers, and
    those of another block, which holds text too, would not.

    Raises
    ------
    DataError
        A group is missing.
    """
    values, missing = variable.decode(stored)
    if missing is not None:
        raise missing_group(variable, begin + int(missing.argmax()))
    shown = variable.decoding.as_shown(stored) if variable.dtype.kind == "O" else values
    return shown if shown.dtype.kind == "O" else values


def starts_of_groups(variable: Variable, selected: Spans) -> Int64Array:
    """Return the ranks, among selected positions, at which groups start: int64, (groups,).

    The values are read some chunks at a time, and one value a group is kept.

    Raises
    ------
    DataError
        A group is missing, or returns after another one.
    """
    starts = [np.zeros(0, np.int64)]
    ledger, count = GroupLedger(variable.name), 0
    last: Any = None
    for rank, values in _selected_groups(variable, selected):
        runs = run_starts(values)
        if count and values[0] == last:
            runs = runs[1:]
        if len(runs):
            starts.append(runs + rank)
            ledger.note(values[runs], count)
            count, last = count + len(runs), values[-1]
    return np.concatenate(starts)


def _selected_groups(variable: Variable, selected: Spans) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the rank of the first of some selected positions, and the groups of all of them."""
    (dim,) = variable.dims
    lengths = variable.lengths[dim]
    for batch in lengths.batches(PIECE):
        start, stop = (lengths.edge(place) for place in batch)
        first, last = selected.rank([start, stop]).tolist()
        if first == last:
            continue
        chosen = selected.part(first, last)
        begin, end = int(chosen.starts[0]), int(chosen.stops[-1])
        stored = variable.read({dim: slice(begin, end)})
        if chosen.count == end - begin:
            yield first, known_groups(variable, stored, begin)
        else:
            yield first, _groups_at(variable, stored, chosen.positions())


def _groups_at(variable: Variable, stored: np.ndarray, positions: Int64Array) -> np.ndarray:
    """Return the groups at some positions; a group between them may be missing."""
    chosen = stored[positions - positions[0]]
    missing = variable.decode(chosen)[1]
    if missing is not None:
        raise missing_group(variable, int(positions[missing.argmax()]))
    return known_groups(variable, chosen, 0)


class _Table:
    """The extents of groups, found by value and by position; no two share a position."""

    def __init__(self, values: np.ndarray, first: Int64Array, last: Int64Array) -> None:
        order = np.argsort(first)
        self.first, self.last = first[order], last[order]
        by_value = np.argsort(values[order], kind="stable")
        self.values, self.place = values[order][by_value], by_value

    def __len__(self) -> int:
        return len(self.values)

    def find(self, values: np.ndarray) -> tuple[BoolArray, Int64Array]:
        """Return which values are in the table (bool), and their places by position (int64)."""
        at = np.minimum(np.searchsorted(self.values, values), len(self) - 1)
        held = self.values[at] == values
        return held, self.place[at[held]]

    def overlapping(self, first: Int64Array, last: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Return, for each extent, the first place and the one after the last that it overlaps."""
        begin = np.searchsorted(self.last, first, side="left")
        return begin, np.searchsorted(self.first, last, side="right")

    def value_at(self, place: int) -> Any:
        """Return the group at a place."""
        return self.values[int(np.flatnonzero(self.place == place)[0])]

    def merged(self, other: "_Table") -> "_Table":
        """Return both in one; the extent of a group that is in both covers both."""
        values = np.concatenate([self.values, other.values])
        first = np.concatenate([self.first[self.place], other.first[other.place]])
        last = np.concatenate([self.last[self.place], other.last[other.place]])
        order = np.argsort(values, kind="stable")
        starts = run_starts(values[order])
        return _Table(
            values[order][starts],
            np.minimum.reduceat(first[order], starts),
            np.maximum.reduceat(last[order], starts),
        )

    def with_values(self, values: np.ndarray) -> "_Table":
        """Return the table with other values in the place of its own, in their order."""
        return _Table(values, self.first[self.place], self.last[self.place])


@dataclass
class GroupLedger:
    """Records the extent of every group, and raises if a group returns after another one.

    No other group may lie between the first and the last position of a group; this can be
    checked in any order of chunks. Groups are kept in tables, each at least twice as large as the
    next, so that every extent is sorted a few times and a look-up visits a few tables.
    """

    name: str
    _tables: list[_Table] = field(default_factory=list)
    _codes: dict[Any, int] = field(default_factory=dict)  # of objects, which may have no order
    _lock: Lock = field(default_factory=Lock)

    def note(self, values: np.ndarray, begin: int) -> None:
        """Record the groups, (positions,) of their own dtype, at positions from `begin` on.

        Raises
        ------
        DataError
            A group returns after another one.
        """
        starts = run_starts(values)
        ends = np.append(starts[1:], len(values))
        with self._lock:
            found = self._comparable(values[starts])
            self._check_alone(found)
            self._extend(found, begin + starts, begin + ends - 1)

    def _comparable(self, values: np.ndarray) -> np.ndarray:
        """Return values of the dtype of the tables, which changes if it cannot hold them."""
        known = self._tables[0].values.dtype if self._tables else values.dtype
        if {known.kind, values.dtype.kind} == {"M", "O"}:
            # xarray makes objects of the dates of a block if one of them is out of range.
            raise DataError(
                f"groups: {self.name!r} has dates that datetime64[ns] holds, and others; give "
                "groups that are numbers, such as the time since a date"
            )
        if self._codes or values.dtype.kind == "O" or values.dtype.kind != known.kind:
            return self._coded(values)
        dtype = np.result_type(values, known)
        if dtype != known:
            self._tables = [table.with_values(table.values.astype(dtype)) for table in self._tables]
        return values.astype(dtype, copy=False)

    def _coded(self, values: np.ndarray) -> Int64Array:
        """Return a running number for each value, which may be of any kind; so do the tables."""
        if not self._codes:
            # No dtype but object holds numbers, text and dates exactly.
            self._tables = [
                table.with_values(self._numbers(table.values)) for table in self._tables
            ]
        return self._numbers(values)

    def _numbers(self, values: np.ndarray) -> Int64Array:
        """Return int64 numbers (values,), equal for equal values, in the order of first appearance.

        Raises
        ------
        DataError
            The values cannot be hashed, so they cannot be compared.
        """
        try:
            codes = [self._codes.setdefault(value, len(self._codes)) for value in list(values)]
        except TypeError as error:
            raise DataError(
                f"groups: {self.name!r} holds objects that cannot be compared ({error}); give "
                "groups that are numbers or text, as in array.astype(str)"
            ) from error
        return np.array(codes, np.int64)

    def _check_alone(self, values: np.ndarray) -> None:
        """Raise DataError if a value is there twice: another one lies between them."""
        order = np.argsort(values, kind="stable")
        twice = np.flatnonzero(values[order[1:]] == values[order[:-1]])
        if len(twice):
            at = int(order[twice[order[twice + 1].argmin()]])
            raise self._returned(values[at], values[at + 1])

    def _extend(self, values: np.ndarray, first: Int64Array, last: Int64Array) -> None:
        """Add runs to the extents of their groups."""
        held = [table.find(values) for table in self._tables]
        is_new = np.ones(len(values), bool)
        begin, end = first.copy(), last.copy()
        for table, (known, place) in zip(self._tables, held, strict=True):
            begin[known] = np.minimum(begin[known], table.first[place])
            end[known] = np.maximum(end[known], table.last[place])
            inside = (table.first[place] <= first[known]) & (last[known] <= table.last[place])
            is_new[np.flatnonzero(known)[inside]] = False
        for table, (known, _) in zip(self._tables, held, strict=True):
            self._check_apart(table, known, values, begin, end)
        added = _Table(values, begin, end)
        overlap = np.flatnonzero(added.last[:-1] >= added.first[1:])
        if len(overlap):
            at = int(overlap[0])
            raise self._returned(added.value_at(at), added.value_at(at + 1))
        if is_new.any():
            self._insert(_Table(values[is_new], begin[is_new], end[is_new]))

    def _check_apart(
        self,
        table: _Table,
        known: BoolArray,
        values: np.ndarray,
        begin: Int64Array,
        end: Int64Array,
    ) -> None:
        """Raise DataError if an extent shares a position with that of another group."""
        low, high = table.overlapping(begin, end)
        wrong = np.flatnonzero(high - low > known)
        if not len(wrong):
            return
        at = int(wrong[0])
        others = [n for n in range(int(low[at]), int(high[at])) if table.value_at(n) != values[at]]
        other = table.value_at(others[0])
        inside = begin[at] < table.first[others[0]]
        raise self._returned(*((values[at], other) if inside else (other, values[at])))

    def _insert(self, table: _Table) -> None:
        while self._tables and len(self._tables[-1]) < 2 * len(table):
            table = self._tables.pop().merged(table)
        self._tables.append(table)

    def _returned(self, value: Any, between: Any) -> DataError:
        if self._codes:
            known = list(self._codes)
            value, between = known[value], known[between]
        value, between = _shown(value), _shown(between)
        return DataError(
            f"groups: {self.name!r} is {value}, then {between}, then {value} again; equal "
            "neighbours form a group: sort the store by group, or give every group its own value"
        )


def _shown(value: object) -> str:
    """Return a group as a message shows it; a date as a date."""
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return str(value)
    return repr(value.item() if isinstance(value, np.generic) else value)
