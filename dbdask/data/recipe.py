"""The recipe of examples: all that a worker needs to make them, without the data."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from dbdask.arrays import Int64Array
from dbdask.data.categories import Category, check_known
from dbdask.data.circles import stored_boxes
from dbdask.data.edges import Edges
from dbdask.data.feature_sets import FeatureSet
from dbdask.data.labels import Classes
from dbdask.data.missing_rules import MissingRules
from dbdask.data.routes import Lacking
from dbdask.data.selection import CentreRuns, Selection, block_rows, centres
from dbdask.data.sources import Variable
from dbdask.data.windows import NO_WINDOW, Window
from dbdask.schedule.lengths import Lengths
from dbdask.schedule.portions import Grid

Role = Literal["inputs", "targets", "weights"]

MOST_BLOCKS = 10**7
"""The most blocks that a grid may have: two numbers are kept for each, some 200 MB."""


@dataclass(frozen=True)
class Recipe:
    """Which parts of which variables are examples."""

    along: tuple[str, ...]
    inputs: FeatureSet
    targets: FeatureSet | None
    classes: Classes | None  # None: the targets are no labels
    weights: Variable | None
    groups: Variable | None
    edges: Edges
    missing: MissingRules
    selection: Selection
    coordinates: Mapping[str, Variable] = field(default_factory=dict)
    scales_targets: bool = False  # asked for, with any loss
    beyond: Mapping[str, Lengths] = field(default_factory=dict)
    """Lengths of blocks along sample dimensions that no variable has: those of the data."""
    needed: frozenset[str] | None = None
    """Keys of the variables that a pass reads; None: all."""

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Length of every sample dimension."""
        found: dict[str, int] = {dim: lengths.size for dim, lengths in self.beyond.items()}
        for variable in self.variables:
            found.update({dim: n for dim, n in variable.sizes.items() if dim in self.along})
        return found

    def features(self, role: str) -> FeatureSet:
        """Return the feature set of a role, "inputs" or "targets"."""
        found = self.inputs if role == "inputs" else self.targets
        assert found is not None
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
    def window(self) -> Window:
        """The smallest window that holds those of all inputs."""
        return self.inputs.reach

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """For each of `roles`, the window over its values."""
        inputs = [self.inputs.window(number) for number in range(len(self.inputs.variables))]
        return (*inputs, *(NO_WINDOW for _ in self.roles[len(inputs) :]))

    def category(self, number: int) -> Category | None:
        """Return how one of `roles` that is a label among the inputs is shown; else None."""
        return self.inputs.category(number) if number < len(self.inputs.variables) else None

    @cached_property
    def feature_dims(self) -> tuple[tuple[str, ...], ...]:
        """For each of `roles`, the dimensions that become features, in order."""
        targets = self.targets.feature_dims if self.targets is not None else ()
        found = (*self.inputs.feature_dims, *targets)
        if self.weights is None:
            return found
        return (*found, tuple(dim for dim in self.weights.dims if dim not in self.along))

    @cached_property
    def drops_missing(self) -> bool:
        """Whether examples are left out because a value is missing."""
        return self.missing.any("drop", (variable.name for _, variable in self.roles))

    @property
    def drops_edges(self) -> bool:
        """Whether examples are left out because their windows are not whole."""
        return self.edges.drops(self.window.dims)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Every variable that is read."""
        groups = (self.groups,) if self.groups is not None else ()
        return (*(variable for _, variable in self.roles), *groups)

    @cached_property
    def grid(self) -> Grid:
        """The chunk grid: along each dimension, the chunks of the largest variable that has it.

        Raises
        ------
        ValueError
            The grid has more than `MOST_BLOCKS` blocks.
        """
        grid = Grid(self.along, [self._lengths(dim) for dim in self.along])
        if grid.block_count > MOST_BLOCKS:
            finest = max(self.along, key=lambda dim: len(self._lengths(dim)))
            largest = self._largest(finest)
            named = "the data" if largest is None else f"variable {largest.name!r}"
            raise ValueError(
                f"along: {named} has "
                f"{len(self._lengths(finest)):,} chunks along {finest!r}, which makes "
                f"{grid.block_count:,} blocks of examples, and at most {MOST_BLOCKS:,} can be "
                "kept account of: rechunk the store into larger chunks, or give a Dataset that is "
                "cut with .isel before"
            )
        return grid

    def _largest(self, dim: str) -> Variable | None:
        having = [v for _, v in self.roles if dim in v.dims]
        return max(having, key=lambda v: v.nbytes, default=None)

    def _lengths(self, dim: str) -> Lengths:
        largest = self._largest(dim)
        return self.beyond[dim] if largest is None else largest.lengths[dim]

    @cached_property
    def centres(self) -> tuple[CentreRuns, ...]:
        """The positions that are examples, per dimension."""
        return centres(self.selection, self.window, self.edges, self.sizes)

    @cached_property
    def block_rows(self) -> Int64Array:
        """Examples in every block, before any is left out for its values: int64, (blocks,)."""
        return block_rows(self.grid, self.centres, self.selection.mask)

    @cached_property
    def rows(self) -> int:
        """Examples in all, before any is left out for its values."""
        if self.selection.mask is None:
            return math.prod(along.count for along in self.centres)
        return int(self.block_rows.sum())

    def rows_in(self, block: int) -> int:
        """Return the examples in a block, before any is left out for its values."""
        if self.selection.mask is None:
            return math.prod(here.count for here in self.block_centres(block))
        return int(self.block_rows[block])

    @property
    def row_bytes(self) -> float:
        """Stored bytes of one position of the grid, all variables together."""
        positions = math.prod(self.sizes[dim] for dim in self.along)
        return sum(variable.nbytes for variable in self.variables) / max(positions, 1)

    def block_centres(self, block: int) -> tuple[CentreRuns, ...]:
        """Return the centres in a block, per dimension."""
        box = self.grid.box(block)
        return tuple(c.within(cut) for c, cut in zip(self.centres, box, strict=True))

    def box(
        self, variable: Variable, within: tuple[CentreRuns, ...], window: Window = NO_WINDOW
    ) -> dict[str, slice]:
        """Return the positions of a variable that these centres need, halo included.

        They count on beyond both ends of a dimension that wraps.

        A window that leaves out its centre ends at the edge of a group, which may be the centre's
        own position: along groups the box holds the centres too.
        """
        box = {}
        for dim, here in zip(self.along, within, strict=True):
            if dim not in variable.dims:
                continue
            low, high = here.seen(*window.reach(dim))
            if self.groups is not None and dim in self.groups.dims:
                own = here.seen(0, 0)
                low, high = min(low, own[0]), max(high, own[1])
            box[dim] = slice(low, high)
        return box

    def reads(self, block: int) -> Iterator[tuple[Variable, dict[str, slice]]]:
        """Yield every (variable, box) that a worker reads to serve a block."""
        if not self.rows_in(block):
            return
        within = self.block_centres(block)
        windows = (*self.windows, *((self.window,) if self.groups is not None else ()))
        for variable, window in zip(self.variables, windows, strict=True):
            if self.needed is not None and variable.key not in self.needed:
                continue
            for box in stored_boxes(self.box(variable, within, window), variable.sizes):
                yield variable, box

    def check_values_are_here(self) -> None:
        """Raise if the values of a variable stayed in the process that pickled the examples.

        Raises
        ------
        RuntimeError
            It names the variable, why its values did not travel, and the remedy.
        """
        for variable in self.variables:
            if isinstance(variable.origin, Lacking):
                variable.open()

    @property
    def knows_categories(self) -> bool:
        """Whether the labels of all inputs that are categories are known."""
        known = [c.classes is not None for c in self.inputs.categories if c is not None]
        return all(known)

    def check_categories(self) -> None:
        """Raise ValueError if the labels of an input are not known yet."""
        check_known(self.inputs.names, self.inputs.categories)

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

    def __getstate__(self) -> dict[str, object]:
        fields = self.__dataclass_fields__
        return {name: value for name, value in self.__dict__.items() if name in fields}
