"""Initial numbers of parameters, drawn in blocks so that the cut into shards changes nothing."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dbdask.arrays import Float32Array

BLOCK = 65_536  # numbers that are drawn at once

Stream = tuple[int, ...]
"""The entropy of one parameter's random numbers: the seed, and the parameter's place."""

Draw = Callable[[Stream, int, int], Float32Array]
"""Returns elements `start` to `stop` of a parameter: float32, (stop - start,), for a stream."""


@dataclass(frozen=True)
class Constant:
    """Every element is `value`.

    Examples
    --------
    >>> Constant(1.0)((0, 0), 2, 5).tolist()
    [1.0, 1.0, 1.0]
    """

    value: float = 0.0

    def __call__(self, stream: Stream, start: int, stop: int) -> Float32Array:
        return np.full(stop - start, self.value, np.float32)


@dataclass(frozen=True)
class Uniform:
    """Elements are drawn uniformly from `-limit` to `limit`.

    Examples
    --------
    >>> whole = Uniform(0.5)((7, 0), 0, 10)
    >>> bool((Uniform(0.5)((7, 0), 3, 6) == whole[3:6]).all())
    True
    """

    limit: float

    def __call__(self, stream: Stream, start: int, stop: int) -> Float32Array:
        numbers = _in_blocks(lambda rng: rng.random(BLOCK, np.float32), stream, start, stop)
        return (2 * numbers - 1) * np.float32(self.limit)


@dataclass(frozen=True)
class Normal:
    """Elements are drawn from a normal distribution with mean 0 and this standard deviation."""

    deviation: float

    def __call__(self, stream: Stream, start: int, stop: int) -> Float32Array:
        numbers = _in_blocks(
            lambda rng: rng.standard_normal(BLOCK, np.float32), stream, start, stop
        )
        return numbers * np.float32(self.deviation)


def _in_blocks(
    draw: Callable[[np.random.Generator], Float32Array], stream: Stream, start: int, stop: int
) -> Float32Array:
    """Return elements `start` to `stop` of a stream of numbers that is drawn in blocks.

    `draw` returns one block, float32 of shape (BLOCK,), from a generator of its own.
    """
    values = np.empty(stop - start, np.float32)
    for block in range(start // BLOCK, math.ceil(stop / BLOCK)):
        numbers = draw(np.random.default_rng((*stream, block)))
        first, last = max(start, block * BLOCK), min(stop, (block + 1) * BLOCK)
        values[first - start : last - start] = numbers[first - block * BLOCK : last - block * BLOCK]
    return values
