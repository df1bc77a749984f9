"""The four routes to the stored values of one variable, each with the same `read(index)`.

An index is a tuple of slices with step 1, one per dimension, cut to the shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr
from pandas.api.extensions import ExtensionArray
from xarray.core import indexing

from dbdask.data.chunk_reading import (
    check_memory,
    chunk_count,
    chunk_numbers,
    first_chunk,
    oversized_chunk,
    read_array,
)
from dbdask.data.dask_blocks import BlockCheck
from dbdask.data.decompression import Oversized
from dbdask.data.lazy_chains import is_behind_wrappers
from dbdask.data.lazy_guard import ReopenedArray, guarded
from dbdask.data.locations import Location
from dbdask.data.pandas_arrays import OBJECT, numpy_dtype, to_numpy
from dbdask.data.read_errors import read_error, store_failed
from dbdask.data.retrying import ReadFailed, tried_again
from dbdask.data.stores import Vanished, WatchedStore
from dbdask.data.waiting import ReadGivenUp, waited_for
from dbdask.data.zarr_arrays import ZarrArray
from dbdask.errors import DataError

if TYPE_CHECKING:
    import dask.array as da

Index = tuple[slice, ...]

INLINE_BYTES = 16 * 2**10


class Origin(Protocol):
    """The place that a variable reads its values from."""

    @property
    def route(self) -> str:
        """ "store", "lazy", "dask" or "memory"."""

    def open(self) -> None:
        """Make sure that this process can read; raise an error that says why it cannot."""

    def read(self, index: Index) -> np.ndarray:
        """Return the stored values at the index, of the index's shape and the variable's dtype.

        Raises
        ------
        DataError
            A value cannot be read.
        RuntimeError
            This process cannot read: it was never given what it needs.
        """

    def worker_side(self) -> Origin:
        """Return the origin that travels to a worker: small when pickled."""


@dataclass(frozen=True)
class Stored:
    """An array in a Zarr store, or the part of it that starts at `start`."""

    location: Location
    path: str
    start: tuple[int, ...] = ()
    route: str = "store"
    _opened: list[ZarrArray] = field(default_factory=list, repr=False, compare=False)

    def __getstate__(self) -> tuple[object, ...]:
        return self.location, self.path, self.start, self.route

    def __setstate__(self, state: tuple[object, ...]) -> None:
        for name, value in zip(("location", "path", "start", "route"), state, strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_opened", [])

    def array(self) -> ZarrArray:
        # Two threads that come at once open it twice, which harms nothing.
        if not self._opened:
            what = f"the metadata of {self._name}"
            try:
                self._opened.append(waited_for(self._open, lambda: what))
            except ReadFailed as error:
                raise store_failed(what, error) from error
        return self._opened[0]

    def _open(self) -> ZarrArray:
        return self.location.open_array(self.path)

    @property
    def _name(self) -> str:
        return f"variable {self.path!r} of {self.location}"

    def open(self) -> None:
        self.array()

    def read(self, index: Index) -> np.ndarray:
        array, index = self.array(), self._moved(index)
        nbytes = math.prod(cut.stop - cut.start for cut in index) * array.dtype.itemsize

        def what() -> str:
            return f"{self._name}: chunk {first_chunk(array, index)} (of {_shown(index)})"

        try:
            check_memory(array, index)
            return waited_for(lambda: read_array(array, index), what, nbytes)
        except (MemoryError, ReadGivenUp, DataError):
            raise  # that says nothing of the chunk
        except Oversized as error:
            chunk = waited_for(lambda: oversized_chunk(array, index), what, nbytes)
            raise read_error(error, self.path, index, str(self.location), chunk) from error
        except Exception as error:
            raise read_error(error, self.path, index, str(self.location)) from error

    @property
    def has_fills(self) -> bool:
        """Whether reading here has found chunks that are not in the store."""
        return bool(self._opened) and bool(self._watched().fills)

    def fills(self, index: Index) -> set[int]:
        """Return the numbers of chunks in a box that reading here took for the fill value."""
        known = self._watched().fills
        return {n for n in chunk_numbers(self.array(), self._moved(index)) if n in known}

    def chunk_count(self, index: Index) -> int:
        """Return how many chunks, or shards, overlap a box."""
        return chunk_count(self.array(), self._moved(index))

    def _watched(self) -> WatchedStore:
        store = self.array().store_path.store
        assert isinstance(store, WatchedStore)
        return store

    def _moved(self, index: Index) -> Index:
        """Return a box in positions of the whole array."""
        if not self.start:
            return index
        shifts = zip(index, self.start, strict=True)
        return tuple(slice(cut.start + by, cut.stop + by) for cut, by in shifts)

    def worker_side(self) -> Origin:
        return self


@dataclass(frozen=True)
class Lazy:
    """A variable that xarray reads on demand from a file it knows."""

    variable: xr.Variable
    route: str = "lazy"
    array: ReopenedArray | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, variable: xr.Variable) -> Lazy:
        """Return the origin of a lazy variable; its Zarr array, if any, is opened again."""
        found, array = guarded(variable)
        return cls(found, array=array)

    def open(self) -> None:
        if self.array is not None:
            self.array.opened()
        self.read(tuple(slice(0, 1) for _ in self.variable.dims))

    def read(self, index: Index) -> np.ndarray:
        try:
            return waited_for(lambda: self._values(index), lambda: self._what(index))
        except ReadFailed as error:
            raise store_failed(self._what(index), error) from error
        except (Vanished, Oversized) as error:
            assert self.array is not None
            raise read_error(error, self.array.name, index, self.array.place) from error
        except (TypeError, ValueError, ArithmeticError) as error:
            raise DataError(
                f"values at {_shown(index)} cannot be read by xarray: {type(error).__name__}: "
                f"{error}; correct the attributes of the variable, or open it with "
                "mask_and_scale=False"
            ) from error

    def _values(self, index: Index) -> np.ndarray:
        """Return the values; if their array is of Zarr, its store tries again by itself."""
        if self.array is not None:
            return self._shown_values(index)
        return tried_again(lambda: self._shown_values(index), "it", self._what(index))

    def _shown_values(self, index: Index) -> np.ndarray:
        # Indexing makes a new variable: what it caches is gone with it.
        return self.variable[index].to_numpy()

    def _what(self, index: Index) -> str:
        """Name what is read, as far as it is known."""
        if self.array is None:
            return f"a variable of dimensions {self.variable.dims} at {_shown(index)}"
        return f"variable {self.array.name!r} of {self.array.place} at {_shown(index)}"

    def worker_side(self) -> Origin:
        return self


@dataclass(frozen=True)
class Held:
    """Values in this process's memory."""

    values: np.ndarray
    route: str = "memory"

    def open(self) -> None:
        pass

    def read(self, index: Index) -> np.ndarray:
        return self.values[index]

    def worker_side(self) -> Origin:
        if self.values.nbytes <= INLINE_BYTES and self.values.dtype.kind != "O":
            return Held(self.values.copy())
        return Absent(self.route)


@dataclass(frozen=True)
class HeldByPandas(Held):
    """Values of a dtype of pandas, in one dimension; `dtype` is NumPy's dtype that holds them."""

    values: Any
    dtype: np.dtype = OBJECT

    def read(self, index: Index) -> np.ndarray:
        return to_numpy(self.values[index[0]], self.dtype)

    def worker_side(self) -> Origin:
        if self.dtype == OBJECT or len(self.values) * self.dtype.itemsize > INLINE_BYTES:
            return Absent(self.route)
        return Held(to_numpy(self.values, self.dtype))


@dataclass(frozen=True)
class HeldBehind(Held):
    """Values in memory behind wrappers of xarray, which are applied when a part is read."""

    values: Any

    def read(self, index: Index) -> np.ndarray:
        return np.asarray(self.values[index].to_numpy())

    def worker_side(self) -> Origin:
        return Absent(self.route)


@dataclass(frozen=True)
class Blocked:
    """A dask array, which only the client holds: its blocks travel to workers with the tasks."""

    array: da.Array
    name: str
    route: str = "dask"

    @cached_property
    def check(self) -> BlockCheck:
        """The check of the blocks that Dask computes."""
        return BlockCheck.of(self.name, self.array)

    def open(self) -> None:
        pass

    def read(self, index: Index) -> np.ndarray:
        try:
            values = tried_again(
                lambda: np.asarray(self.array[index].compute()), "it", f"variable {self.name!r}"
            )
        except (MemoryError, DataError):
            raise
        except ReadFailed as error:
            raise store_failed(f"variable {self.name!r} at {_shown(index)}", error) from error
        except Exception as error:
            raise self.check.failed(error, index) from error
        return self.check.apply(values, index)

    def worker_side(self) -> Origin:
        return Absent(self.route)


@dataclass(frozen=True)
class Absent:
    """The origin of values that come with the task."""

    route: str

    def open(self) -> None:
        pass

    def read(self, index: Index) -> np.ndarray:
        raise RuntimeError("these values travel with the task: read them with blocks=")

    def worker_side(self) -> Origin:
        return self


@dataclass(frozen=True)
class Lacking(Absent):
    """The origin of values that stayed in the process that pickled the examples."""

    name: str
    reason: str

    def open(self) -> None:
        raise RuntimeError(
            f"the values of variable {self.name!r} are in the memory of the process that pickled "
            f"these examples: {self.reason}; write the Dataset to Zarr and give its path, or make "
            "the examples here with .rebind(dataset)"
        )

    def read(self, index: Index) -> np.ndarray:
        self.open()
        raise AssertionError("open() raises")

    def worker_side(self) -> Origin:
        return Absent(self.route)


@dataclass(frozen=True)
class Piece:
    """A part of one variable's stored values that was handed over to a task."""

    key: str
    starts: tuple[int, ...]
    values: np.ndarray

    def __sizeof__(self) -> int:
        return int(self.values.nbytes) + 200


Blocks = Mapping[str, Sequence[Piece]]


def assemble(pieces: Iterable[Piece], index: Index) -> np.ndarray:
    """Return the values at the index, put together from pieces.

    They have the index's shape and the pieces' dtype. One piece that holds them all gives a view,
    not a copy.

    Raises
    ------
    RuntimeError
        The pieces do not cover the index.
    """
    shape = tuple(cut.stop - cut.start for cut in index)
    if 0 in shape:
        return _empty(pieces, shape)
    overlapping = [(piece, common) for piece in pieces if (common := _overlap(piece, index))]
    for piece, common in overlapping:
        if common == index:
            return piece.values[_shifted(index, piece.starts)]
    seen = np.zeros(shape, dtype=bool)
    values = _empty((piece for piece, _ in overlapping), shape)
    begin = tuple(cut.start for cut in index)
    for piece, common in overlapping:
        place = _shifted(common, begin)
        values[place] = piece.values[_shifted(common, piece.starts)]
        seen[place] = True
    if not seen.all():
        raise RuntimeError(f"{int((~seen).sum())} of {seen.size} values were not handed over")
    return values


def origin_of(variable: xr.Variable, name: str) -> Origin:
    """Return the origin of a variable of a Dataset: of its values as they are shown.

    Messages call the variable by `name`.
    """
    data: Any = variable._data
    if type(data).__module__.partition(".")[0] == "dask":
        return Blocked(data, name)
    if isinstance(data, indexing.PandasIndexingAdapter):
        return _held_index(variable, data)
    if isinstance(data, ExtensionArray):
        return HeldByPandas(data, dtype=numpy_dtype(data))  # of text, which xarray cannot index
    if not variable._in_memory:
        return HeldBehind(variable) if is_behind_wrappers(data) else Lazy.of(variable)
    array = getattr(data, "array", None)
    if isinstance(array, ExtensionArray) and variable.ndim == 1:
        return HeldByPandas(array, dtype=numpy_dtype(array))
    return Held(variable.to_numpy())


def _held_index(variable: xr.Variable, data: indexing.PandasIndexingAdapter) -> Held:
    if isinstance(data.array, pd.MultiIndex):
        return HeldBehind(variable)
    if isinstance(data.array.dtype, np.dtype):
        return Held(variable.to_numpy())
    return HeldByPandas(data.array.array, dtype=numpy_dtype(data.array.array))


def _shown(index: Index) -> str:
    return f"[{', '.join(f'{cut.start}:{cut.stop}' for cut in index)}]"


def _overlap(piece: Piece, index: Index) -> Index | None:
    ends = [start + size for start, size in zip(piece.starts, piece.values.shape, strict=True)]
    common = tuple(
        slice(max(cut.start, start), min(cut.stop, end))
        for cut, start, end in zip(index, piece.starts, ends, strict=True)
    )
    return common if all(cut.start < cut.stop for cut in common) else None


def _shifted(index: Index, by: Sequence[int]) -> Index:
    moves = zip(index, by, strict=True)
    return tuple(slice(cut.start - move, cut.stop - move) for cut, move in moves)


def _empty(pieces: Iterable[Piece], shape: tuple[int, ...]) -> np.ndarray:
    for piece in pieces:
        return np.empty(shape, piece.values.dtype)
    return np.empty(shape)
