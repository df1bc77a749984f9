"""Standardisation: mean and deviation of every variable, merged over chunks in float64."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dbdask.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from dbdask.data.decoding import is_exact
from dbdask.json_types import JsonObject

FLOAT32_MAX = float(np.finfo(np.float32).max)

NEGLIGIBLE = 3e-8
"""Share of a deviation by which a float32 mean may be off without a correction."""

SINGLE = ("f4", "f2", "i1", "i2", "u1", "u2", "b1")
"""Dtypes whose values float32 holds exactly."""


def rounding_of(dtype: np.dtype) -> float:
    """Return the share of the mean below which a deviation is rounding, of a constant.

    Examples
    --------
    >>> rounding_of(np.dtype("i8")), rounding_of(np.dtype("f4")) == rounding_of(np.dtype("f8"))
    (0.0, True)
    """
    # Moments are float64 for any dtype: values of float32 that differ are no constant.
    return 4 * float(np.finfo(np.float64).eps) if dtype.kind == "f" else 0.0


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviations of values, and the number of missing ones.

    `lost` is the summed square of what float64, in which all is measured, rounds off the values.
    The arrays have shape (), or (features,) if each feature is measured on its own.

    Examples
    --------
    >>> whole = Moments.of(np.array([[1.0], [2.0], [6.0]]), "variable")
    >>> float(whole.mean), float(whole.squares)
    (3.0, 14.0)
    """

    count: Int64Array
    mean: Float64Array
    squares: Float64Array
    missing: int = 0
    lost: float = 0.0

    @classmethod
    def of(cls, values: np.ndarray, per: str, lost: float = 0.0) -> "Moments":
        """Return the moments of values (positions, features) of a number dtype, without NaN.

        They are float64. `per` is "variable", for moments of shape (), or "feature", for
        (features,).
        """
        axis = 0 if per == "feature" else None
        wide = values.astype(np.float64)
        good = ~np.isnan(wide)
        count = good.sum(axis=axis, dtype=np.int64)
        # Sums of differences from a first value round less, and those of a constant not at all.
        pivot = _first(wide, good, axis)
        with np.errstate(over="ignore", invalid="ignore"):
            wide = np.where(good, wide - pivot, 0)
            total = wide.sum(axis=axis)
            mean = np.divide(total, count, out=np.zeros(np.shape(total)), where=count > 0)
            squares = np.square(np.where(good, wide - mean, 0)).sum(axis=axis)
        missing = good.size - int(count.sum())
        return cls(np.asarray(count), np.asarray(pivot + mean), squares, missing, lost)

    def __add__(self, other: "Moments") -> "Moments":
        """Merge (Chan, Golub and LeVeque, 1983)."""
        count = self.count + other.count
        part = np.divide(other.count, count, out=np.zeros(np.shape(count)), where=count > 0)
        step = other.mean - self.mean
        squares = self.squares + other.squares + step * step * self.count * part
        missing, lost = self.missing + other.missing, self.lost + other.lost
        return Moments(count, self.mean + step * part, squares, missing, lost)

    @property
    def lost_share(self) -> float:
        """The loss by rounding to float64, as a share of the deviation; infinite if all is lost."""
        squares = float(self.squares.sum())
        if not self.lost:
            return 0.0
        return math.sqrt(self.lost / squares) if squares else math.inf


def _first(values: Float64Array, good: BoolArray, axis: int | None) -> Float64Array:
    """Return the first value that is not missing, of all or of each column; 0 if all are."""
    if not values.size:
        return np.zeros(() if axis is None else values.shape[1:])
    place = np.expand_dims(good.argmax(axis=axis), axis if axis is not None else ())
    if axis is None:
        return np.where(good.any(), values.reshape(-1)[int(good.argmax())], 0.0)
    found = np.take_along_axis(values, place, axis=axis)[0]
    return np.where(good.any(axis=axis), found, 0.0)


def lost_in_float64(values: np.ndarray, missing: BoolArray | None) -> float:
    """Return the summed square of the part of values, of any shape, that float64 rounds off.

    Values that `missing`, boolean of that shape, marks do not count.

    Examples
    --------
    >>> lost_in_float64(np.array([2**53, 2**53 + 1]), None)
    1.0
    """
    if values.dtype.kind not in "iuf" or values.dtype.itemsize < 8 or values.dtype == np.float64:
        return 0.0
    present = values if missing is None else values[~missing]
    if present.dtype.kind in "iu" and is_exact(present):
        return 0.0
    wide = present.astype(np.longdouble)
    rounded = wide - present.astype(np.float64)
    return float(np.square(rounded[np.isfinite(rounded)]).sum())


def merge(moments: Iterable[Moments]) -> Moments:
    """Merge moments from left to right."""
    found = iter(moments)
    total = next(found)
    for one in found:
        total = total + one
    return total


@dataclass(frozen=True)
class Scaling:
    """The shift and the scale of a variable: (value - mean) / deviation.

    Parameters
    ----------
    mean, deviation
        One number, or one per feature (flattened).
    applied
        False if values are not scaled, and the mean only stands for missing elements.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    applied: bool = True

    @classmethod
    def of(cls, moments: Moments, applied: bool = True, rounding: float = 0.0) -> "Scaling":
        """Return the scaling to mean 0 and deviation 1; a constant has deviation 1.

        A deviation of at most `rounding` times the mean is that of a constant.
        """
        count = np.maximum(moments.count, 1)
        mean = np.atleast_1d(moments.mean)
        deviation = np.atleast_1d(np.sqrt(moments.squares / count))
        deviation = np.where(deviation <= rounding * np.abs(mean), 1.0, deviation)
        return cls(tuple(mean.tolist()), tuple(deviation.tolist()), applied)

    @cached_property
    def _exact(self) -> tuple[Float64Array, Float64Array]:
        return np.array(self.mean), 1 / np.array(self.deviation)

    @cached_property
    def _single(self) -> tuple[Float32Array, Float32Array | None, Float32Array] | None:
        """The mean in float32, its rounding error if that counts, and the factor.

        None if float32 cannot hold them.
        """
        mean, factor = self._exact
        with np.errstate(over="ignore", under="ignore"):
            near, times = mean.astype(np.float32), factor.astype(np.float32)
        if not (np.isfinite(near).all() and np.isfinite(times).all()):
            return None
        if (times < np.finfo(np.float32).tiny).any():
            return None
        rest = mean - near
        counts = bool((np.abs(rest) * factor > NEGLIGIBLE).any())
        return near, rest.astype(np.float32) if counts else None, times

    @property
    def fill(self) -> Float32Array:
        """The value of a missing element: the mean, or 0 if values are scaled.

        It is float32 (features,), or (1,) for one scaling of all features.
        """
        return np.zeros(len(self.mean), np.float32) if self.applied else as_float32(self._exact[0])

    @cached_property
    def limit(self) -> Float64Array:
        """The largest magnitude of a value that scales into float32: float64, () or (features,)."""
        if not self.applied:
            return np.array(FLOAT32_MAX)
        with np.errstate(over="ignore"):
            largest: Float64Array = FLOAT32_MAX * np.array(self.deviation)
            largest = largest - np.abs(np.array(self.mean))
        return largest

    def apply(self, values: np.ndarray, fresh: bool = False) -> Float32Array:
        """Return numbers scaled and rounded to float32.

        Parameters
        ----------
        values
            Any real dtype, (..., features). The mean is subtracted before they are rounded.
        fresh
            Whether float32 values may be scaled in place.

        Returns
        -------
        float32, of the same shape
        """
        if not self.applied:
            return as_float32(values)
        single = self._single
        if values.dtype.str[1:] not in SINGLE or single is None:
            return self._apply_exactly(values)
        near, rest, factor = single
        in_place = fresh and values.dtype == np.float32
        out = values if in_place else np.empty(values.shape, np.float32)
        np.subtract(values, near, out=out)
        if rest is not None:
            np.subtract(out, rest, out=out)
        return np.multiply(out, factor, out=out)

    def _apply_exactly(self, values: np.ndarray) -> Float32Array:
        mean, factor = self._exact
        with np.errstate(over="ignore", invalid="ignore"):
            shifted = np.subtract(values, mean, dtype=np.float64)
            out = np.empty(values.shape, np.float32)
            np.multiply(shifted, factor, out=out, casting="same_kind")
        return out

    def to_json(self) -> JsonObject:
        """Return the scaling as JSON."""
        return {
            "mean": list(self.mean),
            "deviation": list(self.deviation),
            "applied": self.applied,
        }

    @classmethod
    def from_json(cls, table: JsonObject) -> "Scaling":
        """Return the scaling of `to_json`."""
        return cls(tuple(table["mean"]), tuple(table["deviation"]), table["applied"])


def as_float32(values: np.ndarray) -> Float32Array:
    """Return numbers rounded to float32, of the same shape; too large ones become infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)
