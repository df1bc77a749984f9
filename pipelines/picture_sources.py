"""What a source of labelled pictures is: so many of one shape, read a few at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass
class Batch:
    """Pictures that were read one after the other."""

    pixels: np.ndarray
    """uint8 of (pictures, rows, columns, channels)."""
    labels: np.ndarray
    """int32 of (pictures,)."""
    names: list[str]
    """Where each picture is from: a path, or its number in a file."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """What could not be read, and why; it is in none of the above."""


class Pictures(Protocol):
    """Labelled pictures that a worker can read: small when pickled."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of every picture as it is read."""
        ...

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> "Pictures":
        """Return the pictures from `start` up to `stop`."""
        ...

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield all pictures in order, `size` of them at a time, the broken ones left out."""
        ...


@dataclass(frozen=True)
class Sets:
    """The pictures to train on and those held out, and the names of their classes."""

    train: Pictures
    held_out: Pictures
    classes: tuple[str, ...]
