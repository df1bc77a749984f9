"""Cuts of a network over parts: which rows of each layer's output a part computes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from dbdask.json_types import JsonObject
from dbdask.models.layers import Divisible, Layer, Shape
from dbdask.models.network import Network
from dbdask.models.stages import Stage

Rows = tuple[int, int]
"""A range of rows: the first, and the one after the last."""


@dataclass(frozen=True)
class Cut:
    """For each layer, where its rows are cut.

    Rows are the first axis of a layer's output: units of `Dense`, rows of an image. Part k computes
    rows `edges[layer][k]` to `edges[layer][k + 1]`, which may be none.

    Of a joined layer, part k computes all rows that it needs for the next layer, at any edges. Rows
    that several parts need are computed by each of them, and none of them crosses.

    Parameters
    ----------
    edges
        For each layer, ascending numbers from 0 to the layer's rows, one more than there are parts.
    joined
        Which layers are joined with the next one; they have no parameters.

    Examples
    --------
    >>> cut = Cut(((0, 3, 5), (0, 1, 2)))
    >>> cut.parts, cut.rows(0, 1)
    (2, (3, 5))
    """

    edges: tuple[tuple[int, ...], ...]
    joined: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "joined", tuple(sorted({int(layer) for layer in self.joined})))
        edges = tuple(tuple(int(edge) for edge in of_layer) for of_layer in self.edges)
        object.__setattr__(self, "edges", edges)
        if len({len(of_layer) for of_layer in edges}) != 1 or len(edges[0]) < 2:
            raise ValueError(
                f"edges must have one more number than parts for every layer, got {edges}"
            )
        for layer, of_layer in enumerate(edges):
            if of_layer[0] != 0 or any(last < first for first, last in pairwise(of_layer)):
                raise ValueError(
                    f"edges of layer {layer} must ascend from 0 to its rows, got {of_layer}"
                )

    @property
    def parts(self) -> int:
        """Number of parts."""
        return len(self.edges[0]) - 1

    def rows(self, layer: int, part: int) -> Rows:
        """Return the rows between a part's edges of a layer."""
        return self.edges[layer][part], self.edges[layer][part + 1]

    def description(self) -> JsonObject:
        """Return the cut as JSON."""
        return {
            "edges": [list(of_layer) for of_layer in self.edges],
            "joined": list(self.joined),
        }

    @classmethod
    def from_description(cls, description: JsonObject) -> "Cut":
        """Rebuild a cut from `description()`."""
        return cls(tuple(map(tuple, description["edges"])), tuple(description["joined"]))


class PartStage(NamedTuple):
    """A part's share of one layer: the rows of the output, those of the input, and the layer.

    The layer is None if there are no rows.
    """

    layer: Layer | None
    rows: Rows
    needed: Rows
    input_shape: Shape
    output_shape: Shape


def even_edges(rows: int, parts: int, shift: int = 0) -> tuple[int, ...]:
    """Return edges that cut rows into parts whose lengths differ by at most 1.

    Parameters
    ----------
    rows, parts
        How many there are.
    shift
        0 to `parts - 1`: which parts are the longer ones.

    Examples
    --------
    >>> even_edges(5, 2), even_edges(5, 2, 1)
    ((0, 2, 5), (0, 3, 5))
    """
    return tuple((rows * part + shift) // parts for part in range(parts + 1))


def even_cut(network: Network, parts: int) -> Cut:
    """Return the cut that gives each part the same number of rows of each layer, or one less.

    Raises
    ------
    ValueError
        A layer cannot be cut, or there are more parts than a layer with parameters has rows.
    """
    cut = Cut(tuple(even_edges(rows_of(stage), parts) for stage in network.stages))
    check_cut(network, cut)
    return cut


def check_cut(network: Network, cut: Cut) -> None:
    """Raise ValueError if a cut is not one of this network.

    Every part must have parameters, and a layer that is divided must be `Divisible`.
    """
    stages = network.stages
    if len(cut.edges) != len(stages):
        raise ValueError(
            f"edges must have one item for each of the {len(stages)} layers, got {len(cut.edges)}"
        )
    for stage, edges in zip(stages, cut.edges, strict=True):
        rows = rows_of(stage)
        if edges[-1] != rows:
            raise ValueError(f"edges of {stage.name} must end with its {rows} rows, got {edges}")
        if not set(edges) <= {0, rows}:
            _check_divisible(stage, rows)
    for layer in cut.joined:
        if not 0 <= layer < len(stages) - 1 or stages[layer].pieces:
            raise ValueError(
                f"joined must hold layers without parameters that another one follows, got {layer}"
            )
        _check_divisible(stages[layer], rows_of(stages[layer]))
    for part in range(cut.parts):
        if not any(
            stage.pieces and first < last
            for stage, first, last in (
                (stage, *cut.rows(layer, part)) for layer, stage in enumerate(stages)
            )
        ):
            most = max(rows_of(stage) for stage in stages if stage.pieces)
            raise ValueError(
                f"part {part} of {cut.parts} has no parameters: there may be at most {most} parts, "
                "the rows of the largest layer"
            )


def rows_of(stage: Stage) -> int:
    """Return the rows of a layer's output; raise ValueError if its input or output has none."""
    if not stage.input_shape or not stage.output_shape:
        raise ValueError(
            f"{stage.name} cannot be cut: its input and output must have an axis, got shapes "
            f"{stage.input_shape} and {stage.output_shape}"
        )
    return stage.output_shape[0]


def _check_divisible(stage: Stage, rows: int) -> None:
    if not isinstance(stage.layer, Divisible):
        raise ValueError(
            f"{stage.name} cannot be cut: it has no rows_needed and part (see "
            "dbdask.models.layers.Divisible); give it them, or use partitions=1"
        )
    for piece in stage.pieces:
        if piece.shape[:1] != (rows,):
            raise ValueError(
                f"{stage.name} cannot be cut: {piece.name!r} must have its {rows} rows as first "
                f"axis, got shape {piece.shape}"
            )


def part_stage(stage: Stage, rows: Rows) -> PartStage:
    """Return the share of a layer that computes some rows of its output."""
    first, last = rows
    output_shape = (last - first, *stage.output_shape[1:])
    if first == last:
        return PartStage(None, rows, (0, 0), (0, *stage.input_shape[1:]), output_shape)
    if rows == (0, stage.output_shape[0]):
        needed = (0, stage.input_shape[0])
        return PartStage(stage.layer, rows, needed, stage.input_shape, output_shape)
    assert isinstance(stage.layer, Divisible)
    needed = stage.layer.rows_needed(stage.input_shape, first, last)
    layer = stage.layer.part(stage.input_shape, first, last)
    input_shape = (needed[1] - needed[0], *stage.input_shape[1:])
    return PartStage(layer, rows, needed, input_shape, output_shape)


class Crossing(NamedTuple):
    """Rows of a layer's input that one part computes and another part needs.

    `sender` and `receiver` are those of the forward pass; in the backward pass the gradient at the
    same rows goes the other way.
    """

    layer: int
    sender: int
    receiver: int
    first: int
    last: int


def part_stages(network: Network, cut: Cut, part: int) -> tuple[PartStage, ...]:
    """Return a part's share of every layer."""
    found: list[PartStage] = []
    for layer in range(len(network.stages) - 1, -1, -1):
        rows = found[-1].needed if layer in cut.joined else cut.rows(layer, part)
        found.append(part_stage(network.stages[layer], rows))
    return tuple(reversed(found))


def crossings(network: Network, cut: Cut) -> tuple[Crossing, ...]:
    """Return all rows that cross a boundary of a cut, by layer, receiver and sender.

    Each is one message in either direction, however many rows of the receiver need it. The input of
    the first layer crosses none: every part reads it.
    """
    shares = [part_stages(network, cut, part) for part in range(cut.parts)]
    found: list[Crossing] = []
    for layer in range(1, len(network.stages)):
        if layer - 1 not in cut.joined:
            owned = [of_part[layer - 1].rows for of_part in shares]
            needed = [of_part[layer].needed for of_part in shares]
            found += layer_crossings(layer, owned, needed)
    return tuple(found)


def layer_crossings(
    layer: int, owned: Sequence[Rows], needed: Sequence[Rows]
) -> Iterator[Crossing]:
    """Return the crossings below a layer, from the rows that each part owns and needs there."""
    for receiver, rows in enumerate(needed):
        for sender, of_sender in enumerate(owned):
            first, last = overlap(of_sender, rows)
            if sender != receiver and first < last:
                yield Crossing(layer, sender, receiver, first, last)


def overlap(one: Rows, other: Rows) -> Rows:
    """Return the rows that are in both ranges; an empty range if there are none.

    Examples
    --------
    >>> overlap((0, 5), (3, 9)), overlap((0, 2), (3, 9))
    ((3, 5), (3, 3))
    """
    first = max(one[0], other[0])
    return first, max(first, min(one[1], other[1]))
