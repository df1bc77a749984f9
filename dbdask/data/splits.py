"""Splits: parts of a selection, contiguous or drawn."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np

from dbdask.data.groups import GroupLedger, run_starts
from dbdask.data.recipe import Recipe
from dbdask.data.selection import Selection, as_spans

LEAST_PIECES = 20
"""Fewer whole chunks than this are drawn in equal pieces, so that fractions are kept."""


def check_seed(seed: Any) -> int:
    """Return a seed that random numbers can start from."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"split: seed must be a whole number or None, got {seed!r}")
    if seed < 0:
        raise ValueError(f"split: seed must be at least 0, got {seed}")
    return int(seed)


def check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Return one fraction per part; a lone one is followed by the rest.

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


def contiguous_parts(recipe: Recipe, fractions: Sequence[float]) -> list[Selection]:
    """Cut along the first sample dimension, in store order."""
    dim = recipe.along[0]
    selected = recipe.selection.positions(dim)
    cuts = np.round(np.cumsum([0.0, *fractions]) * len(selected)).astype(int)
    _check_parts(np.diff(cuts).tolist(), fractions, f"positions along {dim!r}")
    return [recipe.selection.narrowed(dim, np.arange(a, b)) for a, b in pairwise(cuts)]


def drawn_parts(
    recipe: Recipe, fractions: Sequence[float], seed: int, groups: np.ndarray | None
) -> list[Selection]:
    """Draw whole groups, or whole chunks along the dimension that has most of them.

    Parameters
    ----------
    recipe, fractions, seed
        What is split, and how.
    groups
        The group of every position along the groups' dimension; None: draw chunks.
    """
    if groups is not None:
        assert recipe.groups is not None
        dim = recipe.groups.dims[0]
        selected = recipe.selection.positions(dim)
        GroupLedger(recipe.groups.name).note(groups[selected], 0)  # one that returns is an error
        starts = run_starts(groups[selected])
        things = "groups"
    else:
        dim = max(recipe.along, key=lambda d: len(recipe.grid.lengths[recipe.along.index(d)]))
        selected = recipe.selection.positions(dim)
        starts = _piece_starts(recipe, dim, selected)
        things = f"pieces along {dim!r}"
    pieces = np.append(starts, len(selected))
    owner = _draw(np.diff(pieces), fractions, seed)
    _check_parts([int((owner == part).sum()) for part in range(len(fractions))], fractions, things)
    owners = np.repeat(owner, np.diff(pieces))
    old = frozenset(start for start, _ in recipe.selection.spans[recipe.along.index(dim)])
    return [
        recipe.selection.with_spans(dim, as_spans(selected[owners == part], old))
        for part in range(len(fractions))
    ]


def recipe_of_part(recipe: Recipe, selection: Selection, fraction: float) -> Recipe:
    """Return the recipe of one part; raise where it has positions, but no example."""
    part = replace(recipe, selection=selection)
    if part.block_rows.sum() == 0:
        cut = ", of those that .where kept" if selection.mask is not None else ""
        whole = "; its windows are longer than what was cut" if recipe.edges == "drop" else ""
        raise ValueError(
            f"split: no examples are left along {', '.join(recipe.along)} in the part of "
            f"{fraction:g}{cut}{whole}; give other fractions or another seed"
        )
    return part


def _piece_starts(recipe: Recipe, dim: str, selected: np.ndarray) -> np.ndarray:
    """Return where, in the selected positions, whole chunks or their pieces start."""
    edges = recipe.edges_of_blocks[recipe.along.index(dim)]
    parts = -(-LEAST_PIECES // (len(edges) - 1))
    finer = {
        int(start + (stop - start) * part // parts)
        for start, stop in pairwise(edges.tolist())
        for part in range(parts)
    }
    starts = np.unique(np.searchsorted(selected, sorted(finer)))
    return starts[starts < len(selected)]


def _draw(rows: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """Deal pieces out in a drawn order; -1 where a piece is in no part."""
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
