"""The losses of a cut network: each part has some columns of the outputs.

As in `dbdask.models.losses`, a loss overwrites its outputs with their gradient. The parts' losses
add up to that of the whole network.
"""

from collections.abc import Sequence

import numpy as np

from dbdask.arrays import FloatArray
from dbdask.models.exchange import Exchange, Exchanging
from dbdask.models.losses import LOSSES, checked_labels, shaped_targets, shaped_weights

Columns = tuple[int, int]
"""A range of the network's outputs: the first, and the one after the last."""


def cut_loss(
    loss: str,
    outputs: FloatArray,
    columns: Columns,
    size: int,
    targets: np.ndarray,
    weights: FloatArray | None,
    peers: Sequence[int],
) -> Exchanging[float]:
    """Return a part's share of the weighted sum of losses; `outputs` becomes its gradient.

    Parameters
    ----------
    loss
        "softmax", "logistic" or "squared".
    outputs
        Float (examples, columns), overwritten.
    columns, size
        Which of the network's `size` outputs these are.
    targets, weights
        Of all outputs, as the whole network takes them.
    peers
        The other parts that have outputs.
    """
    # The shape of the whole outputs, which no part holds, for the checks of targets.
    whole = np.broadcast_to(outputs.dtype.type(0), (len(outputs), size))
    if loss == "softmax":
        labels = checked_labels(np.asarray(targets), whole)
        of_examples = None if weights is None else shaped_weights(weights, (len(outputs), 1))[:, 0]
        return (yield from _softmax(outputs, columns, labels, of_examples, peers))
    own_targets = _own_targets(loss, np.asarray(targets), whole, columns)
    return LOSSES[loss](outputs, own_targets, _own_weights(weights, whole, columns))


def cut_softmax(outputs: FloatArray, peers: Sequence[int]) -> Exchanging[tuple[FloatArray, ...]]:
    """Overwrite outputs, float (examples, columns), with their probabilities among all columns.

    Each part sends the maximum of each row and the sum of the exponentials relative to it, in one
    message: that is enough to bring the sums to the maximum of all parts.

    Returns
    -------
    maxima, sums
        Of whole rows, float (examples,): the largest output, and the sum of exponentials relative
        to it.
    """
    maxima = outputs.max(axis=1)
    outputs -= maxima[:, np.newaxis]
    np.exp(outputs, out=outputs)
    own = np.stack([maxima, outputs.sum(axis=1)])
    others = {peer: np.empty_like(own) for peer in peers}
    if peers:
        yield Exchange(0, "loss", dict.fromkeys(peers, own), others)
    largest = np.max([own[0], *(of_peer[0] for of_peer in others.values())], axis=0)
    shares = [of_part[1] * np.exp(of_part[0] - largest) for of_part in (own, *others.values())]
    sums = np.sum(shares, axis=0)
    outputs *= (np.exp(maxima - largest) / sums)[:, np.newaxis]
    return largest, sums


def _softmax(
    outputs: FloatArray,
    columns: Columns,
    labels: np.ndarray,
    weights: FloatArray | None,
    peers: Sequence[int],
) -> Exchanging[float]:
    """Return the share of the examples whose labels are among the columns."""
    (rows,) = np.nonzero((labels >= columns[0]) & (labels < columns[1]))
    own = labels[rows] - columns[0]
    chosen = outputs[rows, own]
    largest, sums = yield from cut_softmax(outputs, peers)
    losses = np.log(sums[rows], dtype=np.float64) - (chosen - largest[rows])
    outputs[rows, own] -= 1
    if weights is None:
        return float(losses.sum())
    outputs *= weights.astype(outputs.dtype, copy=False)[:, np.newaxis]
    return float(losses @ weights[rows].astype(np.float64))


def _own_targets(loss: str, targets: np.ndarray, whole: FloatArray, columns: Columns) -> np.ndarray:
    """Return the targets of the part's outputs, (examples, columns)."""
    first, last = columns
    is_labels = targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer)
    if loss != "logistic" or whole.shape[1] == 1 or not is_labels:
        return shaped_targets(targets, whole)[:, first:last]
    labels = checked_labels(targets, whole)
    wanted = np.zeros_like(whole, shape=(len(labels), last - first))
    (rows,) = np.nonzero((labels >= first) & (labels < last))
    wanted[rows, labels[rows] - first] = 1
    return wanted


def _own_weights(
    weights: FloatArray | None, whole: FloatArray, columns: Columns
) -> FloatArray | None:
    """Return weights, (examples,), or of the part's outputs, (examples, columns)."""
    if weights is None:
        return None
    shaped = shaped_weights(weights, whole.shape)
    return shaped[:, 0] if shaped.shape[1] == 1 else shaped[:, columns[0] : columns[1]]
