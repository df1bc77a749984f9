"""Labels: whole numbers or text as class indices."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from dbdask.arrays import BoolArray, Int64Array
from dbdask.json_types import JsonObject

Label = str | int | float

MISSING = -1
UNKNOWN = -2


@dataclass(frozen=True)
class Classes:
    """The labels that occur, in the order of the model's outputs.

    Parameters
    ----------
    labels
        One label per output; None: the labels are the indices 0 to `count` - 1.
    count
        Outputs; None: not known yet.
    meanings
        A word for each label, if the store declares them.
    unknown
        Why the labels are not known, if `labels` is empty.
    """

    labels: tuple[Label, ...] | None = None
    count: int | None = None
    meanings: tuple[str, ...] | None = None
    unknown: str = ""

    @cached_property
    def _places(self) -> dict[Label, int]:
        return {label: place for place, label in enumerate(self.labels or ())}

    def of_outputs(self) -> list[Label] | None:
        """Return the label of each output, as the store has it; None if not known."""
        if not self.labels and self.count is None:
            return None
        return list(range(self.count or 0)) if self.labels is None else list(self.labels)

    @property
    def code_dtype(self) -> np.dtype:
        """The dtype that holds every class index."""
        is_known = self.labels is not None or self.count is not None
        return np.dtype(np.int32 if is_known else np.int64)

    def encode(self, values: np.ndarray, missing: BoolArray | None) -> Int64Array:
        """Return class indices, int64 of the shape of `values`.

        `MISSING` stands for a missing label, `UNKNOWN` for one of no class. `missing` is bool, of
        the same shape, or None.

        Examples
        --------
        >>> Classes(("sea", "land")).encode(np.array(["land", "sea", "fog"]), None)
        array([ 1,  0, -2])
        """
        missing = _missing(values, missing)
        if self.labels is None and values.dtype.kind in "iufb":
            codes = self._indices(values)
        else:
            codes = self._look_up(values)
        return codes if missing is None else np.where(missing, MISSING, codes)

    def _indices(self, values: np.ndarray) -> Int64Array:
        top = 2**63 if self.count is None else self.count
        codes = np.full(values.shape, UNKNOWN, np.int64)
        if values.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                good = (values >= 0) & (values < float(top)) & (values == np.floor(values))
        else:
            # Compared as Python does: the bound need not fit the values' dtype.
            good = (values >= 0) & (values <= min(top - 1, int(_largest(values.dtype))))
        codes[good] = values[good].astype(np.int64)
        return codes

    def _look_up(self, values: np.ndarray) -> Int64Array:
        """Return indices found by comparing Python objects, which are not rounded."""
        text = values.dtype.kind in "UST"
        flat = values.astype(object).ravel() if text else values.ravel()
        numbers, different = pd.factorize(flat)
        places = [self._place(value) for value in different.tolist()]
        # `factorize` gives a missing value the number -1, which is the last place.
        codes: Int64Array = np.array([*places, UNKNOWN], np.int64)[numbers]
        return codes.reshape(values.shape)

    def _place(self, value: Any) -> int:
        if self.labels is not None:
            return self._places.get(value, UNKNOWN)
        is_index = isinstance(value, int | float) and value == value // 1 and 0 <= value < 2**63
        return int(value) if is_index and (self.count is None or value < self.count) else UNKNOWN

    def rule(self) -> str:
        """Return the rule that a label must keep, for a message."""
        if self.labels is not None:
            shown = ", ".join(repr(label) for label in self.labels[:6])
            more = ", ..." if len(self.labels) > 6 else ""
            if len(self.labels) == 1:
                return f"the one class {shown}"
            return f"one of the {len(self.labels)} classes {shown}{more}"
        if self.count is None:
            return "a whole number from 0 up (integers mean classes; values are floats)"
        return f"a whole number from 0 to {self.count - 1}"

    def to_json(self) -> JsonObject:
        """Return the classes as JSON."""
        return {
            "labels": None if self.labels is None else list(self.labels),
            "count": self.count,
            "meanings": None if self.meanings is None else list(self.meanings),
        }

    @classmethod
    def from_json(cls, table: JsonObject) -> "Classes":
        """Return the classes of `to_json`."""
        labels, meanings = table["labels"], table["meanings"]
        return cls(
            None if labels is None else tuple(labels),
            table["count"],
            None if meanings is None else tuple(meanings),
        )


def as_classes(given: Iterable[object], meanings: Sequence[str] | None = None) -> Classes:
    """Return the classes that a user gave as `classes=`.

    Raises
    ------
    TypeError
        It is no list.
    ValueError
        It is empty, a label is there twice, or labels are neither all numbers nor all text.

    Examples
    --------
    >>> as_classes([3.0, 2**60 + 1]).labels
    (3, 1152921504606846977)
    """
    if isinstance(given, (str, bytes)):
        raise TypeError(f"classes must be a list of labels, got the text {given!r}")
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"classes must be a list of labels, got {given!r}")
    # One by one, because an array of all would round some, or make text of numbers.
    listed = given.to_numpy() if hasattr(given, "to_numpy") else given
    labels = tuple(_plain(label) for label in listed)
    if not labels:
        raise ValueError("classes must have at least one label, got none")
    _check_labels(labels)
    return Classes(labels, len(labels), None if meanings is None else tuple(meanings))


def _check_labels(labels: tuple[Label, ...]) -> None:
    seen: set[Label] = set()
    for label in labels:
        if not isinstance(label, (str, int, float)) or label != label:
            raise ValueError(f"classes must hold numbers or text, got {label!r}")
        if isinstance(label, str) != isinstance(labels[0], str):
            raise ValueError(
                f"classes must be all numbers or all text, got {labels[0]!r} and {label!r}"
            )
        if label in seen:
            raise ValueError(f"classes must be unique, got {label!r} twice")
        seen.add(label)


def _missing(values: np.ndarray, missing: BoolArray | None) -> BoolArray | None:
    if values.dtype.kind != "f":
        return missing
    absent: BoolArray = np.isnan(values)
    return absent if missing is None else missing | absent


def _largest(dtype: np.dtype) -> int:
    return 1 if dtype.kind == "b" else min(int(np.iinfo(dtype).max), 2**63 - 1)


def _plain(label: object) -> Any:
    """Return a label as a Python object: text or a number, and an int if that is whole."""
    if isinstance(label, np.generic) or (isinstance(label, np.ndarray) and label.size == 1):
        label = label.item()
    if isinstance(label, bytes):
        return label.decode()
    if isinstance(label, str):
        return str(label)
    if isinstance(label, np.longdouble):  # which Python has no number for
        label = float(label) if float(label) == label else label
    return int(label) if isinstance(label, (float, np.longdouble)) and label.is_integer() else label
