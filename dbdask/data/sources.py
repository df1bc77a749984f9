"""Sources: what was given as `data`, opened, whichever of the four routes leads to its values.

The interface, as the rooms beside this one use it::

    source = open_source(data)             # path, URL, Zarr store or Dataset; reads metadata only
    source.route                           # "store", "lazy", "dask" or "memory"
    source.variables, source.coords        # {name: Variable}; coords is a part of variables
    source.sizes, source.attrs
    variable = source.variable("temperature")        # or a DataArray, which need not be in data

    variable.lengths["time"]               # block lengths (whole Zarr chunks, or shards)
    stored = variable.read({"time": slice(0, 100)})  # stored dtype, the variable's own dim order
    values, missing = variable.decode(stored)        # float32, integers, dates or text; mask | None
    variable.value_dtype                   # dtype of those values
    variable.itemsize, variable.nbytes     # bytes in the store: the same by every route
    variable.coordinate({"time": slice(0, 100)})     # lossless, as xarray shows them

What `read` returns may be read-only and may be a view: never write to it.

**Values that workers cannot read for themselves** (routes dask and memory). A variable knows by
`variable.needs_blocks` that its worker side has no values. The task gets them as pieces::

    small = variable.worker_side()         # small when pickled, for every route
    blocks = {variable.key: [Piece(variable.key, starts, values), ...]}
    small.read(box, blocks=blocks)         # the pieces must cover the box together

`source.worker_side()` does the same for all variables of a source.

`blocks` is one mapping for all variables of a task, from `variable.key` to pieces; it may hold
keys that nobody asks for, and variables that read for themselves ignore it: pass it to every
`read`. `dbdask.data.supply` makes the pieces. What it asks of an `Examples`::

    examples.reads(block) -> Iterable[tuple[Variable, dict[str, slice]]]

every (client-side variable, box) that serving this block of the grid will `read` on the worker,
halo of the window included. The boxes that the worker reads must lie within these.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store

from dbdask.data.decoding import Decoding, decode_opened, decode_stored
from dbdask.data.locations import Location, locate
from dbdask.data.routes import (
    Absent,
    Blocks,
    Index,
    Origin,
    Piece,
    Stored,
    assemble,
    origin_of,
)

__all__ = ["Blocks", "Piece", "Source", "Variable", "open_source"]

Route = Literal["store", "lazy", "dask", "memory"]

DEFAULT_BLOCK_BYTES = 8 * 2**20
TEXT_BYTES = 16

_fresh = itertools.count()


@dataclass(frozen=True)
class Variable:
    """One named array of a source: its metadata, and the way to its values."""

    name: str
    key: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    itemsize: int
    chunks: tuple[int | tuple[int, ...], ...]
    attrs: dict[str, Any] = field(repr=False)
    decoding: Decoding = field(repr=False)
    origin: Origin = field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # What is derived stays behind: the lengths of 100,000 blocks are no small pickle.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def route(self) -> str:
        """How the values are reached: "store", "lazy", "dask" or "memory"."""
        return self.origin.route

    @cached_property
    def lengths(self) -> dict[str, tuple[int, ...]]:
        """Lengths of the blocks along each dimension."""
        pairs = zip(self.shape, self.chunks, strict=True)
        return dict(zip(self.dims, itertools.starmap(_lengths, pairs), strict=True))

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each dimension."""
        return dict(zip(self.dims, self.shape, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of all values as the store holds them; the same by every route."""
        return math.prod(self.shape) * self.itemsize

    @cached_property
    def value_dtype(self) -> np.dtype:
        """The dtype of decoded values; for text of any length, a text dtype of length 1."""
        return self.decoding.result_dtype(self.dtype)

    @property
    def needs_blocks(self) -> bool:
        """True where a worker must be given the values with its task."""
        return isinstance(self.origin.worker_side(), Absent)

    def index(self, box: Mapping[str, slice] | None = None) -> Index:
        """Return the box as one slice per dimension; dimensions not named are whole."""
        whole = slice(None)
        cuts = [(box or {}).get(dim, whole).indices(size) for dim, size in self.sizes.items()]
        assert all(step == 1 for _, _, step in cuts), "a box has no steps"
        return tuple(slice(start, max(start, stop)) for start, stop, _ in cuts)

    def read(
        self, box: Mapping[str, slice] | None = None, blocks: Blocks | None = None
    ) -> np.ndarray:
        """Return the stored values in the box, in the variable's own dimension order."""
        index = self.index(box)
        if isinstance(self.origin, Absent) and blocks is not None:
            return assemble(blocks.get(self.key, ()), index)
        return self.origin.read(index)

    def decode(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return values and the mask of missing ones (None: nothing is missing).

        Packed integers and floats become float32 with NaN where missing; integers without scale
        stay integers, booleans become int8; dates stay dates; text becomes a text array.
        """
        return self.decoding.apply(stored)

    def coordinate(
        self, box: Mapping[str, slice] | None = None, blocks: Blocks | None = None
    ) -> np.ndarray:
        """Return the values as xarray shows them, in full precision: for labels of positions."""
        return self.decoding.as_xarray(self.read(box, blocks))

    def open(self) -> None:
        """Make sure that this process can read; raise an error that says why it cannot."""
        self.origin.open()

    def worker_side(self) -> Variable:
        """Return what travels in a task: small when pickled."""
        return replace(self, origin=self.origin.worker_side())


class Source:
    """A dataset, opened: its variables and how they are reached."""

    def __init__(
        self,
        variables: Mapping[str, Variable],
        coords: frozenset[str],
        attrs: Mapping[str, Any],
        *,
        description: str,
        unnamed: frozenset[str] = frozenset(),
        location: Location | None = None,
        dataset: xr.Dataset | None = None,
    ) -> None:
        self.variables: Mapping[str, Variable] = dict(variables)
        self.coords = {name: variables[name] for name in sorted(coords)}
        self.attrs = dict(attrs)
        self.sizes = _sizes(variables.values())
        self.description = description
        self._unnamed = unnamed
        self._location = location
        self._dataset = dataset

    def __repr__(self) -> str:
        sizes = ", ".join(f"{dim}: {size}" for dim, size in self.sizes.items())
        return f"Source({self.description}, route={self.route!r}, {sizes})"

    @property
    def route(self) -> Route:
        """The route of the variables that are not coordinates; dask before memory before lazy."""
        found = {v.route for name, v in self.variables.items() if name not in self.coords}
        found = found or {variable.route for variable in self.variables.values()}
        order: tuple[Route, ...] = ("dask", "memory", "lazy", "store")
        return next((route for route in order if route in found), "memory")

    def variable(self, given: str | xr.DataArray) -> Variable:
        """Return a variable by name, or the variable that a DataArray is.

        Raises
        ------
        ValueError
            If there is no such variable, it has no dimension names, or a DataArray's length
            along a shared dimension differs.
        """
        if isinstance(given, xr.DataArray):
            return self._of_array(given)
        if not isinstance(given, str):
            raise TypeError(f"a variable is a name or a DataArray, got {type(given).__name__}")
        if given in self.variables:
            return self.variables[given]
        if given in self._unnamed:
            raise ValueError(
                f"variable {given!r} of {self.description} has no dimension names; write it with "
                "xarray, or set dimension_names (Zarr v3) or the attribute _ARRAY_DIMENSIONS (v2)"
            )
        known = ", ".join(sorted(self.variables)) or "none"
        raise ValueError(f"no variable {given!r} in {self.description}; it has: {known}")

    def to_dataset(self) -> xr.Dataset:
        """Return the data as a Dataset: the one given, or the store opened lazily."""
        if self._dataset is not None:
            return self._dataset
        if self._location is None:
            raise RuntimeError("the Dataset stayed with the client; only its variables travel")
        group = self._location.open_group()
        consolidated = group.metadata.consolidated_metadata is not None
        return xr.open_zarr(group.store, chunks=None, consolidated=consolidated)

    def open(self) -> None:
        """Open every variable in this process."""
        for variable in self.variables.values():
            variable.open()

    def worker_side(self) -> Source:
        """Return what travels in a task: small when pickled, without the Dataset."""
        return Source(
            {name: variable.worker_side() for name, variable in self.variables.items()},
            frozenset(self.coords),
            self.attrs,
            description=self.description,
            unnamed=self._unnamed,
            location=self._location,
        )

    def _of_array(self, array: xr.DataArray) -> Variable:
        name = str(array.name) if array.name is not None else "unnamed"
        variable = _of_variable(name, array.variable)
        for dim, size in variable.sizes.items():
            if self.sizes.get(dim, size) != size:
                raise ValueError(
                    f"DataArray {name!r} has length {size} along {dim!r}, "
                    f"{self.description} has {self.sizes[dim]}; align them with xarray.align"
                )
        return variable


def open_source(data: str | os.PathLike[str] | Store | xr.Dataset | Source) -> Source:
    """Open a Zarr store (path, URL, store object) or an xarray Dataset; metadata only.

    Paths are made absolute. Zarr v2, v3 and sharded arrays are read.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    ValueError
        If it is not a Zarr group, or none of its arrays has dimension names.
    TypeError
        If `data` is something else.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, xr.Dataset):
        return _source_of_dataset(data)
    if isinstance(data, xr.DataArray):
        raise TypeError("data is a DataArray; give data.to_dataset(name=...)")
    if isinstance(data, (str, os.PathLike, Store)):
        return _source_of_store(locate(data))
    raise TypeError(
        f"data must be a path, a URL, a Zarr store or an xarray Dataset, got {type(data).__name__}"
    )


def _source_of_store(location: Location) -> Source:
    group = location.open_group()
    arrays = dict(group.arrays())
    dims = {name: _dims(array) for name, array in arrays.items()}
    named = {name: found for name, found in dims.items() if found is not None}
    if not named:
        held = ", ".join(sorted(arrays)) or "no arrays"
        raise ValueError(
            f"data: no array of {location} has dimension names (found: {held}); write it with "
            "xarray, or set dimension_names (Zarr v3) or the attribute _ARRAY_DIMENSIONS (v2)"
        )
    variables = {name: _of_zarr(location, arrays[name], named[name], name) for name in named}
    attrs = dict(group.attrs)
    texts = [attrs.get("coordinates"), *(arrays[name].attrs.get("coordinates") for name in named)]
    listed = {word for text in texts if isinstance(text, str) for word in text.split()}
    coords = {name for name in named if named[name] == (name,) or name in listed}
    unnamed = frozenset(arrays) - frozenset(named)
    where = str(location)
    return Source(
        variables, frozenset(coords), attrs, description=where, unnamed=unnamed, location=location
    )


def _source_of_dataset(dataset: xr.Dataset) -> Source:
    variables = {
        str(name): _of_variable(str(name), variable, str(name))
        for name, variable in dataset.variables.items()
    }
    coords = frozenset(str(name) for name in dataset.coords)
    return Source(
        variables, coords, dataset.attrs, description="the given Dataset", dataset=dataset
    )


def _of_zarr(location: Location, array: zarr.Array, dims: tuple[str, ...], name: str) -> Variable:
    attrs = dict(array.attrs)
    dtype = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
    return Variable(
        name=name,
        key=name,
        dims=dims,
        shape=array.shape,
        dtype=dtype,
        itemsize=_itemsize(dtype),
        chunks=array.shards or array.chunks,
        attrs=attrs,
        decoding=decode_stored(dtype, attrs, array.metadata.zarr_format, array.fill_value),
        origin=Stored(location, array.path),
    )


def _of_variable(name: str, variable: xr.Variable, key: str | None = None) -> Variable:
    origin = origin_of(variable)
    dims = tuple(str(dim) for dim in variable.dims)
    if isinstance(origin, Stored):
        array = origin.array()
        stored = _of_zarr(origin.location, array, dims, name)
        pairs = zip(stored.chunks, variable.shape, strict=True)
        chunks = tuple(min(chunk, max(size, 1)) for chunk, size in pairs)
        stored = replace(stored, shape=variable.shape, chunks=chunks, origin=origin)
    else:
        stored = Variable(
            name=name,
            key=name,
            dims=dims,
            shape=variable.shape,
            dtype=variable.dtype,
            itemsize=_itemsize(variable.encoding.get("dtype", variable.dtype)),
            chunks=_chunks(variable),
            attrs={**variable.attrs},
            decoding=decode_opened(variable),
            origin=origin,
        )
    # Two DataArrays may share a name; their pieces must not.
    return replace(stored, key=key or f"{name}#{next(_fresh)}")


def _dims(array: zarr.Array) -> tuple[str, ...] | None:
    """Return the dimension names of an array; None where it has not one for each axis."""
    if array.metadata.zarr_format == 3:
        names: Any = array.metadata.dimension_names
    else:
        names = array.attrs.get("_ARRAY_DIMENSIONS")
    if names is None:
        return () if array.ndim == 0 else None
    complete = len(names) == array.ndim and all(isinstance(name, str) for name in names)
    return tuple(names) if complete and len(set(names)) == len(names) else None


def _itemsize(dtype: Any) -> int:
    """Return the bytes of one stored value; text, whose length varies, counts as 16."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        return TEXT_BYTES
    return TEXT_BYTES if found.kind in "OSTU" else found.itemsize


def _chunks(variable: xr.Variable) -> tuple[int | tuple[int, ...], ...]:
    """Return the blocks of a Dataset's variable: its store's if known, else dask's, else a cut."""
    encoding = variable.encoding
    known = encoding.get("shards") or encoding.get("chunks") or ()
    original = tuple(encoding.get("preferred_chunks") or variable.dims)
    if len(known) == variable.ndim and not set(variable.dims) <= set(original):
        original = variable.dims  # renamed since
    if known and len(known) == len(original) and set(variable.dims) <= set(original):
        by_dim = dict(zip(original, known, strict=True))
        return tuple(min(by_dim[dim], max(size, 1)) for dim, size in variable.sizes.items())
    if variable.chunks is not None:
        return tuple(_regular(blocks) for blocks in variable.chunks)
    return _default_chunks(variable.shape, variable.dtype.itemsize)


def _default_chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    chunks = [max(size, 1) for size in shape]
    if chunks:
        longest = int(np.argmax(chunks))
        others = math.prod(chunks) // chunks[longest]
        rows = max(1, DEFAULT_BLOCK_BYTES // (others * itemsize))
        chunks[longest] = min(chunks[longest], rows)
    return tuple(chunks)


def _regular(blocks: tuple[int, ...]) -> int | tuple[int, ...]:
    if any(size != size for size in blocks):
        raise ValueError(
            "a dask array of unknown chunk lengths cannot be read; call compute_chunk_sizes() first"
        )
    same = all(size == blocks[0] for size in blocks[:-1]) and blocks[-1] <= blocks[0]
    return max(blocks[0], 1) if same else blocks


def _lengths(size: int, chunk: int | tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(chunk, tuple):
        return chunk
    whole, rest = divmod(size, chunk)
    return (chunk,) * whole + ((rest,) if rest else ())


def _sizes(variables: Any) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for variable in variables:
        for dim, size in variable.sizes.items():
            if sizes.setdefault(dim, size) != size:
                raise ValueError(
                    f"dimension {dim!r} has length {sizes[dim]} and, in variable "
                    f"{variable.name!r}, {size}; every variable must have the same length"
                )
    return sizes
