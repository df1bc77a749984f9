"""Blocks of dask arrays: what they are made from, and checks of what Dask has computed.

Dask computes the blocks with code that is not this library's. Zarr reads a chunk that is not in
its store as the fill value, even if the whole array is gone, and a user's function may return
blocks of other lengths than it promised. Both are checked for every block that was computed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from dbdask.data.read_errors import read_error
from dbdask.data.stores import Vanished
from dbdask.data.zarr_arrays import ZarrArray
from dbdask.errors import DataError

if TYPE_CHECKING:
    import dask.array as da

_NUMBERS = "biuf"

MOST_DOCUMENTS = 8
"""The most files that are looked for after one box was computed."""


@dataclass(frozen=True)
class BlockCheck:
    """The checks of the blocks of a variable; small when pickled.

    Parameters
    ----------
    name
        The variable.
    documents
        The files that hold the metadata of the Zarr arrays from which the blocks are made. Arrays
        in folders only: another store is not asked again for every block.
    """

    name: str
    documents: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, array: da.Array) -> BlockCheck:
        """Return the check of a variable whose values are a dask array."""
        found = {path for one in source_arrays(array) if (path := _document(one))}
        return cls(name, tuple(sorted(found)))

    def for_box(self, index: tuple[slice, ...]) -> BlockCheck:
        """Return the check of one box, with a part of the documents if there are many.

        A Dataset may be made from thousands of stores. Which of them a box needs is not known, so
        its place selects some: the boxes of a pass look for all.
        """
        count = len(self.documents)
        if count <= MOST_DOCUMENTS:
            return self
        first = hash(tuple(cut.start for cut in index)) % count
        chosen = (self.documents + self.documents)[first : first + MOST_DOCUMENTS]
        return BlockCheck(self.name, chosen)

    def apply(self, values: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        """Return the values that Dask has computed for a box.

        They have the box's shape and the variable's dtype.

        Raises
        ------
        DataError
            They have another shape than the box, or a Zarr array that they are made from is gone.
        """
        promised = tuple(cut.stop - cut.start for cut in index)
        if values.shape != promised:
            raise DataError(
                f"variable {self.name!r} at [{_shown(index)}]: Dask has computed values of shape "
                f"{values.shape}, the chunks of the dask array promise {promised}; give "
                "map_blocks or from_delayed the true chunks or shape, or call "
                "compute_chunk_sizes()"
            )
        for document in self.for_box(index).documents:
            if _is_gone(document):
                gone = Vanished("the array is gone, as seen from this process")
                raise read_error(gone, self.name, index, os.path.dirname(document)) from gone
        return values

    def failed(self, error: Exception, index: tuple[slice, ...]) -> DataError:
        """Return the error to raise after Dask has failed to compute a box of the variable."""
        return DataError(
            f"variable {self.name!r} at [{_shown(index)}] cannot be computed by Dask: "
            f"{type(error).__name__}: {error}; correct its dask array, of which .compute() on the "
            "same positions shows the cause"
        )


def check_decoding(array: da.Array) -> None:
    """Raise the error of xarray's decoding functions if they fail on any values.

    These are the functions through which a Dataset shows the numbers of its store.
    """
    for wrapper in _wrappers(array):
        steps, data = [], wrapper
        while hasattr(data, "array"):
            if type(data).__name__ == "_ElementwiseFunctionArray":
                steps.append((data.func, data.dtype))
            data = data.array
        if data.dtype.kind not in _NUMBERS or any(d.kind not in _NUMBERS for _, d in steps):
            continue  # dates and text are decoded by xarray itself
        values = np.zeros(1, data.dtype)
        with np.errstate(all="ignore"):
            for step, _ in reversed(steps):
                values = np.asarray(step(values))


def source_arrays(array: da.Array) -> Iterator[ZarrArray]:
    """Yield the Zarr arrays that a dask array is made from, as far as its graph shows them."""
    for data in _sources(array):
        while type(data).__module__.startswith("xarray.") and hasattr(data, "array"):
            data = data.array
        if type(data).__name__ == "ZarrArrayWrapper":
            data = data._array
        if isinstance(data, zarr.Array):
            yield data


def _wrappers(array: da.Array) -> Iterator[Any]:
    """Yield xarray's wrappers of the arrays of files that a dask array is made from."""
    for data in _sources(array):
        if type(data).__module__.startswith("xarray."):
            yield data


def _sources(array: da.Array) -> Iterator[Any]:
    """Yield the objects that `dask.array.from_array` was given."""
    for name, layer in getattr(array.__dask_graph__(), "layers", {}).items():
        if name.startswith("original-") and len(layer) == 1:
            (data,) = dict(layer).values()
            yield getattr(data, "value", data)


def _document(array: ZarrArray) -> str:
    """Return the path of the file with an array's metadata; empty if it is in no folder.

    A store may hold the metadata of its arrays in one document only: then there is no such file.
    """
    store = array.store_path.store
    if not isinstance(store, LocalStore):
        return ""
    folder = os.path.join(os.path.abspath(store.root), array.path)
    name = "zarr.json" if array.metadata.zarr_format == 3 else ".zarray"
    path = os.path.join(folder, name)
    return path if os.path.exists(path) or not os.path.exists(folder) else ""


def _is_gone(path: str) -> bool:
    """Return whether a file is not there; any other trouble of the file system is not that."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def _shown(index: tuple[slice, ...]) -> str:
    return ", ".join(f"{cut.start}:{cut.stop}" for cut in index)
