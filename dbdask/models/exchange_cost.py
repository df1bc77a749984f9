"""The messages and bytes that a cut exchanges in a step, counted without computing."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

from dbdask.models.cut import Cut, check_cut, crossings
from dbdask.models.exchange import Direction
from dbdask.models.network import Network


class Message(NamedTuple):
    """One message of a step."""

    boundary: int
    direction: Direction | Literal["agree"]
    sender: int
    receiver: int
    size: int
    """Bytes."""


class Cost(NamedTuple):
    """The messages and bytes that a cut exchanges in a step."""

    messages: int
    size: int
    """Bytes."""


def messages(network: Network, cut: Cut, examples: int, itemsize: int = 4) -> Iterator[Message]:
    """Return the messages of a minibatch's loss, gradient and decision.

    Parameters
    ----------
    network, cut
        The network, and a cut of it.
    examples
        How many examples the minibatch has.
    itemsize
        Bytes of a number: 4 for float32.
    """
    check_cut(network, cut)
    for crossing in crossings(network, cut):
        row = math.prod(network.stages[crossing.layer].input_shape[1:])
        size = (crossing.last - crossing.first) * row * examples * itemsize
        layer, sender, receiver = crossing.layer, crossing.sender, crossing.receiver
        yield Message(layer, "forward", sender, receiver, size)
        yield Message(layer, "backward", receiver, sender, size)
    if network.loss == "softmax":
        with_outputs = [
            part for part, (first, last) in enumerate(pairwise(cut.edges[-1])) if first < last
        ]
        for sender, receiver in _pairs(with_outputs):
            # The maximum of each row, and its sum.
            yield Message(0, "loss", sender, receiver, 2 * examples * itemsize)
    for sender, receiver in _pairs(list(range(cut.parts))):
        # Loss and squared norm, float64.
        yield Message(0, "decision", sender, receiver, 16)


def agreement_messages(parts: int) -> Iterator[Message]:
    """Return the messages of a push of local steps: whether it is finite in every part.

    They come on top of those of the minibatches since the push before.
    """
    for sender, receiver in _pairs(list(range(parts))):
        yield Message(0, "agree", sender, receiver, 1)


def _pairs(parts: list[int]) -> Iterator[tuple[int, int]]:
    return ((one, other) for one in parts for other in parts if one != other)


def exchange_cost(network: Network, cut: Cut, examples: int, itemsize: int = 4) -> Cost:
    """Return how many messages a step of a cut sends, and how many bytes (see `messages`).

    Examples
    --------
    The paper's speech network on two machines:

    >>> from dbdask.models.cut import even_cut
    >>> from dbdask.models.layers import Dense
    >>> network = Network(input_shape=440, layers=[Dense(2560, "sigmoid")] * 4 + [Dense(8192)],
    ...                   loss="softmax")
    >>> exchange_cost(network, even_cut(network, 2), examples=256)
    Cost(messages=20, size=20975648)
    """
    sizes = [message.size for message in messages(network, cut, examples, itemsize)]
    return Cost(len(sizes), sum(sizes))
