"""Examples: which parts of a dataset are examples, and how they are shown to a network."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dbdask.arrays import Float64Array
from dbdask.data.checks import Report, report
from dbdask.data.description import describe, inputs_on, prepared_like, rebuild
from dbdask.data.feed import CACHE_BYTES, Reader
from dbdask.data.indexing import isel_selection, sel_indexers, where_selection
from dbdask.data.labels import Classes, Label, as_classes
from dbdask.data.losses import targets_for_loss
from dbdask.data.measures import measure_labels
from dbdask.data.moments import measured_means, scalings_of
from dbdask.data.opening import Given, open_recipe
from dbdask.data.pickling import pack, unpack
from dbdask.data.recipe import Recipe
from dbdask.data.selection import Selection
from dbdask.data.sources import Data, Source, Variable, open_source
from dbdask.data.splits import (
    check_fractions,
    check_seed,
    contiguous_parts,
    drawn_parts,
    recipe_of_part,
)
from dbdask.data.sweeps import sweep
from dbdask.errors import DataError
from dbdask.json_types import JsonObject
from dbdask.schedule.portions import MIX_BYTES, Cut, Grid

if TYPE_CHECKING:
    from distributed import Client


class Examples:
    """Which parts of a dataset are examples: lazy, immutable, small when pickled.

    A copy is the same object. A pickle carries the place of a store, or up to 4 MiB of a Dataset in
    memory or of a Dask graph; a larger one is found again in the process that pickled it, and is
    lacking elsewhere, which the first use says.

    Parameters
    ----------
    data
        A Zarr store (path, URL or zarr `Store`) or an xarray Dataset.
    inputs, targets
        Names or DataArrays, whose index coordinates must be those of the data. Several variables
        of one shape are stacked on a last axis; of unlike shapes, each is flattened and they are
        joined. A variable without some of `along` is broadcast.
    along
        The sample dimension, or several, slowest first.
    window
        ``{"frame": 11}`` (odd, centred) or ``{"time": (-5, 0)}`` (first and last offset).
    edges
        ``"repeat"`` the edge value, or ``"drop"`` examples whose window is not whole.
    groups
        A variable whose equal neighbours form a group, which windows do not leave.
    weights
        A variable with the weight of each example.
    classes
        The labels in the order of the outputs; None takes `flag_values`, or whole numbers from 0.
    missing
        ``"error"`` names the first missing value; ``"drop"`` leaves out the examples that need
        one. ``"mask"`` keeps them: a missing target element gets weight zero, and a missing input
        element becomes its variable's mean over these examples, 0 after `standardize`.

    Raises
    ------
    ValueError, TypeError
        For what the metadata shows to be wrong; nothing is read but, where DataArrays are given,
        coordinates.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> data = xr.Dataset({"x": (("frame", "mel"), np.ones((50, 40))), "y": ("frame", np.ones(50))})
    >>> examples = Examples(data, inputs="x", targets="y", along="frame", window={"frame": 11})
    >>> len(examples), examples.input_shape, examples.target_shape
    (50, (11, 40), ())
    """

    source: Source | None
    recipe: Recipe

    def __init__(
        self,
        data: Data,
        *,
        inputs: Given | Sequence[Given],
        targets: Given | Sequence[Given] | None = None,
        along: str | Sequence[str],
        window: Mapping[str, int | Sequence[int]] | None = None,
        edges: str = "repeat",
        groups: Given | None = None,
        weights: Given | None = None,
        classes: Sequence[object] | None = None,
        missing: str = "error",
    ) -> None:
        source = open_source(data)
        recipe = open_recipe(
            source,
            inputs=inputs,
            targets=targets,
            along=along,
            window=window,
            edges=edges,
            groups=groups,
            weights=weights,
            classes=classes,
            missing=missing,
        )
        self._set(source, recipe)

    @classmethod
    def _of(cls, source: Source | None, recipe: Recipe) -> "Examples":
        examples = cls.__new__(cls)
        examples._set(source, recipe)
        return examples

    def _set(self, source: Source | None, recipe: Recipe) -> None:
        _check_not_empty(recipe)
        self.__dict__.update(source=source, recipe=recipe)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Examples cannot be changed: {name!r} is set when it is made")

    def __copy__(self) -> "Examples":
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "Examples":
        return self

    def __getstate__(self) -> dict[str, Any]:
        if self.source is None:  # a worker's side, which has nothing more to carry
            return {"source": None, "recipe": self.recipe}
        return {"parcel": pack(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "parcel" in state:
            source, recipe = unpack(state["parcel"])
            state = {"source": source, "recipe": recipe}
        self.__dict__.update(state)

    def __len__(self) -> int:
        """Examples, before any is left out for its values."""
        return self.recipe.rows

    def __repr__(self) -> str:
        recipe = self.recipe
        targets = "" if recipe.targets is None else f" -> {', '.join(recipe.targets.names)}"
        return (
            f"<Examples: {len(self)} along {', '.join(recipe.along)}, "
            f"{', '.join(recipe.inputs.names)} {self.input_shape}{targets}>"
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example's inputs."""
        return self.recipe.inputs.shape

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        """Shape of one example's targets; () for a label; None without targets."""
        return None if self.recipe.targets is None else self.recipe.targets.shape

    @property
    def has_labels(self) -> bool:
        """Whether the targets are labels, and come as class indices."""
        return self.recipe.classes is not None

    @property
    def has_text(self) -> bool:
        """Whether the targets are text."""
        targets = self.recipe.targets
        return targets is not None and targets.variables[0].value_dtype.kind in "US"

    @property
    def output_classes(self) -> list[Label] | None:
        """The label of each output, as the store writes it; None where not known or no labels."""
        classes = self.recipe.classes
        return None if classes is None else classes.of_outputs()

    @property
    def target_scaling(self) -> tuple[Float64Array, Float64Array] | None:
        """Mean and deviation of the targets, of `target_shape`; None where they are not scaled."""
        targets = self.recipe.targets
        return None if targets is None or self.has_labels else targets.flat_scaling

    @property
    def grid(self) -> Grid:
        """The chunk grid of the sample space."""
        return self.recipe.grid

    @property
    def row_bytes(self) -> int:
        """Stored bytes of one position of the grid, all variables together."""
        return max(1, round(self.recipe.row_bytes))

    def cut(self, portion_rows: int, batch_size: int) -> Cut:
        """Return the cut into portions of `portion_rows`, a multiple of `batch_size`."""
        if portion_rows % batch_size or portion_rows < 1:
            raise ValueError(
                f"portion_rows must be a multiple of batch_size={batch_size}, got {portion_rows}"
            )
        return self._cut(portion_rows)

    def _cut(self, portion_rows: int) -> Cut:
        recipe = self.recipe
        counts = [np.diff(lengths.edges) for lengths in recipe.grid.lengths]
        volumes = counts[0]
        for count in counts[1:]:
            volumes = np.multiply.outer(volumes, count)
        held = (volumes.reshape(-1) * recipe.row_bytes).astype(np.int64)
        return Cut(recipe.block_rows, held, portion_rows, MIX_BYTES)

    def reads(self, block: int) -> list[tuple[Variable, dict[str, slice]]]:
        """Return every (variable, box) that serving a block reads."""
        return list(self.recipe.reads(block))

    def worker_side(self) -> "Examples":
        """Return what travels in a task."""
        self.recipe.check_values_are_here()
        return Examples._of(None, self._with_means().recipe.worker_side())

    def reader(self, cache_bytes: int = CACHE_BYTES, prefetch: bool = True) -> Reader:
        """Return a reader, which opens the stores when it first reads."""
        return Reader(self.recipe, cache_bytes, prefetch)

    def isel(self, indexers: Mapping[str, Any] | None = None, **more: object) -> "Examples":
        """Cut by position along sample dimensions, as xarray does; windows end at the cuts."""
        return self._selected(isel_selection(self.recipe, {**(indexers or {}), **more}))

    def sel(
        self,
        indexers: Mapping[str, Any] | None = None,
        method: str | None = None,
        tolerance: object = None,
        **more: object,
    ) -> "Examples":
        """Cut by coordinate along sample dimensions, as xarray does."""
        wanted = {**(indexers or {}), **more}
        return self.isel(sel_indexers(self.recipe, wanted, method, tolerance))

    def where(self, mask: xr.DataArray) -> "Examples":
        """Keep the examples where `mask`, over some of the sample dimensions, is True.

        As xarray does, the mask is matched by its index coordinates: in whatever order it has
        them, and what it has no label for is left out. Where it or the data have none, by position.
        """
        return self._selected(where_selection(self.recipe, mask))

    def split(self, *fractions: float, seed: int | None = None) -> tuple["Examples", ...]:
        """Split into one part per fraction, or the fraction and the rest.

        Parameters
        ----------
        *fractions
            Each above 0 and below 1; together at most 1.
        seed
            None: contiguous in store order. Else whole groups, or whole chunks, are drawn.
        """
        wanted = check_fractions(fractions)
        if seed is None:
            parts = contiguous_parts(self.recipe, wanted)
        else:
            parts = drawn_parts(self.recipe, wanted, check_seed(seed))
        return tuple(
            Examples._of(self.source, recipe_of_part(self.recipe, part, fraction))
            for part, fraction in zip(parts, wanted, strict=True)
        )

    def _selected(self, selection: Selection) -> "Examples":
        return Examples._of(self.source, replace(self.recipe, selection=selection))

    def standardize(
        self, *, targets: bool | None = None, per: str = "variable", client: "Client | None" = None
    ) -> "Examples":
        """Scale every input to mean 0 and deviation 1, measured in one pass over these examples.

        With `missing="error"`, a missing value that an example uses raises DataError.

        Parameters
        ----------
        targets
            Whether targets are scaled too; None: for the squared loss.
        per
            ``"variable"``, or ``"feature"`` for each element of a variable on its own.
        client
            Where the pass runs; None: the current client, else here.
        """
        if per not in ("variable", "feature"):
            raise ValueError(f"per must be one of 'variable', 'feature', got {per!r}")
        if targets is not None and not isinstance(targets, bool | np.bool_):
            raise TypeError(f"targets must be True, False or None, got {targets!r}")
        return Examples._of(self.source, scalings_of(self.recipe, targets, per, client))

    def _with_means(self) -> "Examples":
        """Know every input's mean, which stands for missing elements."""
        if self.recipe.missing != "mask" or self.recipe.inputs.scalings is not None:
            return self
        if "with_means" not in self.__dict__:
            self.__dict__["with_means"] = Examples._of(self.source, measured_means(self.recipe))
        found: Examples = self.__dict__["with_means"]
        return found

    def find_classes(self, client: "Client | None" = None) -> list[Label]:
        """Return the labels that occur, sorted, found in one pass: give them as `classes=`."""
        targets = self.recipe.targets
        if targets is None or targets.shape != ():
            raise ValueError(
                f"find_classes needs one label an example, target_shape is {self.target_shape}"
            )
        found: set[Label] = set()
        for labels in sweep(self.recipe, measure_labels, client):
            found.update(labels)
        return list(as_classes(_in_order(found, targets.names[0])).labels or ())

    def with_classes(self, classes: Sequence[object] | Classes | None) -> "Examples":
        """Return the examples with other classes; None: the targets are values, not labels."""
        labels = classes if isinstance(classes, Classes) or classes is None else as_classes(classes)
        return Examples._of(self.source, replace(self.recipe, classes=labels))

    def for_loss(self, loss: str | None, outputs: int | None) -> "Examples":
        """Return the examples with targets as a loss takes them.

        Labels (whole numbers 0 to `outputs` - 1 unless classes are known) for "softmax", and for
        "logistic" with one target each, where one output tells two classes apart; float32 values
        for "squared". Where `standardize` was not told whether to scale the targets, only
        "squared" has them scaled.
        """
        return Examples._of(self.source, targets_for_loss(self.recipe, loss, outputs))

    def check(self, client: "Client | None" = None) -> Report:
        """Read everything once and report; raises DataError where training would."""
        return report(self._with_means().recipe, client)

    def prepared_like(self, other: "Examples") -> "Examples":
        """Return these examples with the scaling and the classes of others, not their own."""
        return Examples._of(self.source, prepared_like(self.recipe, other._with_means().recipe))

    def rebind(self, data: Data) -> "Examples":
        """Return the same inputs on other data, to predict from; targets need not be there.

        What was given as a DataArray is found by its name in other data; one that lacks a sample
        dimension, such as an orography, is taken as it was where the labels along those that it
        has are the same.
        """
        source = open_source(data)
        return Examples._of(source, inputs_on(self._with_means().recipe, source, self.source))

    def description(self) -> JsonObject:
        """Return everything but the data and the selection, as plain data."""
        return describe(self._with_means().recipe)

    @classmethod
    def from_description(cls, description: JsonObject, data: Data | None = None) -> "Examples":
        """Return what `description` told of: on `data`, or knowing only the metadata."""
        detached = cls._of(None, rebuild(description))
        return detached if data is None else detached.rebind(data)


def _in_order(labels: set[Label], name: str) -> list[Label]:
    try:
        return sorted(labels)
    except TypeError as error:
        raise DataError(
            f"targets: the labels of {name!r} are of different kinds ({error}); give numbers only, "
            "or text only"
        ) from error


def _check_not_empty(recipe: Recipe) -> None:
    if recipe.grid.block_count == 0 or recipe.rows == 0:
        whole = "; its windows are longer than what was cut" if recipe.edges == "drop" else ""
        raise ValueError(f"no examples are left along {', '.join(recipe.along)}{whole}")
