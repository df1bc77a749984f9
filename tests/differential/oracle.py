"""What examples must show, found position by position with NumPy, and what must be refused."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arguments import Asked
from .shown import Shown, World


@dataclass
class Selected:
    """The part of the sample space that cuts have left: runs of positions, and a mask."""

    runs: dict[str, list[tuple[int, int]]]
    mask: np.ndarray

    def positions(self, dim: str) -> np.ndarray:
        """Return the selected positions along a dimension."""
        runs = [np.arange(start, stop) for start, stop in self.runs[dim]]
        return np.concatenate([np.zeros(0, int), *runs]).astype(int)


@dataclass
class Table:
    """What is expected: a row for each position that is an example, missing ones aside.

    Parameters
    ----------
    positions
        The positions whose windows are whole; (rows, sample dimensions).
    places
        For each windowed dimension, in place of a position: those that the window sees.
    required, allowed
        Why an error must come, and why one may.
    """

    asked: Asked
    world: World
    selected: Selected
    positions: np.ndarray
    places: dict[str, np.ndarray]
    required: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    doubtful_values: bool = False
    inputs: np.ndarray | None = None
    inputs_tolerance: np.ndarray | None = None
    targets: np.ndarray | None = None
    targets_tolerance: np.ndarray | None = None
    gaps: np.ndarray | None = None  # of targets, where missing="mask"
    weights: np.ndarray | None = None
    kept: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    classes: list[Any] | None = None
    target_scaling: Any = None


def whole(world: World, asked: Asked) -> Selected:
    """Select everything."""
    runs = {dim: [(0, world.sizes[dim])] for dim in asked.along}
    return Selected(runs, np.ones([world.sizes[dim] for dim in asked.along], bool))


def as_runs(positions: list[int], starts: set[int]) -> list[tuple[int, int]]:
    """Return sorted positions as runs of neighbours; a run that began at a cut still does."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and runs[-1][1] == position and position not in starts:
            runs[-1][1] += 1
        else:
            runs.append([position, position + 1])
    return [(start, stop) for start, stop in runs]


def narrowed(selected: Selected, dim: str, positions: list[int]) -> Selected:
    """Keep some of the selected positions along a dimension."""
    starts = {start for start, _ in selected.runs[dim]}
    return Selected(selected.runs | {dim: as_runs(sorted(positions), starts)}, selected.mask)


def bounds(world: World, asked: Asked, selected: Selected, dim: str) -> np.ndarray:
    """Return, for every position, the first and the last one that its windows may see."""
    found = np.zeros((world.sizes[dim], 2), int)
    same = _same_group(world, asked, dim)
    for start, stop in selected.runs[dim]:
        for position in range(start, stop):
            low = high = position
            while low > start and same(low - 1, low):
                low -= 1
            while high + 1 < stop and same(high, high + 1):
                high += 1
            found[position] = low, high
    return found


def _same_group(world: World, asked: Asked, dim: str) -> Any:
    groups = world.variables[asked.groups] if asked.groups else None
    if groups is None or groups.dims != (dim,):
        return lambda one, two: True
    values = groups.values
    return lambda one, two: bool(values[one] == values[two])


def rows_of(world: World, asked: Asked, selected: Selected) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the positions that are examples, and what the windows of each see."""
    limits = {dim: bounds(world, asked, selected, dim) for dim in asked.along}
    rows = []
    for place in itertools.product(*(selected.positions(dim).tolist() for dim in asked.along)):
        if selected.mask[place] and _is_whole(asked, limits, place):
            rows.append(place)
    positions = np.array(rows, int).reshape(-1, len(asked.along))
    grid = np.meshgrid(
        *(np.arange(asked.offsets(d)[0], asked.offsets(d)[1] + 1) for d in asked.windowed),
        indexing="ij",
    )
    places = {}
    for axis, dim in enumerate(asked.along):
        centre = positions[:, axis].reshape(-1, *[1] * len(asked.windowed))
        if dim in asked.windowed:
            steps = grid[asked.windowed.index(dim)][None]
            low, high = limits[dim][positions[:, axis]].T
            shape = (-1, *[1] * len(asked.windowed))
            places[dim] = np.clip(centre + steps, low.reshape(shape), high.reshape(shape))
        else:
            places[dim] = np.broadcast_to(centre, (len(rows), *_window_shape(asked)))
    return positions, places


def _window_shape(asked: Asked) -> tuple[int, ...]:
    return tuple(asked.offsets(d)[1] - asked.offsets(d)[0] + 1 for d in asked.windowed)


def _is_whole(asked: Asked, limits: dict[str, np.ndarray], place: tuple[int, ...]) -> bool:
    if asked.edges != "drop":
        return True
    for dim in asked.windowed:
        position = place[asked.along.index(dim)]
        first, last = asked.offsets(dim)
        low, high = limits[dim][position]
        if position + first < low or position + last > high:
            return False
    return True


def taken(table: Table, shown: Shown, what: np.ndarray, dims: tuple[str, ...], window: bool) -> Any:
    """Take an array's elements for every row: (rows, *window, *features)."""
    along = table.asked.along
    own = [dim for dim in along if dim in shown.dims]
    order = [shown.dims.index(dim) for dim in (*own, *dims)]
    array = what.transpose(order)
    if window:
        index = tuple(table.places[dim] for dim in own)
        count = (len(table.positions), *_window_shape(table.asked))
    else:
        index = tuple(table.positions[:, along.index(dim)] for dim in own)
        count = (len(table.positions),)
    if not own:
        return np.broadcast_to(array, (*count, *array.shape))
    return array[index]


def feature_dims(shown: list[Shown], along: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return each variable's own dimensions; those of equal names in the order of the first."""
    found: list[tuple[str, ...]] = []
    for one in shown:
        dims = tuple(dim for dim in one.dims if dim not in along)
        found.append(next((other for other in found if set(other) == set(dims)), dims))
    return found


def together(parts: list[np.ndarray]) -> np.ndarray:
    """Stack parts of one shape on a last axis; flatten and join others."""
    if len(parts) == 1:
        return parts[0]
    if len({part.shape for part in parts}) == 1:
        return np.stack(parts, axis=-1)
    widths = [int(np.prod(part.shape[1:])) for part in parts]
    flat = [part.reshape(len(part), n) for part, n in zip(parts, widths, strict=True)]
    return np.concatenate(flat, axis=1)
