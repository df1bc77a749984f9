"""The meaning of a model's outputs: labels, probabilities, or values in the targets' own units."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dbdask.arrays import Float64Array, FloatArray
from dbdask.data.decoding import exact_array
from dbdask.data.examples import Examples
from dbdask.data.feature_sets import FeatureSet
from dbdask.metrics.scores import chosen_classes, class_probabilities


@dataclass(frozen=True)
class Meaning:
    """The array that outputs become: its dtype, extra dimensions, and the value of gaps."""

    name: str
    dtype: np.dtype | type
    fill: object
    convert: Callable[[FloatArray], np.ndarray]  # outputs (examples, outputs) -> (examples, *extra)
    dims: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    coords: dict[str, Any] = field(default_factory=dict)
    attrs: dict[str, object] = field(default_factory=dict)
    encoding: dict[str, object] = field(default_factory=dict)


def label_meaning(examples: Examples, loss: str | None, outputs: int, has_gaps: bool) -> Meaning:
    """Return the meaning of outputs as labels of classes.

    Parameters
    ----------
    examples
        The training examples.
    loss
        The model's loss; None if it has no name.
    outputs
        Outputs of the model for one example.
    has_gaps
        Whether there may be positions at which no example can be formed.
    """
    labels, variable = _labels(examples, loss, outputs), _targets(examples).variables[0]
    dtype: Any = labels.dtype
    fill: Any = 0  # no position has it
    encoding, attrs = {}, {}
    declared = [one for one in variable.decoding.missing if _holds(dtype, one)]
    if dtype.kind in "iu" and declared:
        fill = declared[0]
        encoding["_FillValue"] = dtype.type(fill)
    elif isinstance(labels[0], str):
        # Of NaN among text xarray writes "", which may be a label.
        fill = _text_of_none(labels) if has_gaps else ""
        dtype = np.result_type(dtype, np.array(fill))
        attrs = {"missing_label": fill} if fill else {}
    elif dtype.kind in "mM":
        fill = dtype.type("NaT")
    elif has_gaps and np.array_equal(labels.astype(np.float64).astype(object), labels):
        dtype, fill = np.dtype(np.float64), np.nan
    elif has_gaps:
        fill = next(number for number in itertools.count() if number not in labels)
        attrs["missing_label"] = dtype.type(fill)
    decode = _Decoded(labels, loss)
    attrs |= _flags(examples, labels, dtype)
    return Meaning(variable.name, dtype, fill, decode, attrs=attrs, encoding=encoding)


def _flags(examples: Examples, labels: np.ndarray, dtype: Any) -> dict[str, object]:
    """Return the attributes that say in words what numbers stand for, if the target had them."""
    classes = examples.recipe.classes
    if classes is None or classes.meanings is None or len(classes.meanings) != len(labels):
        return {}
    return {"flag_values": labels.astype(dtype), "flag_meanings": " ".join(classes.meanings)}


def probability_meaning(examples: Examples, loss: str | None, outputs: int) -> Meaning:
    """Return the meaning of outputs as probabilities of classes, along a `class` dimension."""
    labels = _labels(examples, loss, outputs)
    return Meaning(
        _targets(examples).names[0],
        np.float32,
        np.nan,
        _Probabilities(loss),
        ("class",),
        (len(labels),),
        {"class": ("class", labels, _flags(examples, labels, labels.dtype))},
    )


def value_meanings(examples: Examples, outputs: int) -> list[Meaning]:
    """Return the meaning of outputs as values: one for each target.

    If there is not one output for each target element, there is one meaning, of raw outputs.
    """
    targets = _targets(examples)
    elements = sum(math.prod(shape) for shape in targets.shapes)
    if outputs == elements:
        units = TargetUnits(targets.shapes, examples.target_scaling)
        return [_value_meaning(targets, units, number) for number in range(len(targets.names))]
    name = targets.names[0] if len(targets.names) == 1 else "outputs"
    coords = {"output": np.arange(outputs)}
    return [Meaning(name, np.float32, np.nan, _Raw(), ("output",), (outputs,), coords)]


def _value_meaning(targets: FeatureSet, units: "TargetUnits", number: int) -> Meaning:
    variable = targets.variables[number]
    known = ("units", "long_name", "standard_name")
    return Meaning(
        variable.name,
        units.dtype(number, variable.stored_dtype),
        np.nan,
        _InUnits(units, number),
        targets.feature_dims[number],
        targets.shapes[number],
        attrs={name: variable.attrs[name] for name in known if name in variable.attrs},
    )


def _targets(examples: Examples) -> FeatureSet:
    targets = examples.recipe.targets
    assert targets is not None
    return targets


def _labels(examples: Examples, loss: str | None, outputs: int) -> np.ndarray:
    """Return the label of each output: (classes,)."""
    known = examples.output_classes
    if known is not None:
        labels = exact_array(known)
        of_floats = _targets(examples).variables[0].value_dtype.kind == "f"
        # Whole floats may be beyond every integer dtype.
        return labels.astype(np.float64) if of_floats and labels.dtype == object else labels
    return np.arange(class_probabilities(np.zeros((1, outputs)), loss).shape[1])


def _text_of_none(labels: np.ndarray) -> str:
    """Return a text that is no label: empty if possible."""
    texts = itertools.chain(["", "missing"], (f"missing {n}" for n in itertools.count(2)))
    return next(text for text in texts if text not in labels)


@dataclass(frozen=True)
class TargetUnits:
    """The conversion of a model's outputs to the target variables' values, in their own units.

    Parameters
    ----------
    shapes
        Shape of each target variable's part of one example.
    scaling
        Mean and deviation of all targets together, float64; None if they were not scaled.
    """

    shapes: tuple[tuple[int, ...], ...]
    scaling: tuple[Float64Array, Float64Array] | None

    def dtype(self, number: int, stored: np.dtype) -> np.dtype:
        """Return the dtype that holds one target variable's values.

        The values of a scaled target may be so far from zero that float32 cannot distinguish them.
        """
        if self.scaling is None:
            return np.dtype(np.float32)
        mean, deviation = (self.part(array[np.newaxis], number) for array in self.scaling)
        wide = stored.itemsize >= (4 if stored.kind in "iu" else 8)
        coarse = np.abs(mean) * np.finfo(np.float32).eps > 1e-3 * deviation
        return np.dtype(np.float64 if wide or coarse.any() else np.float32)

    def values(self, outputs: FloatArray, number: int) -> FloatArray:
        """Return the values of one target, float (examples, *its shape).

        `outputs` is float (examples, outputs).
        """
        values = outputs.reshape(len(outputs), -1)
        if self.scaling is not None:
            mean, deviation = self.scaling
            values = values.astype(np.float64) * deviation.ravel() + mean.ravel()
        return self.part(values, number)

    def part(self, values: FloatArray, number: int) -> FloatArray:
        """Return one target, float (examples, *its shape), of all targets, (examples, elements)."""
        count, shape = len(values), self.shapes[number]
        values = values.reshape(count, -1)
        if len(set(self.shapes)) == 1:
            return values.reshape(count, *shape, len(self.shapes))[..., number]
        sizes = [math.prod(other) for other in self.shapes]
        start = sum(sizes[:number])
        return values[:, start : start + sizes[number]].reshape(count, *shape)


class _Decoded:
    """Turns outputs, (examples, outputs), into the label of the most probable class."""

    def __init__(self, labels: np.ndarray, loss: str | None) -> None:
        self.labels, self.loss = labels, loss

    def __call__(self, outputs: FloatArray) -> np.ndarray:
        return self.labels[chosen_classes(outputs, self.loss)]


class _Probabilities:
    """Turns outputs, (examples, outputs), into the probability of each class."""

    def __init__(self, loss: str | None) -> None:
        self.loss = loss

    def __call__(self, outputs: FloatArray) -> FloatArray:
        return class_probabilities(outputs, self.loss)


class _Raw:
    """Leaves outputs as the model gives them: (examples, outputs)."""

    def __call__(self, outputs: FloatArray) -> FloatArray:
        return outputs.reshape(len(outputs), -1)


def _holds(dtype: np.dtype, value: Any) -> bool:
    """Whether an integer dtype has the value."""
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    return limits is not None and limits.min <= value <= limits.max


class _InUnits:
    """Turns outputs, (examples, outputs), into one target variable's values in its own units."""

    def __init__(self, units: TargetUnits, number: int) -> None:
        self.units, self.number = units, number

    def __call__(self, outputs: FloatArray) -> np.ndarray:
        return self.units.values(outputs, self.number)
