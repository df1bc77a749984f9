"""Examples: the parts of a dataset that a network is trained on, and how it is shown them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dbdask.arrays import Float64Array
from dbdask.data.categories import CategoriesGiven
from dbdask.data.checks import Report, report
from dbdask.data.description import describe, inputs_on, prepared_like, rebuild
from dbdask.data.edges import EdgesGiven
from dbdask.data.feed import CACHE_BYTES, Reader
from dbdask.data.frames import ROWS, Frame, classes_of, columns_of, is_frame, shown_as
from dbdask.data.indexing import isel_selection, sel_indexers, where_selection
from dbdask.data.label_finding import classes_of_targets, with_categories
from dbdask.data.labels import Classes, Label, as_classes
from dbdask.data.losses import targets_for_loss
from dbdask.data.minibatches import Arrays, batch, minibatches
from dbdask.data.missing_rules import MissingGiven
from dbdask.data.moments import lacks_means, measured_means, scalings_of
from dbdask.data.opening import Given, open_recipe
from dbdask.data.pickling import pack, unpack
from dbdask.data.recipe import Recipe
from dbdask.data.selection import Selection
from dbdask.data.sources import Data, Source, open_source
from dbdask.data.splits import (
    check_fractions,
    check_overlap,
    check_seed,
    contiguous_parts,
    drawn_parts,
    recipe_of_part,
)
from dbdask.data.windows import WindowGiven
from dbdask.json_types import JsonObject
from dbdask.models.model import Model
from dbdask.schedule.portions import MIX_BYTES, Cut, Grid

if TYPE_CHECKING:
    from distributed import Client


class Examples:
    """The parts of a dataset that are examples: lazy, immutable, small when pickled.

    A copy is the same object. A pickle carries the place of a store, or up to 4 MiB of a Dataset in
    memory or of a Dask graph. A larger Dataset is found again in the process that pickled it; in
    another process the first use of its values raises an error.

    Parameters
    ----------
    data
        A Zarr store (path, URL or zarr `Store`), an xarray Dataset, or a DataFrame, whose rows are
        the dimension `row` (see `from_dataframe`).
    inputs, targets
        Names or DataArrays, whose index coordinates must be those of the data. Several variables
        of one shape are stacked on a last axis; of unlike shapes, each is flattened and they are
        joined. A variable without some of `along` is broadcast. A mapping gives each input a window
        of its own: ``{"u": {"time": (-5, 0)}, "elevation": None}``.
    along
        The sample dimension, or several, slowest first.
    window
        ``{"frame": 11}`` (odd, centred) or ``{"time": (-5, 0)}`` (first and last offset).
    edges
        ``"repeat"`` the edge value, or ``"drop"`` examples whose window is not whole. ``"wrap"``
        makes a circle of the dimension, as of longitudes; at its cuts the edge value is repeated.
        ``{"lon": "wrap", "time": "drop"}`` has a rule for each dimension, "repeat" if not named.
    groups
        A variable whose equal neighbours form a group, which windows do not leave.
    weights
        A variable with the weight of each example, or of each element of its targets: it may have
        dimensions that all targets have, as the areas of a map.
    classes
        The labels in the order of the outputs; None takes `flag_values`, or whole numbers from 0.
    missing
        ``"error"`` names the first missing value; ``"drop"`` leaves out the examples that need a
        missing value. ``"mask"`` keeps them: a missing target element gets weight zero, and a
        missing input element becomes its variable's mean over these examples, 0 after
        `standardize`. ``{"sst": "mask", "wind": "drop"}`` has a rule for each variable, "error" if
        not named; a variable that is an input and a target has one rule.
    categories
        ``{"job": "one-hot", "city": "codes"}``: inputs that are labels, as one-hot vectors, or as
        codes from 1 on for an embedding. `fit_categories` or `standardize` finds the labels. Inputs
        of which one is one-hot are joined, of any shapes.

    Raises
    ------
    ValueError, TypeError
        An argument does not fit the metadata. No values are read, but for coordinates if
        DataArrays are given.

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
        inputs: Given | Sequence[Given] | Mapping[str, WindowGiven | None],
        targets: Given | Sequence[Given] | None = None,
        along: str | Sequence[str],
        window: WindowGiven | None = None,
        edges: EdgesGiven = "repeat",
        groups: Given | None = None,
        weights: Given | None = None,
        classes: Sequence[object] | None = None,
        missing: MissingGiven = "error",
        categories: CategoriesGiven | None = None,
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
            categories=categories,
        )
        self._set(source, recipe)

    @classmethod
    def from_dataframe(
        cls,
        frame: Frame,
        *,
        inputs: Sequence[str] | Mapping[str, WindowGiven | None] | None = None,
        targets: str | Sequence[str] | None = None,
        categories: str | Mapping[str, str] = "one-hot",
        window: WindowGiven | None = None,
        edges: EdgesGiven = "repeat",
        groups: str | None = None,
        weights: str | None = None,
        classes: Sequence[object] | None = None,
        missing: MissingGiven = "error",
    ) -> "Examples":
        """Return the rows of a table as examples, along the dimension `row`.

        Parameters
        ----------
        frame
            A DataFrame of pandas, or of dask.dataframe, whose partitions are computed once for
            their lengths, and then as they are needed.
        inputs
            Names of columns; None: all that have no other role.
        categories
            How columns of labels are shown: ``"one-hot"``, or ``"codes"`` for an embedding. Text,
            objects and pandas' categories are labels. A mapping has a rule for each of some
            columns, which are then labels even if they hold numbers; other labels are one-hot.
            `fit_categories` or `standardize` finds the labels in the training part, and the Result
            carries them.
        classes
            None takes those that a target of pandas' categories declares.
        targets, window, edges, groups, weights, missing
            As of `Examples`; a window is over `row`.

        Raises
        ------
        ValueError, TypeError
            An argument does not fit the columns.

        Examples
        --------
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"age": [30, 40], "job": ["cook", "baker"], "rich": [0, 1]})
        >>> examples = Examples.from_dataframe(frame, targets="rich").fit_categories()
        >>> examples.categories, examples.batch().inputs.tolist()
        ({'job': ['baker', 'cook']}, [[30.0, 0.0, 1.0], [40.0, 1.0, 0.0]])
        """
        if not is_frame(frame):
            raise TypeError(
                f"frame must be a DataFrame of pandas or dask.dataframe, got {type(frame).__name__}"
            )
        names = columns_of(frame, inputs, targets, groups, weights)
        return cls(
            frame,
            inputs=names,
            targets=targets,
            along=ROWS,
            window=window,
            edges=edges,
            groups=groups,
            weights=weights,
            classes=classes_of(frame, targets, classes),
            missing=missing,
            categories=shown_as(frame, names, categories),
        )

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

    def __getstate__(self) -> dict[str, object]:
        if self.source is None:  # a worker's side, which has nothing more to carry
            return {"source": None, "recipe": self.recipe}
        return {"parcel": pack(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "parcel" in state:
            source, recipe = unpack(state["parcel"])
            state = {"source": source, "recipe": recipe}
        self.__dict__.update(state)

    def __len__(self) -> int:
        """Return the number of examples, before any is left out for its values."""
        return self.recipe.rows

    def __repr__(self) -> str:
        recipe = self.recipe
        targets = "" if recipe.targets is None else f" -> {', '.join(recipe.targets.names)}"
        shape = f"{self.input_shape}" if recipe.knows_categories else "(labels not known)"
        return (
            f"<Examples: {len(self)} along {', '.join(recipe.along)}, "
            f"{', '.join(recipe.inputs.names)} {shape}{targets}>"
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example's inputs; raise ValueError before labels of categories are known."""
        self.recipe.check_categories()
        return self.recipe.inputs.shape

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        """Shape of one example's targets; () for a label; None without targets."""
        return None if self.recipe.targets is None else self.recipe.targets.shape

    @property
    def categories(self) -> dict[str, list[Label] | None]:
        """The labels of each input that is a category, in order; None if they are not known yet.

        As codes they count from 1, so an embedding needs one row more than there are labels.
        """
        inputs = self.recipe.inputs
        pairs = zip(inputs.names, inputs.categories, strict=False)
        return {name: one.labels for name, one in pairs if one is not None}

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
        """The label of each output, as the store has it; None if not known, or no labels."""
        classes = self.recipe.classes
        return None if classes is None else classes.of_outputs()

    @property
    def target_scaling(self) -> tuple[Float64Array, Float64Array] | None:
        """Mean and deviation of the targets, float64 (*target_shape); None if not scaled."""
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
        """Return the cut into portions of `portion_rows` examples.

        Raises
        ------
        ValueError
            `portion_rows` is no multiple of `batch_size`, or below 1.
        """
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

    def worker_side(self) -> "Examples":
        """Return the examples that travel in a task: without values, small when pickled."""
        self.recipe.check_values_are_here()
        return Examples._of(None, self.with_means().recipe.worker_side())

    def reader(self, cache_bytes: int = CACHE_BYTES, prefetch: bool = True) -> Reader:
        """Return a reader, which opens the stores when it first reads."""
        self.recipe.check_categories()
        return Reader(self.recipe, cache_bytes, prefetch)

    def isel(self, indexers: Mapping[str, object] | None = None, **more: object) -> "Examples":
        """Return the examples at positions along sample dimensions, as xarray's `isel` does.

        Windows end at the cuts.

        Raises
        ------
        ValueError, TypeError, IndexError
            A dimension is not in `along`, or positions do not ascend or are out of bounds.
        """
        return self._selected(isel_selection(self.recipe, {**(indexers or {}), **more}))

    def sel(
        self,
        indexers: Mapping[str, object] | None = None,
        method: str | None = None,
        tolerance: object = None,
        **more: object,
    ) -> "Examples":
        """Return the examples at labels along sample dimensions, as xarray's `sel` does.

        Raises
        ------
        ValueError, KeyError
            A dimension is not in `along` or has no coordinate, a label is not there, labels are
            not in the order of the data, or nothing is selected.
        """
        wanted = {**(indexers or {}), **more}
        positions = sel_indexers(self.recipe, wanted, method, tolerance)
        return self._selected(isel_selection(self.recipe, positions, "sel"))

    def where(self, mask: xr.DataArray) -> "Examples":
        """Return the examples at which `mask`, over some of the sample dimensions, is True.

        As in xarray, the mask is matched by its index coordinates, in any order; a position whose
        label the mask lacks is left out. Without index coordinates it is matched by position.

        Raises
        ------
        TypeError, ValueError
            `mask` is no DataArray of dtype bool, has a dimension that is not in `along`, or fits
            neither the data nor these examples.
        """
        return self._selected(where_selection(self.recipe, mask))

    def split(
        self, *fractions: float, seed: int | None = None, overlap: bool = False
    ) -> tuple["Examples", ...]:
        """Split into one part per fraction, or the fraction and the rest.

        Parameters
        ----------
        *fractions
            Each above 0 and below 1; together at most 1.
        seed
            None: contiguous in store order. Else whole groups, or whole chunks, are drawn; of
            fewer than 20 chunks equal pieces, so that parts have their sizes and see all of them.
        overlap
            Whether the windows of a part may reach back into the parts before it, so that a
            forecast from its first positions knows their past. Targets are never shared. Parts must
            be contiguous.

        Raises
        ------
        ValueError, TypeError
            The fractions are not as above, or a part gets no example; or `overlap` with a `seed`.
        DataError
            A group is missing, or returns after another one.
        """
        wanted, overlaps = check_fractions(fractions), check_overlap(overlap, seed)
        if seed is None:
            parts = contiguous_parts(self.recipe, wanted, overlaps)
        else:
            parts = drawn_parts(self.recipe, wanted, check_seed(seed))
        return tuple(
            Examples._of(self.source, recipe_of_part(self.recipe, part, fraction))
            for part, fraction in zip(parts, wanted, strict=True)
        )

    def _selected(self, selection: Selection) -> "Examples":
        return Examples._of(self.source, replace(self.recipe, selection=selection))

    def standardize(
        self,
        *,
        variables: Iterable[str] | None = None,
        targets: bool | None = None,
        per: str = "variable",
        client: "Client | None" = None,
    ) -> "Examples":
        """Scale inputs to mean 0 and deviation 1, measured in one pass over these examples.

        The moments are measured in float64 and merged over chunks (Chan, Golub and LeVeque, 1983).
        Categories are not scaled; labels of them that are not known yet are found here.

        Parameters
        ----------
        variables
            Names of the inputs to scale; the others stay as they are, scaled before or not.
            None: all.
        targets
            Whether targets are scaled too; None: for the squared loss.
        per
            ``"variable"``, or ``"feature"`` for each element of a variable on its own.
        client
            Runs the pass; None: the current client, else this process.

        Raises
        ------
        ValueError, TypeError
            `variables` has a name that is no input, or `targets` cannot be scaled.
        DataError
            With `missing="error"`, an example uses a missing value; or a variable has no values,
            or an infinite one.
        """
        if per not in ("variable", "feature"):
            raise ValueError(f"per must be one of 'variable', 'feature', got {per!r}")
        if targets is not None and not isinstance(targets, bool | np.bool_):
            raise TypeError(f"targets must be True, False or None, got {targets!r}")
        known = with_categories(self.recipe, client, unknown_only=True)
        return Examples._of(self.source, scalings_of(known, variables, targets, per, client))

    def fit_categories(self, client: "Client | None" = None) -> "Examples":
        """Return examples that know the labels of every categorical input, found in one pass.

        Call it on the examples to train on. A label that occurs only in other examples becomes all
        zeros, or the code 0; so does a missing label if `missing` masks it.

        Parameters
        ----------
        client
            Runs the pass; None: the current client, else this process.

        Raises
        ------
        DataError
            An input has no label, too many, or some of kinds that cannot be sorted together.
        """
        return Examples._of(self.source, with_categories(self.recipe, client, unknown_only=False))

    @property
    def lacks_means(self) -> bool:
        """Whether a pass over the data has yet to find what stands for missing inputs."""
        return "_means_known" not in self.__dict__ and bool(lacks_means(self.recipe))

    def with_means(self, client: "Client | None" = None) -> "Examples":
        """Return examples that know the means that stand for missing elements of inputs.

        They are found in one pass, the first time. `client` runs it; None: the current client, else
        this process.
        """
        self.recipe.check_categories()
        if not lacks_means(self.recipe):
            return self
        if self.lacks_means:
            known = Examples._of(self.source, measured_means(self.recipe, client))
            self.__dict__["_means_known"] = known
        found: Examples = self.__dict__["_means_known"]
        return found

    def find_classes(self, client: "Client | None" = None) -> list[Label]:
        """Return the labels that occur, sorted, found in one pass: give them as `classes=`.

        Flags that are held as Python objects are the labels 0 and 1.

        Raises
        ------
        ValueError
            The targets are not one label an example.
        DataError
            The labels are of kinds that cannot be sorted together.
        """
        return list(classes_of_targets(self.recipe, client).labels or ())

    def with_classes(self, classes: Sequence[object] | Classes | None) -> "Examples":
        """Return the examples with other classes; None: the targets are values, not labels."""
        labels = classes if isinstance(classes, Classes) or classes is None else as_classes(classes)
        return Examples._of(self.source, replace(self.recipe, classes=labels))

    def for_loss(self, loss: str | None, outputs: int | None) -> "Examples":
        """Return the examples with targets as a loss takes them.

        "softmax" takes labels (whole numbers 0 to `outputs` - 1 unless classes are known), and so
        does "logistic" with one target each: one output then stands for two classes. "squared"
        takes float32 values. If `standardize` had `targets=None`, only "squared" has them scaled.

        Raises
        ------
        ValueError, TypeError
            The loss cannot take the targets, or their number does not fit the outputs.
        """
        return Examples._of(self.source, targets_for_loss(self.recipe, loss, outputs))

    def check(self, client: "Client | None" = None) -> Report:
        """Read everything once, as training would, and report what is left out and why.

        Parameters
        ----------
        client
            Runs the pass; None: the current client, else this process.

        Raises
        ------
        DataError
            Training would raise it, too.
        """
        return report(self.with_means(client).recipe, client)

    def batch(
        self, size: int = 8, *, seed: int | None = None, model: Model | None = None
    ) -> Arrays:
        """Return inputs, targets and weights of a few examples, as a model would see them.

        Parameters
        ----------
        size
            How many examples; fewer if there are not as many.
        seed
            None: the first ones in store order. Else the first minibatch of training with it.
        model
            Prepares targets for its loss; None leaves them as declared, with integers as labels.

        Returns
        -------
        inputs
            Float32 (examples, *input_shape).
        targets
            Int64 (examples,) for labels, else float32 (examples, *target_shape).
        weights
            Float32 (examples,) or (examples, *target_shape); None if all are 1.

        Raises
        ------
        DataError
            A value is wrong, or all examples are left out as missing.

        Examples
        --------
        >>> import xarray as xr
        >>> data = xr.Dataset({"x": ("t", [1.0, 2.0, 3.0]), "y": ("t", [0, 1, 0])})
        >>> inputs, targets, weights = Examples(data, inputs="x", targets="y", along="t").batch(2)
        >>> inputs, targets, weights
        (array([1., 2.], dtype=float32), array([0, 1]), None)
        """
        return batch(self, size, seed=seed, model=model)

    def minibatches(
        self, batch_size: int, *, seed: int = 0, epoch: int = 0, model: Model | None = None
    ) -> Iterator[Arrays]:
        """Iterate over an epoch in the order in which one replica trains, at the feed's speed.

        Each item has the arrays of `batch`. The iterator has a reader of its own, which ends with
        it.

        Parameters
        ----------
        batch_size
            Examples of a minibatch.
        seed, epoch
            Decide the order.
        model
            Prepares targets as for `batch`. Its size decides the length of portions, which
            matters if examples are left out (a portion's last minibatch is then short), or if
            1024 chunks have fewer rows than a portion. None stands for a small model.

        Raises
        ------
        DataError
            A value is wrong; found when its chunk is read.
        TypeError, ValueError
            An argument is no whole number, or too small.
        """
        return minibatches(self, batch_size, seed=seed, epoch=epoch, model=model)

    def prepared_like(self, other: "Examples") -> "Examples":
        """Return these examples with the scaling and the classes of other ones.

        Raises
        ------
        ValueError
            The others have other inputs, targets or windows.
        """
        return Examples._of(self.source, prepared_like(self.recipe, other.with_means().recipe))

    def rebind(self, data: Data) -> "Examples":
        """Return the same inputs on other data, to predict from; targets need not be there.

        A DataArray that was given beside the data is found by its name in other data. A DataArray
        that lacks a sample dimension, such as an orography, is kept if the labels along those that
        it has are the same.

        Raises
        ------
        ValueError, TypeError
            `data` lacks an input, or has it in another shape.
        """
        source = open_source(data)
        return Examples._of(source, inputs_on(self.with_means().recipe, source, self.source))

    def description(self) -> JsonObject:
        """Return everything but the data and the selection, as JSON."""
        return describe(self.with_means().recipe)

    @classmethod
    def from_description(cls, description: JsonObject, data: Data | None = None) -> "Examples":
        """Return the examples that `description` describes: on `data`, or without values."""
        detached = cls._of(None, rebuild(description))
        return detached if data is None else detached.rebind(data)


def _check_not_empty(recipe: Recipe) -> None:
    if recipe.grid.block_count == 0 or recipe.rows == 0:
        whole = "; its windows are longer than what was cut" if recipe.drops_edges else ""
        raise ValueError(f"no examples are left along {', '.join(recipe.along)}{whole}")
