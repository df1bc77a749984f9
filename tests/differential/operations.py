"""Chains of xarray operations, drawn for the Dataset at hand and done again on another of it."""

import copy
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from .kinds import choose

Step = Callable[[xr.Dataset], xr.Dataset]
Drawn = tuple[str, Step] | None
Random = np.random.Generator


@dataclass(frozen=True)
class Operation:
    """One step, its name, and what it says in a reproduction."""

    name: str
    text: str
    step: Step


def draw_operations(rng: Random, dataset: xr.Dataset) -> tuple[list[Operation], xr.Dataset]:
    """Draw 0 to 4 operations; what xarray itself cannot do is drawn anew."""
    done: list[Operation] = []
    wanted = choose(rng, (0, 1, 2, 3, 4), (3, 4, 3, 2, 2))
    for _ in range(4 * wanted):
        if len(done) == wanted:
            break
        draw = choose(rng, OPERATIONS)
        drawn = draw(rng, dataset)
        if drawn is None:
            continue
        operation = Operation(draw.__name__.lstrip("_"), *drawn)
        try:
            after = quietly(operation.step, dataset)
            for variable in after.variables.values():
                _look_at(variable.copy(deep=False))
        except Exception:  # of every kind: what xarray cannot do is no case
            continue
        if all(0 < size <= 120 for size in after.sizes.values()):
            done.append(operation)
            dataset = after
    return done, dataset


def quietly(step: Step, dataset: xr.Dataset) -> xr.Dataset:
    """Do a step; what xarray warns of is not of interest here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return step(dataset)


def _look_at(variable: xr.Variable) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.asarray(variable.data)


def _dims(dataset: xr.Dataset) -> list[str]:
    """Return the dimensions, sorted: Zarr lists the arrays of a group in any order."""
    return sorted(str(dim) for dim in dataset.sizes)


def _labelled(rng: Random, dataset: xr.Dataset, unique: bool = True) -> str | None:
    dims = [
        d
        for d in _dims(dataset)
        if d in dataset.indexes
        and not isinstance(dataset.indexes[d], pd.MultiIndex)
        and (not unique or dataset.indexes[d].is_unique)
    ]
    return choose(rng, dims) if dims else None


def _dim(rng: Random, dataset: xr.Dataset) -> str:
    return choose(rng, _dims(dataset))


def _name(rng: Random, dataset: xr.Dataset, kinds: str = "") -> str | None:
    names = sorted(str(n) for n, v in dataset.data_vars.items() if not kinds or _kind(v) in kinds)
    return choose(rng, names) if names else None


def _kind(array: xr.DataArray) -> str:
    return array.dtype.kind if isinstance(array.dtype, np.dtype) else "E"


def _reindex(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = _labelled(rng, dataset)
    if dim is None:
        return None
    old = dataset.indexes[dim]
    labels = old
    if old.dtype.kind in "iuf" and rng.random() < 0.7:
        labels = np.sort(np.concatenate([old.to_numpy(), old.to_numpy()[:3] + 3]))
    keep = np.sort(rng.permutation(len(labels))[: max(1, int(len(labels) * 0.9))])
    wanted = labels[keep]
    if rng.random() < 0.2:
        wanted = wanted[::-1]
    how = choose(rng, (None, "nearest", "ffill"), (6, 1, 1))
    text = f".reindex({{{dim!r}: {list(wanted)!r}}}, method={how!r})"
    return text, lambda ds: ds.reindex({dim: wanted}, method=how)


def _reindex_with_fill(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim, name = _labelled(rng, dataset), _name(rng, dataset, "iuf")
    if dim is None or name is None or dataset.indexes[dim].dtype.kind not in "iuf":
        return None
    wanted = np.append(dataset.indexes[dim].to_numpy(), 999)
    fills = {name: 3}
    text = f".reindex({{{dim!r}: {list(wanted)}}}, fill_value={fills})"
    return text, lambda ds: ds.reindex({dim: wanted}, fill_value=fills)


def _shift(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim, by = _dim(rng, dataset), int(rng.integers(-2, 3))
    return f".shift({{{dim!r}: {by}}})", lambda ds: ds.shift({dim: by})


def _shift_one(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = _name(rng, dataset)
    if name is None or not dataset[name].dims:
        return None
    dim = str(choose(rng, dataset[name].dims))
    text = f".pipe(lambda ds: ds.assign({name}=ds[{name!r}].shift({{{dim!r}: 1}})))"
    return text, lambda ds: ds.assign({name: ds[name].shift({dim: 1})})


def _roll(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim, by, coords = _dim(rng, dataset), int(rng.integers(1, 4)), bool(rng.random() < 0.5)
    text = f".roll({{{dim!r}: {by}}}, roll_coords={coords})"
    return text, lambda ds: ds.roll({dim: by}, roll_coords=coords)


def _merge(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim, name = _labelled(rng, dataset), _name(rng, dataset)
    if dim is None or name is None or dim not in dataset[name].dims:
        return None
    keep = np.flatnonzero(rng.random(dataset.sizes[dim]) < 0.8)
    if not len(keep):
        return None
    join = choose(rng, ("outer", "left", "inner"), (3, 1, 1))
    text = (
        f".pipe(lambda ds: xr.merge([ds.drop_vars({name!r}), ds[[{name!r}]].isel("
        f"{{{dim!r}: {keep.tolist()}}})], join={join!r}, compat='override'))"
    )

    def step(ds: xr.Dataset) -> xr.Dataset:
        parts = [ds.drop_vars(name), ds[[name]].isel({dim: keep})]
        return xr.merge(parts, join=join, compat="override")

    return text, step


def _concat(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = _dim(rng, dataset)
    size = dataset.sizes[dim]
    cut = int(rng.integers(0, size + 1))
    swap = rng.random() < 0.4
    first, second = slice(None, cut), slice(cut, None)
    if rng.random() < 0.3:
        first, second = slice(None), slice(0, max(1, size // 2))
    if swap:
        first, second = second, first
    text = (
        f".pipe(lambda ds: xr.concat([ds.isel({{{dim!r}: {first}}}), "
        f"ds.isel({{{dim!r}: {second}}})], {dim!r}, data_vars='minimal'))"
    )

    def step(ds: xr.Dataset) -> xr.Dataset:
        parts = [ds.isel({dim: first}), ds.isel({dim: second})]
        return xr.concat(parts, dim, data_vars="minimal", coords="minimal", compat="override")

    return text, step


def _where(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = _name(rng, dataset, "iuf")
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


def _where_everywhere(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = _labelled(rng, dataset)
    if dim is None or dataset.indexes[dim].dtype.kind not in "iuf":
        return None
    middle = float(np.median(dataset.indexes[dim].to_numpy()))
    drop = bool(rng.random() < 0.5)
    text = f".pipe(lambda ds: ds.where(ds[{dim!r}] <= {middle}, drop={drop}))"
    return text, lambda ds: ds.where(ds[dim] <= middle, drop=drop)


def _sortby(rng: Random, dataset: xr.Dataset) -> Drawn:
    names = sorted(str(n) for n, v in dataset.variables.items() if v.ndim == 1)
    if not names:
        return None
    name, ascending = choose(rng, names), bool(rng.random() < 0.5)
    text = f".sortby({name!r}, ascending={ascending})"
    return text, lambda ds: ds.sortby(name, ascending=ascending)


def _stack(rng: Random, dataset: xr.Dataset) -> Drawn:
    dims = [dim for dim in _dims(dataset) if dim[0] in "abc"]
    if len(dims) < 2:
        return None
    pair = [str(dim) for dim in rng.permutation(dims)[:2]]
    index = bool(rng.random() < 0.5)
    text = f".stack(ab={pair}, create_index={index})"
    return text, lambda ds: ds.stack(ab=pair, create_index=index)


def _isel_slice(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = _dim(rng, dataset)
    size = dataset.sizes[dim]
    cut = choose(
        rng,
        (
            slice(None, None, -1),
            slice(None, None, 2),
            slice(-2, None, -2),
            slice(1, None),
            slice(0, max(1, size - 1)),
            slice(size // 2, None),
        ),
    )
    return f".isel({{{dim!r}: {cut}}})", lambda ds: ds.isel({dim: cut})


def _isel_list(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = _dim(rng, dataset)
    size = dataset.sizes[dim]
    where = rng.integers(0, size, int(rng.integers(1, size + 2))).tolist()
    if rng.random() < 0.6:
        where.sort()
    return f".isel({{{dim!r}: {where}}})", lambda ds: ds.isel({dim: where})


def _isel_number(rng: Random, dataset: xr.Dataset) -> Drawn:
    dims = _dims(dataset)
    if len(dims) < 2:
        return None
    dim = choose(rng, dims)
    return f".isel({{{dim!r}: -1}})", lambda ds: ds.isel({dim: -1})


def _rename(rng: Random, dataset: xr.Dataset) -> Drawn:
    old = choose(rng, [*sorted(map(str, dataset.data_vars)), *_dims(dataset)])
    return f".rename({{{old!r}: {old + '_'!r}}})", lambda ds: ds.rename({old: old + "_"})


def _swap_names(rng: Random, dataset: xr.Dataset) -> Drawn:
    names = sorted(str(n) for n in dataset.data_vars if n[0] == "x")
    if len(names) < 2:
        return None
    one, two = names[:2]
    return f".rename({one}={two!r}, {two}={one!r})", lambda ds: ds.rename({one: two, two: one})


def _assign_coords(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = _dim(rng, dataset)
    labels = 100 + np.arange(dataset.sizes[dim])
    if rng.random() < 0.3:
        labels = labels // 2
    text = f".assign_coords({{{dim!r}: {labels.tolist()}}})"
    return text, lambda ds: ds.assign_coords({dim: labels})


def _drop_index(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = _labelled(rng, dataset, unique=False)
    return None if dim is None else (f".drop_vars({dim!r})", lambda ds: ds.drop_vars(dim))


def _assign(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = _name(rng, dataset, "iuf")
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


def _transpose(rng: Random, dataset: xr.Dataset) -> Drawn:
    order = [str(dim) for dim in rng.permutation(_dims(dataset))]
    return f".transpose(*{order})", lambda ds: ds.transpose(*order)


def _astype(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = _name(rng, dataset, "iufb")
    if name is None:
        return None
    dtype = choose(rng, ("float32", "float64", "int64", "int16", "uint8", "float16"))
    if dtype[0] in "iu" and dataset[name].dtype.kind == "f":
        dtype = "float64"
    return f".astype({{{name!r}: {dtype!r}}})", lambda ds: ds.assign({name: ds[name].astype(dtype)})


def _drop_encoding(rng: Random, dataset: xr.Dataset) -> Drawn:
    return (".drop_encoding()", lambda ds: ds.drop_encoding()) if rng.random() < 0.3 else None


def _pickle(rng: Random, dataset: xr.Dataset) -> Drawn:
    return ".pipe(pickle round trip)", lambda ds: pickle.loads(pickle.dumps(ds))


def _deepcopy(rng: Random, dataset: xr.Dataset) -> Drawn:
    return ".pipe(copy.deepcopy)", lambda ds: copy.deepcopy(ds)


def _load_one(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = _name(rng, dataset)

    def step(ds: xr.Dataset) -> xr.Dataset:
        ds = ds.copy()
        ds[name].load()
        return ds

    return None if name is None else (f"[{name!r}].load()", step)


def _align(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = _labelled(rng, dataset)
    if dim is None:
        return None
    join = choose(rng, ("outer", "inner", "right"))
    text = f".pipe(lambda ds: xr.align(ds, ds[{dim!r}][1:], join={join!r})[0])"
    return text, lambda ds: xr.align(ds, ds[dim][1:], join=join)[0]


def _fillna(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = _name(rng, dataset, "f")
    if name is None:
        return None
    return f".fillna({{{name!r}: 1}})", lambda ds: ds.fillna({name: 1})


def _expand_dims(rng: Random, dataset: xr.Dataset) -> Drawn:
    if "e" in dataset.sizes:
        return None
    size = int(rng.integers(1, 3))
    if rng.random() < 0.5:
        return f".expand_dims(e={size})", lambda ds: ds.expand_dims(e=size)
    name = _name(rng, dataset)
    if name is None:
        return None
    text = f".assign({name}=ds[{name!r}].expand_dims(e={size}, axis=-1))"
    return text, lambda ds: ds.assign({name: ds[name].expand_dims(e=size, axis=-1)})


def _chunk(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = _dim(rng, dataset)
    length = int(rng.integers(1, dataset.sizes[dim] + 1))
    return f".chunk({{{dim!r}: {length}}})", lambda ds: ds.chunk({dim: length})


def _set_encoding(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = _name(rng, dataset)
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


def _set_coords(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = _name(rng, dataset)
    return None if name is None else (f".set_coords({name!r})", lambda ds: ds.set_coords(name))


def _change_in_place(rng: Random, dataset: xr.Dataset) -> Drawn:
    name = _name(rng, dataset, "iuf")
    if name is None or not dataset[name].size:
        return None

    def step(ds: xr.Dataset) -> xr.Dataset:
        ds = ds.copy(deep=True)
        ds[name][{dim: 0 for dim in ds[name].dims}] = 4
        return ds

    return f"[{name!r}][first] = 4, in place", step


OPERATIONS = (
    _reindex, _reindex, _reindex_with_fill, _shift, _shift, _shift_one, _roll, _merge, _merge,
    _concat, _concat, _where, _where, _where_everywhere, _sortby, _stack, _isel_slice, _isel_slice,
    _isel_list, _isel_number, _rename, _swap_names, _assign_coords, _drop_index, _assign, _assign,
    _transpose, _astype, _drop_encoding, _pickle, _deepcopy, _load_one, _align, _fillna,
    _expand_dims, _chunk, _set_encoding, _set_coords, _change_in_place,
)  # fmt: skip
