"""Writing a plan: array by array into Zarr, through xarray into Zarr and netCDF, or nowhere."""

import itertools
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from .kinds import choose
from .plan import Column, Plan

RAW = ("raw v2", "raw v3", "sharded v3", "kerchunk")
THROUGH_XARRAY = ("xarray v2", "xarray v3", "netCDF 3", "netCDF 4")
COMPRESSED = 0.2
"""The share of Zarr stores whose chunks are compressed."""


def as_dataset(plan: Plan) -> xr.Dataset:
    """Return the plan in memory, its values copied."""
    variables = {c.name: (c.dims, c.values.copy(), dict(c.attrs)) for c in plan.columns}
    return xr.Dataset(variables, coords={dim: (dim, v.copy()) for dim, v in plan.coords.items()})


def write(plan: Plan, storage: str, folder: Path, rng: np.random.Generator) -> bool:
    """Write the plan under the folder; False where xarray or Zarr will not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if storage in RAW:
            write_arrays(plan, folder / "data.zarr", storage, bool(rng.random() < COMPRESSED))
            if storage == "kerchunk":
                write_references(folder / "data.zarr", folder / "references.json")
            return True
        dataset = as_dataset(plan)
        encoding = {c.name: _encoding(rng, c, storage) for c in plan.columns}
        if storage in ("xarray v2", "xarray v3") and rng.random() >= COMPRESSED:
            for name in (*encoding, *plan.coords):
                encoding.setdefault(name, {})["compressors"] = None
        try:
            if storage.startswith("netCDF"):
                engine = "scipy" if storage == "netCDF 3" else "h5netcdf"
                encoding = {
                    n: {k: v for k, v in e.items() if k != "chunks"} for n, e in encoding.items()
                }
                dataset.to_netcdf(folder / "data.nc", engine=engine, encoding=encoding)
            else:
                dataset.to_zarr(
                    folder / "data.zarr",
                    mode="w",
                    zarr_format=int(storage[-1]),
                    encoding=encoding,
                    consolidated=False,
                )
        except Exception:  # of every kind: what xarray cannot write is no case
            return False
        return True


def _encoding(rng: np.random.Generator, column: Column, storage: str) -> dict[str, Any]:
    """Draw how xarray is to store a column."""
    encoding: dict[str, Any] = {"chunks": tuple(max(1, n) for n in column.chunks)}
    dtype = getattr(column.values, "dtype", None)
    kind = dtype.kind if isinstance(dtype, np.dtype) else "O"
    if kind == "f" and np.isfinite(np.asarray(column.values)).all() and rng.random() < 0.4:
        limit = float(np.abs(np.asarray(column.values, float)).max()) or 1.0
        packed = {"dtype": "int16", "scale_factor": limit / 30000, "_FillValue": -32768}
        whole = {"dtype": "int32", "_FillValue": choose(rng, (-1, 0, 7))}
        encoding |= choose(rng, (packed, packed | {"add_offset": limit / 3}, whole))
        encoding.pop("chunks") if rng.random() < 0.5 else None
    elif kind in "iuf" and rng.random() < 0.5:
        fill = np.asarray(column.values).flat[0].item()
        encoding["_FillValue"] = choose(rng, (fill, 0, 1))
    return encoding


def left_over_encoding(rng: np.random.Generator, column: Column) -> dict[str, Any]:
    """Draw an `.encoding` that says nothing of the values: from elsewhere, or for later."""
    value = -1
    values = column.values
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        value = values.flat[0].item()
        value = value if value == value and abs(value) != np.inf else -1
    drawn = [
        {"dtype": np.dtype("int16"), "_FillValue": value},
        {"dtype": np.dtype("int32"), "missing_value": value},
        {"dtype": "int16", "scale_factor": 0.1, "add_offset": 3.0, "_FillValue": -32768},
        {"_FillValue": value, "compressors": (), "filters": ()},
        {"chunks": (1,) * len(column.dims), "preferred_chunks": dict.fromkeys(column.dims, 1)},
        {"source": "/nowhere/at/all.nc", "original_shape": (99,), "chunksizes": (3, 3)},
        {"units": "days since 1999-01-01", "calendar": "standard", "dtype": np.dtype("int64")},
    ]
    return choose(rng, drawn) | choose(rng, ({}, choose(rng, drawn)))


def write_arrays(plan: Plan, path: Path, storage: str, compressed: bool) -> None:
    """Write every column as an array of Zarr, attributes and all; some chunks are not written.

    Zarr compresses each chunk in a thread of its own, which costs more than all else of a chunk of
    a few numbers: only some stores are compressed.
    """
    zarr_format = 2 if storage in ("raw v2", "kerchunk") else 3
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    coords = [Column(dim, (dim,), v, fill=None, chunks=v.shape) for dim, v in plan.coords.items()]
    for column in (*plan.columns, *coords):
        _write_array(group, column, zarr_format, storage == "sharded v3", compressed)


def _write_array(
    group: zarr.Group, column: Column, zarr_format: int, sharded: bool, compressed: bool
) -> None:
    values = column.values
    kind = values.dtype.kind
    options: dict[str, Any] = {
        "chunks": column.chunks,
        "fill_value": array_fill(column, zarr_format),
    }
    if sharded:
        options["shards"] = tuple(2 * chunk for chunk in column.chunks)
    if zarr_format == 3:
        options["dimension_names"] = column.dims
    attrs = dict(column.attrs)
    if zarr_format == 2:
        attrs["_ARRAY_DIMENSIONS"] = list(column.dims)
    if not compressed:
        options["compressors"] = None
    dtype: Any = str if kind == "T" else values.dtype
    array = group.create_array(
        column.name, shape=values.shape, dtype=dtype, attributes=attrs, **options
    )
    if not column.holes:
        array[...] = values
        return
    step = array.shards or array.chunks
    starts = itertools.product(
        *(range(0, size, chunk) for size, chunk in zip(values.shape, step, strict=True))
    )
    for number, start in enumerate(starts):
        if number not in column.holes:
            box = tuple(slice(s, s + chunk) for s, chunk in zip(start, step, strict=True))
            array[box] = values[box]


def array_fill(column: Column, zarr_format: int) -> Any:
    """Return the fill value of a column's array."""
    kind = column.values.dtype.kind
    if kind in "UT":
        return ""
    if kind == "b":
        return False
    return 0 if zarr_format == 3 and column.fill is None else column.fill


def write_references(path: Path, file: Path) -> None:
    """Write a reference file of a Zarr v2 store, as kerchunk writes it."""
    references: dict[str, Any] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            whole = Path(folder) / name
            key = str(whole.relative_to(path))
            references[key] = whole.read_text() if name.startswith(".z") else [str(whole)]
    file.write_text(json.dumps({"version": 1, "refs": references}))
