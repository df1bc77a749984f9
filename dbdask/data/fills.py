"""Fills: chunks that are not in their store, and were read as the fill value."""

from __future__ import annotations

from collections.abc import Iterable

from dbdask.data.recipe import Recipe
from dbdask.data.routes import Stored
from dbdask.schedule.left_out import Fills

WORTH_A_WARNING = 0.01
"""The share of a variable's chunks that may be missing in the store without a warning."""


def fills_of(recipe: Recipe, blocks: Iterable[int]) -> dict[str, Fills]:
    """Return the chunks of some blocks that were read as fill value, by variable."""
    found: dict[str, Fills] = {}
    some = {v.key for v in recipe.variables if isinstance(v.origin, Stored) and v.origin.has_fills}
    if not some:
        return found
    for block in blocks:
        for variable, box in recipe.reads(block):
            if variable.key in some and isinstance(variable.origin, Stored):
                total = variable.origin.chunk_count(variable.index())
                chunks = variable.origin.fills(variable.index(box))
                if chunks:
                    found.setdefault(variable.name, Fills(total)).chunks.update(chunks)
    return found


def fill_warnings(fills: dict[str, Fills]) -> list[str]:
    """Return a warning for each variable with many chunks that are not in the store.

    Examples
    --------
    >>> fill_warnings({"x": Fills(1000, {3})})
    []
    >>> print(*fill_warnings({"x": Fills(40, {3, 4})}))
    variable 'x': 2 of 40 chunks (5.0 %) are not in the store and were read as its fill value; \
if data were deleted, restore them
    """
    return [
        f"variable {name!r}: {len(one.chunks)} of {one.total} chunks "
        f"({100 * len(one.chunks) / one.total:.1f} %) are not in the store and were read as its "
        "fill value; if data were deleted, restore them"
        for name, one in sorted(fills.items())
        if len(one.chunks) > WORTH_A_WARNING * one.total
    ]
