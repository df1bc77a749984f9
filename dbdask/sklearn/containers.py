"""Containers of data: NumPy, dask, pandas and xarray as Datasets, and predictions as containers.

All examples lie along one dimension. A table is one variable `X`; a Dataset keeps its variables,
which are joined in their order. What is lazy stays lazy.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import compute, is_dask_collection
from distributed import Client

SAMPLE = "sample"
TABLE = "X"

DuckArray = np.ndarray | da.Array


@dataclass(frozen=True)
class Inputs:
    """The X that an estimator was given, as a Dataset along `sample`.

    Parameters
    ----------
    dataset
        The inputs, without coordinates. An array or a table is the variable `X`, (sample,
        *features).
    names
        Names of the features; None if they have none.
    like
        Makes the container of a prediction: takes values, (samples, ...), and the coordinates
        of the dimensions that follow the first.
    """

    dataset: xr.Dataset
    names: list[str] | None
    like: Callable[[DuckArray, Mapping[str, np.ndarray]], Any]

    @property
    def variables(self) -> list[str]:
        """The names of the variables, in their order."""
        return [str(name) for name in self.dataset.data_vars]

    @property
    def samples(self) -> int:
        """Number of examples."""
        return int(self.dataset.sizes[SAMPLE])

    @property
    def features(self) -> int:
        """Number of features, all variables together."""
        shapes = [variable.shape[1:] for variable in self.dataset.data_vars.values()]
        return sum(math.prod(shape) for shape in shapes)


def is_plain(X: Any) -> bool:
    """Whether a container is of neither dask nor xarray: scikit-learn makes it a NumPy array."""
    return not (isinstance(X, xr.DataArray | xr.Dataset) or is_dask_collection(X))


def inputs_of_array(X: np.ndarray) -> Inputs:
    """Return the inputs of an array in memory, (samples, features), of a number or bool dtype."""
    return Inputs(_table(X), None, lambda values, coords: np.asarray(values))


def inputs_of(X: Any) -> Inputs:
    """Return the inputs that a dask or xarray container holds.

    Raises
    ------
    TypeError, ValueError
        It is no such container, or its variables do not share a first dimension.
    """
    if isinstance(X, xr.Dataset):
        return _of_dataset(X)
    if isinstance(X, xr.DataArray):
        return _of_data_array(X)
    if not (isinstance(X, da.Array) or hasattr(type(X), "to_dask_array")):
        raise TypeError(
            f"X must be an array, a dataframe, or of xarray, got {type(X).__name__}: "
            "give X.to_dataframe() or an array"
        )
    columns = getattr(X, "columns", None)
    return Inputs(
        _table(duck_array("X", X)),
        None if columns is None else _texts(columns),
        lambda values, coords: values,
    )


def _of_data_array(X: xr.DataArray) -> Inputs:
    """Return the inputs of a DataArray, whose first dimension counts the examples."""
    _check_dims(X.ndim >= 2, "X", X)
    labels = X.indexes.get(X.dims[1]) if X.ndim == 2 else None
    names = None if labels is None else _texts(labels)
    bare = X.drop_vars(list(X.coords)).rename(
        dict(zip(X.dims, _dims(X.ndim), strict=True)),
    )
    return Inputs(bare.to_dataset(name=TABLE), names, _As(X.dims[0], X.coords.to_dataset()))


def _of_dataset(X: xr.Dataset) -> Inputs:
    """Return the inputs of a Dataset, whose variables all lie along the first dimension of one.

    That one is the first variable of the Dataset.

    Raises
    ------
    ValueError
        The Dataset is empty, or a variable does not lie along that dimension.
    """
    if not X.data_vars:
        raise ValueError("X must have at least one variable, got an empty Dataset")
    first = next(iter(X.data_vars.values()))
    _check_dims(first.ndim >= 1, "X", first)
    along = first.dims[0]
    for name, variable in X.data_vars.items():
        if along not in variable.dims:
            raise ValueError(
                f"X: every variable of a Dataset must lie along {along!r}, the first dimension of "
                f"its first one, but {name!r} has {variable.dims}"
            )
    bare = X.drop_vars(list(X.coords)).rename({along: SAMPLE})
    single = all(variable.ndim == 1 for variable in X.data_vars.values())
    names = _texts(list(X.data_vars)) if single else None
    return Inputs(bare.transpose(SAMPLE, ...), names, _As(along, X.coords.to_dataset()))


@dataclass(frozen=True)
class _As:
    """Makes a DataArray of predictions, with the sample dimension and coordinates of the data."""

    along: Any
    coords: xr.Dataset

    def __call__(self, values: DuckArray, coords: Mapping[str, np.ndarray]) -> xr.DataArray:
        others = [name for name, c in self.coords.variables.items() if c.dims != (self.along,)]
        found = xr.DataArray(values, dims=(self.along, *coords), coords=dict(coords))
        return found.assign_coords(self.coords.drop_vars(others).coords)


def _dims(count: int) -> tuple[str, ...]:
    return (SAMPLE, *(f"feature_{number}" for number in range(count - 1)))


def _table(values: DuckArray) -> xr.Dataset:
    _check_dims(values.ndim == 2, "X", values)
    return xr.Dataset({TABLE: (_dims(2), values)})


def _check_dims(is_right: bool, name: str, given: Any) -> None:
    if not is_right:
        raise ValueError(
            f"{name} must have a dimension of samples and one of features, got shape "
            f"{tuple(given.shape)}; reshape a single feature to (samples, 1)"
        )


def _texts(labels: Any) -> list[str] | None:
    """Return labels as names of features, if all are text."""
    listed = list(labels)
    return [str(one) for one in listed] if all(isinstance(one, str) for one in listed) else None


def duck_array(name: str, values: Any) -> DuckArray:
    """Return a container's values: a dask array if they are lazy, else a NumPy array.

    Shape and dtype are those of the container.

    Raises
    ------
    ValueError
        The lengths of a dask array's chunks are not known.
    """
    if hasattr(type(values), "to_dask_array"):
        values = _of_frame(name, values)
    elif isinstance(values, xr.DataArray):
        values = values.data
    if not isinstance(values, da.Array):
        return np.asarray(values)
    if any(np.isnan(size) for size in values.shape):
        raise ValueError(
            f"{name} has chunks of unknown length: {name}.compute_chunk_sizes() finds them"
        )
    return values


def _of_frame(name: str, values: Any) -> da.Array:
    """Return the values of a dask dataframe or series; lengths of partitions are computed."""
    if values.ndim == 2:
        for column, dtype in values.dtypes.items():
            if not pd.api.types.is_numeric_dtype(dtype):
                raise ValueError(
                    f"{name}: column {column!r} of dtype {dtype} has no numbers: encode it, as "
                    "sklearn.preprocessing.OneHotEncoder does"
                )
        values = values.astype(np.float64)
    elif not isinstance(values.dtype, np.dtype):  # numbers of pandas have a NumPy dtype beside
        values = values.astype(getattr(values.dtype, "numpy_dtype", object))
    array: da.Array = values.to_dask_array(lengths=True)
    return array


def check_same_samples(X: Any, name: str, values: Any) -> None:
    """Raise ValueError if two xarray containers do not have the same samples.

    Index coordinates are compared, as xarray's own arithmetic would, but nothing is left out.
    """
    if not (isinstance(X, xr.DataArray | xr.Dataset) and isinstance(values, xr.DataArray)):
        return
    along = next(iter(X.data_vars.values())).dims[0] if isinstance(X, xr.Dataset) else X.dims[0]
    if values.ndim == 0 or values.dims[0] != along:
        raise ValueError(
            f"{name} must have the first dimension of X, {along!r}, first; its dimensions are "
            f"{values.dims}"
        )
    other = X.indexes.get(along)
    mine = values.indexes.get(along)
    if other is not None and mine is not None and not other.equals(mine):
        raise ValueError(
            f"{name} and X have other labels along {along!r}: xr.align(X, {name}) makes them equal"
        )


def in_memory(values: Any, client: Client | None) -> np.ndarray:
    """Return a container's values as a NumPy array, of their shape and dtype.

    The client computes them if they are lazy.
    """
    if not is_plain(values):
        (values,) = compute(values) if client is None else compute(values, scheduler=client)
    return np.asarray(values)
