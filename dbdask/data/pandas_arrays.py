"""Arrays of pandas' own dtypes as NumPy arrays: the same values, missing where they are missing.

Categories become their values, and nullable numbers plain ones. Numbers with missing ones among
them become float64 with NaN if float64 holds them exactly. All else, such as periods or times of
a zone, becomes Python objects, with None for a missing one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pandas.api.extensions import ExtensionDtype

from dbdask.data.decoding import is_exact

OBJECT = np.dtype(object)


def numpy_dtype(array: Any) -> np.dtype:
    """Return the dtype of the NumPy array that holds all of an extension array.

    Examples
    --------
    >>> numpy_dtype(pd.array([1, 2], dtype="Int8")), numpy_dtype(pd.array([1, None], dtype="Int8"))
    (dtype('int8'), dtype('float64'))
    >>> numpy_dtype(pd.Categorical(["a", None]))
    dtype('O')
    """
    if isinstance(array, pd.Categorical):
        categories = np.asarray(to_numpy(array.categories.array))
        return _beside(categories.dtype, categories, bool((array.codes < 0).any()))
    dtype: np.dtype | ExtensionDtype = array.dtype
    if isinstance(dtype, np.dtype):
        return dtype
    if isinstance(dtype, pd.SparseDtype):
        held: np.dtype = np.dtype(dtype.subtype)
        return held
    plain = getattr(dtype, "numpy_dtype", None)
    if not isinstance(plain, np.dtype) or plain.kind not in "iufb":
        return OBJECT
    absent = np.asarray(array.isna(), bool)
    present = array[~absent].to_numpy(dtype=plain) if absent.any() else np.zeros(0, plain)
    return _beside(plain, present, bool(absent.any()))


def to_numpy(array: Any, dtype: np.dtype | None = None) -> np.ndarray:
    """Return an extension array, or a part of one, as a NumPy array of a dtype: (length,)."""
    dtype = numpy_dtype(array) if dtype is None else dtype
    if isinstance(array, pd.Categorical):
        return _of_categories(array, dtype)
    if isinstance(array.dtype, np.dtype | pd.SparseDtype):
        return np.asarray(array).astype(dtype, copy=False)
    absent = np.asarray(array.isna(), bool)
    if dtype == OBJECT:
        values = np.array(array.astype(object), dtype=object)
        values[absent] = None
        return values
    if not absent.any():
        return np.asarray(array.to_numpy(dtype=dtype))
    return np.asarray(array.to_numpy(dtype=dtype, na_value=np.nan))


def _of_categories(array: pd.Categorical, dtype: np.dtype) -> np.ndarray:
    absent = np.asarray(array.codes < 0)
    categories = to_numpy(array.categories.array)
    if not len(categories):
        return np.full(len(array), None if dtype == OBJECT else np.nan, dtype)
    values = categories.astype(dtype)[np.where(absent, 0, array.codes)]
    if absent.any():
        values[absent] = None if dtype == OBJECT else np.nan
    return values


def _beside(dtype: np.dtype, present: np.ndarray, has_missing: bool) -> np.dtype:
    """Return the dtype that holds some numbers, and NaN beside them if any is missing."""
    if not has_missing or dtype.kind in "fO":
        return dtype
    exact = dtype.kind == "b" or (dtype.kind in "iu" and is_exact(present))
    return np.dtype(np.float64) if exact else OBJECT
