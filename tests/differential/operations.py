"""Chains of xarray operations, drawn for the Dataset at hand and done again on another of it."""

import warnings

import numpy as np
import xarray as xr

from . import changing, moving
from .kinds import choose
from .operation import Operation, Random, Step

OPERATIONS = (
    moving.reindex,
    moving.reindex,
    moving.reindex_with_fill,
    moving.shift,
    moving.shift,
    changing.shift_one,
    moving.roll,
    moving.merge,
    moving.merge,
    moving.concat,
    moving.concat,
    changing.where,
    changing.where,
    moving.where_everywhere,
    moving.sortby,
    moving.stack,
    moving.isel_slice,
    moving.isel_slice,
    moving.isel_list,
    moving.isel_number,
    moving.rename,
    moving.swap_names,
    moving.assign_coords,
    moving.drop_index,
    changing.assign,
    changing.assign,
    moving.transpose,
    changing.astype,
    changing.drop_encoding,
    changing.through_pickle,
    changing.through_deepcopy,
    changing.load_one,
    moving.align,
    changing.fillna,
    moving.expand_dims,
    changing.chunk,
    changing.set_encoding,
    changing.set_coords,
    changing.change_in_place,
)


def draw_operations(rng: Random, dataset: xr.Dataset) -> tuple[list[Operation], xr.Dataset]:
    """Draw 0 to 4 operations; what xarray itself cannot do is drawn anew."""
    done: list[Operation] = []
    wanted = choose(rng, (0, 1, 2, 3, 4), (3, 4, 3, 2, 2))
    for _ in range(4 * wanted):
        if len(done) == wanted:
            break
        draw = choose(rng, OPERATIONS)
        drawn = draw(rng, dataset)
        if drawn is None:
            continue
        operation = Operation(draw.__name__, *drawn)
        try:
            after = quietly(operation.step, dataset)
            for variable in after.variables.values():
                _look_at(variable.copy(deep=False))
        except Exception:  # of every kind: what xarray cannot do is no case
            continue
        if all(0 < size <= 120 for size in after.sizes.values()):
            done.append(operation)
            dataset = after
    return done, dataset


def quietly(step: Step, dataset: xr.Dataset) -> xr.Dataset:
    """Do a step; what xarray warns of is not of interest here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return step(dataset)


def _look_at(variable: xr.Variable) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.asarray(variable.data)
