"""Variables: one named array each, its metadata and the way to its values."""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
import zarr

from dbdask.data.decoding import Decoding, decode_opened, decode_stored
from dbdask.data.locations import Location
from dbdask.data.routes import Absent, Blocks, Index, Origin, Stored, assemble, origin_of
from dbdask.numbers.lengths import Lengths

DEFAULT_BLOCK_BYTES = 8 * 2**20
TEXT_BYTES = 16


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
    was_stored: np.dtype | None = None  # of one that only its description is known of

    def __getstate__(self) -> dict[str, Any]:
        # What is derived stays behind: the lengths of 100,000 blocks are no small pickle.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def is_beside(self) -> bool:
        """True where it is a DataArray that was given beside the data."""
        return self.key != self.name

    @property
    def route(self) -> str:
        """How the values are reached: "store", "lazy", "dask" or "memory"."""
        return self.origin.route

    @cached_property
    def lengths(self) -> dict[str, Lengths]:
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

    @property
    def stored_dtype(self) -> np.dtype:
        """dtype of the values as they are stored."""
        return self.dtype if self.was_stored is None else self.was_stored

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


def variable_of_zarr(
    location: Location, array: zarr.Array, dims: tuple[str, ...], name: str
) -> Variable:
    """Return the variable that a Zarr array is."""
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


def variable_of_array(
    name: str,
    variable: xr.Variable,
    key: str | None = None,
    declared: Mapping[str, Any] | None = None,
) -> Variable:
    """Return the variable that an array of a Dataset is; without a key, one of its own."""
    origin = origin_of(variable)
    dims = tuple(str(dim) for dim in variable.dims)
    if isinstance(origin, Stored):
        array = origin.array()
        stored = variable_of_zarr(origin.location, array, dims, name)
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
            decoding=decode_opened(variable, declared),
            origin=origin,
        )
    # Two DataArrays may share a name; their pieces must not.
    return replace(stored, key=key or f"{name}#{uuid.uuid4().hex}")


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


def _lengths(size: int, chunk: int | tuple[int, ...]) -> Lengths:
    return Lengths(chunk) if isinstance(chunk, tuple) else Lengths.regular(size, chunk)
