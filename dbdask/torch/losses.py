"""Losses of a module's outputs: weighted sums over the examples, as `dbdask.Model` has them.

Targets of weight zero are replaced before anything is computed, because NaN times zero is NaN.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from dbdask.errors import DataError, ModelError
from dbdask.models.losses import checked_labels

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes outputs and targets, and returns one loss for each example."""


def summed_loss(
    loss: str | LossFunction,
    outputs: torch.Tensor,
    targets: np.ndarray,
    weights: np.ndarray | None,
) -> torch.Tensor:
    """Return the weighted sum of the losses as a float64 scalar, on the device of the outputs.

    Parameters
    ----------
    loss
        The name of a loss, or a function.
    outputs
        float32, (examples, ...).
    targets, weights
        As `dbdask.Model.loss_and_gradient` takes them.

    Raises
    ------
    ModelError
        Outputs, targets and losses do not fit each other.
    DataError
        A label is no class, or a target is not what the loss takes.
    """
    known = _without_gaps(targets, weights)
    losses = _named(loss, outputs, known) if isinstance(loss, str) else _own(loss, outputs, known)
    if weights is not None:
        losses = losses * _fitting(weights, losses)
    return losses.sum(dtype=torch.float64)


def _without_gaps(targets: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return targets that are 0 where the weight is."""
    if weights is None or weights.all() or targets.dtype.kind in "iu":
        return targets
    shape = (*weights.shape, *(1,) * (targets.ndim - weights.ndim))
    return np.where(weights.reshape(shape) == 0, np.float32(0), targets)


def _named(loss: str, outputs: torch.Tensor, targets: np.ndarray) -> torch.Tensor:
    """Return the losses of every example, (examples,), or of every output, (examples, outputs)."""
    outputs = outputs.reshape(len(outputs), -1)
    if loss == "softmax":
        labels = checked_labels(targets, np.broadcast_to(np.float32(0), tuple(outputs.shape)))
        return functional.cross_entropy(outputs, _on(labels, outputs), reduction="none")
    if loss == "logistic":
        wanted = _on(_between(targets, outputs), outputs)
        return functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
    return 0.5 * torch.square(outputs - _on(_shaped(targets, outputs), outputs))


def _between(targets: np.ndarray, outputs: torch.Tensor) -> np.ndarray:
    """Return the target of every output, float32 from 0 to 1."""
    if outputs.shape[1] > 1 and targets.ndim == 1 and targets.dtype.kind in "iu":
        wanted = np.zeros(tuple(outputs.shape), np.float32)
        labels = checked_labels(targets, wanted)
        wanted[np.arange(len(wanted)), labels] = 1
        return wanted
    wanted = _shaped(targets, outputs)
    inside = (wanted >= 0) & (wanted <= 1)
    if not inside.all():
        raise DataError(
            f"targets of a 'logistic' loss must lie in 0 to 1 for every output, "
            f"got {wanted[~inside][0]}"
        )
    return wanted


def _shaped(targets: np.ndarray, outputs: torch.Tensor) -> np.ndarray:
    """Return float32 targets in the shape of the outputs."""
    if len(targets) != len(outputs) or targets.size != outputs.numel():
        raise ModelError(
            f"module gives {outputs.shape[1]} outputs for each of {len(outputs)} examples, and "
            f"targets have shape {targets.shape}: they need one element for each output"
        )
    return targets.reshape(tuple(outputs.shape)).astype(np.float32, copy=False)


def _own(loss: LossFunction, outputs: torch.Tensor, targets: np.ndarray) -> torch.Tensor:
    losses = loss(outputs, _on(targets, outputs))
    shape = getattr(losses, "shape", None)
    if not isinstance(losses, torch.Tensor) or not shape or shape[0] != len(outputs):
        got = f"a tensor of shape {tuple(shape)}" if shape is not None else repr(losses)[:60]
        raise ModelError(
            f"loss must return one loss for each of the {len(outputs)} examples, shape "
            f'({len(outputs)},), got {got}: with a loss of torch.nn, give reduction="none"'
        )
    return losses


def _fitting(weights: np.ndarray, losses: torch.Tensor) -> torch.Tensor:
    """Return weights that multiply losses: one an example, or one an element."""
    given = np.asarray(weights, np.float32)
    if given.ndim > 1 and given.size == losses.numel():
        return _on(given.reshape(tuple(losses.shape)), losses)
    rows = given.reshape(len(given), -1)
    if (rows != rows[:, :1]).any():
        raise ModelError(
            "weights differ within an example, because elements of its target have weights or are "
            f"missing, and the losses have shape {tuple(losses.shape)}: let loss return one "
            'loss for each target element, as torch.nn.MSELoss(reduction="none") does'
        )
    return _on(rows[:, 0].reshape(-1, *(1,) * (losses.ndim - 1)), losses)


def _on(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return as_tensor(array).to(like.device)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Return a tensor over an array's memory, of its shape and dtype.

    It is over a copy if torch would warn about the memory.
    """
    usable = array.flags.writeable and array.flags.c_contiguous
    return torch.from_numpy(array if usable else np.array(array))
