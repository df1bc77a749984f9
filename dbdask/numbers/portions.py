"""The order in which a network meets its examples: a pure function of data, seed and epoch.

The sample space is a grid of blocks (whole Zarr chunks). Blocks drawn from all over the store make
a shuffle group, whose rows are permuted together and cut into portions. Nothing here depends on
measured speed or on the number of replicas.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MIX_BYTES = 64 * 2**20
"""Stored bytes that a shuffle group goes on collecting: labels sorted in the store get mixed."""

MIX_BLOCKS = 1024
"""Blocks of a group that are mixed enough: tiny chunks are not collected any further."""

PORTION_BYTES = 32 * 2**20
"""Most stored bytes that a suggested portion covers."""

LEAST_STEPS = 16
"""Fewest minibatches of a suggested portion, so that small models do not drown in messages."""

NOMINAL_FLOPS = 20e9
"""Assumed speed: suggested portions are about a second of work at it."""


@dataclass(frozen=True)
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
    lengths: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Blocks per dimension."""
        return tuple(len(lengths) for lengths in self.lengths)

    @property
    def block_count(self) -> int:
        """Blocks in all."""
        return math.prod(self.shape)

    def position(self, block: int) -> tuple[int, ...]:
        """Place of a block in the grid."""
        if not 0 <= block < self.block_count:
            raise IndexError(f"block must be in 0..{self.block_count - 1}, got {block}")
        return tuple(int(index) for index in np.unravel_index(block, self.shape))

    def box(self, block: int) -> tuple[slice, ...]:
        """Positions that a block covers, one slice per dimension."""
        slices = []
        for lengths, index in zip(self.lengths, self.position(block), strict=True):
            start = sum(lengths[:index])
            slices.append(slice(start, start + lengths[index]))
        return tuple(slices)

    def rows(self, block: int) -> int:
        """Positions in a block."""
        return math.prod(
            lengths[index]
            for lengths, index in zip(self.lengths, self.position(block), strict=True)
        )


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
        """What makes a second run of it harmless, together with the step."""
        return self.epoch, self.number

    @property
    def portions(self) -> tuple["Portion", ...]:
        """The portions that its task reads: itself."""
        return (self,)

    @property
    def name(self) -> str:
        """What an error calls it."""
        return f"portion {self.number} of epoch {self.epoch} (blocks {self.blocks[:4]})"

    @property
    def rows(self) -> int:
        """Rows of the portion, before any is dropped as missing."""
        return self.stop - self.start

    def steps(self, batch_size: int) -> int:
        """Minibatches in the portion."""
        return -(-self.rows // batch_size)


@dataclass(frozen=True)
class Cut:
    """How blocks become portions.

    Parameters
    ----------
    block_rows
        Examples in every block; blocks without any are passed over.
    block_bytes
        Stored bytes that reading each block takes.
    portion_rows
        Rows of a portion: a multiple of the batch size.
    mix_bytes
        Stored bytes that a shuffle group collects.
    """

    block_rows: tuple[int, ...]
    block_bytes: tuple[int, ...]
    portion_rows: int
    mix_bytes: int = MIX_BYTES

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return sum(self.block_rows)

    def portions(self, seed: int, epoch: int) -> tuple[Portion, ...]:
        """Cut an epoch into shuffled portions; the same for the same seed and epoch."""
        drawn = self._draw(np.random.default_rng((seed, epoch)))
        groups = self._collect(drawn, self.mix_bytes)
        # Entropy is padded with zeros by NumPy: group 0 must not share that of the draw.
        seeds: list[tuple[int, ...]] = [(seed, epoch, group + 1) for group in range(len(groups))]
        return self._cut(epoch, groups, seeds)

    def _draw(self, rng: np.random.Generator) -> list[int]:
        """Return the blocks in an order of which every run of a group's length spans the store.

        Neighbours in the store are alike (labels may be sorted, weather lasts), so each group
        takes one block, by lot, of every stratum of as many neighbours as there are groups.
        """
        filled = np.flatnonzero(self.block_rows)
        count = max(1, len(self._collect([int(block) for block in filled], self.mix_bytes)))
        strata = [rng.permutation(filled[i : i + count]) for i in range(0, filled.size, count)]
        groups = [[int(s[g]) for s in strata if g < s.size] for g in rng.permutation(count)]
        return [int(block) for group in groups for block in rng.permutation(group)]

    def contiguous(self) -> tuple[Portion, ...]:
        """Cut all rows into portions in store order."""
        filled = [int(block) for block in np.flatnonzero(self.block_rows)]
        groups = self._collect(filled, 0)
        return self._cut(0, groups, [()] * len(groups))

    def _collect(self, blocks: list[int], mix_bytes: int) -> list[tuple[int, ...]]:
        """Collect blocks into groups of at least a portion, and of `mix_bytes` while they fit."""
        groups: list[tuple[int, ...]] = []
        group: list[int] = []
        rows = held = 0
        for block in blocks:
            mixed = held + self.block_bytes[block] > mix_bytes or len(group) >= MIX_BLOCKS
            if group and mixed and rows >= self.portion_rows:
                groups.append(tuple(group))
                group, rows, held = [], 0, 0
            group.append(block)
            rows += self.block_rows[block]
            held += self.block_bytes[block]
        return [*groups, tuple(group)] if group else groups

    def _cut(
        self, epoch: int, groups: list[tuple[int, ...]], seeds: list[tuple[int, ...]]
    ) -> tuple[Portion, ...]:
        portions: list[Portion] = []
        for group, (blocks, seed) in enumerate(zip(groups, seeds, strict=True)):
            rows = sum(self.block_rows[block] for block in blocks)
            edges = [*range(0, rows, self.portion_rows), rows]
            for start, stop in pairwise(edges):
                number = len(portions)
                portions.append(Portion(epoch, number, group, blocks, start, stop, seed))
        return tuple(portions)


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
