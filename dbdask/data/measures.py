"""Measures: the moments, the labels and the missing values of one block."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dbdask.arrays import BoolArray, Int64Array
from dbdask.data.feature_sets import FeatureSet
from dbdask.data.feed import Reader
from dbdask.data.fills import fills_of
from dbdask.data.labels import Label
from dbdask.data.leaving_out import class_counts
from dbdask.data.recipe import Recipe
from dbdask.data.selection import Mask, Spans
from dbdask.data.sources import Blocks, Variable
from dbdask.data.standardization import Moments, lost_in_float64
from dbdask.errors import DataError
from dbdask.schedule.left_out import Fills

SLAB_BYTES = 16 * 2**20
"""Bytes of float64 that are measured at a time."""


@dataclass(frozen=True)
class MeasureMoments:
    """Measures the moments of variables in a block: each position once, also under windows.

    Parameters
    ----------
    variables
        Role and place in their role of the variables.
    per
        "variable" or "feature".
    mask
        The mask of the examples.
    """

    variables: tuple[tuple[str, int], ...]
    per: str
    mask: Mask | None

    def __call__(
        self, reader: Reader, block: int, blocks: Blocks | None
    ) -> tuple[Moments | None, ...]:
        recipe = reader.recipe
        return tuple(
            self._of(recipe, recipe.features(role), number, block, blocks)
            for role, number in self.variables
        )

    def _of(
        self, recipe: Recipe, features: FeatureSet, number: int, block: int, blocks: Blocks | None
    ) -> Moments | None:
        """Return a variable's moments; None where another block has the same positions."""
        variable = features.variables[number]
        own = [dim for dim in recipe.along if dim in variable.dims]
        chosen = {}
        for dim, cut in zip(recipe.along, recipe.grid.box(block), strict=True):
            selected = recipe.selection.along(dim)
            if dim not in own and not _is_first(selected, cut):
                return None
            chosen[dim] = selected.between(cut.start, cut.stop)
        box = {dim: slice(int(chosen[dim].starts[0]), int(chosen[dim].stops[-1])) for dim in own}
        stored = variable.read(box, blocks=blocks)
        order = [variable.dims.index(d) for d in (*own, *features.feature_dims[number])]
        values = stored.transpose(order)
        positions = {dim: spans.positions() for dim, spans in chosen.items() if dim in own}
        wanted = tuple(positions[dim] - box[dim].start for dim in own)
        held = _held(recipe, self.mask, own, positions)
        return _moments(variable, values, wanted, held, self.per)


def _is_first(selected: Spans, cut: slice) -> bool:
    """Say whether a block is the first along a dimension that holds something selected."""
    return bool(cut.start <= selected.starts[0] < cut.stop)


def _held(
    recipe: Recipe, mask: Mask | None, own: list[str], positions: dict[str, Int64Array]
) -> BoolArray | None:
    """Return which of the variable's positions the mask keeps for some example: their product."""
    if mask is None:
        return None
    spared = {dim: recipe.selection.along(dim) for dim in mask.dims if dim not in own}
    return mask.any_over({dim: positions[dim] for dim in own}, spared)


def _moments(
    variable: Variable,
    values: np.ndarray,
    wanted: tuple[Int64Array, ...],
    held: BoolArray | None,
    per: str,
) -> Moments:
    """Return the moments of values at `wanted` positions, measured in slabs of the first axis.

    Parameters
    ----------
    values
        As stored: the sample dimensions first, then the features.
    wanted
        Along each sample dimension, the positions that count.
    held
        Which of the product of `wanted` count; None: all.
    per
        "variable" or "feature".
    """
    width = int(np.prod(values.shape[len(wanted) :], dtype=np.int64))
    first = wanted[0] if wanted else np.zeros(1, np.int64)
    values = values if wanted else values[None]
    rest = wanted[1:]
    one = max(1, int(np.prod([len(w) for w in rest], dtype=np.int64)) * width * 8)
    step = max(1, SLAB_BYTES // one)
    total: Moments | None = None
    for start in range(0, len(first), step):
        part = values[first[start : start + step]]
        for axis, index in enumerate(rest, 1):
            part = part.take(index, axis=axis)
        flat = part.reshape(-1, width)
        if held is not None:
            flat = flat[np.atleast_1d(held)[start : start + step].reshape(-1)]
        values_here, lost = _checked(variable, flat)
        found = Moments.of(values_here, per, lost)
        total = found if total is None else total + found
    assert total is not None
    return total


def _checked(variable: Variable, stored: np.ndarray) -> tuple[np.ndarray, float]:
    """Return decoded values with NaN for missing ones, and what float64 rounds off them."""
    decoded, missing = variable.decode(stored)
    if decoded.dtype.kind == "f" and np.isinf(decoded).any():
        raise DataError(
            f"variable {variable.name!r} holds an infinite value; correct it in the store, or cut "
            "it out with .where"
        )
    lost = lost_in_float64(decoded, missing)
    if missing is None:
        return decoded, lost
    return np.where(missing, np.nan, decoded.astype(np.float64)), lost


@dataclass(frozen=True)
class MeasureLabels:
    """Finds the labels of variables that occur at the examples of a block.

    Parameters
    ----------
    variables
        Role and place in their role of the variables.
    """

    variables: tuple[tuple[str, int], ...]

    def __call__(
        self, reader: Reader, block: int, blocks: Blocks | None
    ) -> tuple[list[Label], ...]:
        recipe = reader.recipe
        return tuple(
            _labels(recipe, recipe.features(role), number, block, blocks)
            for role, number in self.variables
        )


def _labels(
    recipe: Recipe, features: FeatureSet, number: int, block: int, blocks: Blocks | None
) -> list[Label]:
    """Return the different labels of a variable at the examples of a block."""
    variable = features.variables[number]
    within = recipe.block_centres(block)
    box = recipe.box(variable, within)
    own = [dim for dim in recipe.along if dim in variable.dims]
    order = [variable.dims.index(dim) for dim in (*own, *features.feature_dims[number])]
    index = [within[recipe.along.index(dim)].positions - box[dim].start for dim in own]
    values, missing = variable.decode(variable.read(box, blocks=blocks))
    labels = values.transpose(order)[np.ix_(*index)]
    keep = np.ones(labels.shape, bool)
    if missing is not None:
        keep &= ~missing.transpose(order)[np.ix_(*index)]
    here = {d: within[recipe.along.index(d)].positions for d in recipe.along}
    held = _held(recipe, recipe.selection.mask, own, here)
    if held is not None:
        keep &= held.reshape(held.shape + (1,) * (keep.ndim - held.ndim))
    found: list[Label] = pd.unique(labels[keep]).tolist()
    return found


@dataclass(frozen=True)
class BlockCount:
    """Counts of one block: its examples, and those that are left out of it."""

    block: int
    rows: int
    dropped: int
    missing: int
    place: str
    classes: dict[int, int]
    kept_classes: dict[int, int]
    fills: dict[str, Fills]


def read_as_training(reader: Reader, block: int, blocks: Blocks | None) -> None:
    """Read a block as training would, to raise what is wrong with its values."""
    reader.raw_block(block, blocks)


def measure_block(reader: Reader, block: int, blocks: Blocks | None) -> BlockCount:
    """Read a block as training would, and count its examples."""
    read = reader.raw_block(block, blocks)
    dropped = 0 if read.valid is None else int((~read.valid).sum())
    found, kept = class_counts(reader.recipe, read)
    fills = fills_of(reader.recipe, [block])
    return BlockCount(block, read.rows, dropped, read.missing, read.bad_place, found, kept, fills)
