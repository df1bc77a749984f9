"""Operations that move values to other positions, labels and names."""

import numpy as np
import xarray as xr

from .kinds import choose
from .operation import Drawn, Random
from .picking import dims_of, draw_dim, draw_labelled, draw_name


def reindex(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = draw_labelled(rng, dataset)
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


def reindex_with_fill(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim, name = draw_labelled(rng, dataset), draw_name(rng, dataset, "iuf")
    if dim is None or name is None or dataset.indexes[dim].dtype.kind not in "iuf":
        return None
    wanted = np.append(dataset.indexes[dim].to_numpy(), 999)
    fills = {name: 3}
    text = f".reindex({{{dim!r}: {list(wanted)}}}, fill_value={fills})"
    return text, lambda ds: ds.reindex({dim: wanted}, fill_value=fills)


def shift(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim, by = draw_dim(rng, dataset), int(rng.integers(-2, 3))
    return f".shift({{{dim!r}: {by}}})", lambda ds: ds.shift({dim: by})


def roll(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim, by, coords = draw_dim(rng, dataset), int(rng.integers(1, 4)), bool(rng.random() < 0.5)
    text = f".roll({{{dim!r}: {by}}}, roll_coords={coords})"
    return text, lambda ds: ds.roll({dim: by}, roll_coords=coords)


def merge(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim, name = draw_labelled(rng, dataset), draw_name(rng, dataset)
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


def concat(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = draw_dim(rng, dataset)
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


def where_everywhere(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = draw_labelled(rng, dataset)
    if dim is None or dataset.indexes[dim].dtype.kind not in "iuf":
        return None
    middle = float(np.median(dataset.indexes[dim].to_numpy()))
    drop = bool(rng.random() < 0.5)
    text = f".pipe(lambda ds: ds.where(ds[{dim!r}] <= {middle}, drop={drop}))"
    return text, lambda ds: ds.where(ds[dim] <= middle, drop=drop)


def sortby(rng: Random, dataset: xr.Dataset) -> Drawn:
    names = sorted(str(n) for n, v in dataset.variables.items() if v.ndim == 1)
    if not names:
        return None
    name, ascending = choose(rng, names), bool(rng.random() < 0.5)
    text = f".sortby({name!r}, ascending={ascending})"
    return text, lambda ds: ds.sortby(name, ascending=ascending)


def stack(rng: Random, dataset: xr.Dataset) -> Drawn:
    dims = [dim for dim in dims_of(dataset) if dim[0] in "abc"]
    if len(dims) < 2:
        return None
    pair = [str(dim) for dim in rng.permutation(dims)[:2]]
    index = bool(rng.random() < 0.5)
    text = f".stack(ab={pair}, create_index={index})"
    return text, lambda ds: ds.stack(ab=pair, create_index=index)


def isel_slice(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = draw_dim(rng, dataset)
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


def isel_list(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = draw_dim(rng, dataset)
    size = dataset.sizes[dim]
    where = rng.integers(0, size, int(rng.integers(1, size + 2))).tolist()
    if rng.random() < 0.6:
        where.sort()
    return f".isel({{{dim!r}: {where}}})", lambda ds: ds.isel({dim: where})


def isel_number(rng: Random, dataset: xr.Dataset) -> Drawn:
    dims = dims_of(dataset)
    if len(dims) < 2:
        return None
    dim = choose(rng, dims)
    return f".isel({{{dim!r}: -1}})", lambda ds: ds.isel({dim: -1})


def rename(rng: Random, dataset: xr.Dataset) -> Drawn:
    old = choose(rng, [*sorted(map(str, dataset.data_vars)), *dims_of(dataset)])
    return f".rename({{{old!r}: {old + '_'!r}}})", lambda ds: ds.rename({old: old + "_"})


def swap_names(rng: Random, dataset: xr.Dataset) -> Drawn:
    names = sorted(str(n) for n in dataset.data_vars if n[0] == "x")
    if len(names) < 2:
        return None
    one, two = names[:2]
    return f".rename({one}={two!r}, {two}={one!r})", lambda ds: ds.rename({one: two, two: one})


def assign_coords(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = draw_dim(rng, dataset)
    labels = 100 + np.arange(dataset.sizes[dim])
    if rng.random() < 0.3:
        labels = labels // 2
    text = f".assign_coords({{{dim!r}: {labels.tolist()}}})"
    return text, lambda ds: ds.assign_coords({dim: labels})


def drop_index(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = draw_labelled(rng, dataset, unique=False)
    return None if dim is None else (f".drop_vars({dim!r})", lambda ds: ds.drop_vars(dim))


def transpose(rng: Random, dataset: xr.Dataset) -> Drawn:
    order = [str(dim) for dim in rng.permutation(dims_of(dataset))]
    return f".transpose(*{order})", lambda ds: ds.transpose(*order)


def align(rng: Random, dataset: xr.Dataset) -> Drawn:
    dim = draw_labelled(rng, dataset)
    if dim is None:
        return None
    join = choose(rng, ("outer", "inner", "right"))
    text = f".pipe(lambda ds: xr.align(ds, ds[{dim!r}][1:], join={join!r})[0])"
    return text, lambda ds: xr.align(ds, ds[dim][1:], join=join)[0]


def expand_dims(rng: Random, dataset: xr.Dataset) -> Drawn:
    if "e" in dataset.sizes:
        return None
    size = int(rng.integers(1, 3))
    if rng.random() < 0.5:
        return f".expand_dims(e={size})", lambda ds: ds.expand_dims(e=size)
    name = draw_name(rng, dataset)
    if name is None:
        return None
    text = f".assign({name}=ds[{name!r}].expand_dims(e={size}, axis=-1))"
    return text, lambda ds: ds.assign({name: ds[name].expand_dims(e=size, axis=-1)})
