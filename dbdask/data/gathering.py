"""Blocks in memory, and minibatches gathered from a group of them by NumPy indexing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dbdask.arrays import BoolArray, Int64Array
from dbdask.data.recipe import Recipe
from dbdask.data.selection import CentreRuns, Centres, side_by_side


@dataclass
class Part:
    """One variable's stored values in one block: (positions, features), with its own halo."""

    values: np.ndarray
    starts: dict[str, int]
    lengths: dict[str, int]

    @property
    def strides(self) -> dict[str, int]:
        """Positions to step over for one step along each dimension."""
        step, strides = 1, {}
        for dim in reversed(self.lengths):
            strides[dim] = step
            step *= self.lengths[dim]
        return strides


@dataclass
class Block:
    """A block that was read: the centres of its windows, and the values that these need."""

    number: int
    centres: tuple[CentreRuns, ...]
    kept: Int64Array | None  # rows of the product of centres that are examples; None: all
    parts: list[Part]
    valid: BoolArray | None = None  # which rows are complete; None: all
    cut: BoolArray | None = None  # which rows' windows leave their group; None: no row's
    missing: int = 0  # rows that are left out because a value is missing
    gaps: bool = False  # whether missing elements are to be masked
    bad_place: str = ""  # where the first missing value is

    @property
    def rows(self) -> int:
        """Examples in the block, incomplete ones included."""
        if self.kept is not None:
            return len(self.kept)
        return math.prod(c.count for c in self.centres)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        extra = sum(a.nbytes for a in (self.kept, self.valid, self.cut) if a is not None)
        return extra + sum(part.values.nbytes for part in self.parts)


@dataclass
class Located:
    """Rows of a group: the block of each, int64 (rows,), and its centre in every dimension."""

    block: Int64Array
    centres: tuple[Centres, ...]


class BlockGroup:
    """The blocks of a group side by side, so that one indexing serves rows of all of them."""

    def __init__(self, recipe: Recipe, blocks: Sequence[Block]) -> None:
        self._recipe = recipe
        self.gaps = any(block.gaps for block in blocks)
        self.ends = np.cumsum([block.rows for block in blocks])
        self._starts = self.ends - [block.rows for block in blocks]
        self.valid = self._join_valid(blocks)
        self._place_centres(blocks)
        self._place_kept(blocks)
        self._values: list[np.ndarray] = []
        self._bases: list[Int64Array] = []
        self._strides: list[dict[str, Int64Array]] = []
        for number in range(len(recipe.roles)):
            self._place_parts([block.parts[number] for block in blocks])
        self._alike = self._first_alike()

    @property
    def rows(self) -> int:
        """Rows in all, incomplete ones included."""
        return int(self.ends[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return sum(values.nbytes for values in self._values)

    def _join_valid(self, blocks: Sequence[Block]) -> BoolArray | None:
        if all(block.valid is None for block in blocks):
            return None
        whole = [np.ones(b.rows, bool) if b.valid is None else b.valid for b in blocks]
        return np.concatenate(whole)

    def _place_centres(self, blocks: Sequence[Block]) -> None:
        dims = range(len(self._recipe.along))
        self._counts = [np.array([b.centres[d].count for b in blocks]) for d in dims]
        self._first = [np.cumsum(count) - count for count in self._counts]
        self._centres = [side_by_side([b.centres[d] for b in blocks]) for d in dims]

    def _place_kept(self, blocks: Sequence[Block]) -> None:
        self._kept = None
        if any(block.kept is not None for block in blocks):
            self._kept = np.concatenate([block.kept for block in blocks if block.kept is not None])

    def _place_parts(self, parts: Sequence[Part]) -> None:
        lengths = [len(part.values) for part in parts]
        offsets = np.cumsum(lengths) - lengths
        dims = parts[0].starts
        strides = {dim: np.array([part.strides[dim] for part in parts]) for dim in dims}
        shift = sum(
            (np.array([part.starts[dim] for part in parts]) * strides[dim] for dim in dims),
            np.zeros(len(parts), np.int64),
        )
        one = len(parts) == 1
        self._values.append(parts[0].values if one else np.concatenate([p.values for p in parts]))
        self._bases.append(offsets - shift)
        self._strides.append(strides)

    def _first_alike(self) -> list[int]:
        """Return for each variable the first one whose values have the same places."""
        first: dict[object, int] = {}
        return [first.setdefault(self._layout(n), n) for n in range(len(self._values))]

    def _layout(self, number: int) -> object:
        """Return what the places of a variable's values depend on."""
        strides = ((dim, steps.tobytes()) for dim, steps in self._strides[number].items())
        return self._recipe.windows[number], self._bases[number].tobytes(), *strides

    def locate(self, rows: Int64Array) -> Located:
        """Return, for each row number of the group, its block and its window's centre.

        `rows` is int64, (rows,), and counts through all blocks in order. If only some rows are
        examples, `_kept` maps them to their place in the block's full product of centres.
        """
        block = np.searchsorted(self.ends, rows, side="right")
        local = rows - self._starts[block]
        if self._kept is not None:
            local = self._kept[rows]
        found: list[Centres] = []
        for axis in reversed(range(len(self._counts))):
            local, place = np.divmod(local, self._counts[axis][block])
            found.append(self._centres[axis].at(place + self._first[axis][block]))
        return Located(block, tuple(reversed(found)))

    def index(self, number: int, located: Located) -> Int64Array:
        """Return the places of a variable's values: int64, (rows, window positions)."""
        window = self._recipe.windows[number]
        index = self._bases[number][located.block][:, None]
        for axis, dim in enumerate(self._recipe.along):
            if dim not in self._strides[number]:
                continue
            here = located.centres[axis]
            position = here.positions[:, None]
            if dim in window.dims:
                position = position + window.offsets(dim)
                position = np.clip(position, here.low[:, None], here.high[:, None] - 1)
            index = index + position * self._strides[number][dim][located.block][:, None]
        if index.shape[1] != window.size:
            index = np.broadcast_to(index, (len(index), window.size))
        return index

    def take_all(self, located: Located) -> list[np.ndarray]:
        """Return the stored values of every variable for rows.

        Each is (rows, window positions, features), of the variable's dtype.
        """
        index: dict[int, Int64Array] = {}
        found = []
        for values, alike in zip(self._values, self._alike, strict=True):
            if alike not in index:
                index[alike] = self.index(alike, located)
            found.append(values.take(index[alike], axis=0))
        return found

    def take(self, number: int, located: Located) -> np.ndarray:
        """Return the stored values of a variable for rows.

        They are (rows, window positions, features), of the variable's dtype.
        """
        return self._values[number].take(self.index(number, located), axis=0)
