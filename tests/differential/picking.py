"""Drawing what an operation is done to: a dimension, labels, a variable."""

import numpy as np
import pandas as pd
import xarray as xr

from .kinds import choose

Random = np.random.Generator


def dims_of(dataset: xr.Dataset) -> list[str]:
    """Return the dimensions, sorted: Zarr lists the arrays of a group in any order."""
    return sorted(str(dim) for dim in dataset.sizes)


def draw_labelled(rng: Random, dataset: xr.Dataset, unique: bool = True) -> str | None:
    dims = [
        d
        for d in dims_of(dataset)
        if d in dataset.indexes
        and not isinstance(dataset.indexes[d], pd.MultiIndex)
        and (not unique or dataset.indexes[d].is_unique)
    ]
    return choose(rng, dims) if dims else None


def draw_dim(rng: Random, dataset: xr.Dataset) -> str:
    return choose(rng, dims_of(dataset))


def draw_name(rng: Random, dataset: xr.Dataset, kinds: str = "") -> str | None:
    names = sorted(str(n) for n, v in dataset.data_vars.items() if not kinds or kind_of(v) in kinds)
    return choose(rng, names) if names else None


def kind_of(array: xr.DataArray) -> str:
    return array.dtype.kind if isinstance(array.dtype, np.dtype) else "E"
