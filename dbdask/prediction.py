"""Predictions: lazy arrays on the data's own grid, block by block."""

import math
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

from dbdask.data.recipe import Recipe
from dbdask.data.routes import Piece
from dbdask.data.sources import Source
from dbdask.numbers.checkpoint import VectorReference

ROWS = 1024  # examples that go through the model at once


@dataclass
class Predictor:
    """What every task of a prediction shares: it travels to a worker once."""

    model: Any
    examples: Any  # as a worker sees them
    parameters: np.ndarray | VectorReference
    _lock: Any = field(default=None, repr=False)
    _open: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "examples", "parameters")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open={})
        self._lock = threading.Lock()

    def opened(self) -> tuple[Any, np.ndarray]:
        """Return a reader and the flat vector, opened once in this process."""
        with self._lock:
            if not self._open:
                vector = self.parameters
                if isinstance(vector, VectorReference):
                    vector = vector.read()
                self._open = {"reader": self.examples.reader(prefetch=False), "vector": vector}
            return self._open["reader"], self._open["vector"]

    def outputs(self, number: int, pieces: list[Piece]) -> tuple[Any, np.ndarray]:
        """Return where the examples of a block are, and the model's outputs for the valid ones."""
        from dbdask.data.supply import gather_blocks

        reader, vector = self.opened()
        block = reader.block(number, gather_blocks(pieces))
        inputs = block.minibatch.inputs
        parts = [
            np.asarray(self.model.predict(vector, inputs[start : start + ROWS]))
            for start in range(0, len(inputs), ROWS)
        ]
        return block, np.concatenate(parts) if parts else np.empty((0, 0))


@dataclass(frozen=True)
class Meaning:
    """What a model's outputs become: an array of a dtype, with extra dimensions and a gap value."""

    name: str
    dtype: Any
    fill: Any
    convert: Callable[[np.ndarray], np.ndarray]  # outputs (examples, outputs) -> (examples, *extra)
    dims: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    coords: dict[str, Any] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    encoding: dict[str, Any] = field(default_factory=dict)


def may_have_gaps(recipe: Recipe) -> bool:
    """Say whether there may be positions of a recipe's data where no example can be formed."""
    if recipe.edges == "drop" and recipe.window.spans:
        return True
    return recipe.missing == "drop" and any(
        variable.may_be_missing for variable in recipe.inputs.variables
    )


def predict_array(
    predictor: Predictor, recipe: Recipe, source: Source, meaning: Meaning
) -> xr.DataArray:
    """Return the lazy prediction over the whole grid of a recipe's data, which `source` shows."""
    shared = dask.delayed(predictor, name=f"dbdask-model-{uuid.uuid4().hex}", traverse=False)
    blocks = np.empty(recipe.grid.shape, dtype=object)
    for number in range(recipe.grid.block_count):
        place = recipe.grid.position(number)
        blocks[place] = _block(shared, recipe, meaning, number)
    depth = len(recipe.along)
    nested = _nested(blocks, (), (None,) * len(meaning.shape))
    array = da.block(nested) if depth else nested
    wanted = xr.DataArray(
        array, dims=(*recipe.along, *meaning.dims), name=meaning.name, attrs=meaning.attrs
    )
    return _as_the_data(wanted, recipe, source, meaning)


def _nested(blocks: np.ndarray, place: tuple[int, ...], extra: tuple[None, ...]) -> Any:
    """Nest the blocks as lists for `da.block`, which joins the innermost on the last axis."""
    if len(place) == blocks.ndim:
        one = blocks[place]
        for _ in extra:
            one = [one]
        return one
    return [_nested(blocks, (*place, n), extra) for n in range(blocks.shape[len(place)])]


def _block(shared: Any, recipe: Recipe, meaning: Meaning, number: int) -> da.Array:
    box = recipe.grid.box(number)
    shape = tuple(cut.stop - cut.start for cut in box)
    starts = tuple(cut.start for cut in box)
    if not recipe.block_rows[number]:
        return da.full(shape + meaning.shape, meaning.fill, dtype=meaning.dtype)
    pieces = [_piece(variable, cut) for variable, cut in recipe.reads(number)]
    task = dask.delayed(_predict_block, pure=False)(
        shared, number, [p for p in pieces if p is not None], starts, shape, _Frozen(meaning)
    )
    return da.from_delayed(task, shape + meaning.shape, dtype=meaning.dtype)


@dataclass(frozen=True)
class _Frozen:
    """Keeps Dask from looking for tasks inside."""

    meaning: Meaning


def _piece(variable: Any, box: dict[str, slice]) -> Any:
    """What a task cannot read for itself: a piece made by Dask, or out of memory."""
    if not variable.needs_blocks:
        return None
    index = variable.index(box)
    starts = tuple(cut.start for cut in index)
    array = getattr(variable.origin, "array", None)
    if array is not None and hasattr(array, "dask"):
        return dask.delayed(Piece)(variable.key, starts, array[index])
    return Piece(variable.key, starts, np.asarray(variable.read(box)))


def _predict_block(
    predictor: Predictor,
    number: int,
    pieces: list[Piece],
    starts: tuple[int, ...],
    shape: tuple[int, ...],
    frozen: _Frozen,
) -> np.ndarray:
    meaning = frozen.meaning
    block, outputs = predictor.outputs(number, pieces)
    found = np.full(shape + meaning.shape, meaning.fill, dtype=meaning.dtype)
    if len(outputs):
        at = tuple(
            positions[block.valid] - start
            for positions, start in zip(block.positions, starts, strict=True)
        )
        found[at] = meaning.convert(outputs)
    return found


def _as_the_data(
    array: xr.DataArray, recipe: Recipe, source: Source, meaning: Meaning
) -> xr.DataArray:
    """Give the prediction the data's own order of dimensions, and its coordinates."""
    known = source.variables.get(meaning.name)
    largest = max(recipe.inputs.variables, key=lambda variable: variable.nbytes)
    alike = known if known is not None and set(recipe.along) <= set(known.dims) else largest
    order = [dim for dim in alike.dims if dim in array.dims]
    array = array.transpose(*order, *(dim for dim in array.dims if dim not in order))
    coords = source.to_dataset().coords.to_dataset()
    other = [
        name
        for name, coord in coords.variables.items()
        if any(array.sizes.get(dim) != size for dim, size in coord.sizes.items())
    ]
    array = array.assign_coords(coords.drop_vars(other).coords).assign_coords(meaning.coords)
    array.encoding = dict(meaning.encoding)
    return array


@dataclass(frozen=True)
class TargetUnits:
    """How a model's outputs become the target variables' values, in their own units.

    Parameters
    ----------
    shapes
        Shape of each target variable's part of one example.
    scaling
        Mean and deviation of all targets together; None where they were not scaled.
    """

    shapes: tuple[tuple[int, ...], ...]
    scaling: tuple[np.ndarray, np.ndarray] | None

    def values(self, outputs: np.ndarray, number: int) -> np.ndarray:
        """Return one target variable's values: shape (examples, *its shape)."""
        count, shape = len(outputs), self.shapes[number]
        values = outputs.reshape(count, -1)
        if self.scaling is not None:
            mean, deviation = self.scaling
            values = values * deviation.ravel() + mean.ravel()
        if len(set(self.shapes)) == 1:
            return values.reshape(count, *shape, len(self.shapes))[..., number]
        sizes = [math.prod(other) for other in self.shapes]
        start = sum(sizes[:number])
        return values[:, start : start + sizes[number]].reshape(count, *shape)
