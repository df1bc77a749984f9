"""Arrays of Zarr stores that xarray reads on demand, opened again with this library's checks."""

from __future__ import annotations

import copy
from typing import Any

import xarray as xr

from dbdask.data.lazy_chains import without_cache
from dbdask.data.locations import Location, locate
from dbdask.data.zarr_arrays import ZarrArray


class ReopenedArray:
    """A Zarr array that is opened where it is read; a pickle carries only its place.

    Parameters
    ----------
    location, path
        The store, and the array in it.
    """

    def __init__(self, location: Location, path: str) -> None:
        self._location, self._path = location, path
        self._opened: list[ZarrArray] = []

    def __reduce__(self) -> tuple[object, ...]:
        return ReopenedArray, (self._location, self._path)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.opened(), name)

    def __getitem__(self, key: Any) -> Any:
        return self.opened()[key]

    def opened(self) -> ZarrArray:
        """Return the array."""
        if not self._opened:
            self._opened.append(self._location.open_array(self._path))
        return self._opened[0]

    @property
    def name(self) -> str:
        """The array's path in its store."""
        return self._path

    @property
    def place(self) -> str:
        """The store, as a message names it."""
        return str(self._location)


def guarded(variable: xr.Variable) -> tuple[xr.Variable, ReopenedArray | None]:
    """Return a lazy variable whose Zarr array is opened again, and that array or None.

    A variable of another kind of file, or behind wrappers that are not xarray's own, is returned
    as it is, but without its cache.
    """
    plain = without_cache(variable)
    data, array = _replaced(plain._data)
    if array is None:
        return plain, None
    return xr.Variable(plain.dims, data, fastpath=True), array


def _replaced(data: Any) -> tuple[Any, ReopenedArray | None]:
    """Return a copy of xarray's lazy array in which the Zarr array is opened again, and that array.

    xarray nests wrappers, each of which holds the next as `array`. If one of them is not xarray's
    own, the data come back as they are, with None.
    """
    if not type(data).__module__.startswith("xarray."):
        return data, None
    if type(data).__name__ == "ZarrArrayWrapper":
        known = data._array
        if isinstance(known, ReopenedArray):
            return data, known
        reopened = ReopenedArray(locate(known.store_path.store), known.path)
        changed = copy.copy(data)
        changed._array = reopened
        return changed, reopened
    if not hasattr(data, "array"):
        return data, None
    inner, array = _replaced(data.array)
    if array is None:
        return data, None
    changed = copy.copy(data)
    changed.array = inner
    return changed, array
