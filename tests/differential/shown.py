"""What a variable holds, in full precision: as a Dataset shows it, or as a store declares it."""

import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import zarr
from pandas.api.extensions import ExtensionArray

from . import declared


@dataclass
class Shown:
    """The values of one variable.

    Parameters
    ----------
    values
        Numbers in a dtype that holds them; objects for text; dates. Anything where missing.
    kind
        "number", "text", "time", or "odd" for what no rule speaks of.
    certain
        False where the attributes make no sense: a named error is as good as values.
    """

    dims: tuple[str, ...]
    values: np.ndarray
    missing: np.ndarray
    kind: str
    certain: bool = True
    attrs: Mapping[str, Any] = field(default_factory=dict)
    doubt: str = ""
    packed: bool = False


@dataclass
class World:
    """What a dataset holds: its variables, and the sizes and labels of its dimensions."""

    variables: dict[str, Shown]
    sizes: dict[str, int]
    indexes: dict[str, pd.Index]
    coords: frozenset[str]


def of_values(dims: tuple[str, ...], values: Any, attrs: Mapping[str, Any]) -> Shown:
    """Tell numbers from text and from what is missing."""
    if _is_of_pandas(values.dtype):
        return _of_pandas(dims, values, attrs)
    kind = values.dtype.kind
    if kind in "iub":
        return Shown(dims, values, np.zeros(values.shape, bool), "number", attrs=attrs)
    if kind == "f":
        return Shown(dims, values, np.isnan(values), "number", attrs=attrs)
    if kind in "mM":
        return Shown(dims, values, np.isnat(values), "time", attrs=attrs)
    if kind == "S":
        texts = np.char.decode(values, "utf-8").astype(object)
        return Shown(dims, texts, np.zeros(values.shape, bool), "text", attrs=attrs)
    if kind in "UTO":
        return _of_objects(dims, values.astype(object), attrs)
    return Shown(dims, values, np.zeros(values.shape, bool), "odd", attrs=attrs)


def _is_of_pandas(dtype: Any) -> bool:
    return isinstance(dtype, pd.api.extensions.ExtensionDtype)


def _of_objects(dims: tuple[str, ...], values: np.ndarray, attrs: Mapping[str, Any]) -> Shown:
    missing = np.asarray(pd.isnull(values), bool).reshape(values.shape)
    present = values[~missing].tolist()
    if all(isinstance(value, str) for value in present):
        return Shown(dims, values, missing, "text", certain=bool(present), attrs=attrs)
    if all(isinstance(value, bytes) for value in present):
        texts = np.array(
            [v if m else v.decode() for v, m in zip(values.flat, missing.flat, strict=True)], object
        )
        return Shown(dims, texts.reshape(values.shape), missing, "text", False, attrs)
    return Shown(dims, values, missing, "odd", certain=False, attrs=attrs)


def _of_pandas(dims: tuple[str, ...], array: Any, attrs: Mapping[str, Any]) -> Shown:
    missing = np.asarray(array.isna(), bool)
    if isinstance(array.dtype, pd.CategoricalDtype):
        objects = np.array(array.astype(object), object)
        if all(isinstance(value, str) for value in array.categories):
            return Shown(dims, objects, missing, "text", attrs=attrs)
        numbers = np.array([0 if m else v for v, m in zip(objects, missing, strict=True)])
        return Shown(dims, numbers, missing, "number", attrs=attrs, doubt="categories")
    if isinstance(array.dtype, pd.StringDtype):
        return Shown(dims, np.array(array.astype(object), object), missing, "text", attrs=attrs)
    numpy_dtype = getattr(array.dtype, "numpy_dtype", None)
    if numpy_dtype is None:
        return Shown(dims, np.asarray(array.astype(object)), missing, "odd", False, attrs)
    return Shown(dims, array.to_numpy(numpy_dtype, na_value=0), missing, "number", attrs=attrs)


def of_dataset(dataset: xr.Dataset) -> World:
    """Return what a Dataset shows, read by xarray alone."""
    found = {}
    for name, variable in dataset.variables.items():
        dims = tuple(map(str, variable.dims))
        data = variable.data if _is_of_pandas(variable.dtype) else variable.to_numpy()
        doubt = ""
        if _is_of_pandas(variable.dtype) and not isinstance(data, ExtensionArray):
            data, doubt = np.asarray(data), "of pandas in blocks, or in two dimensions"
        attrs = variable.attrs | {
            n: variable.encoding[n] for n in ("units",) if n in variable.encoding
        }
        found[str(name)] = of_values(dims, data, attrs)
        found[str(name)].doubt = found[str(name)].doubt or doubt
    sizes = {str(dim): int(size) for dim, size in dataset.sizes.items()}
    indexes = {str(dim): dataset.indexes[dim] for dim in dataset.sizes if dim in dataset.indexes}
    return World(found, sizes, indexes, frozenset(map(str, dataset.coords)))


def of_store(group: zarr.Group) -> Iterator[World]:
    """Yield what a store may be said to declare: one world, or one for each reading of a doubt."""
    readings: dict[str, list[Shown]] = {}
    sizes: dict[str, int] = {}
    indexes: dict[str, pd.Index] = {}
    for name, array in sorted(group.arrays()):
        dims = declared.dims_of(array)
        sizes |= dict(zip(dims, array.shape, strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored, attrs, fill = array[...], dict(array.attrs), array.fill_value
            zarr_format = array.metadata.zarr_format
            found = declared.readings(dims, np.asarray(stored), attrs, zarr_format, fill)
        readings[name] = []
        for values, missing, certain in found:
            one = of_values(dims, values, attrs)
            one.missing, one.certain = one.missing | missing, one.certain and certain
            one.packed = any(name in attrs for name in declared.PACKING)
            readings[name].append(one)
        if dims == (name,):
            indexes[name] = pd.Index(readings[name][0].values)
    for combination in itertools.product(*readings.values()):
        variables = dict(zip(readings, combination, strict=True))
        yield World(variables, sizes, indexes, frozenset(indexes))
