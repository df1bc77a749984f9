"""Commands on named vectors: the small set that a batch method needs (section 4.2).

A command is data. A shard carries it out on its own slices, and so does a dictionary of NumPy
arrays; what they answer (inner products, largest magnitudes) adds up over slices. So a method
that is written on commands runs on one array or on a parameter server without a change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

BLOCK = 65_536  # elements: products are formed in float64 block by block, never of whole vectors

Vectors = dict[str, np.ndarray]


class Command(Protocol):
    """One step on named vectors; `merge` brings the answers of all slices together."""

    def __call__(self, vectors: Vectors) -> Any: ...

    def merge(self, answers: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class _Silent:
    """A command that answers nothing."""

    def merge(self, answers: Sequence[Any]) -> None:
        """Return None."""


@dataclass(frozen=True)
class Fill(_Silent):
    """into = value; makes the vector where it is new, like `like`."""

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
        for start in range(0, target.size, BLOCK):
            block = slice(start, start + BLOCK)
            total = np.zeros(target[block].shape)
            for name in names:
                total += self.terms[name] * vectors[name][block]
            target[block] = total


@dataclass(frozen=True)
class Dot:
    """Answers the inner product of two vectors, in float64."""

    left: str
    right: str

    def __call__(self, vectors: Vectors) -> float:
        return float(Gram((self.left,), (self.right,))(vectors)[0, 0])

    def merge(self, answers: Sequence[float]) -> float:
        """Return the sum over slices."""
        return float(sum(answers))


@dataclass(frozen=True)
class Gram:
    """Answers the inner products of each of `rows` with each of `columns`, in float64."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]

    def __call__(self, vectors: Vectors) -> np.ndarray:
        products = np.zeros((len(self.rows), len(self.columns)))
        names = list(dict.fromkeys(self.rows + self.columns))
        size = vectors[names[0]].size
        for start in range(0, size, BLOCK):
            block = {n: vectors[n][start : start + BLOCK].astype(np.float64) for n in names}
            left = np.stack([block[name] for name in self.rows])
            right = np.stack([block[name] for name in self.columns])
            products += left @ right.T
        return products

    def merge(self, answers: Sequence[np.ndarray]) -> np.ndarray:
        """Return the sum over slices."""
        return np.sum(np.stack(answers), axis=0)


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
    """Do commands one after the other on the vectors of one slice; their answers come back."""
    return [command(vectors) for command in commands]


def merge_answers(commands: Sequence[Command], slices: Sequence[Sequence[Any]]) -> list[Any]:
    """Bring the answers of all slices together, command by command."""
    return [command.merge([answers[i] for answers in slices]) for i, command in enumerate(commands)]


def _made(vectors: Vectors, name: str, like: str) -> np.ndarray:
    if name not in vectors:
        vectors[name] = np.empty_like(vectors[like])
    return vectors[name]
