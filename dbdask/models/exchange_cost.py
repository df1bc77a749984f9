"""The messages and bytes of a cut, counted without computing; and the choice between cuts."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from dbdask.models.cut import Cut, check_cut, crossings, even_cut, even_edges, layer_crossings
from dbdask.models.exchange import Direction
from dbdask.models.network import Network
from dbdask.models.stages import Stage

MESSAGE_BYTES = 65_536
"""The bytes that travel in the time that a message takes whatever its size, roughly."""

Edges = tuple[int, ...]
"""Where the rows of one layer are cut."""

WIDTH = 512  # cuts of the first layers that are kept while the best is sought


class Message(NamedTuple):
    """One message of a step."""

    boundary: int
    direction: Direction
    sender: int
    receiver: int
    size: int
    """Bytes."""


class Cost(NamedTuple):
    """What a cut exchanges a step."""

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
        Of the minibatch.
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
            yield Message(0, "loss", sender, receiver, 2 * examples * itemsize)
    for sender, receiver in _pairs(list(range(cut.parts))):
        yield Message(0, "decision", sender, receiver, 16)


def _pairs(parts: list[int]) -> Iterator[tuple[int, int]]:
    return ((one, other) for one in parts for other in parts if one != other)


def exchange_cost(network: Network, cut: Cut, examples: int, itemsize: int = 4) -> Cost:
    """Return how many messages a step of a cut sends, and how many bytes (see `messages`).

    Examples
    --------
    The paper's speech network on two machines:

    >>> from dbdask.models.layers import Dense
    >>> network = Network(input_shape=440, layers=[Dense(2560, "sigmoid")] * 4 + [Dense(8192)],
    ...                   loss="softmax")
    >>> exchange_cost(network, even_cut(network, 2), examples=256)
    Cost(messages=20, size=20975648)
    """
    sizes = [message.size for message in messages(network, cut, examples, itemsize)]
    return Cost(len(sizes), sum(sizes))


def best_cut(network: Network, parts: int, examples: int) -> Cut:
    """Return the even cut whose largest part works least, and which then exchanges least.

    Where rows do not divide evenly, even cuts differ in which parts get one row more. The work of
    the largest part decides, and between equals the exchange: its bytes, with `MESSAGE_BYTES` more
    for each message. Of very many cuts of the first layers, the best `WIDTH` are pursued.

    Parameters
    ----------
    network
        The network.
    parts
        How many parts there are.
    examples
        Of a minibatch.

    Raises
    ------
    ValueError
        A layer cannot be cut, or there are more parts than a layer with parameters has rows.
    """
    even_cut(network, parts)
    found = [_Partial((), (0,) * parts, 0)]
    below: list[Edges] = []
    for layer, stage in enumerate(network.stages):
        rows = stage.output_shape[0]
        shifts = (even_edges(rows, parts, shift) for shift in range(parts))
        choices = list(dict.fromkeys(shifts))
        exchanges = {
            (one, other): _exchange(stage, layer, one, other, examples)
            for one in below
            for other in choices
        }
        per_row = _work(stage) // rows
        found = [
            partial.with_layer(edges, per_row, exchanges) for partial in found for edges in choices
        ]
        found = sorted(found, key=lambda partial: (max(partial.work), partial.exchange))[:WIDTH]
        below = choices
    return Cut(found[0].edges)


class _Partial(NamedTuple):
    """A cut of a network's first layers.

    The work is that of each part, in multiplications for an example.
    """

    edges: tuple[Edges, ...]
    work: tuple[int, ...]
    exchange: int

    def with_layer(
        self, edges: Edges, per_row: int, exchanges: dict[tuple[Edges, Edges], int]
    ) -> "_Partial":
        """Return the cut with one layer more, whose rows have so much work each."""
        work = tuple(
            before + per_row * (last - first)
            for before, (first, last) in zip(self.work, pairwise(edges), strict=True)
        )
        more = exchanges[self.edges[-1], edges] if self.edges else 0
        return _Partial((*self.edges, edges), work, self.exchange + more)


def _exchange(stage: Stage, layer: int, below: Edges, edges: Edges, examples: int) -> int:
    """Return the float32 bytes that cross below a layer, with those that stand for messages."""
    row = math.prod(stage.input_shape[1:]) * examples * 4
    found = list(layer_crossings(stage, layer, below, edges))
    rows = sum(crossing.last - crossing.first for crossing in found)
    return 2 * (rows * row + len(found) * MESSAGE_BYTES)


def _work(stage: Stage) -> int:
    """Return roughly the multiplications of a layer's outputs and gradients for an example.

    A parameter of a layer of this library is used once in each of three products. An element of
    a layer without parameters costs about ten passes over it.
    """
    if stage.pieces:
        return 3 * sum(piece.stop - piece.start for piece in stage.pieces)
    return 10 * math.prod(stage.output_shape)
