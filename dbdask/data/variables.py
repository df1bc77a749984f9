"""Variables: one named array each, with its metadata and the route to its values."""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from dbdask.arrays import BoolArray
from dbdask.data.dask_blocks import check_decoding
from dbdask.data.declared import decode_declared
from dbdask.data.decoding import OTHER, TEXT, Decoding, Undecided, objects_dtype
from dbdask.data.lazy_chains import Chain, proven_chain, shows_zeros_as_missing
from dbdask.data.locations import Location, locate
from dbdask.data.memory import check_fits, too_large
from dbdask.data.routes import (
    Absent,
    Blocked,
    Blocks,
    Held,
    HeldByPandas,
    Index,
    Lazy,
    Origin,
    Stored,
    assemble,
    origin_of,
)
from dbdask.data.zarr_arrays import ZarrArray
from dbdask.errors import DataError
from dbdask.schedule.lengths import Lengths

DEFAULT_BLOCK_BYTES = 8 * 2**20
TEXT_BYTES = 16


_SMALLEST = int(np.iinfo(np.int64).min)
_DURATIONS = (
    "days",
    "hours",
    "minutes",
    "seconds",
    "milliseconds",
    "microseconds",
    "nanoseconds",
)


@dataclass(frozen=True)
class Variable:
    """One named array of a source: its metadata, and the origin of its values."""

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
    was_stored: np.dtype | None = None  # of a variable that is known from a description only
    dtype_name: str = ""
    """The name of the dtype in messages; empty: NumPy's."""
    known_dtype: np.dtype | None = field(default=None, repr=False)
    """The dtype of decoded values, if it can be found from the values alone."""
    flag_dtype: np.dtype | None = field(default=None, repr=False)
    """The integer dtype of the values that `flag_values` are compared with; None: not known."""
    masks_zeros: bool = field(default=False, repr=False)
    """Whether xarray seems to show the zeros of a v2 store as missing: for messages only."""
    labels: xr.Coordinates | None = field(default=None, repr=False, compare=False)
    """The index of a Dataset that has this coordinate; it stays with the client."""

    def __getstate__(self) -> dict[str, object]:
        # Cached properties stay behind: the lengths of 100,000 blocks are no small pickle.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def is_beside(self) -> bool:
        """Whether it is a DataArray that was given beside the data."""
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
        """The dtype of decoded values: `TEXT` for text, `OTHER` for neither numbers nor text.

        Object if that is not known before the values are read.
        """
        if self.known_dtype is not None:
            return self.known_dtype
        found = self.decoding.result_dtype(self.dtype)
        if found.kind == "O" and isinstance(self.origin, Held):
            return objects_dtype(self.origin.read(self.index()))
        return found

    @property
    def shown_dtype(self) -> str:
        """The name of the dtype in messages."""
        if self.value_dtype.kind == "U":
            return "text"
        if self.value_dtype == OTHER and isinstance(self.origin, Held) and not self.dtype_name:
            first = pd.Series(self.origin.read(self.index()).ravel()).dropna().iloc[0]
            return f"object (of {type(first).__name__})"
        return self.dtype_name or str(self.value_dtype)

    @property
    def may_be_missing(self) -> bool:
        """Whether a value may be missing, as far as the metadata say."""
        return self.value_dtype.kind in "fmMOUV" or bool(self.decoding.missing)

    @property
    def needs_blocks(self) -> bool:
        """Whether the values must come to a worker with its task."""
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
        """Return the stored values in the box, of its shape and of the stored dtype.

        Parameters
        ----------
        box
            A slice for some of the dimensions; the others are read whole.
        blocks
            Values that came with the task, if this process cannot read them itself.

        Raises
        ------
        DataError
            A chunk is damaged, missing, or too large for this process.
        """
        index = self.index(box)
        nbytes = math.prod(cut.stop - cut.start for cut in index) * self.itemsize
        check_fits(self.name, nbytes, self.lengths)
        try:
            if isinstance(self.origin, Absent) and blocks is not None:
                return assemble(blocks.get(self.key, ()), index)
            return self.origin.read(index)
        except MemoryError as error:
            raise DataError(too_large(self.name, nbytes, self.lengths, str(error))) from error

    def decode(self, stored: np.ndarray) -> tuple[np.ndarray, BoolArray | None]:
        """Return values and the mask of missing ones, both of the shape of `stored`.

        Values have the dtype that holds them exactly: numbers are as xarray shows them, except that
        integers without a scale stay integers; all others are Python objects. Values under the
        mask are arbitrary. The mask is bool, or None if nothing is missing.

        Raises
        ------
        DataError
            The attributes cannot be applied, or a value has no certain meaning.
        """
        try:
            return self.decoding.apply(stored)
        except Exception as error:
            raise self._undecodable(error) from error

    def coordinate(
        self, box: Mapping[str, slice] | None = None, blocks: Blocks | None = None
    ) -> np.ndarray:
        """Return the values as xarray shows them, of the box's shape: exact labels, in their dtype.

        Raises
        ------
        DataError
            The values cannot be read or decoded.
        """
        stored = self.read(box, blocks)
        try:
            return self.decoding.as_shown(stored)
        except Exception as error:
            raise self._undecodable(error) from error

    def _undecodable(self, error: Exception) -> DataError:
        if isinstance(error, Undecided):
            return DataError(f"variable {self.name!r} {error}")
        return DataError(
            f"variable {self.name!r} cannot be decoded: {type(error).__name__}: {error}; correct "
            "its attributes, or give a Dataset of the values themselves"
        )

    def label_index(self) -> pd.Index:
        """Return the pandas index of the labels of a coordinate of one dimension."""
        if self.labels is not None:
            index = self.labels.xindexes[self.name]
            with suppress(TypeError, NotImplementedError):
                return index.to_pandas_index()
        return xr.IndexVariable(self.dims, self.coordinate()).to_index()

    def check_decoding(self) -> None:
        """Raise ValueError if the metadata alone show that values cannot be decoded."""
        try:
            _ = self.value_dtype
            if isinstance(self.origin, Blocked):
                check_decoding(self.origin.array)
        except Exception as error:
            unsaid = (
                f"cannot be decoded: {type(error).__name__}: {error}; correct its attributes, or "
                "give a Dataset of the values themselves, such as one that is opened with "
                "mask_and_scale=False"
            )
            said = error if isinstance(error, Undecided) else unsaid
            raise ValueError(f"variable {self.name!r} {said}") from error

    def open(self) -> None:
        """Make sure that this process can read; raise an error that says why it cannot."""
        self.origin.open()

    def worker_side(self) -> Variable:
        """Return the variable that travels in a task: small when pickled."""
        known = self.value_dtype if self.dtype.kind == "O" else self.known_dtype
        origin = self.origin.worker_side()
        return replace(self, origin=origin, known_dtype=known, labels=None)


def variable_of_zarr(
    location: Location, array: ZarrArray, dims: tuple[str, ...], name: str
) -> Variable:
    """Return the variable of a Zarr array, as the store declares it."""
    attrs = dict(array.attrs)
    dtype = _native(array.dtype)
    decoding = decode_declared(dtype, attrs, array.metadata.zarr_format, array.fill_value)
    return Variable(
        name=name,
        key=name,
        dims=dims,
        shape=array.shape,
        dtype=dtype,
        itemsize=_itemsize(dtype),
        chunks=array.shards or array.chunks,
        attrs=attrs,
        decoding=decoding,
        origin=Stored(location, array.path),
        flag_dtype=decoding.signs or (dtype if dtype.kind in "iu" else None),
    )


def variable_of_array(
    name: str,
    variable: xr.Variable,
    key: str | None = None,
    labels: xr.Coordinates | None = None,
) -> Variable:
    """Return the variable of an array of a Dataset; without a key it gets a new one.

    Its values are those that it shows. Its encoding, which may be older than the values, only
    gives the blocks in which they are best read, and the bytes that they take in their store.
    """
    origin = origin_of(variable, name)
    # Two DataArrays may share a name; their pieces must not.
    key = key or f"{name}#{uuid.uuid4().hex}"
    chain = proven_chain(variable) if isinstance(origin, Lazy) else None
    if chain is not None:
        return _of_chain(name, key, variable, chain)
    dtype = origin.dtype if isinstance(origin, HeldByPandas) else _native(variable.dtype)
    return Variable(
        name=name,
        key=key,
        dims=tuple(str(dim) for dim in variable.dims),
        shape=variable.shape,
        dtype=dtype,
        itemsize=_itemsize(variable.encoding.get("dtype", dtype)),
        chunks=_chunks(variable, dtype.itemsize),
        attrs={**variable.attrs},
        decoding=Decoding(doubtful=_lost_gaps(variable)),
        origin=origin,
        dtype_name="" if isinstance(variable.dtype, np.dtype) else str(variable.dtype),
        known_dtype=_of_vlen(variable.dtype) or _of_categories(origin),
        flag_dtype=_flag_dtype(variable),
        masks_zeros=shows_zeros_as_missing(variable),
        labels=labels,
    )


def _of_chain(name: str, key: str, variable: xr.Variable, chain: Chain) -> Variable:
    """Return a variable that is read from its store, and decoded by xarray's functions."""
    array = chain.array
    chunks = zip(array.shards or array.chunks, variable.shape, strict=True)
    start = chain.start if any(chain.start) else ()
    dtype = _native(array.dtype)
    return Variable(
        name=name,
        key=key,
        dims=tuple(str(dim) for dim in variable.dims),
        shape=variable.shape,
        dtype=dtype,
        itemsize=_itemsize(dtype),
        chunks=tuple(min(chunk, max(size, 1)) for chunk, size in chunks),
        attrs={**variable.attrs},
        decoding=Decoding(steps=chain.steps, doubtful=_lost_gaps(variable)),
        origin=Stored(locate(array.store_path.store), array.path, start, "lazy"),
        flag_dtype=_flag_dtype(variable),
        masks_zeros=chain.masks_zeros,
    )


def _native(dtype: object) -> np.dtype:
    if not isinstance(dtype, np.dtype):
        return np.dtype(object)
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def _of_vlen(dtype: object) -> np.dtype | None:
    """Return `TEXT` for objects that a store declares to be text."""
    metadata = getattr(dtype, "metadata", None) or {}
    return TEXT if dtype == np.dtype(object) and metadata.get("element_type") is str else None


def _of_categories(origin: Origin) -> np.dtype | None:
    """Return `TEXT` for categories that are text: so that the values need not be made to see it."""
    array = origin.values if isinstance(origin, HeldByPandas) else None
    if not isinstance(array, pd.Categorical) or not len(array.categories):
        return None
    categories = np.asarray(array.categories.array, dtype=object)
    return TEXT if objects_dtype(categories) == TEXT else None


def _lost_gaps(variable: xr.Variable) -> tuple[tuple[Any, str], ...]:
    """Return the value that xarray shows for missing integers in units of time, and its error.

    xarray marks them by the smallest integer, as in a duration, and then makes no duration.
    """
    fills = [name for name in ("_FillValue", "missing_value") if name in variable.encoding]
    if not fills or variable.dtype != np.dtype(np.int64):
        return ()
    if variable.attrs.get("units") not in _DURATIONS:
        return ()
    said = (
        f"holds {_SMALLEST}, which xarray shows where integers in {variable.attrs['units']!r} are "
        "missing; open the data with decode_timedelta=False, which shows NaN, or give the path of "
        "the store"
    )
    return ((_SMALLEST, said),)


def _flag_dtype(variable: xr.Variable) -> np.dtype | None:
    """Return the integer dtype of the shown values, or the one before they became floats."""
    if not isinstance(variable.dtype, np.dtype):
        return None
    if variable.dtype.kind in "iu":
        return _native(variable.dtype)
    stored = variable.encoding.get("dtype")
    signs = {"true": "u", "false": "i"}.get(str(variable.encoding.get("_Unsigned")))
    if signs is None or not isinstance(stored, np.dtype) or stored.kind not in "iu":
        return None
    return np.dtype(f"{signs}{stored.itemsize}")


def _itemsize(dtype: npt.DTypeLike) -> int:
    """Return the bytes of one stored value; text, whose length varies, counts 16."""
    try:
        found = np.dtype(dtype)
    except Exception:
        return TEXT_BYTES
    return TEXT_BYTES if found.kind in "OSTU" else found.itemsize


def _chunks(variable: xr.Variable, itemsize: int) -> tuple[int | tuple[int, ...], ...]:
    """Return the blocks of a variable of a Dataset: of its store, else of dask, else a cut."""
    encoding = variable.encoding
    known = encoding.get("shards") or encoding.get("chunks") or ()
    original = tuple(encoding.get("preferred_chunks") or variable.dims)
    if len(known) == variable.ndim and not set(variable.dims) <= set(original):
        original = variable.dims  # renamed since
    if known and len(known) == len(original) and set(variable.dims) <= set(original):
        by_dim = dict(zip(original, known, strict=True))
        if all(isinstance(n, int | np.integer) and n > 0 for n in by_dim.values()):
            return tuple(min(by_dim[dim], max(size, 1)) for dim, size in variable.sizes.items())
    if variable.chunks is not None:
        return tuple(_regular(blocks) for blocks in variable.chunks)
    return _default_chunks(variable.shape, itemsize)


def _default_chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    chunks = [max(size, 1) for size in shape]
    if chunks:
        longest = int(np.argmax(chunks))
        others = math.prod(chunks) // chunks[longest]
        rows = max(1, DEFAULT_BLOCK_BYTES // (others * max(itemsize, 1)))
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
