"""Operations that change values, or only how a variable holds them."""

import copy
import pickle
from typing import Any

import numpy as np
import xarray as xr

from .kinds import choose
from .operation import Drawn, Random
from .picking import draw_dim, draw_name


def shift_one(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = draw_name(rng, dataset)
    if name is None or not dataset[name].dims:
        return None
    dim = str(choose(rng, dataset[name].dims))
    text = f".pipe(lambda ds: ds.assign({name}=ds[{name!r}].shift({{{dim!r}: 1}})))"
    return text, lambda ds: ds.assign({name: ds[name].shift({dim: 1})})


def where(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = draw_name(rng, dataset, "iuf")
    if name is None:
        return None
    middle = 2 if rng.random() < 0.5 else 0
    other = choose(rng, (None, 0, 5), (4, 1, 1))
    if other is None:
        text = f".pipe(lambda ds: ds.assign({name}=ds[{name!r}].where(ds[{name!r}] > {middle})))"
        return text, lambda ds: ds.assign({name: ds[name].where(ds[name] > middle)})
    text = (
        f".pipe(lambda ds: ds.assign({name}=ds[{name!r}].where(ds[{name!r}] > {middle}, {other})))"
    )
    return text, lambda ds: ds.assign({name: ds[name].where(ds[name] > middle, other)})


def assign(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = draw_name(rng, dataset, "iuf")
    if name is None:
        return None
    how = choose(rng, ("double", "keep attrs", "negative", "new values"))
    if how == "new values":
        values = rng.normal(size=dataset[name].shape).astype(np.float32)
        text = f".assign({name}=({dataset[name].dims}, <new values>, ds[{name!r}].attrs))"
        return text, lambda ds: ds.assign({name: (ds[name].dims, values, ds[name].attrs)})
    if how == "keep attrs":

        def kept(ds: xr.Dataset) -> xr.Dataset:
            with xr.set_options(keep_attrs=True):
                return ds.assign({name: ds[name] * 2})

        return f".assign({name}=2 * ds[{name!r}], attributes kept)", kept
    by = 2 if how == "double" else -1
    return f".assign({name}={by} * ds[{name!r}])", lambda ds: ds.assign({name: by * ds[name]})


def astype(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = draw_name(rng, dataset, "iufb")
    if name is None:
        return None
    dtype = choose(rng, ("float32", "float64", "int64", "int16", "uint8", "float16"))
    if dtype[0] in "iu" and dataset[name].dtype.kind == "f":
        dtype = "float64"
    return f".astype({{{name!r}: {dtype!r}}})", lambda ds: ds.assign({name: ds[name].astype(dtype)})


def fillna(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = draw_name(rng, dataset, "f")
    if name is None:
        return None
    return f".fillna({{{name!r}: 1}})", lambda ds: ds.fillna({name: 1})


def change_in_place(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = draw_name(rng, dataset, "iuf")
    if name is None or not dataset[name].size:
        return None

    def step(ds: xr.Dataset) -> xr.Dataset:
        ds = ds.copy(deep=True)
        ds[name][dict.fromkeys(ds[name].dims, 0)] = 4
        return ds

    return f"[{name!r}][first] = 4, in place", step


def drop_encoding(rng: Random, dataset: xr.Dataset) -> Drawn:
    return (".drop_encoding()", lambda ds: ds.drop_encoding()) if rng.random() < 0.3 else None


def set_encoding(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = draw_name(rng, dataset)
    if name is None:
        return None
    encoding: dict[str, Any] = choose(
        rng,
        (
            {"dtype": "int16", "_FillValue": 2},
            {"scale_factor": 0.5, "_FillValue": -1, "dtype": np.dtype("int16")},
            {"chunks": (1,), "_FillValue": 0},
        ),
    )

    def step(ds: xr.Dataset) -> xr.Dataset:
        ds = ds.copy()
        ds[name].encoding.update(encoding)
        return ds

    return f"[{name!r}].encoding.update({encoding})", step


def set_coords(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = draw_name(rng, dataset)
    return None if name is None else (f".set_coords({name!r})", lambda ds: ds.set_coords(name))


def through_pickle(rng: Random, dataset: xr.Dataset) -> Drawn:
    return ".pipe(pickle round trip)", lambda ds: pickle.loads(pickle.dumps(ds))


def through_deepcopy(rng: Random, dataset: xr.Dataset) -> Drawn:
    return ".pipe(copy.deepcopy)", lambda ds: copy.deepcopy(ds)


def load_one(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = draw_name(rng, dataset)

    def step(ds: xr.Dataset) -> xr.Dataset:
        ds = ds.copy()
        ds[name].load()
        return ds

    return None if name is None else (f"[{name!r}].load()", step)


def chunk(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = draw_dim(rng, dataset)
    length = int(rng.integers(1, dataset.sizes[dim] + 1))
    return f".chunk({{{dim!r}: {length}}})", lambda ds: ds.chunk({dim: length})
