"""Indexing: the selections of isel, sel and where, along sample dimensions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from dbdask.arrays import BoolArray, Int64Array
from dbdask.data.alignment import put_in_place, same_labels
from dbdask.data.recipe import Recipe
from dbdask.data.selection import Mask, Selection, Spans


def isel_selection(
    recipe: Recipe, indexers: Mapping[str, object], method: str = "isel"
) -> Selection:
    """Return the selection cut by positions, which count within the present selection.

    Messages begin with `method`, which the user called: "isel" or "sel".

    Raises
    ------
    ValueError, TypeError, IndexError
        A dimension is not in `along`; positions do not ascend, or are out of bounds; or a windowed
        dimension is cut with a step.
    """
    selection = recipe.selection
    for dim, indexer in indexers.items():
        _check_dim(recipe, method, dim)
        spans = selection.along(dim)
        if dim in recipe.window.dims and _has_steps(indexer):
            raise ValueError(
                f"isel: {dim!r} has a window, which needs neighbours; give a slice without step"
            )
        selection = selection.with_spans(dim, _taken(dim, spans, indexer, method))
    return selection


def sel_indexers(
    recipe: Recipe, indexers: Mapping[str, object], method: str | None, tolerance: object
) -> dict[str, Int64Array]:
    """Return the positions of labels for each dimension, int64 (labels,), as xarray finds them.

    Raises
    ------
    ValueError, KeyError
        A dimension is not in `along` or has no coordinate, or a label is not there.
    """
    wanted: dict[str, dict[str, object]] = {}
    for name, label in indexers.items():
        wanted.setdefault(_dim_of(recipe, name), {})[name] = label
    return {
        dim: np.atleast_1d(_found(recipe, dim, labels, method, tolerance))
        for dim, labels in wanted.items()
    }


def _dim_of(recipe: Recipe, name: str) -> str:
    """Return the sample dimension with this name, or with a level of this name in its index."""
    for dim, coordinate in recipe.coordinates.items():
        if coordinate.labels is not None and name in coordinate.labels:
            return dim
    _check_dim(recipe, "sel", name)
    if name not in recipe.coordinates:
        raise ValueError(f"sel: {name!r} has no coordinate; use isel")
    return name


def _found(
    recipe: Recipe, dim: str, wanted: dict[str, object], method: str | None, tolerance: Any
) -> Int64Array:
    """Return the positions, among those selected, that xarray finds for labels: int64."""
    selected = recipe.selection.along(dim)
    coordinate = recipe.coordinates[dim]
    coords = coordinate.labels
    if coords is None:
        coords = xr.Coordinates({dim: coordinate.label_index()})
    whole = xr.Dataset({_POSITION: (dim, np.arange(len(coords[dim])))}, coords)
    here = whole
    if selected.count < whole.sizes[dim]:
        here = whole.isel({dim: selected.positions()})
    shown = ", ".join(f"{label!r}" for label in wanted.values())
    try:
        chosen = here.sel(wanted, method=method, tolerance=tolerance)[_POSITION].values
    except (TypeError, ValueError, pd.errors.InvalidIndexError) as error:
        raise ValueError(f"sel: {dim!r} cannot be cut by {shown}: {error}") from error
    except KeyError as error:
        labels = here.indexes[dim]
        raise KeyError(
            f"sel: {dim!r} has no coordinate {shown} among these examples; it goes from "
            f"{labels[0]} to {labels[-1]}"
        ) from error
    return selected.rank(np.atleast_1d(chosen))


_POSITION = "dbdask position"


def where_selection(recipe: Recipe, mask: xr.DataArray) -> Selection:
    """Return the selection with one more mask, over some of the sample dimensions.

    Raises
    ------
    TypeError, ValueError
        `mask` is no DataArray of dtype bool, has a dimension that is not in `along`, or fits
        neither the data nor the selection.
    """
    if not isinstance(mask, xr.DataArray):
        raise TypeError(f"where: mask must be a DataArray, got {type(mask).__name__}")
    if mask.dtype != bool:
        raise TypeError(f"where: mask must be of dtype bool, got {mask.dtype}")
    dims = tuple(str(dim) for dim in mask.dims)
    for dim in dims:
        _check_dim(recipe, "where", dim)
    return recipe.selection.masked(Mask.of(dims, _spread(recipe, mask, dims)))


def _spread(recipe: Recipe, mask: xr.DataArray, dims: tuple[str, ...]) -> BoolArray:
    """Return the mask over whole dimensions, matched by label or else by position."""
    values = mask.to_numpy()
    for axis, dim in enumerate(dims):
        size, selected = recipe.sizes[dim], recipe.selection.along(dim)
        if dim in mask.indexes and dim in recipe.coordinates:
            values = _by_label(recipe, mask, dim, values, axis)
            continue
        if values.shape[axis] == size:
            continue
        if values.shape[axis] != selected.count:
            raise ValueError(
                f"where: mask has length {values.shape[axis]} along {dim!r}, the data {size} and "
                f"these examples {selected.count}; give one of the two"
            )
        whole = np.zeros((*values.shape[:axis], size, *values.shape[axis + 1 :]), bool)
        before: tuple[Any, ...] = (slice(None),) * axis
        for rank, positions in selected.pieces():
            whole[(*before, positions)] = values[(*before, slice(rank, rank + len(positions)))]
        values = whole
    return values


def _by_label(
    recipe: Recipe, mask: xr.DataArray, dim: str, values: BoolArray, axis: int
) -> BoolArray:
    own, labels = mask.indexes[dim], recipe.coordinates[dim].label_index()
    if same_labels(own, labels):
        return values
    if not own.is_unique:
        raise ValueError(
            f"where: mask has the label {own[own.duplicated()][0]} twice along {dim!r}; give each "
            "once, or the labels of the data"
        )
    return put_in_place(values, axis, own, labels)


def _check_dim(recipe: Recipe, argument: str, dim: str) -> None:
    if dim not in recipe.along:
        raise ValueError(
            f"{argument}: dimension {dim!r} is not in along={recipe.along}; examples are cut along "
            "sample dimensions"
        )


def _has_steps(indexer: object) -> bool:
    return isinstance(indexer, slice) and indexer.step not in (None, 1)


def _taken(dim: str, spans: Spans, indexer: object, method: str) -> Spans:
    """Return the part of the spans at an indexer's positions, which count within the spans."""
    if isinstance(indexer, xr.DataArray):
        indexer = indexer.to_numpy()
    if isinstance(indexer, (int, np.integer)) and not isinstance(indexer, bool):
        indexer = [indexer]
    if isinstance(indexer, slice):
        chosen = range(*indexer.indices(spans.count))
        _check_order(dim, len(chosen), method, ascends=len(chosen) < 2 or chosen.step > 0)
        return spans.every(chosen[0], chosen[-1] + 1, max(chosen.step, 1))
    ranks = _ranks(dim, indexer, spans.count)
    _check_order(dim, len(ranks), method, ascends=not (np.diff(ranks) <= 0).any())
    return spans.take(ranks)


def _ranks(dim: str, given: object, count: int) -> Int64Array:
    """Return positions from 0, int64, of flags or of numbers that may count from the end."""
    indexer = np.asarray(given)
    if indexer.size and indexer.dtype.kind not in "iub":
        raise TypeError(
            f"isel: {dim!r} takes a position, a slice, a list of positions or of True and "
            f"False, got {given!r}"
        )
    if indexer.ndim == 0 and indexer.dtype.kind != "b":
        indexer = indexer.reshape(1)
    if indexer.ndim != 1:
        raise ValueError(f"isel: positions along {dim!r} must ascend without repeats")
    if indexer.dtype.kind == "b":
        if len(indexer) != count:
            raise IndexError(f"isel: {dim!r} has {count} positions, and {len(indexer)} flags")
        return np.flatnonzero(indexer)
    ranks = indexer.astype(np.int64)
    outside = (ranks < -count) | (ranks >= count)
    if outside.any():
        first = indexer[outside][0]
        raise IndexError(f"isel: {dim!r} has {count} positions: {first} is out of bounds")
    return np.where(ranks < 0, ranks + count, ranks)


def _check_order(dim: str, count: int, method: str, *, ascends: bool) -> None:
    if not ascends and method == "sel":
        raise ValueError(
            f"sel: the labels of {dim!r} must be given in the order of the data, without repeats"
        )
    if not ascends:
        raise ValueError(f"{method}: positions along {dim!r} must ascend without repeats")
    if not count:
        order = "; a slice goes in the order of the labels, as in xarray" if method == "sel" else ""
        raise ValueError(f"{method}: {dim!r} selects nothing: no examples{order}")
