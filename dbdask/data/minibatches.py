"""Minibatches for a loop of one's own: the arrays of training, in its order, without a cluster."""

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain, pairwise
from typing import NamedTuple, Protocol, Self, TypeVar

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.data.feed import Reader
from dbdask.data.recipe import Recipe
from dbdask.errors import DataError
from dbdask.metrics.scores import NOTHING
from dbdask.models.layout import as_layout
from dbdask.models.model import Model
from dbdask.schedule.portions import Cut, Portion, suggest_portion_rows


class Arrays(NamedTuple):
    """The arrays of some examples, as a model is given them.

    Parameters
    ----------
    inputs
        float32, (examples, *input_shape).
    targets
        int64 class indices, (examples,), or float32 values, (examples, *target_shape); None if
        the examples have no targets.
    weights
        float32, (examples,), or (examples, *target_shape) if target elements are missing;
        None: all are 1.
    """

    inputs: Float32Array
    targets: np.ndarray | None
    weights: Float32Array | None


class Served(Protocol):
    """The members of `dbdask.Examples` that serve minibatches."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def row_bytes(self) -> int: ...

    def __len__(self) -> int: ...

    def for_loss(self, loss: str | None, outputs: int | None) -> Self: ...

    def prepared_like(self, other: Self) -> Self: ...

    def cut(self, portion_rows: int, batch_size: int) -> Cut: ...

    def reader(self, *, prefetch: bool) -> Reader: ...


E = TypeVar("E", bound=Served)


def minibatches(
    examples: E,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    model: Model | None,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Arrays]:
    """Return the minibatches of one epoch; the arguments are those of `Examples.minibatches`.

    Shapes and dtypes are those of `Examples.batch`.

    Parameters
    ----------
    part
        (k, n): the k-th of n parts of the epoch, counted from 0. The parts share no portion, and
        together they are the epoch.

    Raises
    ------
    TypeError, ValueError
        An argument is no whole number, or too small.
    """
    _check_whole("batch_size", batch_size, 1)
    _check_whole("seed", seed, 0)
    _check_whole("epoch", epoch, 0)
    prepared = as_trained(examples, model)
    parameters = 1 if model is None else as_layout(model.layout).size
    rows = suggest_portion_rows(len(prepared), prepared.row_bytes, parameters, batch_size)
    portions = prepared.cut(rows, batch_size).portions(seed, epoch)
    number, parts = part
    first, stop = (len(portions) * n // parts for n in (number, number + 1))
    mine = (portions[n] for n in range(first, stop))
    return _iterate(prepared, mine, batch_size, reads_ahead=True)


def batch(examples: E, size: int, *, seed: int | None, model: Model | None) -> Arrays:
    """Return some examples; arguments, shapes and dtypes are those of `Examples.batch`.

    Raises
    ------
    TypeError, ValueError
        An argument is no whole number, or too small.
    DataError
        A value is wrong, or all examples are left out as missing.
    """
    _check_whole("size", size, 1)
    if seed is not None:
        found = next(minibatches(examples, size, seed=seed, epoch=0, model=model), None)
        if found is None:
            raise DataError(NOTHING)
        return found
    prepared = as_trained(examples, model)
    with closing(_iterate(prepared, _blocks_in_order(prepared), size, reads_ahead=False)) as pieces:
        return _joined(pieces, size)


def as_trained(examples: E, model: Model | None) -> E:
    """Return the examples as training prepares them, with the targets that the model's loss takes.

    Without a model the targets are as they were declared: integers are labels.
    """
    if model is not None:
        shape = getattr(model, "output_shape", None)
        outputs = None if shape is None else math.prod(shape)
        examples = examples.for_loss(getattr(model, "loss", None), outputs)
    return examples.prepared_like(examples)


def _iterate(
    examples: E, portions: Iterator[Portion], batch_size: int, *, reads_ahead: bool
) -> Generator[Arrays, None, None]:
    """Yield the minibatches of portions from a reader that ends with this iterator."""
    with examples.reader(prefetch=reads_ahead) as reader:
        for portion, following in pairwise(chain(portions, [None])):
            assert portion is not None
            for found in reader.minibatches(portion, batch_size, following=following):
                yield Arrays(found.inputs, found.targets, found.weights)


def _blocks_in_order(examples: E) -> Iterator[Portion]:
    """Yield a portion for each block that has examples, so that one block at a time is read."""
    for number in np.flatnonzero(examples.recipe.block_rows).tolist():
        yield Portion(0, number, number, (number,), 0, examples.recipe.rows_in(number), ())


def _joined(pieces: Iterator[Arrays], size: int) -> Arrays:
    """Return the first `size` examples of minibatches that may be short."""
    found: list[Arrays] = []
    for piece in pieces:
        found.append(piece)
        if sum(len(one.inputs) for one in found) >= size:
            break
    if not found:
        raise DataError(NOTHING)
    inputs = np.concatenate([one.inputs for one in found])[:size]
    targets = _concatenated([one.targets for one in found], size)
    return Arrays(inputs, targets, _concatenated(_whole_weights(found), size))


def _whole_weights(pieces: list[Arrays]) -> list[Float32Array | None]:
    """Return weights of one shape for every piece: 1 where a piece has none and another has."""
    given = next((one.weights for one in pieces if one.weights is not None), None)
    if given is None:
        return [None]
    return [
        np.ones((len(one.inputs), *given.shape[1:]), np.float32)
        if one.weights is None
        else one.weights
        for one in pieces
    ]


def _concatenated(pieces: list[np.ndarray | None], size: int) -> np.ndarray | None:
    known = [piece for piece in pieces if piece is not None]
    return np.concatenate(known)[:size] if known else None


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value.__index__() < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
