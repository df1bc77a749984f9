"""What is asked of `Examples`: arguments, a loss, cuts and scaling, drawn for a dataset at hand."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from .kinds import choose
from .labels import label_list
from .shown import Shown, World

Random = np.random.Generator


@dataclass
class Cut:
    """One call that keeps a part of the examples.

    Parameters
    ----------
    method
        "isel", "sel", "where", "split in order" or "split drawn".
    dim, indexer
        What is cut, and how; of a split, its fractions; of `where`, its mask.
    seed
        The seed of a drawn split.
    """

    method: str
    dim: str = ""
    indexer: Any = None
    seed: int | None = None
    part: int = 0


@dataclass
class Asked:
    """Everything that is asked of `Examples`."""

    along: tuple[str, ...]
    inputs: list[str]
    targets: list[str]
    weights: str | None
    groups: str | None
    window: dict[str, Any] | None
    edges: str
    missing: str
    loss: str | None
    outputs: int | None
    classes: Any = None  # a list, "find", or None
    cuts: list[Cut] = field(default_factory=list)
    standardize: dict[str, Any] | None = None
    as_arrays: bool = False
    batch: int = 4

    def keywords(self) -> dict[str, Any]:
        """Return the keyword arguments of `Examples`."""
        found: dict[str, Any] = {"inputs": _one_or_list(self.inputs), "along": self.along}
        if self.targets:
            found["targets"] = _one_or_list(self.targets)
        for name in ("weights", "groups", "window"):
            if getattr(self, name):
                found[name] = getattr(self, name)
        if isinstance(self.classes, list):
            found["classes"] = self.classes
        return found | {"edges": self.edges, "missing": self.missing}

    def offsets(self, dim: str) -> tuple[int, int]:
        """Return the first and last offset of the window along a dimension."""
        given = (self.window or {}).get(dim, (0, 0))
        return (-(given // 2), given // 2) if isinstance(given, int) else tuple(given)

    @property
    def windowed(self) -> list[str]:
        """The windowed dimensions in the order of `along`."""
        return [dim for dim in self.along if dim in (self.window or {})]


def _one_or_list(names: list[str]) -> Any:
    return names[0] if len(names) == 1 else names


def named(world: World, role: str) -> list[str]:
    """Return the variables of a role, by the first letter of their names."""
    dims = set(world.sizes)
    return sorted(n for n in world.variables if n[0] == role and n not in dims)


def draw_asked(rng: Random, world: World, by_path: bool) -> Asked | None:
    """Draw the arguments; None where no variable has a dimension to sample along."""
    inputs, targets = named(world, "x"), named(world, "y")
    if rng.random() < 0.3:
        inputs = inputs[::-1]
    along = _along(rng, world, inputs + targets)
    if not inputs or not along:
        return None
    missing = choose(rng, ("error", "drop", "mask"), (1, 5, 4))
    asked = Asked(along, inputs, targets, None, None, None, "repeat", missing, None, None)
    for role, names in (("weights", named(world, "w")), ("groups", named(world, "g"))):
        for name in names:
            dims = world.variables[name].dims
            if set(dims) <= set(along) and (role == "weights" or len(dims) == 1):
                setattr(asked, role, name)
    asked.window = _window(rng, world, along)
    asked.edges = choose(rng, ("repeat", "drop")) if asked.window else "repeat"
    asked.batch = choose(rng, (1, 3, 8, 64))
    _draw_loss(rng, world, asked)
    for _ in range(choose(rng, (0, 1, 2), (5, 3, 1))):
        asked.cuts += _cut(rng, world, asked)
    if rng.random() < 0.4:
        wanted = choose(rng, (None, False, True), (3, 2, 1))
        asked.standardize = {"per": choose(rng, ("variable", "feature")), "targets": wanted}
        if wanted and asked.loss != "squared":
            asked.standardize["targets"] = None
    asked.as_arrays = not by_path and bool(rng.random() < 0.15)
    return asked


def _along(rng: Random, world: World, names: list[str]) -> tuple[str, ...]:
    present = dict.fromkeys(dim for name in names for dim in world.variables[name].dims)
    dims = [dim for dim in present if dim[0] in "abc" or (dim[0] == "e" and rng.random() < 0.3)]
    dims = [str(dim) for dim in rng.permutation(dims)] if dims else []
    return tuple(dims[: len(dims) - (len(dims) > 1 and rng.random() < 0.15)])


def _window(rng: Random, world: World, along: tuple[str, ...]) -> dict[str, Any] | None:
    if rng.random() < 0.4:
        return None
    dims = [dim for dim in along if rng.random() < 0.6] or [along[0]]
    found: dict[str, Any] = {}
    for dim in dims[: 1 if len(along) > 2 else 2]:
        most = max(1, min(5, world.sizes[dim]))
        if rng.random() < 0.4:
            found[dim] = int(choose(rng, [n for n in (1, 3, 5) if n <= most]))
            continue
        first = int(rng.integers(-3, 4))
        last = first + int(rng.integers(0, min(4, most)))
        found[dim] = (first, last)
    return found


def _draw_loss(rng: Random, world: World, asked: Asked) -> None:
    """Draw the loss, and classes for one that takes labels."""
    if not asked.targets:
        return
    shown = [world.variables[name] for name in asked.targets]
    dims = [dim for one in shown for dim in one.dims if dim not in asked.along]
    single = len(shown) == 1 and not dims
    chance = 0.9 if shown[0].values.dtype.kind == "f" and not _are_whole(shown[0]) else 0.4
    if not single or (shown[0].kind == "number" and rng.random() < chance):
        asked.loss, asked.outputs = "squared", None
        return
    asked.loss = choose(rng, ("softmax", "logistic"), (4, 1))
    labels = label_list(shown[0])
    known = all(isinstance(label, int) and 0 <= label < 300 for label in labels)
    flags = shown[0].attrs.get("flag_values") is not None
    bare = 4 if flags or (known and labels) else 0.3
    how = choose(rng, ("none", "find", "list", "shuffled", "short"), (bare, 4, 3, 2, 0.3))
    if how == "find":
        asked.classes = "find"
    elif how != "none" and labels:
        order = rng.permutation(len(labels)) if how == "shuffled" else np.arange(len(labels))
        asked.classes = [labels[n] for n in order][
            : len(labels) - (how == "short" and len(labels) > 1)
        ]
    asked.outputs = _outputs(shown[0], asked, labels)


def _are_whole(shown: Shown) -> bool:
    return all(isinstance(label, int) for label in label_list(shown))


def _outputs(shown: Shown, asked: Asked, labels: list[Any]) -> int:
    if isinstance(asked.classes, list):
        return len(asked.classes)
    numbers = [label for label in labels if isinstance(label, int | float)]
    if asked.classes is None and numbers and 0 <= max(numbers) < 300:
        return int(max(numbers)) + 1
    return max(1, len(labels))


def _cut(rng: Random, world: World, asked: Asked) -> list[Cut]:
    dim = choose(rng, asked.along)
    size = world.sizes[dim]
    how = choose(
        rng, ("slice", "list", "sel", "where", "split in order", "split drawn"), (3, 2, 2, 3, 2, 2)
    )
    if how == "slice":
        start = int(rng.integers(0, max(1, size // 2)))
        return [Cut("isel", dim, slice(start, choose(rng, (None, size - 1, -1))))]
    if how == "list" and not asked.cuts:
        kept = np.flatnonzero(rng.random(size) < 0.7)
        values = choose(rng, (kept.tolist(), kept))
        return [Cut("isel", dim, values)]
    if how in ("sel", "list"):
        index = world.indexes.get(dim)
        if index is None or index.nlevels > 1 or not index.is_monotonic_increasing:
            return []
        low, high = sorted(rng.integers(0, size, 2).tolist())
        return [Cut("sel", dim, slice(index[low], index[high]))]
    if how == "where":
        dims = [d for d in asked.along if rng.random() < 0.6] or [dim]
        mask = rng.random([world.sizes[d] for d in dims]) < 0.7
        coords = {d: world.indexes[d] for d in dims if _plain(world, d)}
        return [Cut("where", "", xr.DataArray(mask, coords=coords, dims=dims))]
    if asked.edges == "drop" or any(cut.method == "where" for cut in asked.cuts):
        return []  # the positions of a part could not be told from its examples
    fractions = choose(rng, ((0.5,), (0.7,), (0.3, 0.3, 0.4), (0.25, 0.5)))
    seed = int(rng.integers(0, 100)) if how == "split drawn" else None
    parts = 2 if len(fractions) == 1 else len(fractions)
    return [Cut(how, "", fractions, seed, int(rng.integers(0, parts)))]


def _plain(world: World, dim: str) -> bool:
    index = world.indexes.get(dim)
    return index is not None and index.nlevels == 1 and index.is_unique
