"""Labels: integers, whole floats or text, as class indices."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

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
        A word for each label, where the store declares them.
    """

    labels: tuple[Any, ...] | None = None
    count: int | None = None
    meanings: tuple[str, ...] | None = None

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        labels = np.asarray(self.labels)
        order = np.argsort(labels, kind="stable")
        return labels[order], order

    def encode(self, values: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
        """Return class indices; `MISSING` and `UNKNOWN` where there is none.

        Examples
        --------
        >>> Classes(("sea", "land")).encode(np.array(["land", "sea", "fog"]), None)
        array([ 1,  0, -2])
        """
        missing = _missing(values, missing)
        codes = self._indices(values) if self.labels is None else self._look_up(values)
        return codes if missing is None else np.where(missing, MISSING, codes)

    def _indices(self, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind not in "iufb":
            return np.full(values.shape, UNKNOWN)
        top = np.inf if self.count is None else self.count
        with np.errstate(invalid="ignore"):
            good = (values >= 0) & (values < top) & (values == np.floor(values))
        return np.where(good, values, UNKNOWN).astype(np.int64)

    def _look_up(self, values: np.ndarray) -> np.ndarray:
        labels, order = self._sorted
        if (labels.dtype.kind in "US") != (values.dtype.kind in "US"):
            return np.full(values.shape, UNKNOWN)
        place = np.minimum(np.searchsorted(labels, values), len(labels) - 1)
        return np.where(labels[place] == values, order[place], UNKNOWN).astype(np.int64)

    def rule(self) -> str:
        """Return what a label must be, for a message."""
        if self.labels is not None:
            shown = ", ".join(repr(label) for label in self.labels[:6])
            more = ", ..." if len(self.labels) > 6 else ""
            return f"one of the {len(self.labels)} classes {shown}{more}"
        top = "and up" if self.count is None else f"to {self.count - 1}"
        return f"a whole number from 0 {top}"

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "labels": None if self.labels is None else list(self.labels),
            "count": self.count,
            "meanings": None if self.meanings is None else list(self.meanings),
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> "Classes":
        """Return what `to_json` described."""
        labels, meanings = table["labels"], table["meanings"]
        return cls(
            None if labels is None else tuple(labels),
            table["count"],
            None if meanings is None else tuple(meanings),
        )


def as_classes(given: Sequence[Any], meanings: Sequence[str] | None = None) -> Classes:
    """Check what a user gave as `classes=`.

    Raises
    ------
    ValueError
        If it is empty or a label is there twice.
    """
    if isinstance(given, (str, bytes)):
        raise TypeError(f"classes must be a list of labels, got the text {given!r}")
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"classes must be a list of labels, got {given!r}")
    labels = tuple(_plain(label) for label in np.asarray(given).tolist())
    if not labels:
        raise ValueError("classes must have at least one label, got none")
    for label in labels:
        if not isinstance(label, (str, int, float)) or label != label:
            raise ValueError(f"classes must hold numbers or text, got {label!r}")
    twice = [label for position, label in enumerate(labels) if label in labels[:position]]
    if twice:
        raise ValueError(f"classes must be unique, got {twice[0]!r} twice")
    return Classes(labels, len(labels), None if meanings is None else tuple(meanings))


def declared_classes(attrs: Mapping[str, Any]) -> Classes | None:
    """Return the classes that `flag_values` and `flag_meanings` declare, if they do."""
    if attrs.get("flag_values") is None:
        return None
    values = attrs["flag_values"]
    if isinstance(values, str):
        values = [float(v) if "." in v else int(v) for v in values.replace(",", " ").split()]
    meanings = str(attrs.get("flag_meanings", "")).split()
    labels = np.atleast_1d(values)
    return as_classes(labels.tolist(), meanings if len(meanings) == len(labels) else None)


def _missing(values: np.ndarray, missing: np.ndarray | None) -> np.ndarray | None:
    if values.dtype.kind != "f":
        return missing
    absent = np.isnan(values)
    return absent if missing is None else missing | absent


def _plain(label: Any) -> Any:
    return int(label) if isinstance(label, float) and label.is_integer() else label
