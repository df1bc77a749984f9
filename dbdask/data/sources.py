"""Sources: data that a user gives, opened, with any of the four routes to their values.

The interface, as the other modules of the package use it::

    source = open_source(data)             # path, URL, Zarr store or Dataset; reads metadata only
    source.route                           # "store", "lazy", "dask" or "memory"
    source.variables, source.coords        # {name: Variable}; coords is a part of variables
    source.sizes, source.attrs
    variable = source.variable("temperature")        # or a DataArray, which need not be in data

    variable.lengths["time"]               # block lengths (whole Zarr chunks, or shards)
    stored = variable.read({"time": slice(0, 100)})  # stored dtype, the variable's own dim order
    values, missing = variable.decode(stored)        # in the dtype that holds them; mask | None
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
keys that are not needed, and variables that read for themselves ignore it: pass it to every
`read`. `dbdask.data.block_provider` makes the pieces. It asks the recipe of the examples for::

    recipe.reads(block) -> Iterable[tuple[Variable, dict[str, slice]]]

every (client-side variable, box) that the worker will `read` to serve this block of the grid,
halo of the window included. The boxes that the worker reads must lie within these.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pandas as pd
import xarray as xr
from zarr.abc.store import Store

from dbdask.data.alignment import first_difference
from dbdask.data.decoding import Attributes
from dbdask.data.frames import Frame, dataset_of, is_frame
from dbdask.data.listing import list_arrays
from dbdask.data.locations import Location, locate
from dbdask.data.routes import Blocks, Piece
from dbdask.data.variables import Variable, variable_of_array, variable_of_zarr
from dbdask.data.zarr_arrays import ZarrArray
from dbdask.errors import DataError

__all__ = ["Blocks", "Data", "Piece", "Source", "Variable", "open_source"]

Data = str | os.PathLike[str] | Store | xr.Dataset | Frame
"""The data that a user may give."""

Route = Literal["store", "lazy", "dask", "memory"]


class Source:
    """An opened dataset: its variables, and the routes to their values."""

    def __init__(
        self,
        variables: Mapping[str, Variable],
        coords: frozenset[str],
        attrs: Attributes,
        *,
        description: str,
        unnamed: frozenset[str] = frozenset(),
        refused: Mapping[str, str] | None = None,
        location: Location | None = None,
        dataset: xr.Dataset | None = None,
    ) -> None:
        self.variables: Mapping[str, Variable] = dict(variables)
        self.coords = {name: variables[name] for name in sorted(coords)}
        self.attrs = dict(attrs)
        self.sizes = _sizes(variables.values())
        self.description = description
        self._unnamed = unnamed
        self._refused = dict(refused or {})
        self._location = location
        self._dataset = dataset

    def __repr__(self) -> str:
        sizes = ", ".join(f"{dim}: {size}" for dim, size in self.sizes.items())
        return f"Source({self.description}, route={self.route!r}, {sizes})"

    @property
    def route(self) -> Route:
        """The route of the variables without coordinates; of several, dask, memory, then lazy."""
        found = {v.route for name, v in self.variables.items() if name not in self.coords}
        found = found or {variable.route for variable in self.variables.values()}
        order: tuple[Route, ...] = ("dask", "memory", "lazy", "store")
        return next((route for route in order if route in found), "memory")

    def shows_the_same(self, other: Source) -> bool:
        """Return whether the other is the same Dataset object, or the same path, URL or store."""
        if self._dataset is not None:
            return self._dataset is other._dataset
        mine, yours = self._location, other._location
        if mine is None or yours is None:
            return False
        return mine.store is yours.store if mine.store is not None else mine == yours

    def labels(self, dim: str) -> pd.Index | None:
        """Return the index of a dimension; None if it has none."""
        variable = self.coords.get(dim)
        return None if variable is None or variable.dims != (dim,) else variable.label_index()

    def variable(self, given: str | xr.DataArray | Variable) -> Variable:
        """Return the variable of a name or of a DataArray; a Variable as it is.

        Raises
        ------
        ValueError
            There is no such variable, it has no dimension names, its metadata are wrong, it is
            stored with a codec that runs code, or a DataArray's length or index coordinate along a
            shared dimension differs.
        TypeError
            `given` is something else.
        """
        if isinstance(given, Variable):
            return given
        if isinstance(given, xr.DataArray):
            return self._of_array(given)
        if not isinstance(given, str):
            raise TypeError(f"a variable is a name or a DataArray, got {type(given).__name__}")
        if given in self.variables:
            return self.variables[given]
        if given in self._refused:
            raise ValueError(self._refused[given])
        if given in self._unnamed:
            raise ValueError(
                f"variable {given!r} of {self.description} has no dimension names; write it with "
                "xarray, or set dimension_names (Zarr v3) or the attribute _ARRAY_DIMENSIONS (v2)"
            )
        known = ", ".join(sorted(self.variables)) or "none"
        raise ValueError(f"no variable {given!r} in {self.description}; it has: {known}")

    def to_dataset(self) -> xr.Dataset:
        """Return the data as a Dataset: the one given, or the store opened lazily.

        Raises
        ------
        RuntimeError
            This is a worker's side, which has no Dataset.
        DataError
            The store gave no answer within `dbdask.read`.
        """
        if self._dataset is not None:
            return self._dataset
        if self._location is None:
            raise RuntimeError("the Dataset stayed with the client; only its variables travel")
        group = self._location.open_group()
        consolidated = group.metadata.consolidated_metadata is not None

        def opened() -> xr.Dataset:
            dataset: xr.Dataset = xr.open_zarr(
                group.store,
                chunks=None,
                consolidated=consolidated,
                drop_variables=sorted({*self._unnamed, *self._refused}),
            )
            return dataset

        nbytes = sum(variable.nbytes for variable in self.coords.values())
        return self._location.ask(opened, "the coordinates", nbytes)

    def coordinates(self) -> xr.Dataset:
        """Return the coordinates alone: as xarray opens them, or as this source reads them.

        xarray refuses a whole store because of one attribute, even of a variable that is no
        coordinate; then this source reads the coordinates.
        """
        with warnings.catch_warnings():
            # xarray warns of every variable.
            warnings.simplefilter("ignore", xr.SerializationWarning)
            try:
                return self.to_dataset().coords.to_dataset()
            except DataError:
                raise
            except (TypeError, ValueError, ArithmeticError):
                known = {n: (v.dims, v.coordinate(), v.attrs) for n, v in self.coords.items()}
                return xr.Dataset(coords=known)

    def open(self) -> None:
        """Open every variable in this process."""
        for variable in self.variables.values():
            variable.open()

    def worker_side(self) -> Source:
        """Return the source that travels in a task: small when pickled, without the Dataset."""
        return Source(
            {name: variable.worker_side() for name, variable in self.variables.items()},
            frozenset(self.coords),
            self.attrs,
            description=self.description,
            unnamed=self._unnamed,
            refused=self._refused,
            location=self._location,
        )

    def _of_array(self, array: xr.DataArray) -> Variable:
        name = str(array.name) if array.name is not None else "unnamed"
        if self._dataset is not None and self._dataset.variables.get(name) is array.variable:
            return self.variables[name]
        variable = variable_of_array(name, array.variable)
        for dim, size in variable.sizes.items():
            if self.sizes.get(dim, size) != size:
                raise ValueError(
                    f"DataArray {name!r} has length {size} along {dim!r}, "
                    f"{self.description} has {self.sizes[dim]}; align them with xarray.align"
                )
            self._check_labels(name, array, dim)
        return variable

    def _check_labels(self, name: str, array: xr.DataArray, dim: str) -> None:
        labels = self.labels(dim) if dim in array.indexes else None
        if labels is None:
            return
        own = array.indexes[dim]
        place = first_difference(own, labels)
        if place is not None:
            raise ValueError(
                f"DataArray {name!r} is at {dim}={own[place]} where {self.description} is at "
                f"{dim}={labels[place]} (position {place}); align them with xarray.align, or give "
                "array.reindex_like(data)"
            )


def open_source(data: Data | Source) -> Source:
    """Open a Zarr store (path, URL, store object), a Dataset or a DataFrame; metadata only.

    Paths are made absolute. Zarr v2, v3 and sharded arrays are read.

    Raises
    ------
    FileNotFoundError
        A path does not exist.
    ValueError
        It is not a Zarr group, or none of its arrays has dimension names.
    DataError
        The store gave no answer within `dbdask.read`.
    TypeError
        `data` is something else.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, xr.Dataset):
        return _source_of_dataset(data)
    if is_frame(data):
        return _source_of_dataset(dataset_of(data))
    if isinstance(data, xr.DataArray):
        raise TypeError("data is a DataArray; give data.to_dataset(name=...)")
    if isinstance(data, (str, os.PathLike, Store)):
        return _source_of_store(locate(data))
    raise TypeError(
        "data must be a path, a URL, a Zarr store, a DataFrame or an xarray Dataset, got "
        f"{type(data).__name__}"
    )


def _source_of_store(location: Location) -> Source:
    group = location.open_group()
    arrays, refused = list_arrays(location, group)
    dims = {name: _dims(array) for name, array in arrays.items()}
    named = {name: found for name, found in dims.items() if found is not None}
    if not named and refused:
        raise ValueError(f"data: {next(iter(refused.values()))}")
    if not named:
        held = ", ".join(sorted(arrays)) or "no arrays"
        raise ValueError(
            f"data: no array of {location} has dimension names (found: {held}); write it with "
            "xarray, or set dimension_names (Zarr v3) or the attribute _ARRAY_DIMENSIONS (v2)"
        )
    variables = {
        name: variable_of_zarr(location, arrays[name], named[name], name) for name in named
    }
    attrs = dict(group.attrs)
    texts = [attrs.get("coordinates"), *(arrays[name].attrs.get("coordinates") for name in named)]
    listed = {word for text in texts if isinstance(text, str) for word in text.split()}
    coords = {name for name in named if named[name] == (name,) or name in listed}
    unnamed = frozenset(arrays) - frozenset(named)
    return Source(
        variables,
        frozenset(coords),
        attrs,
        description=str(location),
        unnamed=unnamed,
        refused=refused,
        location=location,
    )


def _source_of_dataset(dataset: xr.Dataset) -> Source:
    _check_names("variables", dataset.variables)
    _check_names("dimensions", dataset.sizes)
    indexed = dataset.xindexes
    variables = {
        str(name): variable_of_array(
            str(name), variable, str(name), _labels(dataset, name) if name in indexed else None
        )
        for name, variable in dataset.variables.items()
    }
    coords = frozenset(str(name) for name in dataset.coords)
    return Source(
        variables, coords, dataset.attrs, description="the given Dataset", dataset=dataset
    )


def _check_names(what: str, names: Iterable[object]) -> None:
    """Raise ValueError if two names, of which one is no text, are the same as text."""
    known: dict[str, object] = {}
    for name in names:
        other = known.setdefault(str(name), name)
        if other is not name:
            raise ValueError(
                f"data: two {what} of the given Dataset are called {other!r} and {name!r}, which "
                "are the same as text; rename one of them"
            )


def _labels(dataset: xr.Dataset, name: object) -> xr.Coordinates:
    """Return all the coordinates of the index that one coordinate belongs to."""
    names = dataset.xindexes.get_all_coords(name)
    indexes = {other: dataset.xindexes[other] for other in names}
    return xr.Coordinates({other: dataset.variables[other] for other in names}, indexes)


def _dims(array: ZarrArray) -> tuple[str, ...] | None:
    """Return the dimension names of an array; None if an axis has no name of its own."""
    if array.metadata.zarr_format == 3:
        names: Any = array.metadata.dimension_names
    else:
        names = array.attrs.get("_ARRAY_DIMENSIONS")
    if names is None:
        return () if array.ndim == 0 else None
    complete = len(names) == array.ndim and all(isinstance(name, str) for name in names)
    return tuple(names) if complete and len(set(names)) == len(names) else None


def _sizes(variables: Iterable[Variable]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for variable in variables:
        for dim, size in variable.sizes.items():
            if sizes.setdefault(dim, size) != size:
                raise ValueError(
                    f"dimension {dim!r} has length {sizes[dim]} and, in variable "
                    f"{variable.name!r}, {size}; every variable must have the same length"
                )
    return sizes
