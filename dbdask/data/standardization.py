"""Standardisation: mean and deviation of every variable, merged over chunks in float64."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

CONSTANT = 1e-7
"""A deviation below this part of the mean is rounding: the variable counts as constant."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviation; scalars, or one per feature; how many are NaN.

    Examples
    --------
    >>> whole = Moments.of(np.array([[1.0], [2.0], [6.0]]), "variable")
    >>> float(whole.mean), float(whole.squares)
    (3.0, 14.0)
    """

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray
    missing: int = 0

    @classmethod
    def of(cls, values: np.ndarray, per: str) -> "Moments":
        """Measure one chunk's (positions, features); NaN does not count."""
        axis = 0 if per == "feature" else None
        wide = values.astype(np.float64)
        good = ~np.isnan(wide)
        count = good.sum(axis=axis, dtype=np.int64)
        total = np.where(good, wide, 0).sum(axis=axis)
        mean = np.divide(total, count, out=np.zeros(np.shape(total)), where=count > 0)
        squares = np.where(good, wide - mean, 0)
        missing = good.size - int(count.sum())
        return cls(np.asarray(count), np.asarray(mean), np.square(squares).sum(axis=axis), missing)

    def __add__(self, other: "Moments") -> "Moments":
        """Merge (Chan, Golub and LeVeque, 1983)."""
        count = self.count + other.count
        part = np.divide(other.count, count, out=np.zeros(np.shape(count)), where=count > 0)
        step = other.mean - self.mean
        squares = self.squares + other.squares + step * step * self.count * part
        return Moments(count, self.mean + step * part, squares, self.missing + other.missing)


def merge(moments: Iterable[Moments]) -> Moments:
    """Merge moments from left to right."""
    found = iter(moments)
    total = next(found)
    for one in found:
        total = total + one
    return total


@dataclass(frozen=True)
class Scaling:
    """How a variable is shifted and scaled: (value - mean) / deviation.

    Parameters
    ----------
    mean, deviation
        One number, or one per feature (flattened).
    applied
        False where only the mean is known, to stand for missing elements.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    applied: bool = True

    @classmethod
    def of(cls, moments: Moments, applied: bool = True) -> "Scaling":
        """Return the scaling to mean 0 and deviation 1; a constant has deviation 1."""
        count = np.maximum(moments.count, 1)
        mean = np.atleast_1d(moments.mean)
        deviation = np.atleast_1d(np.sqrt(moments.squares / count))
        deviation = np.where(deviation <= CONSTANT * np.abs(mean), 1.0, deviation)
        return cls(tuple(mean.tolist()), tuple(deviation.tolist()), applied)

    @cached_property
    def _numbers(self) -> tuple[np.ndarray, np.ndarray]:
        mean = np.array(self.mean, np.float32)
        return mean, (1 / np.array(self.deviation)).astype(np.float32)

    @property
    def fill(self) -> np.ndarray:
        """What stands for a missing element: the mean, scaled where the values are."""
        return np.zeros_like(self._numbers[0]) if self.applied else self._numbers[0]

    def apply(self, values: np.ndarray, fresh: bool = False) -> np.ndarray:
        """Scale float32 values whose last axis is the features; in place when they are fresh."""
        if not self.applied:
            return values
        mean, factor = self._numbers
        out = values if fresh else np.empty(values.shape, np.float32)
        np.subtract(values, mean, out=out)
        return np.multiply(out, factor, out=out)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "mean": list(self.mean),
            "deviation": list(self.deviation),
            "applied": self.applied,
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> "Scaling":
        """Return what `to_json` described."""
        return cls(tuple(table["mean"]), tuple(table["deviation"]), table["applied"])
