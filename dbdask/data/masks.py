"""Masks: a truth value for every position along some dimensions, packed in tiles."""

import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dbdask.arrays import BoolArray, Int64Array
from dbdask.data.spans import Spans

TILE = 1 << 18
"""Truth values of one tile at most."""


@dataclass(frozen=True)
class _Tiles:
    """The values of one array, packed in tiles; a box is read from the tiles that it touches."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    tile: tuple[int, ...]
    packed: tuple[bytes, ...]

    @classmethod
    def of(cls, dims: Sequence[str], values: BoolArray) -> "_Tiles":
        empty = cls(tuple(dims), values.shape, _tile_of(values.shape), ())
        packed = [_pack(values[box]) for box in empty._boxes()]
        return replace(empty, packed=tuple(packed))

    @property
    def _counts(self) -> tuple[int, ...]:
        return tuple(-(-n // size) for n, size in zip(self.shape, self.tile, strict=True))

    def _boxes(self) -> Iterator[tuple[slice, ...]]:
        return (self._box(place) for place in itertools.product(*map(range, self._counts)))

    def _box(self, place: Sequence[int]) -> tuple[slice, ...]:
        sides = zip(place, self.tile, self.shape, strict=True)
        return tuple(slice(at * size, min((at + 1) * size, n)) for at, size, n in sides)

    def read(self, box: Sequence[slice]) -> BoolArray:
        """Return the values in a box: bool, of the box's shape."""
        found = np.empty([cut.stop - cut.start for cut in box], bool)
        sides = zip(box, self.tile, strict=True)
        touched = [range(cut.start // size, -(-cut.stop // size)) for cut, size in sides]
        for place in itertools.product(*touched):
            tile = self._box(place)
            number = np.ravel_multi_index(place, self._counts) if place else 0
            values = _unpack(self.packed[number], [cut.stop - cut.start for cut in tile])
            common = [
                slice(max(a.start, b.start), min(a.stop, b.stop))
                for a, b in zip(box, tile, strict=True)
            ]
            found[_shifted(common, box)] = values[_shifted(common, tile)]
        return found

    def both(self, other: "_Tiles") -> "_Tiles":
        """Return where both are True; they have the same dimensions in the same order."""
        packed = [_pack(self.read(box) & other.read(box)) for box in self._boxes()]
        return replace(self, packed=tuple(packed))


@dataclass(frozen=True)
class Mask:
    """A truth value for every position along `dims`: True where all its arrays are."""

    arrays: tuple[_Tiles, ...]

    @classmethod
    def of(cls, dims: Sequence[str], values: BoolArray) -> "Mask":
        """Return the mask of booleans of any shape, with an axis for each of `dims`."""
        return cls((_Tiles.of(dims, values),))

    @property
    def dims(self) -> tuple[str, ...]:
        """The dimensions of all arrays."""
        return tuple(dict.fromkeys(dim for array in self.arrays for dim in array.dims))

    def __and__(self, other: "Mask") -> "Mask":
        # Arrays over other dimensions stay apart: their product may be far larger than both.
        arrays = {array.dims: array for array in self.arrays}
        for array in other.arrays:
            known = arrays.get(array.dims)
            arrays[array.dims] = array if known is None else known.both(array)
        return Mask(tuple(arrays.values()))

    def over(self, dims: Sequence[str], positions: Sequence[Int64Array]) -> BoolArray:
        """Return booleans at the product of `positions`; length 1 along dims that it lacks.

        Parameters
        ----------
        positions
            Along each of `dims`, ascending int64 (n,); those of dims that the mask lacks are
            ignored.

        Returns
        -------
        Booleans of shape (len(positions), ...), with an axis for each of `dims`.
        """
        known = dict(zip(dims, positions, strict=True))
        shape = [len(known[dim]) if dim in self.dims else 1 for dim in dims]
        held = np.ones(shape, bool)
        for array in self.arrays:
            held &= _over(array, dims, known)
        return held

    def any_over(self, own: Mapping[str, Int64Array], spared: Mapping[str, Spans]) -> BoolArray:
        """Return where the mask is True at `own` positions for any of the `spared` positions.

        Parameters
        ----------
        own, spared
            Positions along dimensions; together they have all dimensions of the mask.

        Returns
        -------
        bool, of the lengths of `own`
        """
        dims = (*own, *spared)
        found = np.zeros([len(at) if dim in self.dims else 1 for dim, at in own.items()], bool)
        sizes = [max(1, TILE // max(found.size, 1)), *[1] * len(spared)]
        walks = [
            [(0, np.zeros(1, np.int64))] if dim not in self.dims else spans.pieces(size)
            for (dim, spans), size in zip(spared.items(), sizes, strict=False)
        ]
        for pieces in itertools.product(*walks):
            held = self.over(dims, [*own.values(), *(positions for _, positions in pieces)])
            found |= held.any(axis=tuple(range(len(own), len(dims))))
        return np.broadcast_to(found, [len(at) for at in own.values()])


def _over(array: _Tiles, dims: Sequence[str], known: Mapping[str, Int64Array]) -> BoolArray:
    """Return an array's values at the product of positions, with an axis for each of `dims`."""
    own = [known[dim] for dim in array.dims]
    order = [array.dims.index(dim) for dim in dims if dim in array.dims]
    shape = [len(known[dim]) if dim in array.dims else 1 for dim in dims]
    if any(not len(at) for at in own):
        return np.zeros(shape, bool)
    part = array.read([slice(int(at[0]), int(at[-1]) + 1) for at in own])
    if part.shape != tuple(len(at) for at in own):
        part = part[np.ix_(*(at - at[0] for at in own))]
    return part.transpose(order).reshape(shape)


def _tile_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a tile: the longest side is halved until the tile is small enough."""
    tile = [max(size, 1) for size in shape]
    while np.prod(tile, dtype=object) > TILE:
        longest = int(np.argmax(tile))
        tile[longest] = -(-tile[longest] // 2)
    return tuple(tile)


def _pack(values: BoolArray) -> bytes:
    return zlib.compress(np.packbits(values).tobytes(), 1)


def _unpack(packed: bytes, shape: Sequence[int]) -> BoolArray:
    bits = np.frombuffer(zlib.decompress(packed), np.uint8)
    count = int(np.prod(shape, dtype=np.int64))
    return np.unpackbits(bits, count=count).view(bool).reshape(shape)


def _shifted(box: Sequence[slice], by: Sequence[slice]) -> tuple[slice, ...]:
    moves = zip(box, by, strict=True)
    return tuple(slice(cut.start - to.start, cut.stop - to.start) for cut, to in moves)
