"""Decoding: from stored values to the values that are shown, and a mask of missing ones.

All four routes to the data end here: attributes that a store declares, functions that xarray
applies to a variable that it opened lazily, and values that are shown as they are held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from dbdask.arrays import BoolArray

TEXT = np.dtype("<U1")
"""The dtype that stands for text of any length."""

OTHER = np.dtype("V")
"""The dtype that stands for values that are neither numbers nor text: periods, tuples, dates."""

EXACT = 2**53
"""float64 holds every whole number up to this one."""


Attributes = Mapping[str, Any]
"""The attributes of a variable, in the types in which their author wrote them."""


class Undecided(ValueError):
    """An attribute or a value has no certain meaning; the text continues "variable 'x' ..."."""


Step = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Decoding:
    """How the stored values of one variable become values and a mask of what is missing.

    Parameters
    ----------
    attributes
        The CF attributes that xarray's decoder is to apply.
    steps
        Elementwise functions that xarray applies to stored values, in this order.
    signs
        The integer dtype as which the stored bytes are read; None: as they are stored.
    gaps
        Stored values that mean "missing" beside the `_FillValue` among the attributes.
    missing
        Values that mean "missing", of variables that stay integers, booleans or text.
    doubtful
        Values that may mean "missing" or not, each with the error text for its occurrence: among
        the stored values or, if there are steps, among those shown.
    problem
        Why the declared attributes cannot be applied; empty if they can.
    """

    attributes: dict[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    signs: np.dtype | None = None
    gaps: tuple[Any, ...] = ()
    missing: tuple[Any, ...] = ()
    doubtful: tuple[tuple[Any, str], ...] = ()
    problem: str = ""

    def result_dtype(self, stored: np.dtype) -> np.dtype:
        """Return the dtype of what `apply` returns; object if that depends on the values."""
        if stored.kind in "USOTV" and not self.steps:
            return stored if stored.kind in "OV" else TEXT
        certain = replace(self, doubtful=())  # zero may be doubtful, and is no value of the store
        with np.errstate(all="ignore"):
            return certain.apply(np.zeros(1, stored))[0].dtype

    def apply(self, stored: np.ndarray) -> tuple[np.ndarray, BoolArray | None]:
        """Return the values and the mask of missing ones.

        Parameters
        ----------
        stored
            Stored values of any shape.

        Returns
        -------
        values
            Of the same shape: numbers in the dtype that holds them, text as Python objects.
        mask
            bool, of the same shape; None if nothing is missing.

        Raises
        ------
        Undecided
            The attributes, or a value, have no certain meaning.
        TypeError
            The values are complex numbers, or of a structured dtype.
        """
        values = self.as_shown(stored)
        self._check_doubtful(stored, values)
        kind = values.dtype.kind
        if kind in "iub":
            return values, self._declared(values)
        if kind == "f":
            return values, _any(np.isnan(values))
        if kind in "mM":
            return values, _either(_any(np.isnat(values)), self._declared(values))
        if kind in "UST":
            text, absent = _text(values)
            return text, _either(absent, self._declared(text))
        if kind == "O":
            found, absent = of_objects(values)
            return found, _either(absent, self._declared(found))
        raise TypeError(f"values of dtype {values.dtype} cannot be used; give real numbers or text")

    def _check_doubtful(self, stored: np.ndarray, shown: np.ndarray) -> None:
        if not self.doubtful:
            return
        values = shown if self.steps else stored
        values = values if self.signs is None else values.view(self.signs)
        for doubtful, said in self.doubtful:
            if (values == doubtful).any():
                raise Undecided(said)

    def as_shown(self, stored: np.ndarray) -> np.ndarray:
        """Return the values as xarray shows them, in its arithmetic and dtypes: the same shape.

        Raises
        ------
        Undecided
            The attributes have no certain meaning.
        """
        if self.problem:
            raise Undecided(self.problem)
        if self.signs is not None:
            stored = stored.view(self.signs)
        if self.attributes:
            stored = self._by_attributes(stored)
        for step in self.steps:
            stored = np.asarray(step(stored))
        return stored if stored.dtype.isnative else stored.astype(stored.dtype.newbyteorder("="))

    def _by_attributes(self, stored: np.ndarray) -> np.ndarray:
        dims = tuple(f"dim_{axis}" for axis in range(stored.ndim))
        raw = xr.Variable(dims, stored, self.attributes)
        shown = np.asarray(xr.conventions.decode_cf_variable("values", raw).values)
        if self.gaps and shown.dtype.kind in "fmM":
            absent = shown.dtype.type("NaT") if shown.dtype.kind in "mM" else np.nan
            return np.where(np.isin(stored, np.array(self.gaps, stored.dtype)), absent, shown)
        return shown

    def _declared(self, values: np.ndarray) -> BoolArray | None:
        if not self.missing:
            return None
        if values.dtype.kind in "iubmM":
            return _any(np.isin(values, np.array(self.missing, values.dtype)))
        return _any(np.isin(values, np.array(self.missing, object)))


def objects_dtype(values: np.ndarray) -> np.dtype:
    """Return the dtype that `of_objects` gives an array, of any shape, of Python objects."""
    kind = _kind_of_objects(values)
    if kind in ("text", "bytes", "empty"):
        return TEXT
    return of_objects(values)[0].dtype if kind == "numbers" else OTHER


def of_objects(values: np.ndarray) -> tuple[np.ndarray, BoolArray | None]:
    """Return Python objects as numbers or text if all of them are, and the mask of missing ones.

    Flags among numbers count as 1 and 0, and bytes among text as text, as they do where a block
    holds nothing else: the result does not depend on the blocks that an array is cut into. Both
    have the shape of `values`; the mask is None if nothing is missing.

    Examples
    --------
    >>> of_objects(np.array([3, None], object))
    (array([ 3., nan]), array([False,  True]))
    >>> of_objects(np.array([2**60 + 1, 3], object))[0].tolist()
    [1152921504606846977, 3]
    """
    absent = _any(np.asarray(pd.isna(values), bool))
    kind = _kind_of_objects(values)
    if kind == "numbers":
        return _numbers(values, absent), absent
    if kind == "bytes":
        decoded = [one.decode() if isinstance(one, bytes) else one for one in values.ravel()]
        values = _as_objects(decoded, values.shape)
    return (values if absent is None else _with_none(values, absent)), absent


_NUMBERS = ("integer", "boolean", "floating", "mixed-integer-float", "decimal")
_OF_NUMBERS = (bool, np.bool_, int, np.integer, float, np.floating, Decimal)


def _kind_of_objects(values: np.ndarray) -> str:
    """Return the kind of all objects that are not missing.

    It is "numbers", "text", "bytes" (of text, some of it as str), "empty" or "other".
    """
    found = pd.api.types.infer_dtype(values.ravel(), skipna=True)
    if found in _NUMBERS:
        return "numbers"
    if found in ("string", "bytes", "empty"):
        return "text" if found == "string" else found
    if found not in ("mixed", "mixed-integer"):
        return "other"
    # pandas calls numbers and flags together, or text and bytes, mixed.
    kinds = {type(one) for one in values[~pd.isna(values)]}
    for name, types in (("numbers", _OF_NUMBERS), ("bytes", (str, bytes))):
        if all(issubclass(kind, types) for kind in kinds):
            return name
    return "other"


def _numbers(values: np.ndarray, absent: BoolArray | None) -> np.ndarray:
    """Return numbers in the dtype that holds them exactly; as objects if there is none."""
    present = values.ravel() if absent is None else values[~absent]
    exact = exact_array(present.tolist())
    if absent is None:
        return exact.reshape(values.shape)
    if exact.dtype.kind == "O" or (exact.dtype.kind in "iu" and not is_exact(exact)):
        return _with_none(values, absent)
    wide = np.full(values.shape, np.nan)
    wide[~absent] = exact
    return wide


def exact_array(values: list[Any]) -> np.ndarray:
    """Return numbers, or text, as an array (values,) of the dtype that holds each of them exactly.

    NumPy itself makes floats of integers if some are negative and some are beyond int64.

    Examples
    --------
    >>> exact_array([2**64 - 1, 0]).tolist(), exact_array([2**60 + 1, 0.5]).dtype
    ([18446744073709551615, 0], dtype('O'))
    """
    if all(isinstance(value, bool | np.bool_) for value in values):
        return np.array(values, bool)
    if any(isinstance(value, str) for value in values):
        # NumPy cuts zeros off at the end of text of a fixed width.
        is_cut = any(str(value).endswith("\0") for value in values)
        return _as_objects(values, (len(values),)) if is_cut else np.array(values)
    whole = [int(value) for value in values if isinstance(value, int | np.integer | np.bool_)]
    if len(whole) == len(values):
        for dtype in (np.int64, np.uint64):
            if np.iinfo(dtype).min <= min(whole) and max(whole) <= np.iinfo(dtype).max:
                return np.array(whole, dtype)
    elif all(abs(value) <= EXACT for value in whole):
        return np.array([float(value) for value in values])
    return _as_objects(values, (len(values),))


def is_exact(integers: np.ndarray) -> bool:
    """Return whether float64 holds every one of the integers, of any shape."""
    return not integers.size or (int(integers.max()) <= EXACT and int(integers.min()) >= -EXACT)


def _text(stored: np.ndarray) -> tuple[np.ndarray, BoolArray | None]:
    """Return text as Python strings: an array of fixed width would cut zeros off at the end."""
    if stored.dtype.kind == "S":
        return np.char.decode(stored, "utf-8").astype(object), None
    text = stored.astype(object)
    if stored.dtype.kind == "U" or not hasattr(stored.dtype, "na_object"):
        return text, None
    absent = np.asarray(pd.isna(text), bool)
    return _with_none(text, absent), _any(absent)


def _with_none(values: np.ndarray, absent: BoolArray) -> np.ndarray:
    found = values.copy()
    found[absent] = None
    return found


def _as_objects(found: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    values = np.empty(len(found), object)
    values[:] = found
    return values.reshape(shape)


def _either(mask: BoolArray | None, other: BoolArray | None) -> BoolArray | None:
    if mask is None or other is None:
        return other if mask is None else mask
    return mask | other


def _any(mask: BoolArray) -> BoolArray | None:
    return mask if mask.any() else None
