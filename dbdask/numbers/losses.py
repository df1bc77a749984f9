"""The three losses, each with the gradient at the network's outputs before the last activation."""

from collections.abc import Callable

import numpy as np

Loss = Callable[[np.ndarray, np.ndarray, np.ndarray | None], float]


def softmax(outputs: np.ndarray, targets: np.ndarray, weights: np.ndarray | None) -> float:
    """Cross entropy of a softmax over labels, natural log; `outputs` becomes its gradient.

    Parameters
    ----------
    outputs
        (examples, classes), overwritten with the gradient of the weighted sum.
    targets
        Labels, (examples,).
    weights
        None or (examples,).
    """
    rows = np.arange(len(outputs))
    labels = checked_labels(targets, outputs.shape[1])
    outputs -= outputs.max(axis=1, keepdims=True)
    chosen = outputs[rows, labels].astype(np.float64)
    np.exp(outputs, out=outputs)
    sums = outputs.sum(axis=1, keepdims=True)
    losses = np.log(sums[:, 0], dtype=np.float64) - chosen
    outputs /= sums
    outputs[rows, labels] -= 1
    return _weighted(losses, outputs, weights)


def logistic(outputs: np.ndarray, targets: np.ndarray, weights: np.ndarray | None) -> float:
    """One-vs-all cross entropy, summed over outputs; `outputs` becomes its gradient.

    `targets` are labels, (examples,), or 0/1 for every output, (examples, outputs).
    """
    if targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer):
        wanted = np.zeros_like(outputs)
        wanted[np.arange(len(outputs)), checked_labels(targets, outputs.shape[1])] = 1
    else:
        wanted = targets.reshape(outputs.shape)
    losses = np.logaddexp(0, outputs, dtype=np.float64) - wanted * outputs
    sigmoid(outputs)
    outputs -= wanted
    return _weighted(losses, outputs, weights)


def squared(outputs: np.ndarray, targets: np.ndarray, weights: np.ndarray | None) -> float:
    """Half the squared error, summed over outputs; `outputs` becomes its gradient."""
    outputs -= targets.reshape(outputs.shape)
    losses = 0.5 * np.square(outputs, dtype=np.float64)
    return _weighted(losses, outputs, weights)


def _weighted(losses: np.ndarray, gradient: np.ndarray, weights: np.ndarray | None) -> float:
    """Sum the losses with weights an example or an element, and weigh the gradient in place."""
    if weights is None:
        return float(losses.sum(dtype=np.float64))
    weights = np.asarray(weights)
    if weights.ndim > 1:
        weights = weights.reshape(len(gradient), -1)
        if losses.ndim == 1:
            weights = weights[:, 0]
    shaped = weights.reshape(weights.shape + (1,) * (gradient.ndim - weights.ndim))
    gradient *= shaped.astype(gradient.dtype)
    by_loss = weights.reshape(weights.shape + (1,) * (losses.ndim - weights.ndim))
    return float((losses * by_loss).sum(dtype=np.float64))


def checked_labels(targets: np.ndarray, outputs: int) -> np.ndarray:
    """Return labels as they are, or raise where one lies outside the outputs."""
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(
            f"softmax needs integer labels of shape (examples,), got {targets.dtype} "
            f"of shape {targets.shape}"
        )
    if len(targets) and (targets.min() < 0 or targets.max() >= outputs):
        raise ValueError(
            f"labels must lie in 0 to {outputs - 1} for {outputs} outputs, "
            f"got {targets.min()} to {targets.max()}"
        )
    return targets


def sigmoid(values: np.ndarray) -> None:
    """Overwrite values with their logistic function, without overflow."""
    values *= 0.5
    np.tanh(values, out=values)
    values += 1
    values *= 0.5


def probabilities(loss: str, outputs: np.ndarray) -> np.ndarray:
    """Turn a network's outputs, in place, into what it predicts under a loss."""
    if loss == "softmax":
        outputs -= outputs.max(axis=1, keepdims=True)
        np.exp(outputs, out=outputs)
        outputs /= outputs.sum(axis=1, keepdims=True)
    elif loss == "logistic":
        sigmoid(outputs)
    return outputs


LOSSES: dict[str, Loss] = {"softmax": softmax, "logistic": logistic, "squared": squared}
