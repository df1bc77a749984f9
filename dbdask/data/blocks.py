"""Blocks: reading one from its source, in the order of the sample dimensions."""

from dataclasses import replace

import numpy as np

from dbdask.arrays import Int64Array
from dbdask.data.circles import read_box
from dbdask.data.gathering import Block, Part
from dbdask.data.groups import GroupLedger, known_groups, run_starts
from dbdask.data.missing import MissingValueCheck
from dbdask.data.recipe import Recipe
from dbdask.data.selection import CentreRuns
from dbdask.data.sources import Blocks, Variable


def read_block(
    recipe: Recipe, number: int, ledger: GroupLedger | None, brought: Blocks | None = None
) -> Block:
    """Read one block of the grid, halo included, and check its values.

    Parameters
    ----------
    recipe
        The recipe of the examples.
    number
        The block's number in the grid.
    ledger
        Records the groups that were seen; None if there are no groups.
    brought
        Values that came with the task, if this process cannot read them itself.

    Raises
    ------
    DataError
        A value is missing or infinite, a label is of no class, a weight is negative, a group
        returns, or a chunk cannot be decoded.
    """
    spread = recipe.block_centres(number)
    within = spread
    if recipe.groups is not None and ledger is not None:
        within = _within_groups(recipe, spread, ledger, brought)
    block = Block(number, within, _kept(recipe, within), [])
    shown: np.ndarray | None = None  # the labels as stored
    described = zip(recipe.roles, recipe.feature_dims, recipe.windows, strict=True)
    for number, ((role, variable), features, window) in enumerate(described):
        box = recipe.box(variable, spread, window)
        part = _read_part(recipe, variable, features, box, brought)
        if role == "targets" and recipe.classes is not None:
            shown, absent = variable.decode(part.values)
            codes = recipe.classes.encode(shown, absent)
            part = replace(part, values=codes.astype(recipe.classes.code_dtype))
        category = recipe.category(number)
        if category is not None:
            part = replace(part, values=category.encode(*variable.decode(part.values)))
        block.parts.append(part)
    MissingValueCheck(recipe, block, shown).apply()
    return block


def _read_part(
    recipe: Recipe,
    variable: Variable,
    features: tuple[str, ...],
    box: dict[str, slice],
    brought: Blocks | None,
) -> Part:
    """Read a box, which may cross seams, as (positions, features), the sample dimensions first."""
    stored = read_box(
        lambda stored: variable.read(stored, blocks=brought), box, variable.dims, variable.sizes
    )
    own = [dim for dim in recipe.along if dim in variable.dims]
    order = [variable.dims.index(dim) for dim in (*own, *features)]
    lengths = {dim: box[dim].stop - box[dim].start for dim in own}
    count = int(np.prod(list(lengths.values()), dtype=np.int64))
    width = int(np.prod([variable.sizes[dim] for dim in features], dtype=np.int64))
    values = np.ascontiguousarray(stored.transpose(order)).reshape(count, width)
    return Part(values, {dim: box[dim].start for dim in own}, lengths)


def _within_groups(
    recipe: Recipe, within: tuple[CentreRuns, ...], ledger: GroupLedger, brought: Blocks | None
) -> tuple[CentreRuns, ...]:
    """Return the centres, each of which sees no position outside its group."""
    assert recipe.groups is not None
    box = recipe.box(recipe.groups, within, recipe.window)
    (dim,) = recipe.groups.dims
    begin = box[dim].start
    values = known_groups(recipe.groups, recipe.groups.read(box, blocks=brought), begin)
    ledger.note(values, begin)
    starts = run_starts(values) + begin
    # A group may go on beyond the box: no window reaches that far.
    low = np.concatenate([[0], starts[1:]])
    high = np.append(starts[1:], np.iinfo(np.int64).max)
    axis = recipe.along.index(dim)
    narrowed = within[axis].kept_within(starts, low, high)
    return (*within[:axis], narrowed, *within[axis + 1 :])


def _kept(recipe: Recipe, within: tuple[CentreRuns, ...]) -> Int64Array | None:
    mask = recipe.selection.mask
    if mask is None:
        return None
    shape = [c.count for c in within]
    held = mask.over(recipe.along, [c.positions for c in within])
    return np.flatnonzero(np.broadcast_to(held, shape))
