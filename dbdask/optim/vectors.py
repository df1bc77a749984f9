"""Commands on named vectors: the small set that a batch method needs (section 4.2).

A command is data. A shard carries it out on its own slices, and a program on a dictionary of NumPy
arrays; the answers (inner products, largest magnitudes) of several slices can be merged. So a
method that is written in commands runs on one array or on a parameter server without a change.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dbdask.arrays import Float64Array, FloatArray

BLOCK = 16_384  # elements: a float64 block of a few vectors stays in the cache

Vectors = dict[str, FloatArray]


class Command(Protocol):
    """One operation on named vectors, all of shape (n,); `merge` merges the answers of slices."""

    def __call__(self, vectors: Vectors) -> Any: ...

    def merge(self, answers: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class _Silent:
    """A command that answers nothing."""

    def merge(self, answers: Sequence[Any]) -> None:
        """Return None."""


@dataclass(frozen=True)
class Fill(_Silent):
    """into = value; a new vector gets the dtype of `like`."""

    into: str
    value: float
    like: str = "parameters"

    def __call__(self, vectors: Vectors) -> None:
        _made(vectors, self.into, self.like).fill(self.value)


@dataclass(frozen=True)
class Copy(_Silent):
    """into = source."""

    into: str
    source: str

    def __call__(self, vectors: Vectors) -> None:
        np.copyto(_made(vectors, self.into, self.source), vectors[self.source])


@dataclass(frozen=True)
class Scale(_Silent):
    """into *= factor."""

    into: str
    factor: float

    def __call__(self, vectors: Vectors) -> None:
        vectors[self.into] *= vectors[self.into].dtype.type(self.factor)


@dataclass(frozen=True)
class Add(_Silent):
    """into += factor * other."""

    into: str
    factor: float
    other: str

    def __call__(self, vectors: Vectors) -> None:
        if self.factor != 0.0:
            Combine(self.into, {self.into: 1.0, self.other: self.factor})(vectors)


@dataclass(frozen=True)
class Multiply(_Silent):
    """into *= other, coefficient by coefficient."""

    into: str
    other: str

    def __call__(self, vectors: Vectors) -> None:
        vectors[self.into] *= vectors[self.other]


@dataclass(frozen=True)
class Combine(_Silent):
    """into = sum of coefficient * vector, added up in float64; `into` may be among them."""

    into: str
    terms: Mapping[str, float]

    def __call__(self, vectors: Vectors) -> None:
        names = [name for name, factor in self.terms.items() if factor != 0.0]
        target = _made(vectors, self.into, next(iter(self.terms)))
        total, product = np.empty(BLOCK), np.empty(BLOCK)
        for block in _blocks(target.size):
            length = target[block].size
            total[:length] = 0.0
            for name in names:
                np.multiply(vectors[name][block], self.terms[name], out=product[:length])
                total[:length] += product[:length]
            target[block] = total[:length]


@dataclass(frozen=True)
class Dot:
    """Answers the inner product of two vectors, in float64."""

    left: str
    right: str

    def __call__(self, vectors: Vectors) -> float:
        left, right = vectors[self.left], vectors[self.right]
        return sum(
            float(left[block].astype(np.float64) @ right[block].astype(np.float64))
            for block in _blocks(left.size)
        )

    def merge(self, answers: Sequence[float]) -> float:
        """Return the sum over slices."""
        return float(sum(answers))


@dataclass(frozen=True)
class Gram:
    """Answers the inner products of each of `rows` with each of `columns`, in float64."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]

    def __call__(self, vectors: Vectors) -> Float64Array:
        names = list(dict.fromkeys(self.rows + self.columns))
        at = {name: position for position, name in enumerate(names)}
        rows, columns = [at[n] for n in self.rows], [at[n] for n in self.columns]
        size = vectors[names[0]].size
        held, products = np.empty((len(names), BLOCK)), np.zeros((len(rows), len(columns)))
        for block in _blocks(size):
            part = held[:, : vectors[names[0]][block].size]
            for position, name in enumerate(names):
                part[position] = vectors[name][block]
            products += part[rows] @ part[columns].T
        return products

    def merge(self, answers: Sequence[Float64Array]) -> Float64Array:
        """Return the sum over slices: float64, (rows, columns)."""
        total: Float64Array = np.sum(np.stack(answers), axis=0)
        return total


@dataclass(frozen=True)
class Largest:
    """Answers the largest magnitude of a vector's components; NaN where one is NaN."""

    name: str

    def __call__(self, vectors: Vectors) -> float:
        vector = vectors[self.name]
        return float(max(vector.max(), -vector.min()))

    def merge(self, answers: Sequence[float]) -> float:
        """Return the largest over slices."""
        return float(np.max(answers))


def carry_out(commands: Sequence[Command], vectors: Vectors) -> list[Any]:
    """Carry out commands in order on the vectors of one slice; return their answers."""
    return [command(vectors) for command in commands]


def merge_answers(commands: Sequence[Command], slices: Sequence[Sequence[Any]]) -> list[Any]:
    """Return the merged answer of each command; `slices` are the answers of each slice."""
    return [command.merge([answers[i] for answers in slices]) for i, command in enumerate(commands)]


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, size, BLOCK))


def _made(vectors: Vectors, name: str, like: str) -> FloatArray:
    if name not in vectors:
        vectors[name] = np.empty_like(vectors[like])
    return vectors[name]
