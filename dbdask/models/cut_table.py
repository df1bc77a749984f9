"""The flat vector of a cut network: parameters part by part, and its translation to others.

A part's parameters are one contiguous range. Within it they have the order of the whole network's
layout. A table says where each range of rows of each array is, so that any cut reads the vector of
any other through the vector of the whole network.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dbdask.arrays import Float32Array, FloatArray
from dbdask.json_types import JsonObject
from dbdask.models.cut import Cut, part_stage
from dbdask.models.layout import Layout, Parameter
from dbdask.models.member_checks import checked_initial
from dbdask.models.network import Network


class CutPiece(NamedTuple):
    """Some rows of one array, and where they begin in the cut vector."""

    name: str
    first: int
    last: int
    offset: int


class Segment(NamedTuple):
    """Elements that are contiguous in two vectors: where they begin in each, and how many."""

    cut: int
    whole: int
    length: int


@dataclass(frozen=True)
class CutTable:
    """The order of a network's parameters in the vector of a cut.

    Parameters
    ----------
    layout
        That of the whole network.
    pieces
        Rows of arrays in their order in the cut vector; together, each row of each array once.
    """

    layout: Layout
    pieces: tuple[CutPiece, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "pieces", tuple(CutPiece(*piece) for piece in self.pieces))
        self._check_order()
        self._check_rows()

    def _check_order(self) -> None:
        """Raise ValueError if a piece does not begin where the one before it ends."""
        known = {parameter.name for parameter in self.layout.parameters}
        end = 0
        for piece in self.pieces:
            if piece.name not in known:
                raise ValueError(f"the layout has no parameter {piece.name!r} of a cut's table")
            if piece.offset != end:
                raise ValueError(f"{piece} must begin at {end}, where the piece before it ends")
            end += (piece.last - piece.first) * self._row(piece.name)

    def _check_rows(self) -> None:
        """Raise ValueError if a row of a parameter is in no piece, or in two."""
        for parameter in self.layout.parameters:
            rows = sorted(
                (piece.first, piece.last) for piece in self.pieces if piece.name == parameter.name
            )
            edges = [0, *(last for _, last in rows)]
            if [first for first, _ in rows] != edges[:-1] or edges[-1] != _rows(parameter):
                raise ValueError(
                    f"the pieces of {parameter.name!r} must have each of its {_rows(parameter)} "
                    f"rows once, got rows {rows}"
                )

    def _row(self, name: str) -> int:
        """Return the elements of a row of a parameter."""
        return next(_row_size(p) for p in self.layout.parameters if p.name == name)

    def segments(self, start: int = 0, stop: int | None = None) -> Iterator[Segment]:
        """Return where elements `start` to `stop` of the cut vector are in the whole vector.

        They come in the order of the cut vector.
        """
        parameters = {parameter.name: parameter for parameter in self.layout.parameters}
        offsets = dict(zip(parameters, self.layout.offsets, strict=True))
        stop = self.layout.size if stop is None else stop
        for piece in self.pieces:
            row = _row_size(parameters[piece.name])
            first = max(start, piece.offset)
            last = min(stop, piece.offset + (piece.last - piece.first) * row)
            if first < last:
                whole = offsets[piece.name] + piece.first * row + first - piece.offset
                yield Segment(first, whole, last - first)

    def to_cut(self, whole: FloatArray) -> FloatArray:
        """Return the cut vector, float (size,), of a whole network's vector, float (size,)."""
        vector = np.empty_like(_of_size(whole, self.layout.size))
        for cut, at, length in self.segments():
            vector[cut : cut + length] = whole[at : at + length]
        return vector

    def to_whole(self, vector: FloatArray) -> FloatArray:
        """Return the whole network's vector, float (size,), of a cut vector, float (size,)."""
        whole = np.empty_like(_of_size(vector, self.layout.size))
        for cut, at, length in self.segments():
            whole[at : at + length] = vector[cut : cut + length]
        return whole

    def table(self) -> list[JsonObject]:
        """Return the pieces as JSON, which a checkpoint keeps beside the layout."""
        return [piece._asdict() for piece in self.pieces]

    @classmethod
    def from_table(cls, layout: Layout, table: list[JsonObject]) -> "CutTable":
        """Rebuild a table from the whole network's layout and `table()`.

        Raises
        ------
        ValueError
            The pieces do not have each row of each parameter once.
        """
        return cls(layout, tuple(CutPiece(**row) for row in table))


def cut_table(network: Network, cut: Cut) -> CutTable:
    """Return the table of a network's cut: parameters part by part, in each as in the layout."""
    parameters = iter(network.layout.parameters)
    by_layer = [[next(parameters) for _ in stage.pieces] for stage in network.stages]
    pieces: list[CutPiece] = []
    end = 0
    for part in range(cut.parts):
        for layer, stage in enumerate(network.stages):
            first, last = rows = cut.rows(layer, part)
            is_whole = rows == (0, stage.output_shape[0])
            for parameter in by_layer[layer] if first < last else ():
                piece = (0, _rows(parameter)) if is_whole else rows
                pieces.append(CutPiece(parameter.name, *piece, end))
                end += (piece[1] - piece[0]) * _row_size(parameter)
    return CutTable(network.layout, tuple(pieces))


def part_ranges(network: Network, cut: Cut) -> tuple[tuple[int, int], ...]:
    """Return the range of the cut vector that holds each part's parameters."""
    ranges: list[tuple[int, int]] = []
    end = 0
    for part in range(cut.parts):
        start = end
        for layer, stage in enumerate(network.stages):
            share = part_stage(stage, cut.rows(layer, part))
            if share.layer is not None:
                rows, whole = share.output_shape[0], stage.output_shape[0]
                end += sum(piece.stop - piece.start for piece in stage.pieces) * rows // whole
        ranges.append((start, end))
    return tuple(ranges)


def initial_of_cut(
    network: Network, table: CutTable, seed: int, start: int, stop: int
) -> Float32Array:
    """Return elements `start` to `stop` of the initial cut vector, float32 of (stop - start,).

    They are the numbers of the whole network, for every cut.

    Raises
    ------
    ModelError
        A number is not finite.
    """
    values = np.empty(stop - start, np.float32)
    for cut, whole, length in table.segments(start, stop):
        given = network.initial_parameters(seed, whole, whole + length)
        drawn = checked_initial(given, network.layout, whole, whole + length)
        values[cut - start : cut - start + length] = drawn
    return values


def _rows(parameter: Parameter) -> int:
    return parameter.shape[0] if parameter.shape else 1


def _row_size(parameter: Parameter) -> int:
    return math.prod(parameter.shape[1:])


def _of_size(vector: FloatArray, size: int) -> FloatArray:
    if vector.shape != (size,):
        raise ValueError(f"the vector must have shape ({size},), got {vector.shape}")
    return vector
