"""Scores: sums over examples that add up over minibatches, portions and workers."""

import math
from dataclasses import astuple, dataclass

import numpy as np

from dbdask.arrays import Float32Array, Float64Array, FloatArray, Int64Array
from dbdask.errors import DataError, ModelError
from dbdask.models.evaluation import Batch, loss_of_minibatch
from dbdask.models.model import Model
from dbdask.models.piecewise import PiecewiseNetwork
from dbdask.users_code import UsersCode

NOTHING = (
    "examples has no example with a weight above 0 that is not missing; examples.check() says "
    "what is left out"
)


CLASS_LOSSES = ("softmax", "logistic")
"""The losses whose outputs for one label an example are those of classes."""


@dataclass(frozen=True)
class Score:
    """Sums over examples; they add up over portions."""

    loss: float = 0.0
    weight: float = 0.0
    correct: float = 0.0  # NaN: the outputs cannot be compared with the targets
    squared_error: float = 0.0  # in the target's own units
    elements: float = 0.0

    def __add__(self, other: "Score") -> "Score":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Score(*(mine + yours for mine, yours in pairs))

    def summary(self) -> dict[str, float]:
        """Return loss and accuracy of labels, loss and rmse of values, or only the loss.

        Raises
        ------
        DataError
            No example has a weight above 0.
        """
        if not self.weight > 0:
            raise DataError(NOTHING)
        loss = self.loss / self.weight
        if self.elements:
            return {"loss": loss, "rmse": math.sqrt(self.squared_error / self.elements)}
        accuracy = {"accuracy": self.correct / self.weight}
        return {"loss": loss} | ({} if math.isnan(self.correct) else accuracy)


class Determination:
    """The coefficient of determination, r2, of each element of the targets.

    Examples
    --------
    >>> found = Determination()
    >>> found.add(np.array([[0.5], [0.0]]), np.array([[1.0], [3.0]]), np.ones((2, 1)))
    >>> found.add(np.array([[-0.5]]), np.array([[5.0]]), np.ones((1, 1)))
    >>> found.mean()
    0.9375
    """

    def __init__(self) -> None:
        self.weight: float | Float64Array = 0.0
        self.centre: float | Float64Array = 0.0
        self.spread: float | Float64Array = (
            0.0  # weighted sum of squared deviations from the centre
        )
        self.squared_error: float | Float64Array = 0.0

    def add(self, errors: Float64Array, targets: Float64Array, weights: Float64Array) -> None:
        """Add examples; all arrays are float64, (examples, elements).

        Source: Chan, Golub and LeVeque (1983).
        """
        weight = weights.sum(axis=0)
        total = self.weight + weight
        part = np.divide(weight, total, out=np.zeros_like(total), where=total > 0)
        own = (weights * targets).sum(axis=0) / np.where(weight > 0, weight, 1)
        step = own - self.centre
        around = (weights * np.square(targets - own)).sum(axis=0)
        self.spread = self.spread + around + step * step * self.weight * part
        self.centre = self.centre + step * part
        self.weight = total
        self.squared_error = self.squared_error + (weights * np.square(errors)).sum(axis=0)

    def mean(self) -> float:
        """Return r2, averaged over the elements whose targets vary; NaN if none does."""
        spread, error = np.atleast_1d(self.spread), np.atleast_1d(self.squared_error)
        varies = spread > 0
        return float(np.mean(1 - error[varies] / spread[varies])) if varies.any() else math.nan


def means_classes(loss: str | None, outputs: int) -> bool:
    """Return whether a model's outputs for one label an example are those of classes.

    Those of "softmax" and "logistic" are. Of another loss, or of one without a name, several
    outputs are those of classes, and a single output is a value.
    """
    return loss in CLASS_LOSSES or (loss != "squared" and outputs > 1)


def class_probabilities(outputs: FloatArray, loss: str | None) -> FloatArray:
    """Return the probabilities of classes: float (examples, classes).

    They are the outputs, float (examples, ...); one "logistic" output is that of the second class.

    Examples
    --------
    >>> class_probabilities(np.array([[0.25], [1.0]]), "logistic")
    array([[0.75, 0.25],
           [0.  , 1.  ]])
    >>> class_probabilities(np.array([[1.0], [1.0]]), "softmax")
    array([[1.],
           [1.]])
    """
    flat = outputs.reshape(len(outputs), -1)
    two = loss == "logistic" and flat.shape[1] == 1
    return np.concatenate([1 - flat, flat], axis=1) if two else flat


def chosen_classes(outputs: FloatArray, loss: str | None) -> Int64Array:
    """Return the most probable class of each example: int64, (examples,)."""
    chosen: Int64Array = class_probabilities(outputs, loss).argmax(axis=1)
    return chosen


def score_minibatch(
    model: Model | PiecewiseNetwork,
    parameters: Float32Array,
    batch: Batch,
    scratch: Float32Array,
    deviation: float | Float64Array = 1.0,
    determination: Determination | None = None,
) -> Score:
    """Return the score of one minibatch.

    Parameters
    ----------
    model
        The model.
    parameters
        float32, of the model's size.
    batch
        The examples, with targets.
    scratch
        float32, of the model's size: takes the gradient of a model without `loss_only`.
    deviation
        The size of one unit of a scaled target, in the target's own units: one number, or
        float64 (elements,).
    determination
        Adds the errors of values for r2; None: r2 is not wanted.

    Raises
    ------
    ModelError
        The loss is no number, or the outputs are not one row for each example.
    """
    loss = loss_of_minibatch(model, parameters, batch, scratch=scratch)
    assert batch.targets is not None
    count = len(batch.inputs)
    weights = np.ones(count) if batch.weights is None else np.asarray(batch.weights, np.float64)
    by_example = weights if weights.ndim == 1 else weights.reshape(count, -1).mean(axis=1)
    total = float(by_example.sum())
    with UsersCode("model.predict"):
        outputs = np.asarray(model.predict(parameters, batch.inputs), np.float64)
    if outputs.shape[:1] != (count,):
        raise ModelError(
            f"model.predict must return one row of outputs for each of the {count} examples, got "
            f"shape {outputs.shape}; dbdask.check_model(model, examples) tries a model"
        )
    outputs = outputs.reshape(count, -1)
    name = getattr(model, "loss", None)
    if np.issubdtype(batch.targets.dtype, np.integer):
        if not means_classes(name, outputs.shape[1]):
            return Score(loss, total, correct=math.nan)
        hits = chosen_classes(outputs, name) == batch.targets
        return Score(loss, total, correct=float(by_example @ hits))
    targets = batch.targets.reshape(count, -1).astype(np.float64) * deviation
    if targets.shape != outputs.shape:
        return Score(loss, total, correct=math.nan)
    errors = outputs * deviation - targets
    by_element = weights.reshape(count, -1) * np.ones(targets.shape)
    if determination is not None:
        determination.add(errors, targets, by_element)
    squared_error = float((by_element * errors**2).sum())
    return Score(loss, total, squared_error=squared_error, elements=float(by_element.sum()))
