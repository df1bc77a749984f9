"""Predictions over a whole dataset: the model on the oracle's inputs, aligned with the data."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import dbdask
from dbdask.result import History, Result, Status

from .arguments import Asked
from .comparing import NAMED, Wrong
from .expectation import fill, measure
from .labels import plain
from .observing import Observed
from .oracle import Table, feature_dims, rows_of, whole
from .writing_back import check_written


@dataclass
class Outputs:
    """What the model makes of the oracle's inputs, and how far rounding may carry it."""

    values: np.ndarray
    magnitudes: np.ndarray


def check_prediction(
    data: Any, observed: Observed, table: Table, folder: Any
) -> tuple[str, list[str]]:
    """Predict on the data; raise Wrong where it is not what the model gives.

    Returns
    -------
    "predicted", or "refused" where an error had to come or could; and the formats that the
    prediction was written to and read back from.
    """
    examples = observed.examples
    assert examples is not None
    seen = over_everything(table)
    model, linear, vector = models(table, examples)
    result = Result(model, examples, vector, History(), Status("epochs", ""))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = result.predict(data)
            computed = found.compute()
        except Exception as error:  # of every kind: the comparison says which are right
            named = isinstance(error, NAMED) and (seen.required or seen.allowed)
            if not named:
                raise Wrong(f"predict: {type(error).__name__}: {error}") from error
            return "refused", []
    raw = [w for w in caught if not issubclass(w.category, UserWarning)]
    if raw:
        raise Wrong(f"predict: a raw warning: {raw[0].category.__name__}: {raw[0].message}")
    if seen.required:
        raise Wrong(f"predict: no error came, though {'; '.join(seen.required)}")
    if seen.doubtful_values or seen.inputs is None:
        return "not compared", []
    inputs = np.ascontiguousarray(seen.inputs[seen.kept])
    outputs = Outputs(
        linear.predict(vector, inputs).astype(np.float64),
        linear.predict(np.abs(vector), np.abs(inputs)).astype(np.float64),
    )
    arrays = [computed] if isinstance(computed, xr.DataArray) else list(computed.values())
    for number, array in enumerate(arrays):
        check_place(array, data, table, table.asked.targets[number])
        check_values(array, seen, table, outputs, number)
    return "predicted", check_written(found, computed, folder)


def over_everything(table: Table) -> Table:
    """Return what the inputs are at every position of the data, prepared as in training."""
    missing = "mask" if table.asked.missing == "mask" else "drop"
    asked = Asked(**{**table.asked.__dict__, "weights": None, "cuts": [], "missing": missing})
    selected = whole(table.world, asked)
    seen = Table(asked, table.world, selected, *rows_of(table.world, asked, selected))
    fill(seen, trained=measure(table))
    return seen


def models(table: Table, examples: Any) -> tuple[Any, Any, np.ndarray]:
    """Return a model with parameters from nowhere, and one that shows its last layer."""
    assert table.asked.loss is not None
    if table.asked.loss == "squared":
        units = max(1, int(np.prod(examples.target_shape)))
    else:
        assert table.classes is not None
        single = table.asked.loss == "logistic" and len(table.classes) == 2
        units = 1 if single and table.asked.outputs == 1 else len(table.classes)
    shape = examples.input_shape
    made = [
        dbdask.Network(input_shape=shape, layers=[dbdask.Dense(units)], loss=loss)
        for loss in (table.asked.loss, "squared")
    ]
    vector = np.random.default_rng(units).normal(size=made[0].parameter_count)
    return made[0], made[1], vector.astype(np.float32)


def check_place(array: xr.DataArray, data: Any, table: Table, target: str) -> None:
    """A prediction has the name of its target, and the dimensions and labels of the data."""
    if array.name != target:
        raise Wrong(f"predict: the name is {array.name!r}, not {target!r}")
    shown = table.world.variables[target]
    if set(shown.dims) == set(array.dims) and array.dims != shown.dims:
        raise Wrong(f"predict: dimensions {array.dims}, the target has {shown.dims}")
    if not isinstance(data, xr.Dataset):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = xr.open_zarr(data, consolidated=False, chunks=None)
        except Exception:  # of every kind: what xarray cannot open says nothing
            return
    xr.align(data, array, join="exact")
    for name, coord in data.coords.items():
        if set(coord.dims) <= set(array.dims) and name != array.name:
            if name not in array.coords:
                raise Wrong(f"predict: the coordinate {name!r} is lost")
            if not array.coords[name].variable.equals(coord.variable):
                raise Wrong(f"predict: the coordinate {name!r} is changed")
    for dim, index in data.indexes.items():
        if dim in array.dims and not index.equals(array.indexes.get(dim, pd.Index([]))):
            raise Wrong(f"predict: the index of {dim!r} is changed")


def check_values(
    array: xr.DataArray, seen: Table, table: Table, outputs: Outputs, number: int
) -> None:
    """Compare every position: what the model gives, or missing where no example can be formed."""
    along = table.asked.along
    extra = [dim for dim in array.dims if dim not in along]
    if table.asked.loss == "squared":
        targets = [table.world.variables[name] for name in table.asked.targets]
        if set(extra) != set(feature_dims(targets, along)[number]):
            raise Wrong(f"predict: dimensions {array.dims} beside {along}")
        extra = list(feature_dims(targets, along)[number])
    values = array.transpose(*along, *extra).to_numpy()
    missing = is_missing(array, table.classes or []).transpose(*along, *extra).to_numpy()
    formed = np.zeros(values.shape[: len(along)], bool)
    at = tuple(seen.positions[seen.kept].T)
    formed[at] = True
    if (~missing[~formed]).any():
        raise Wrong(f"predict: {values[~formed][:3]} where no example can be formed")
    if table.asked.loss == "squared":
        _check_numbers(values[at], table, outputs, number)
    else:
        _check_labels(values[at], table, outputs)


def is_missing(array: xr.DataArray, labels: list[Any]) -> xr.DataArray:
    """Say where an array shows nothing: NaN, or no text or a number where that is no label."""
    missing = array.isnull()
    declared = array.encoding.get("_FillValue")  # a class of this number has no example
    if declared is not None and declared == declared:
        missing = missing | (array == declared)
    named = [array.attrs.get("missing_label"), *([""] if array.dtype.kind in "UO" else [])]
    for gap in named:
        if gap is not None and gap == gap and plain(gap) not in labels:
            missing = missing | (array == gap)
    return missing


def _check_numbers(found: np.ndarray, table: Table, outputs: Outputs, number: int) -> None:
    asked = table.asked
    targets = [table.world.variables[name] for name in asked.targets]
    sizes = [
        tuple(table.world.sizes[dim] for dim in dims) for dims in feature_dims(targets, asked.along)
    ]
    parts = [
        _own_part(part, sizes, number).reshape(len(found), *sizes[number])
        for part in (outputs.values, outputs.magnitudes)
    ]
    wanted, tolerance = parts[0], 1e-5 * parts[1] + 1e-6
    scaling = measure(table).get(asked.targets[number])
    if scaling is not None and asked.standardize and asked.standardize["targets"] is not False:
        wanted = wanted * scaling.deviation + scaling.mean
        tolerance = tolerance * scaling.deviation + 1e-3 * scaling.deviation + scaling.mean_error
    bad = np.abs(found.astype(np.float64) - wanted) > tolerance + 1e-6 * np.abs(parts[0])
    if bad.any() or not np.isfinite(found.astype(np.float64)).all():
        at = tuple(np.argwhere(bad | ~np.isfinite(found.astype(np.float64)))[0])
        raise Wrong(f"predict: {found[at]!r}, not {wanted[at]!r} at row {tuple(map(int, at))}")


def _own_part(outputs: np.ndarray, sizes: list[tuple[int, ...]], number: int) -> np.ndarray:
    if len(set(sizes)) == 1:
        return outputs.reshape(len(outputs), *sizes[0], len(sizes))[..., number]
    counts = [int(np.prod(size)) for size in sizes]
    start = sum(counts[:number])
    return outputs[:, start : start + counts[number]]


def _check_labels(found: np.ndarray, table: Table, outputs: Outputs) -> None:
    assert table.classes is not None
    flat, magnitudes = outputs.values, outputs.magnitudes.max(axis=1, initial=0.0)
    if flat.shape[1] == 1 and len(table.classes) == 2:
        flat = np.concatenate([np.zeros_like(flat), flat], axis=1)
    if table.asked.loss == "logistic" and flat.shape[1] > 1 and outputs.values.shape[1] > 1:
        flat = np.clip(flat, -12, 12)  # beyond, probabilities are equal in float32
    order = np.sort(flat, axis=1)
    clear = np.ones(len(flat), bool)
    if flat.shape[1] > 1:
        clear = order[:, -1] - order[:, -2] > 1e-4 * magnitudes + 1e-4
    wanted = flat.argmax(axis=1)
    for row in np.flatnonzero(clear):
        label, value = table.classes[wanted[row]], found[row]
        if value != label:
            raise Wrong(f"predict: the label {value!r}, not {label!r}, at row {int(row)}")
