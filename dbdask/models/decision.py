"""The one decision of a step: whether the gradient of all parts counts, and its norm."""

import math
from typing import NamedTuple

import numpy as np

from dbdask.arrays import FloatArray
from dbdask.models.exchange import Exchange, Exchanging
from dbdask.optim.gradients import is_good


class Decision(NamedTuple):
    """The numbers of a step that all parts share before any of them pushes it."""

    loss: float
    """Of the whole network: the sum of the parts' shares."""
    gradient_norm: float
    """Of the gradient of all parts."""

    @property
    def counts(self) -> bool:
        """Whether loss and gradient are finite: all parts push the step, or none does."""
        return is_good(self.loss, self.gradient_norm)


def decide(index: int, parts: int, loss: float, norm: float) -> Exchanging[Decision]:
    """Exchange loss and gradient norm of the parts, and return what all of them decide.

    Every part adds the numbers in the order of the parts, so that no rounding makes two parts
    decide differently.

    Parameters
    ----------
    index, parts
        Which part this is, of how many.
    loss
        The part's share of the loss.
    norm
        The Euclidean norm of the part's gradient.
    """
    scalars: list[FloatArray] = [np.empty(2) for _ in range(parts)]
    scalars[index][:] = loss, norm
    peers = [peer for peer in range(parts) if peer != index]
    if peers:
        outgoing = dict.fromkeys(peers, scalars[index])
        yield Exchange(0, "decision", outgoing, {peer: scalars[peer] for peer in peers})
    losses, norms = np.transpose(scalars).tolist()
    return Decision(sum(losses), math.sqrt(sum(part * part for part in norms)))
