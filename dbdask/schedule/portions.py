"""The order in which a network sees its examples: a pure function of data, seed and epoch.

The sample space is a grid of blocks (whole Zarr chunks). Blocks drawn from all over the store make
a shuffle group, whose rows are permuted together and cut into portions. Nothing here depends on
measured speed or on the number of replicas.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from dbdask.arrays import Int64Array
from dbdask.schedule.lengths import Lengths, as_lengths

MIX_BYTES = 64 * 2**20
"""Stored bytes of a shuffle group: enough to mix labels that are sorted in the store."""

MIX_BLOCKS = 1024
"""The most blocks of a shuffle group, so that it does not collect tiny chunks without end."""

PORTION_BYTES = 32 * 2**20
"""The most stored bytes that a suggested portion covers."""

LEAST_STEPS = 16
"""The fewest minibatches of a suggested portion, to limit the messages of small models."""

NOMINAL_FLOPS = 20e9
"""Assumed speed: suggested portions are about a second of work at it."""


@dataclass(frozen=True, init=False)
class Grid:
    """The chunk grid of the sample space.

    Parameters
    ----------
    dims
        The sample dimensions, slowest first.
    lengths
        Length of every block, per dimension.

    Examples
    --------
    >>> grid = Grid(("time", "lat"), ((4, 2), (3, 3, 1)))
    >>> grid.shape, grid.block_count, grid.rows(2)
    ((2, 3), 6, 4)
    >>> grid.box(2)
    (slice(0, 4, None), slice(6, 7, None))
    """

    dims: tuple[str, ...]
    lengths: tuple[Lengths, ...]

    def __init__(self, dims: Sequence[str], lengths: Iterable[Sequence[int]]) -> None:
        object.__setattr__(self, "dims", tuple(dims))
        object.__setattr__(self, "lengths", tuple(as_lengths(given) for given in lengths))

    @property
    def shape(self) -> tuple[int, ...]:
        """Blocks per dimension."""
        return tuple(len(lengths) for lengths in self.lengths)

    @property
    def block_count(self) -> int:
        """Blocks in all."""
        return math.prod(self.shape)

    def position(self, block: int) -> tuple[int, ...]:
        """Return the place of a block in the grid; raise IndexError if there is no such block."""
        if not 0 <= block < self.block_count:
            raise IndexError(f"block must be in 0..{self.block_count - 1}, got {block}")
        return tuple(int(index) for index in np.unravel_index(block, self.shape))

    def box(self, block: int) -> tuple[slice, ...]:
        """Return the positions that a block covers, one slice per dimension."""
        return tuple(
            slice(lengths.edge(index), lengths.edge(index + 1))
            for lengths, index in zip(self.lengths, self.position(block), strict=True)
        )

    def rows(self, block: int) -> int:
        """Return the number of positions in a block."""
        return math.prod(cut.stop - cut.start for cut in self.box(block))


@dataclass(frozen=True, slots=True)
class Portion:
    """Rows that one task works through: a piece of a shuffle group.

    Parameters
    ----------
    epoch, number
        Its identity; `number` counts from 0 in the epoch's order.
    group
        The shuffle group that it is cut from.
    blocks
        Blocks of the group, in drawn order.
    start, stop
        Which of the group's permuted rows are its own.
    seed
        Entropy of the group's permutation; empty for store order.
    """

    epoch: int
    number: int
    group: int
    blocks: tuple[int, ...]
    start: int
    stop: int
    seed: tuple[int, ...]

    @property
    def identity(self) -> tuple[int, int]:
        """The identity that, with the step, makes a second run of it harmless."""
        return self.epoch, self.number

    @property
    def examples(self) -> str:
        """The examples that it is work on: those to train on."""
        return "train"

    @property
    def portions(self) -> tuple["Portion", ...]:
        """The portions that its task reads: itself."""
        return (self,)

    @property
    def name(self) -> str:
        """Its name in errors."""
        return f"portion {self.number} of epoch {self.epoch} (blocks {self.blocks[:4]})"

    @property
    def rows(self) -> int:
        """Rows of the portion, before any is dropped as missing."""
        return self.stop - self.start

    def steps(self, batch_size: int) -> int:
        """Return the number of minibatches in the portion."""
        return -(-self.rows // batch_size)


class Portions(Sequence[Portion]):
    """The portions of an epoch, in order; each is made when it is indexed.

    Parameters
    ----------
    epoch
        The epoch.
    blocks, first_block
        The blocks of all groups, one group after another, and the place in them at which each
        group begins: int64.
    rows
        Rows of each group: int64, (groups,).
    portion_rows
        Rows of a portion; the last one of a group may have fewer.
    seed
        Entropy of the permutations; None for store order.

    Attributes
    ----------
    first_of_groups
        The number of the first portion of every group, and of portions in all.
    """

    def __init__(
        self,
        epoch: int,
        blocks: Int64Array,
        first_block: Int64Array,
        rows: Int64Array,
        portion_rows: int,
        seed: int | None,
    ) -> None:
        self.epoch, self.seed = epoch, seed
        self._blocks, self._first_block = blocks, np.append(first_block, len(blocks))
        self._rows, self._portion_rows = rows, portion_rows
        counts = -(-rows // portion_rows)
        self.first_of_groups = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self._last_group: tuple[int, tuple[int, ...]] = (-1, ())

    def __len__(self) -> int:
        return int(self.first_of_groups[-1])

    @overload
    def __getitem__(self, number: int) -> Portion: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[Portion, ...]: ...
    def __getitem__(self, number: int | slice) -> Portion | tuple[Portion, ...]:
        if isinstance(number, slice):
            return tuple(self._at(n) for n in range(*number.indices(len(self))))
        return self._at(range(len(self))[number])

    def __iter__(self) -> Iterator[Portion]:
        return (self._at(number) for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Portions):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} portions of epoch {self.epoch}>"

    def _at(self, number: int) -> Portion:
        group = int(np.searchsorted(self.first_of_groups, number, side="right")) - 1
        start = (number - int(self.first_of_groups[group])) * self._portion_rows
        stop = min(start + self._portion_rows, int(self._rows[group]))
        # Entropy is padded with zeros by NumPy: group 0 must not share that of the draw.
        seed = () if self.seed is None else (self.seed, self.epoch, group + 1)
        return Portion(self.epoch, number, group, self._blocks_of(group), start, stop, seed)

    def _blocks_of(self, group: int) -> tuple[int, ...]:
        last = self._last_group  # its portions share one tuple
        if last[0] != group:
            cut = slice(self._first_block[group], self._first_block[group + 1])
            last = self._last_group = (group, tuple(self._blocks[cut].tolist()))
        return last[1]


@dataclass(frozen=True, eq=False)
class Cut:
    """The cut of blocks into shuffle groups and portions.

    Parameters
    ----------
    block_rows
        Examples in every block: int64, (blocks,). Blocks without any are skipped.
    block_bytes
        Stored bytes that reading each block takes: int64, (blocks,).
    portion_rows
        Rows of a portion: a multiple of the batch size.
    mix_bytes
        Stored bytes that a shuffle group collects.
    """

    block_rows: Int64Array
    block_bytes: Int64Array
    portion_rows: int
    mix_bytes: int = MIX_BYTES

    def __post_init__(self) -> None:
        for name in ("block_rows", "block_bytes"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.int64))

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return int(self.block_rows.sum())

    @property
    def digest(self) -> str:
        """A text that is the same for the same blocks, for any length of portions."""
        found = hashlib.sha256(b"(")
        for numbers in (self.block_rows, self.block_bytes):
            for text in _as_text(numbers):
                found.update(text.encode())
            found.update(b", ")
        found.update(f"{self.mix_bytes})".encode())
        return found.hexdigest()[:16]

    def portions(self, seed: int, epoch: int) -> Portions:
        """Return the shuffled portions of an epoch: the same for the same seed and epoch."""
        drawn = self._draw(np.random.default_rng((seed, epoch)))
        return self._cut(epoch, drawn, self._collect(drawn, self.mix_bytes), seed)

    def _draw(self, rng: np.random.Generator) -> Int64Array:
        """Return the blocks in an order in which every group has blocks from the whole store.

        Neighbours in the store are alike (labels may be sorted, weather lasts). So the store is
        divided into strata of as many neighbours as there are groups, and each group takes one
        block of every stratum, at random.
        """
        filled = np.flatnonzero(self.block_rows)
        count = max(1, len(self._collect(filled, self.mix_bytes)))
        strata = filled.copy()
        for start in range(0, filled.size, count):
            rng.shuffle(strata[start : start + count])
        order = rng.permutation(count)
        if count == filled.size:
            return strata[order]
        drawn = np.empty_like(filled)
        end = 0
        for group in order.tolist():
            members = strata[group::count]
            begin, end = end, end + len(members)
            drawn[begin:end] = members
            rng.shuffle(drawn[begin:end])
        return drawn

    def contiguous(self) -> Portions:
        """Return the portions of all rows in store order."""
        filled = np.flatnonzero(self.block_rows)
        return self._cut(0, filled, self._collect(filled, 0), None)

    def _collect(self, blocks: Int64Array, mix_bytes: int) -> Int64Array:
        """Return the places at which groups begin: int64, (groups,).

        A group has the rows of at least a portion, and as many blocks as fit in `mix_bytes`.
        """
        if not blocks.size:
            return np.zeros(0, np.int64)
        rows = np.cumsum(self.block_rows[blocks])
        held = np.cumsum(self.block_bytes[blocks])
        rows_before, held_before = rows - self.block_rows[blocks], held - self.block_bytes[blocks]
        # For each block, the end of a group that begins there: before the first block with which
        # it would be too large, but not before it has the rows of a portion.
        mixed = np.searchsorted(held, held_before + mix_bytes, side="right")
        mixed = np.minimum(mixed, np.arange(len(blocks)) + MIX_BLOCKS)
        enough = np.searchsorted(rows, rows_before + self.portion_rows) + 1
        ends = np.maximum(np.maximum(mixed, enough), np.arange(len(blocks)) + 1).tolist()
        begins, at = [], 0
        while at < len(ends):
            begins.append(at)
            at = ends[at]
        return np.array(begins, np.int64)

    def _cut(
        self, epoch: int, blocks: Int64Array, begins: Int64Array, seed: int | None
    ) -> Portions:
        held = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.block_rows[blocks])])
        rows = np.diff(held[np.append(begins, len(blocks))])
        return Portions(epoch, blocks, begins, rows, self.portion_rows, seed)


def _as_text(numbers: Int64Array) -> Iterator[str]:
    """Yield the text of a tuple of the numbers, piece by piece."""
    yield "("
    for start in range(0, len(numbers), 1 << 16):
        piece = ", ".join(map(str, numbers[start : start + (1 << 16)].tolist()))
        yield f"{', ' if start else ''}{piece}"
    yield ",)" if len(numbers) == 1 else ")"


def suggest_portion_rows(rows: int, row_bytes: float, parameter_count: int, batch_size: int) -> int:
    """Return how many rows a portion should have: a multiple of `batch_size`.

    About a second of work at a nominal speed, at most 32 MiB of stored bytes and a sixteenth of
    the rows, but never fewer than 16 minibatches.

    Examples
    --------
    >>> suggest_portion_rows(60_000, 785, 203_530, 128)
    3712
    >>> suggest_portion_rows(60_000, 785, 42_000_000, 128)
    2048
    """
    second = NOMINAL_FLOPS / (6 * max(parameter_count, 1))
    wanted = min(second, PORTION_BYTES / max(row_bytes, 1), rows / 16)
    return batch_size * max(LEAST_STEPS, int(wanted // batch_size))


def suggest_validation_rows(
    rows: int, row_bytes: float, parameter_count: int, batch_size: int
) -> int:
    """Return how many rows a portion of the validation examples should have.

    As `suggest_portion_rows`, but of a large model never more than a second of work: nothing is
    sent to the shards between the minibatches of a validation.

    Examples
    --------
    >>> suggest_validation_rows(10_000, 36, 18, 2), suggest_validation_rows(10_000, 36, 18, 128)
    (624, 2048)
    >>> suggest_validation_rows(10_000, 785, 42_000_000, 128)
    128
    """
    second = NOMINAL_FLOPS / (6 * max(parameter_count, 1))
    suggested = suggest_portion_rows(rows, row_bytes, parameter_count, batch_size)
    return max(batch_size, min(suggested, batch_size * int(second // batch_size)))
