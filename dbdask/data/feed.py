"""The feed: a reader that turns portions into minibatches, from whole chunks that it caches."""

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, Thread

import numpy as np

from dbdask.arrays import BoolArray, Float32Array, Int64Array
from dbdask.data.blocks import read_block
from dbdask.data.fills import fills_of
from dbdask.data.first_look import first_look
from dbdask.data.gathering import Block, BlockGroup
from dbdask.data.groups import GroupLedger
from dbdask.data.labels import MISSING
from dbdask.data.leaving_out import left_out_of
from dbdask.data.recipe import Recipe
from dbdask.data.sources import Blocks
from dbdask.data.waiting import Reads
from dbdask.data.weights import masked, weights_of
from dbdask.metrics.magnitudes import Magnitude
from dbdask.schedule.left_out import LeftOut
from dbdask.schedule.portions import Portion

CACHE_BYTES = 256 * 2**20
"""Stored bytes that a reader keeps by default."""


@dataclass(frozen=True)
class Minibatch:
    """Examples of one step.

    Parameters
    ----------
    step
        Place in its portion, from 0.
    inputs
        float32, (examples, *input_shape).
    targets
        int64 class indices (examples,), float32 values (examples, *target_shape), or None.
    weights
        float32 (examples,); of the targets' shape if elements are masked, or have weights of their
        own; None: all 1.
    """

    step: int
    inputs: Float32Array
    targets: np.ndarray | None
    weights: Float32Array | None


@dataclass(frozen=True)
class BlockExamples:
    """All examples of one block, in row-major order of its centres.

    Parameters
    ----------
    positions
        Position of every example along each sample dimension, missing ones included.
    valid
        Which of them could be formed.
    minibatch
        Those that could, in the same order.
    """

    positions: tuple[Int64Array, ...]
    valid: BoolArray
    minibatch: Minibatch


class Reader:
    """Reads portions of examples; may be used by several threads.

    Parameters
    ----------
    recipe
        The recipe of the examples.
    cache_bytes
        Stored bytes to keep between portions.
    prefetch
        Whether `prefetch` reads on a thread of its own.
    """

    def __init__(self, recipe: Recipe, cache_bytes: int, prefetch: bool) -> None:
        self.recipe = recipe
        self._cache_bytes = cache_bytes
        self._keeps = _total_bytes(recipe) <= 2 * cache_bytes
        self._lock = Lock()
        self._cache: OrderedDict[int, Block] = OrderedDict()
        self._held = 0
        self._left_out: dict[int, LeftOut] = {}  # by block
        self.magnitudes: tuple[Magnitude, ...] = ()  # of the first block that is read
        self._loading: dict[int, Future[Block]] = {}
        self._group: tuple[tuple[int, ...], BlockGroup] | None = None
        self._order: tuple[tuple[int, ...], int, np.ndarray] | None = None
        self._reads_ahead = prefetch
        self._ahead: Thread | None = None
        self._reads = Reads()
        groups = recipe.groups
        self._ledger = GroupLedger(groups.name) if groups is not None else None

    def open(self) -> None:
        """Open every store now; raise an error if one cannot be opened."""
        for variable in self.recipe.variables:
            variable.open()

    def close(self) -> None:
        """End every wait for a read, now and later, and empty the cache.

        A thread that is still reading is not waited for.
        """
        self._reads.close()
        self._drop()

    def make_room(self, keep_less: bool) -> None:
        """Drop what is kept for later; `keep_less`: keep half as much from now on."""
        if keep_less:
            self._cache_bytes //= 2
        self._drop()

    def _drop(self) -> None:
        with self._lock:
            self._cache.clear()
            self._held = 0
            self._group = self._order = None

    def give_up_reads(self, least: float = 0.0) -> None:
        """End waits for what has been read for `least` seconds; who waits gets `ReadGivenUp`."""
        self._reads.give_up(least)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def minibatches(
        self,
        portion: Portion,
        batch_size: int,
        *,
        first_step: int = 0,
        blocks: Blocks | None = None,
        following: Portion | None = None,
    ) -> Iterator[Minibatch]:
        """Yield the minibatches of a portion, from `first_step` on.

        Rows that prove missing are left out after the permutation, so that every minibatch but
        the last is full. Once the portion's own blocks are in hand, those of the `following` one
        are read ahead: not before, or the blocks of three portions would be held at once.

        Raises
        ------
        DataError
            When a chunk's values are wrong.
        """
        group = self._gather(portion.blocks, blocks)
        if following is not None:
            self.prefetch(following)
        rows = self._rows(portion, group)
        for step, start in enumerate(range(0, len(rows), batch_size)):
            if step >= first_step:
                yield self._minibatch(group, rows[start : start + batch_size], step)

    def kept(self, portion: Portion, blocks: Blocks | None = None) -> int:
        """Return how many examples of a portion are not left out as missing."""
        return len(self._rows(portion, self._gather(portion.blocks, blocks)))

    def _rows(self, portion: Portion, group: BlockGroup) -> Int64Array:
        """Return the rows of a portion within its group, in order, without those left out."""
        if portion.seed:
            order = self._permutation(portion, group.rows)
            rows = order[portion.start : portion.stop].astype(np.int64)
        else:
            rows = np.arange(portion.start, portion.stop)
        return rows if group.valid is None else rows[group.valid[rows]]

    def prefetch(self, portion: Portion) -> None:
        """Start to read a portion's blocks, unless another is being read or it would not fit."""
        missing = [block for block in portion.blocks if not self._has(block)]
        handed_over = any(variable.needs_blocks for variable in self.recipe.variables)
        here = self._group is not None and self._group[0] == portion.blocks
        if not (self._reads_ahead and missing) or handed_over or here:
            return
        if self._ahead is not None and self._ahead.is_alive():
            return
        held = self._group[1].nbytes if self._group is not None else 0
        wanted = held + sum(self._expected_bytes(block) for block in missing)
        if wanted <= self._cache_bytes:
            with self._lock:
                self._evict(wanted)
            self._ahead = Thread(
                target=self._read_ahead, args=(missing,), daemon=True, name="dbdask-prefetch"
            )
            self._ahead.start()

    def block(self, block: int, blocks: Blocks | None = None) -> BlockExamples:
        """Return all examples of a block."""
        group = BlockGroup(self.recipe, [self._block(block, blocks)])
        rows = np.arange(group.rows)
        valid = np.ones(group.rows, bool) if group.valid is None else group.valid
        places = group.locate(rows).centres
        positions = tuple(centres.positions for centres in places)
        return BlockExamples(positions, valid, self._minibatch(group, rows[valid], 0))

    def left_out(self, portion: Portion) -> LeftOut:
        """Return the examples and chunks that a portion's blocks leave out or lack, once read."""
        found = LeftOut(fills=fills_of(self.recipe, portion.blocks))
        for block in portion.blocks:
            if block in self._left_out:
                found.add(self._left_out[block])
        return found

    def raw_block(self, block: int, blocks: Blocks | None = None) -> Block:
        """Return a block as it was read."""
        return self._block(block, blocks)

    def _minibatch(self, group: BlockGroup, rows: Int64Array, step: int) -> Minibatch:
        recipe = self.recipe
        located = group.locate(rows)
        taken = group.take_all(located)
        count = len(recipe.inputs.variables)
        inputs, _ = recipe.inputs.assemble(taken[:count], masked=group.gaps)
        weights = None
        if recipe.weights is not None:
            weights = weights_of(recipe, taken[-1])
        if recipe.targets is None:
            return Minibatch(step, inputs, None, weights)
        if recipe.classes is not None:
            targets: np.ndarray = taken[count][:, 0, 0].astype(np.int64)
            gap = targets == MISSING if group.gaps else None
            targets = targets if gap is None else np.where(gap, 0, targets)
        else:
            stop = count + len(recipe.targets.variables)
            targets, gap = recipe.targets.assemble(taken[count:stop], masked=group.gaps)
        return Minibatch(step, inputs, targets, masked(weights, gap))

    def _permutation(self, portion: Portion, rows: int) -> np.ndarray:
        """Return the group's rows in the order of its portions, in as few bytes as they need."""
        with self._lock:
            if self._order is not None and self._order[:2] == (portion.seed, rows):
                return self._order[2]
        order = np.arange(rows, dtype=np.uint32 if rows < 2**32 else np.int64)
        np.random.default_rng(portion.seed).shuffle(order)
        with self._lock:
            self._order = portion.seed, rows, order
        return order

    def _gather(self, numbers: tuple[int, ...], brought: Blocks | None) -> BlockGroup:
        """Return the group's blocks side by side; the last group is kept."""
        with self._lock:
            if self._group is not None and self._group[0] == numbers:
                return self._group[1]
            self._group = None
        group = BlockGroup(self.recipe, [self._block(number, brought) for number in numbers])
        with self._lock:
            self._group = numbers, group
            if not self._keeps:
                # Of data far beyond the budget hardly a block would be found again.
                for number in numbers:
                    if number in self._cache:
                        self._held -= self._cache.pop(number).nbytes
            self._evict(group.nbytes)
        return group

    def _has(self, block: int) -> bool:
        with self._lock:
            return block in self._cache or block in self._loading

    def _block(self, number: int, brought: Blocks | None = None) -> Block:
        """Return a block from the cache, from the thread that is reading it, or by reading it."""
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
            loading = self._loading.get(number)
            if loading is None:
                mine: Future[Block] = Future()
                self._loading[number] = mine
        if loading is not None:
            return loading.result()
        return self._read(number, brought, mine)

    def _read(self, number: int, brought: Blocks | None, result: "Future[Block]") -> Block:
        try:
            with self._reads.here():
                block = read_block(self.recipe, number, self._ledger, brought)
            self.magnitudes = self.magnitudes or first_look(self.recipe, block)
            if self.recipe.drops_missing and number not in self._left_out:
                self._left_out[number] = left_out_of(self.recipe, block)
        except BaseException as error:
            with self._lock:
                del self._loading[number]
            result.set_exception(error)
            raise
        with self._lock:
            del self._loading[number]
            self._cache[number] = block
            self._held += block.nbytes
            self._evict(self._group[1].nbytes if self._group is not None else 0)
        result.set_result(block)
        return block

    def _evict(self, reserved: int) -> None:
        """Drop the blocks used longest ago, down to the budget; the caller holds the lock."""
        while self._cache and self._held + reserved > self._cache_bytes:
            _, dropped = self._cache.popitem(last=False)
            self._held -= dropped.nbytes

    def _read_ahead(self, numbers: list[int]) -> None:
        with suppress(Exception):  # who needs the block reads it again, and gets the error
            for number in numbers:
                self._block(number)

    def _expected_bytes(self, block: int) -> int:
        return int(self.recipe.grid.rows(block) * self.recipe.row_bytes)


def _total_bytes(recipe: Recipe) -> int:
    return sum(variable.nbytes for variable in recipe.variables)
