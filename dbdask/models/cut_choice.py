"""The choice between even cuts of a network, by an estimate of the time of a step."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from dbdask.models.cut import (
    Cut,
    Rows,
    even_cut,
    even_edges,
    layer_crossings,
    part_stage,
    part_stages,
)
from dbdask.models.exchange_cost import messages
from dbdask.models.layers import Divisible
from dbdask.models.network import Network
from dbdask.models.stages import Stage

Edges = tuple[int, ...]

WIDTH = 256
"""Cuts of the first layers that are kept while the best cut is sought."""


class Speed(NamedTuple):
    """Seconds that the parts of a step take; by default roughly those of two cores of one host."""

    multiplication: float = 1e-10
    """One multiplication in the products of layers; see `part_work`."""
    message: float = 1e-4
    """One message, of any size."""
    byte: float = 1e-9
    """One byte of a message."""


ONE_HOST = Speed()


def part_work(network: Network, cut: Cut) -> tuple[int, ...]:
    """Return roughly the multiplications of each part for an example's loss and gradient.

    A parameter of the layers of this library is used once in each of three products. The measured
    time of a pool's or a contrast layer's element is that of about 50 multiplications.
    """
    shares = (part_stages(network, cut, part) for part in range(cut.parts))
    return tuple(
        sum(
            _row_work(stage) * (share.rows[1] - share.rows[0])
            for stage, share in zip(network.stages, of_part, strict=True)
        )
        for of_part in shares
    )


def _row_work(stage: Stage) -> int:
    if stage.pieces:
        elements = 3 * sum(piece.stop - piece.start for piece in stage.pieces)
    else:
        elements = 50 * math.prod(stage.output_shape)
    return elements // stage.output_shape[0]


def step_seconds(network: Network, cut: Cut, examples: int, speed: Speed = ONE_HOST) -> float:
    """Return an estimate of a step's time: the busiest part's work, and then every exchange.

    An exchange takes the time of the part that receives most.

    Parameters
    ----------
    network, cut
        The network, and a cut of it.
    examples
        Of the minibatch.
    speed
        That of a part, and of messages between parts.
    """
    received: dict[tuple[int, str], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for message in messages(network, cut, examples):
        seconds = speed.message + speed.byte * message.size
        received[message[:2]][message.receiver] += seconds
    exchanges = sum(max(by_part.values()) for by_part in received.values())
    return max(part_work(network, cut)) * examples * speed.multiplication + exchanges


def best_cut(network: Network, parts: int, examples: int, speed: Speed = ONE_HOST) -> Cut:
    """Return the cut that takes least time, by `step_seconds`, of those that are even.

    Where rows do not divide evenly, even cuts differ in which parts get one row more. And a layer
    without parameters may be joined with the next one, which saves an exchange and costs work. Of
    very many cuts of the first layers, the best `WIDTH` are pursued.

    Parameters
    ----------
    network, parts
        The network, and how many parts there are.
    examples, speed
        As of `step_seconds`.

    Raises
    ------
    ValueError
        A layer cannot be cut, or there are more parts than a layer with parameters has rows.
    """
    even_cut(network, parts)
    stages = network.stages
    search = _Search(network, parts, examples, speed)
    found: list[list[_Partial]] = [[] for _ in range(len(stages) + 1)]
    found[0] = [_Partial((), (), (0,) * parts, 0.0)]
    for start in range(len(stages)):
        best = sorted(found[start], key=search.seconds)[:WIDTH]
        for end in range(start, len(stages)):
            found[end + 1] += search.extended(best, start, end)
            if stages[end].pieces or not isinstance(stages[end].layer, Divisible):
                break  # it cannot be joined with the next one
    best_of_all = min(found[-1], key=search.seconds)
    return Cut(best_of_all.edges, best_of_all.joined)


class _Partial(NamedTuple):
    """A cut of a network's first layers, the last of which is not joined with the next one."""

    edges: tuple[Edges, ...]
    joined: tuple[int, ...]
    work: tuple[int, ...]
    """Of each part, as `part_work` counts it."""
    exchange: float
    """Seconds of the exchanges so far."""


class _Search(NamedTuple):
    """The search for the best cut; its parameters are those of `best_cut`."""

    network: Network
    parts: int
    examples: int
    speed: Speed

    def seconds(self, partial: _Partial) -> float:
        """Return the estimate of the layers so far."""
        work = max(partial.work) * self.examples * self.speed.multiplication
        return work + partial.exchange

    def extended(self, partials: Sequence[_Partial], start: int, end: int) -> list[_Partial]:
        """Return cuts with layers `start` to `end` more, all joined but the last of them."""
        stages = self.network.stages
        ignored = tuple(
            even_edges(stage.output_shape[0], self.parts) for stage in stages[start:end]
        )
        belows = {partial.edges[-1] for partial in partials if partial.edges}
        found: list[_Partial] = []
        shifts = (
            even_edges(stages[end].output_shape[0], self.parts, shift)
            for shift in range(self.parts)
        )
        for edges in dict.fromkeys(shifts):
            work, needed = self._joined_work(edges, start, end)
            exchange = {below: self._exchange(below, needed, start) for below in belows}
            found += [
                _Partial(
                    (*partial.edges, *ignored, edges),
                    (*partial.joined, *range(start, end)),
                    tuple(map(sum, zip(partial.work, work, strict=True))),
                    partial.exchange + (exchange[partial.edges[-1]] if start else 0.0),
                )
                for partial in partials
            ]
        return found

    def _joined_work(self, edges: Edges, start: int, end: int) -> tuple[list[int], list[Rows]]:
        """Return each part's work in joined layers, and the rows that it needs below them."""
        work, rows = [0] * self.parts, list(pairwise(edges))
        for stage in reversed(self.network.stages[start : end + 1]):
            for part, (first, last) in enumerate(rows):
                work[part] += _row_work(stage) * (last - first)
            rows = [part_stage(stage, of_part).needed for of_part in rows]
        return work, rows

    def _exchange(self, below: Edges, needed: list[Rows], layer: int) -> float:
        """Return the seconds of the exchanges at the boundary below a layer, there and back."""
        row = math.prod(self.network.stages[layer].input_shape[1:]) * self.examples * 4
        received = [0.0] * self.parts
        received_back = [0.0] * self.parts
        for crossing in layer_crossings(layer, list(pairwise(below)), needed):
            size = (crossing.last - crossing.first) * row
            seconds = self.speed.message + self.speed.byte * size
            received[crossing.receiver] += seconds
            received_back[crossing.sender] += seconds
        return max(received) + max(received_back)
