"""Predictions: lazy arrays on the data's own grid, computed block by block."""

import itertools
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask._task_spec import Task, TaskRef
from dask.delayed import delayed
from dask.highlevelgraph import HighLevelGraph
from dask.typing import Key

from dbdask.arrays import Float32Array, FloatArray
from dbdask.data.examples import Examples
from dbdask.data.feed import BlockExamples, Reader
from dbdask.data.recipe import Recipe
from dbdask.data.routes import Index, Piece
from dbdask.data.sources import Source, Variable
from dbdask.meanings import Meaning
from dbdask.models.model import Model
from dbdask.models.piecewise import PiecewiseNetwork
from dbdask.rpc.portable import portable_errors
from dbdask.storage.checkpoint import VectorReference
from dbdask.stored_parameters import model_with

ROWS = 1024  # examples that go through the model at once


@dataclass
class Predictor:
    """The model, the examples and the parameters of a prediction, sent to a worker once."""

    model: Model
    examples: Examples  # as a worker sees them
    parameters: Float32Array | VectorReference
    _lock: Lock = field(default_factory=Lock, repr=False)
    _open: "tuple[Reader, Model | PiecewiseNetwork, Float32Array] | None" = field(
        default=None, repr=False
    )
    _error: Exception | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("model", "examples", "parameters")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _open=None, _error=None, _lock=Lock())

    def opened(self) -> "tuple[Reader, Model | PiecewiseNetwork, Float32Array]":
        """Return a reader, and the model with its vector (see `model_with`), once a process.

        Raises
        ------
        Exception
            The error with which data or parameters could not be opened or read.
        """
        before = self._error
        with self._lock:
            if self._open is None:
                if self._error is not None and self._error is not before:
                    raise self._error  # found while this thread waited: it need not wait twice
                try:
                    model, vector = model_with(self.model, self.parameters)
                except Exception as error:
                    self._error = error
                    raise
                self._open = self.examples.reader(prefetch=False), model, vector
            return self._open

    def outputs(self, number: int, pieces: list[Piece]) -> tuple[BlockExamples, FloatArray]:
        """Return the examples of a block, and the model's outputs for its valid examples.

        The outputs are of the model's float dtype, (valid examples, ...).
        """
        from dbdask.data.block_provider import gather_blocks

        reader, model, vector = self.opened()
        block = reader.block(number, gather_blocks(pieces))
        inputs = block.minibatch.inputs
        rows = model.examples_at_once if isinstance(model, PiecewiseNetwork) else ROWS
        parts = [
            np.asarray(model.predict(vector, inputs[start : start + rows]))
            for start in range(0, len(inputs), rows)
        ]
        return block, np.concatenate(parts) if parts else np.empty((0, 0))


def may_have_gaps(recipe: Recipe) -> bool:
    """Return whether the data may have positions at which no example can be formed."""
    if recipe.drops_edges:
        return True
    return any(
        variable.may_be_missing and recipe.missing.of(variable.name) == "drop"
        for variable in recipe.inputs.variables
    )


def chunks_of(data: object, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Return the lengths of a Dataset's own dask chunks, by sample dimension; none of a store."""
    if not isinstance(data, xr.Dataset):
        return {}
    names = [variable.name for variable in recipe.inputs.variables]
    held = [data[name].variable for name in names if name in data.variables]
    chunks: dict[str, tuple[int, ...]] = {}
    for variable in sorted(held, key=lambda one: one.nbytes):  # where they differ, the largest's
        chunks |= {str(d): lengths for d, lengths in variable.chunksizes.items()}
    return {dim: lengths for dim, lengths in chunks.items() if dim in recipe.along}


def predict_array(
    predictor: Predictor,
    recipe: Recipe,
    source: Source,
    meaning: Meaning,
    chunks: Mapping[str, tuple[int, ...]],
) -> xr.DataArray:
    """Return the lazy prediction over the whole grid of a recipe's data, those of `source`.

    It is a DataArray of a dask array: the shape is that of the sample dimensions and of one
    prediction, the dtype that of `meaning`. `chunks` are the lengths of its chunks by dimension,
    where they are not those in which the data are read.
    """
    unique = uuid.uuid4().hex
    shared = delayed(predictor, name=f"dbdask-model-{unique}", traverse=False)
    shown = delayed(meaning, name=f"dbdask-meaning-{unique}", traverse=False)
    name = f"dbdask-predict-{unique}"
    brought = [v for v in recipe.variables if v.needs_blocks]
    needed: list[Any] = [shared, shown, *(a for v in brought if (a := _dask_array(v)) is not None)]
    layer: dict[Key, Task] = {}
    references = TaskRef(shared.key), TaskRef(shown.key)
    features = (0,) * len(meaning.shape)
    for number, place in enumerate(itertools.product(*map(range, recipe.grid.shape))):
        pieces = _pieces(recipe, number, f"{name}-piece", layer) if brought else ()
        key = _key(name, *place, *features)
        layer[key] = Task(key, _predict_block, *references, number, *pieces)
    graph = HighLevelGraph.from_collections(name, layer, dependencies=needed)
    lengths = (*recipe.grid.lengths, *((size,) for size in meaning.shape))
    array = da.Array(graph, name, lengths, dtype=meaning.dtype)
    given = {axis: chunks[dim] for axis, dim in enumerate(recipe.along) if dim in chunks}
    array = _regular(array.rechunk(given) if given else array)
    dims = (*recipe.along, *meaning.dims)
    wanted = xr.DataArray(array, dims=dims, name=meaning.name, attrs=_writable(meaning.attrs))
    return _as_the_data(wanted, recipe, source, meaning)


@portable_errors
def _predict_block(
    predictor: Predictor, meaning: Meaning, number: int, *pieces: Piece
) -> np.ndarray:
    """Return the prediction of one block of the grid, of the block's shape and extra dimensions."""
    recipe: Recipe = predictor.examples.recipe
    box = recipe.grid.box(number)
    shape = tuple(cut.stop - cut.start for cut in box)
    found = np.full(shape + meaning.shape, meaning.fill, dtype=meaning.dtype)
    if next(iter(recipe.reads(number)), None) is None:
        return found  # no example lies in this block
    block, outputs = predictor.outputs(number, list(pieces))
    if len(outputs):
        at = tuple(
            positions[block.valid] - cut.start
            for positions, cut in zip(block.positions, box, strict=True)
        )
        found[at] = meaning.convert(outputs)
    return found


def _dask_array(variable: Variable) -> da.Array | None:
    """Return the dask array that holds a variable's values; None if memory holds them."""
    array = getattr(variable.origin, "array", None)
    return array if isinstance(array, da.Array) else None


def _pieces(
    recipe: Recipe, number: int, name: str, layer: dict[Key, Task]
) -> list[Piece | TaskRef]:
    """Return the values that the task of a block cannot read for itself.

    Tasks that are added to `layer` cut the parts that are needed out of the chunks of a dask array,
    so that only these travel to the worker that predicts.
    """
    pieces: list[Piece | TaskRef] = []
    for count, (variable, box) in enumerate(recipe.reads(number)):
        if not variable.needs_blocks:
            continue
        index, array = variable.index(box), _dask_array(variable)
        if array is None:
            starts = tuple(cut.start for cut in index)
            pieces.append(Piece(variable.key, starts, np.asarray(variable.read(box))))
            continue
        for place, starts, within in _overlapping(array, index):
            key = _key(name, variable.key, number, count, *place)
            chunk = TaskRef(_key(array.name, *place))
            layer[key] = Task(key, _cut_piece, variable.key, starts, chunk, within)
            pieces.append(TaskRef(key))
    return pieces


def _key(*parts: str | int) -> Key:
    return parts


def _overlapping(
    array: da.Array, index: Index
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], Index]]:
    """Yield the chunks that overlap a box: place, start of the overlap, overlap in the chunk."""
    spans = []
    for cut, sizes in zip(index, array.chunks, strict=True):
        edges = np.concatenate([[0], np.cumsum(sizes)])
        first = int(np.searchsorted(edges, cut.start, side="right")) - 1
        last = int(np.searchsorted(edges, cut.stop, side="left"))
        spans.append(
            [
                (at, max(cut.start, int(edges[at])), min(cut.stop, int(edges[at + 1])), edges[at])
                for at in range(first, last)
                if edges[at] < edges[at + 1]
            ]
        )
    for spanned in itertools.product(*spans):
        place = tuple(at for at, _, _, _ in spanned)
        within = tuple(slice(a - int(edge), b - int(edge)) for _, a, b, edge in spanned)
        yield place, tuple(start for _, start, _, _ in spanned), within


@portable_errors
def _cut_piece(key: str, starts: tuple[int, ...], chunk: object, within: Index) -> Piece:
    values = np.asarray(chunk)
    part = values[within]
    # A copy does not hold the rest of the chunk in memory.
    return Piece(key, starts, values if part.shape == values.shape else part.copy())


def _regular(array: da.Array) -> da.Array:
    """Return an array in chunks of one length along each dimension, which Zarr can hold."""
    wanted = {axis: max(c) for axis, c in enumerate(array.chunks) if not _is_regular(c)}
    return array.rechunk(wanted) if wanted else array


def _is_regular(chunks: tuple[int, ...]) -> bool:
    return len(set(chunks[:-1])) <= 1 and chunks[-1] <= chunks[0]


def _as_the_data(
    array: xr.DataArray, recipe: Recipe, source: Source, meaning: Meaning
) -> xr.DataArray:
    """Give the prediction the data's own order of dimensions, and its coordinates."""
    known = source.variables.get(meaning.name)
    largest = max(recipe.inputs.variables, key=lambda variable: variable.nbytes)
    alike = known if known is not None and set(recipe.along) <= set(known.dims) else largest
    order = [dim for dim in alike.dims if dim in array.dims and dim not in meaning.coords]
    array = array.transpose(*order, *(dim for dim in array.dims if dim not in order))
    array = array.assign_coords(_coordinates(source, array, meaning)).assign_coords(meaning.coords)
    array.encoding = dict(meaning.encoding)
    return array


def _coordinates(source: Source, array: xr.DataArray, meaning: Meaning) -> xr.Coordinates:
    """Return the data's coordinates over the prediction's dimensions, ready to be written.

    They have no encoding, for the prediction is stored in its own way. A coordinate with the name
    of the prediction, or of a dimension that it adds, is left out.
    """
    coords = source.coordinates().drop_encoding()
    sizes = {dim: size for dim, size in array.sizes.items() if dim not in meaning.coords}
    own = {meaning.name} - set(coords.indexes) | set(meaning.coords)
    other = [
        name
        for name, coord in coords.variables.items()
        if name in own or any(sizes.get(dim) != size for dim, size in coord.sizes.items())
    ]
    coords = coords.drop_vars(other)
    for name, coord in coords.variables.items():
        coord.attrs = _writable(coord.attrs)
        if coord.chunks is not None:
            coords[name] = coord.dims, _regular(coord.data), coord.attrs
    return coords.coords


def _writable(attrs: Mapping[Any, object]) -> dict[str, object]:
    """Return attributes in types that both netCDF and Zarr can write: text, numbers, lists.

    Examples
    --------
    >>> _writable({"units": "K", "valid": np.bool_(True), "grid": {"x": 1}, "note": None})
    {'units': 'K', 'valid': 1, 'grid': "{'x': 1}"}
    """
    kept = {str(name): _attribute(value) for name, value in attrs.items()}
    return {name: value for name, value in kept.items() if value is not None}


def _attribute(value: object) -> object:
    if isinstance(value, bool | np.bool_):
        return int(value)
    if value is None or isinstance(value, str | int | float | np.integer | np.floating):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "iufU":
        return value
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return value
    found = np.asarray(value) if isinstance(value, list | tuple | np.ndarray) else None
    if found is not None and found.dtype.kind in "iuf":
        return value
    if found is not None and found.dtype.kind == "b":
        return found.astype(np.int8)
    return str(value)
