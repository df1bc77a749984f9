"""The three losses, each with the gradient at the network's outputs.

A loss takes the outputs before its own activation, float of shape (examples, outputs). It
overwrites them with their gradient, and returns the weighted sum of the losses, summed in float64.
Weights are None, one an example, or one an element of the outputs. An element of weight zero counts
for nothing, even if its target is NaN.

Each raises ValueError for targets or weights of a wrong shape, and DataError for targets of a
wrong value.
"""

from collections.abc import Callable

import numpy as np

from dbdask.arrays import Float64Array, FloatArray
from dbdask.errors import DataError

Loss = Callable[[FloatArray, np.ndarray, FloatArray | None], float]


def softmax(outputs: FloatArray, targets: np.ndarray, weights: FloatArray | None) -> float:
    """Return the cross entropy of a softmax over labels, in nats; `outputs` becomes its gradient.

    Parameters
    ----------
    outputs
        Float (examples, classes), overwritten with the gradient of the weighted sum.
    targets
        Labels, integers (examples,).
    weights
        None or float (examples,).

    Examples
    --------
    >>> outputs = np.zeros((1, 2))
    >>> round(softmax(outputs, np.array([0]), None), 6), outputs.tolist()
    (0.693147, [[-0.5, 0.5]])
    """
    rows = np.arange(len(outputs))
    labels = checked_labels(targets, outputs)
    outputs -= outputs.max(axis=1, keepdims=True)
    chosen = outputs[rows, labels].astype(np.float64)
    np.exp(outputs, out=outputs)
    sums = outputs.sum(axis=1, keepdims=True)
    losses = np.log(sums[:, 0], dtype=np.float64) - chosen
    outputs /= sums
    outputs[rows, labels] -= 1
    if weights is None:
        return float(losses.sum())
    weights = shaped_weights(weights, (len(outputs), 1))
    outputs *= weights.astype(outputs.dtype, copy=False)
    return float(losses @ weights[:, 0].astype(np.float64))


def logistic(outputs: FloatArray, targets: np.ndarray, weights: FloatArray | None) -> float:
    """Return the one-vs-all cross entropy, in nats; `outputs` becomes its gradient.

    `outputs` is float (examples, outputs). `targets` are labels, integers (examples,), or numbers
    from 0 to 1 for every output, float (examples, outputs). For one output, float (examples,) are
    such numbers, too. `weights` is None, float (examples,) or float (examples, outputs).
    """
    wanted = _wanted(outputs, targets, weights)
    losses = np.logaddexp(0, outputs, dtype=np.float64)
    losses -= wanted * outputs
    sigmoid(outputs)
    outputs -= wanted
    return _weigh(losses, outputs, weights)


def squared(outputs: FloatArray, targets: np.ndarray, weights: FloatArray | None) -> float:
    """Return half the squared error, summed over outputs; `outputs` becomes its gradient.

    `outputs` is float (examples, outputs); `targets` have one element for each of its elements.
    `weights` is None, float (examples,) or float (examples, outputs).
    """
    outputs -= shaped_targets(targets, outputs)
    losses = np.square(outputs, dtype=np.float64)
    losses *= 0.5
    return _weigh(losses, outputs, weights)


def _weigh(losses: Float64Array, gradient: FloatArray, weights: FloatArray | None) -> float:
    """Return the weighted sum of elementwise losses; multiply the gradient by the weights."""
    if weights is not None:
        weights = shaped_weights(weights, losses.shape)
        losses *= weights
        gradient *= weights.astype(gradient.dtype, copy=False)
        if not weights.all():
            masked = np.broadcast_to(weights == 0, losses.shape)
            losses[masked] = 0
            gradient[masked] = 0
    return float(losses.sum())


def shaped_weights(weights: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Return weights as float (examples, 1) or (examples, outputs).

    Raises
    ------
    ValueError
        Neither shape fits.
    """
    weights = np.asarray(weights)
    per_example = weights.shape == shape[:1]
    if weights.shape[:1] != shape[:1] or not (per_example or weights.size == np.prod(shape)):
        raise ValueError(
            f"weights must have one element an example, ({shape[0]},), or one a target element, "
            f"{shape}, got shape {weights.shape}"
        )
    return weights[:, np.newaxis] if per_example else weights.reshape(shape)


def _wanted(outputs: FloatArray, targets: np.ndarray, weights: FloatArray | None) -> FloatArray:
    """Return the target of every output: (examples, outputs), from 0 to 1."""
    if outputs.shape[1] > 1 and targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer):
        wanted = np.zeros_like(outputs)
        wanted[np.arange(len(outputs)), checked_labels(targets, outputs)] = 1
        return wanted
    wanted = shaped_targets(targets, outputs)
    inside = (wanted >= 0) & (wanted <= 1)
    if weights is not None:
        inside |= shaped_weights(weights, outputs.shape) == 0
    if not inside.all():
        raise DataError(
            f"targets of a 'logistic' loss must lie in 0 to 1 for every output, "
            f"got {wanted[~inside][0]}"
        )
    return wanted


def shaped_targets(targets: np.ndarray, outputs: FloatArray) -> FloatArray:
    """Return targets in the shape and the dtype of the outputs; raise ValueError if they differ."""
    if targets.shape[:1] != outputs.shape[:1] or targets.size != outputs.size:
        raise ValueError(
            f"targets must have one element for each of the {outputs.shape[1]} outputs and "
            f"{len(outputs)} examples, got shape {targets.shape}"
        )
    return targets.reshape(outputs.shape).astype(outputs.dtype, copy=False)


def checked_labels(targets: np.ndarray, outputs: FloatArray) -> np.ndarray:
    """Return labels, integers (examples,), as they are.

    Raises
    ------
    ValueError
        They are no whole numbers, or not one an example.
    DataError
        One is below 0, or not below the number of outputs.
    """
    if targets.shape != outputs.shape[:1] or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(
            f"targets must be integer labels of shape ({len(outputs)},), "
            f"got {targets.dtype} of shape {targets.shape}"
        )
    classes = outputs.shape[1]
    if len(targets) and (targets.min() < 0 or targets.max() >= classes):
        raise DataError(
            f"labels must lie in 0 to {classes - 1}, because the network has {classes} outputs, "
            f"got labels from {targets.min()} to {targets.max()}"
        )
    return targets


def sigmoid(values: FloatArray) -> None:
    """Overwrite float values, of any shape, with their logistic function, without overflow."""
    values *= 0.5
    np.tanh(values, out=values)
    values += 1
    values *= 0.5


def probabilities(loss: str, outputs: FloatArray) -> FloatArray:
    """Overwrite outputs, float (examples, outputs), with the predictions, and return them.

    They are probabilities for "softmax" and "logistic", and the outputs themselves for "squared".
    """
    if loss == "softmax":
        outputs -= outputs.max(axis=1, keepdims=True)
        np.exp(outputs, out=outputs)
        outputs /= outputs.sum(axis=1, keepdims=True)
    elif loss == "logistic":
        sigmoid(outputs)
    return outputs


LOSSES: dict[str, Loss] = {"softmax": softmax, "logistic": logistic, "squared": squared}
