"""Splits: parts of a selection, contiguous or drawn."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np

from dbdask.arrays import BoolArray, Int64Array
from dbdask.data.groups import starts_of_groups
from dbdask.data.recipe import Recipe
from dbdask.data.selection import Selection, Spans
from dbdask.data.spans import distinct

LEAST_PIECES = 20
"""If there are fewer chunks, each is cut into equal pieces, so that parts have their sizes."""


def check_seed(seed: Any) -> int:
    """Return a seed as an int.

    Raises
    ------
    TypeError, ValueError
        It is no whole number, or below 0.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"split: seed must be a whole number or None, got {seed!r}")
    if seed < 0:
        raise ValueError(f"split: seed must be at least 0, got {seed}")
    return int(seed)


def check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Return one fraction per part; a lone fraction is followed by the rest.

    Raises
    ------
    TypeError, ValueError
        A fraction is no number between 0 and 1, or they add up to more than 1.

    Examples
    --------
    >>> check_fractions([0.75])
    (0.75, 0.25)
    """
    if not fractions:
        raise ValueError("split needs at least one fraction, got none")
    for fraction in fractions:
        if isinstance(fraction, bool) or not isinstance(fraction, Real):
            raise TypeError(f"split: a fraction must be a number, got {fraction!r}")
        if not 0 < fraction < 1:
            raise ValueError(f"split: a fraction must be above 0 and below 1, got {fraction}")
    if sum(fractions) > 1 + 1e-9:
        raise ValueError(f"split: the fractions must add up to at most 1, got {sum(fractions)}")
    return (fractions[0], 1 - fractions[0]) if len(fractions) == 1 else tuple(fractions)


def check_overlap(overlap: Any, seed: int | None) -> bool:
    """Return whether the windows of a part may reach back into the part before.

    Raises
    ------
    TypeError, ValueError
        It is no truth value; or parts are drawn, so that none is before another.
    """
    if not isinstance(overlap, bool | np.bool_):
        raise TypeError(f"split: overlap must be True or False, got {overlap!r}")
    if overlap and seed is not None:
        raise ValueError(
            f"split: overlap=True needs parts in store order, with seed=None, got seed={seed!r}; "
            "of drawn parts none is before another"
        )
    return bool(overlap)


def contiguous_parts(
    recipe: Recipe, fractions: Sequence[float], overlap: bool = False
) -> list[Selection]:
    """Return one selection per part, cut along the first sample dimension in store order.

    With `overlap`, the windows of a part may see the parts before.

    Raises
    ------
    ValueError
        A part gets no position.
    """
    dim = recipe.along[0]
    selected = recipe.selection.along(dim)
    cuts = np.round(np.cumsum([0.0, *fractions]) * selected.count).astype(int)
    _check_parts(np.diff(cuts).tolist(), fractions, f"positions along {dim!r}")
    parts = [selected.part(a, b) for a, b in pairwise(cuts.tolist())]
    found = [recipe.selection.with_spans(dim, part) for part in parts]
    if not overlap:
        return found
    begins = [recipe.selection.begin(dim, cut) for cut in cuts[:-1].tolist()]
    return [one.seeing_past(dim, begin) for one, begin in zip(found, begins, strict=True)]


def drawn_parts(recipe: Recipe, fractions: Sequence[float], seed: int) -> list[Selection]:
    """Return one selection per part, of drawn groups, or of drawn chunks.

    Chunks are drawn along the dimension that has most of them.

    Raises
    ------
    DataError
        A group is missing, or returns after another one.
    ValueError
        A part gets no group, or no chunk.
    """
    if recipe.groups is not None:
        (dim,) = recipe.groups.dims
        selected = recipe.selection.along(dim)
        starts = starts_of_groups(recipe.groups, selected)
        things = "groups"
    else:
        dim = max(recipe.along, key=lambda d: len(recipe.grid.lengths[recipe.along.index(d)]))
        selected = recipe.selection.along(dim)
        starts = _piece_starts(recipe, dim, selected)
        things = f"pieces along {dim!r}"
    pieces = np.append(starts, selected.count)
    owner = _draw(np.diff(pieces), fractions, seed)
    _check_parts([int((owner == part).sum()) for part in range(len(fractions))], fractions, things)
    parts = [_owned(selected, pieces, owner == part) for part in range(len(fractions))]
    return [recipe.selection.with_spans(dim, part) for part in parts]


def _owned(selected: Spans, pieces: Int64Array, owned: BoolArray) -> Spans:
    """Return the pieces that a part owns, with neighbours joined.

    Parameters
    ----------
    pieces
        Ranks at which pieces begin, and the number of positions: int64, (pieces + 1,).
    owned
        Which pieces the part owns: bool, (pieces,).
    """
    changes = np.flatnonzero(np.diff(np.concatenate([[False], owned, [False]]).astype(np.int8)))
    return selected.pick(pieces[changes[::2]], pieces[changes[1::2]])


def recipe_of_part(recipe: Recipe, selection: Selection, fraction: float) -> Recipe:
    """Return the recipe of one part; raise ValueError if it has no example."""
    part = replace(recipe, selection=selection)
    if part.rows == 0:
        cut = ", of those that .where kept" if selection.mask is not None else ""
        whole = "; its windows are longer than what was cut" if recipe.drops_edges else ""
        raise ValueError(
            f"split: no examples are left along {', '.join(recipe.along)} in the part of "
            f"{fraction:g}{cut}{whole}; give other fractions or another seed"
        )
    return part


def _piece_starts(recipe: Recipe, dim: str, selected: Spans) -> Int64Array:
    """Return the ranks, among selected positions, at which chunks or their pieces start."""
    edges = recipe.grid.lengths[recipe.along.index(dim)].edges
    parts = -(-LEAST_PIECES // (len(edges) - 1))
    finer = edges[:-1, None] + np.diff(edges)[:, None] * np.arange(parts) // parts
    starts = distinct(selected.rank(finer.reshape(-1)))
    return starts[starts < selected.count]


def _draw(rows: Int64Array, fractions: Sequence[float], seed: int) -> Int64Array:
    """Return the part of each piece, dealt in a drawn order; -1 for none: int64, (pieces,)."""
    order = np.random.default_rng(seed).permutation(len(rows))
    middles = np.cumsum(rows[order]) - rows[order] / 2
    bounds = np.cumsum(fractions) * rows.sum()
    dealt = np.searchsorted(bounds, middles)
    dealt[dealt == len(fractions)] = len(fractions) - 1 if sum(fractions) > 1 - 1e-9 else -1
    owner = np.empty(len(rows), int)
    owner[order] = dealt
    return owner


def _check_parts(counts: Sequence[int], fractions: Sequence[float], things: str) -> None:
    for count, fraction in zip(counts, fractions, strict=True):
        if count < 1:
            raise ValueError(
                f"split: the part of {fraction:g} gets none of the {things}; give larger "
                "fractions, or split data with more of them"
            )
