"""The Zarr array that a lazily opened variable shows, and what xarray does to its values.

Reading the chunks of a store directly is faster than reading through xarray, and keeps the stored
dtype in caches. It is done only if the wrappers that xarray has put around the array prove that
the values are the same: slices without a step, elementwise functions, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from xarray.core import indexing

from dbdask.arrays import BoolArray
from dbdask.data.zarr_arrays import ZarrArray

Index = tuple[slice, ...]
Step = Callable[[np.ndarray], np.ndarray]

_TRANSPARENT = ("MemoryCachedArray", "CopyOnWriteArray", "NativeEndiannessArray")
_NUMBERS = "biuf"


@dataclass(frozen=True)
class Chain:
    """A part of a Zarr array, and the functions that xarray applies to it.

    Parameters
    ----------
    array
        The Zarr array.
    start
        The array's position at which the variable starts.
    steps
        xarray's elementwise functions, in the order in which they are applied.
    masks_zeros
        Whether xarray shows zeros as missing because a v2 array is filled with 0 by default.
    """

    array: ZarrArray
    start: tuple[int, ...]
    steps: tuple[Step, ...]
    masks_zeros: bool


def proven_chain(variable: xr.Variable) -> Chain | None:
    """Return the part of a Zarr array that a lazy variable shows; None if that is not certain."""
    data: Any = variable._data
    start, shape = (0,) * variable.ndim, tuple(variable.shape)
    steps: list[Step] = []
    while not _is_xarrays(data, "ZarrArrayWrapper"):
        if _is_xarrays(data, "LazilyIndexedArray"):
            part = _part(data.key, tuple(data.array.shape))
            if part is None or len(part) != len(start):
                return None
            start = tuple(here + cut.start for here, cut in zip(start, part, strict=True))
            shape = tuple(data.array.shape)
        elif _is_xarrays(data, "_ElementwiseFunctionArray"):
            steps.append(data.func)
        elif _is_xarrays(data, "BoolTypeArray"):
            steps.append(_as_bool)
        elif not _is_xarrays(data, *_TRANSPARENT):
            return None
        data = data.array
        if tuple(data.shape) != shape:
            return None
    array = data._array
    if steps and not (variable.dtype.kind in _NUMBERS and array.dtype.kind in _NUMBERS):
        return None  # dates and text are decoded by xarray itself
    return Chain(array, start, tuple(reversed(steps)), _masks_zeros(array, steps))


def shows_zeros_as_missing(variable: xr.Variable) -> bool:
    """Return whether a variable seems to show the zeros of a v2 store as missing.

    Its encoding says so, which may be older than the values: good enough for the text of a
    message, and for nothing else. xarray notes compressors for Zarr only, and a `serializer` for
    v3 only.
    """
    encoding = variable.encoding
    of_zarr = "compressors" in encoding or "compressor" in encoding
    fill = encoding.get("_FillValue")
    is_zero = isinstance(fill, int | float | np.generic) and not fill
    return of_zarr and "serializer" not in encoding and is_zero


def is_behind_wrappers(data: object) -> bool:
    """Return whether lazy wrappers show an array in memory, as after decoding a Dataset."""
    while isinstance(data, indexing.ExplicitlyIndexed) and hasattr(data, "array"):
        data = data.array
    return isinstance(data, np.ndarray)


def without_cache(variable: xr.Variable) -> xr.Variable:
    """Return a lazy variable that does not cache the values that it reads."""
    data = variable._data
    while isinstance(data, indexing.MemoryCachedArray | indexing.CopyOnWriteArray):
        data = data.array
    return xr.Variable(variable.dims, data, fastpath=True)


def _is_xarrays(data: object, *names: str) -> bool:
    """Return whether it is exactly one of these classes of xarray, not of a subclass."""
    kind = type(data)
    return kind.__name__ in names and kind.__module__.startswith("xarray.")


def _part(key: object, shape: tuple[int, ...]) -> Index | None:
    if not isinstance(key, (indexing.BasicIndexer, indexing.OuterIndexer)):
        return None
    if len(key.tuple) != len(shape):
        return None
    if not all(isinstance(cut, slice) and cut.step in (None, 1) for cut in key.tuple):
        return None
    cuts = zip(key.tuple, shape, strict=True)
    return tuple(slice(*cut.indices(size)[:2]) for cut, size in cuts)


def _as_bool(values: np.ndarray) -> BoolArray:
    return values.astype(bool)


def _masks_zeros(array: ZarrArray, steps: list[Step]) -> bool:
    fill = array.fill_value
    if array.metadata.zarr_format != 2 or fill is None or fill:
        return False
    return any(
        isinstance(step, partial) and "encoded_fill_values" in step.keywords for step in steps
    )
