"""Examples that one block leaves out because a value is missing, and their classes."""

import numpy as np

from dbdask.data.gathering import Block, BlockGroup
from dbdask.data.missing import SLAB_ROWS
from dbdask.data.recipe import Recipe
from dbdask.schedule.left_out import LeftOut


def left_out_of(recipe: Recipe, block: Block) -> LeftOut:
    """Return the examples that a checked block leaves out."""
    total = recipe.rows
    found, kept = class_counts(recipe, block)
    classes = recipe.classes
    labels = None if classes is None else classes.labels
    gone = [number for number in found if number not in kept]
    return LeftOut(
        total,
        {block.number: block.rows},
        {block.number: block.missing} if block.missing else {},
        {block.number: block.bad_place} if block.bad_place else {},
        sum(1 << number for number in kept),
        {number: labels[number] if labels else number for number in gone},
    )


def class_counts(recipe: Recipe, block: Block) -> tuple[dict[int, int], dict[int, int]]:
    """Count a block's examples of each class: all of them, and those that are not left out."""
    found: dict[int, int] = {}
    kept: dict[int, int] = {}
    if recipe.classes is None:
        return found, kept
    number = len(recipe.inputs.variables)
    alone = BlockGroup(recipe, [block])
    for start in range(0, block.rows, SLAB_ROWS):
        rows = np.arange(start, min(start + SLAB_ROWS, block.rows))
        labels = alone.take(number, alone.locate(rows))[:, 0, 0]
        _count(found, labels if block.cut is None else labels[~block.cut[rows]])
        _count(kept, labels if block.valid is None else labels[block.valid[rows]])
    return found, kept


def _count(counts: dict[int, int], labels: np.ndarray) -> None:
    """Add labels, (rows,), to the counts; a missing label is below 0 and is not counted."""
    many = np.bincount(labels[labels >= 0])
    for label in np.flatnonzero(many).tolist():
        counts[label] = counts.get(label, 0) + int(many[label])
