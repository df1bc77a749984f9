"""Scores: sums over examples that add up over minibatches, portions and workers."""

import math
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Score:
    """Sums over examples; they add up over portions."""

    loss: float = 0.0
    weight: float = 0.0
    correct: float = 0.0
    squared_error: float = 0.0  # in the target's own units
    targets: float = 0.0  # sum of the targets
    squared_targets: float = 0.0
    elements: float = 0.0

    def __add__(self, other: "Score") -> "Score":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Score(*(mine + yours for mine, yours in pairs))

    def summary(self) -> dict[str, float]:
        """Return loss and accuracy of labels, or loss, rmse and r2 of values."""
        loss = self.loss / self.weight
        if not self.elements:
            return {"loss": loss, "accuracy": self.correct / self.weight}
        spread = self.squared_targets - self.targets**2 / self.elements
        return {
            "loss": loss,
            "rmse": math.sqrt(self.squared_error / self.elements),
            "r2": 1 - self.squared_error / spread if spread > 0 else math.nan,
        }


def class_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Return (examples, classes): the outputs, of which a single one is that of the second class.

    Examples
    --------
    >>> class_probabilities(np.array([[0.25], [1.0]]))
    array([[0.75, 0.25],
           [0.  , 1.  ]])
    """
    flat = outputs.reshape(len(outputs), -1)
    return np.concatenate([1 - flat, flat], axis=1) if flat.shape[1] == 1 else flat


def chosen_classes(outputs: np.ndarray) -> np.ndarray:
    """Return the class that is most probable for each example."""
    return class_probabilities(outputs).argmax(axis=1)


def score_minibatch(
    model: Any,
    parameters: np.ndarray,
    batch: Any,
    scratch: np.ndarray,
    deviation: float | np.ndarray = 1.0,
) -> Score:
    """Score one minibatch.

    Parameters
    ----------
    scratch
        A vector of the model's size; it takes the gradient that the loss brings along.
    deviation
        What one unit of a scaled target is in the target's own units.
    """
    loss = model.loss_and_gradient(
        parameters, batch.inputs, batch.targets, weights=batch.weights, seed=0, gradient=scratch
    )
    count = len(batch.inputs)
    weights = np.ones(count) if batch.weights is None else np.asarray(batch.weights, np.float64)
    by_example = weights if weights.ndim == 1 else weights.reshape(count, -1).mean(axis=1)
    total = float(by_example.sum())
    outputs = np.asarray(model.predict(parameters, batch.inputs), np.float64)
    if np.issubdtype(batch.targets.dtype, np.integer):
        hits = chosen_classes(outputs) == batch.targets
        return Score(loss, total, correct=float(by_example @ hits))
    targets = batch.targets.reshape(count, -1) * deviation
    errors = outputs.reshape(count, -1) * deviation - targets
    by_element = weights.reshape(count, -1) * np.ones(targets.shape)
    return Score(
        loss,
        total,
        squared_error=float((by_element * errors**2).sum()),
        targets=float((by_element * targets).sum()),
        squared_targets=float((by_element * targets**2).sum()),
        elements=float(by_element.sum()),
    )
