"""The recipe of examples: everything a worker needs to make them, and nothing of the data."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from dbdask.data.bundles import Bundle
from dbdask.data.labels import Classes
from dbdask.data.selection import Centres, Selection, block_rows, centres
from dbdask.data.sources import Variable
from dbdask.data.windows import Window
from dbdask.numbers.portions import Grid

Role = Literal["inputs", "targets", "weights"]


@dataclass(frozen=True)
class Recipe:
    """Which parts of which variables are examples."""

    along: tuple[str, ...]
    inputs: Bundle
    targets: Bundle | None
    classes: Classes | None  # None: the targets are no labels
    weights: Variable | None
    groups: Variable | None
    window: Window
    edges: str
    missing: str
    selection: Selection
    coordinates: Mapping[str, Variable] = field(default_factory=dict)
    scales_targets: bool = False  # asked for, whatever the loss

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Length of every sample dimension."""
        found: dict[str, int] = {}
        for variable in self.variables:
            found.update({dim: n for dim, n in variable.sizes.items() if dim in self.along})
        return found

    @cached_property
    def roles(self) -> tuple[tuple[Role, Variable], ...]:
        """Every variable whose values reach a minibatch, with its role."""
        targets = self.targets.variables if self.targets is not None else ()
        weights = (self.weights,) if self.weights is not None else ()
        return (
            *(("inputs", v) for v in self.inputs.variables),
            *(("targets", v) for v in targets),
            *(("weights", v) for v in weights),
        )

    @cached_property
    def feature_dims(self) -> tuple[tuple[str, ...], ...]:
        """For every one of `roles`, its dimensions that make features, in their order."""
        targets = self.targets.feature_dims if self.targets is not None else ()
        weights = ((),) if self.weights is not None else ()
        return (*self.inputs.feature_dims, *targets, *weights)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Every variable that is read."""
        groups = (self.groups,) if self.groups is not None else ()
        return (*(variable for _, variable in self.roles), *groups)

    @cached_property
    def grid(self) -> Grid:
        """The chunk grid: along each dimension that of the largest variable that has it."""
        lengths = []
        for dim in self.along:
            having = [v for _, v in self.roles if dim in v.dims]
            lengths.append(max(having, key=lambda v: v.nbytes).lengths[dim])
        return Grid(self.along, tuple(lengths))

    @cached_property
    def edges_of_blocks(self) -> tuple[np.ndarray, ...]:
        """Where blocks begin and end, per dimension."""
        return tuple(np.concatenate([[0], np.cumsum(n)]) for n in self.grid.lengths)

    @cached_property
    def centres(self) -> tuple[Centres, ...]:
        """The positions that are examples, per dimension."""
        return centres(self.selection, self.window, self.edges)

    @cached_property
    def block_rows(self) -> np.ndarray:
        """Examples in every block, before any is left out for its values."""
        return block_rows(self.grid, self.centres, self.selection.mask)

    @property
    def row_bytes(self) -> float:
        """Stored bytes of one position of the grid, all variables together."""
        positions = int(np.prod([self.sizes[dim] for dim in self.along], dtype=np.int64))
        return sum(variable.nbytes for variable in self.variables) / max(positions, 1)

    def block_centres(self, block: int) -> tuple[Centres, ...]:
        """The centres in a block, per dimension."""
        place = self.grid.position(block)
        cuts = [
            slice(int(e[i]), int(e[i + 1]))
            for e, i in zip(self.edges_of_blocks, place, strict=True)
        ]
        return tuple(c.within(cut) for c, cut in zip(self.centres, cuts, strict=True))

    def box(self, variable: Variable, within: tuple[Centres, ...], role: str) -> dict[str, slice]:
        """Positions of a variable that serving these centres takes, halo included."""
        box = {}
        for dim, here in zip(self.along, within, strict=True):
            if dim not in variable.dims:
                continue
            first, last = self.window.reach(dim) if role in ("inputs", "groups") else (0, 0)
            low = np.clip(here.positions + first, here.low, here.high - 1).min()
            high = np.clip(here.positions + last, here.low, here.high - 1).max() + 1
            if role == "groups":
                low, high = min(low, here.positions[0]), max(high, here.positions[-1] + 1)
            box[dim] = slice(int(low), int(high))
        return box

    def reads(self, block: int) -> Iterator[tuple[Variable, dict[str, slice]]]:
        """Every (variable, box) that serving a block reads."""
        if not self.block_rows[block]:
            return
        within = self.block_centres(block)
        for role, variable in self.roles:
            yield variable, self.box(variable, within, role)
        if self.groups is not None:
            yield self.groups, self.box(self.groups, within, "groups")

    def worker_side(self) -> "Recipe":
        """Return what travels in a task: small when pickled."""
        return self.mapped(Variable.worker_side)

    def mapped(self, change: Callable[[Variable], Variable]) -> "Recipe":
        """Return the recipe with every variable changed."""
        return replace(
            self,
            inputs=self.inputs.mapped(change),
            targets=self.targets and self.targets.mapped(change),
            weights=self.weights and change(self.weights),
            groups=self.groups and change(self.groups),
            coordinates={dim: change(v) for dim, v in self.coordinates.items()},
        )

    def __getstate__(self) -> dict[str, Any]:
        fields = self.__dataclass_fields__
        return {name: value for name, value in self.__dict__.items() if name in fields}
