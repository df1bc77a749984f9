"""Models that count how often each example is applied, for runs in which workers are killed.

The last input of an example is its number. Counts stand among the parameters: at the end they show
whether an update was lost, or applied twice.
"""

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import dbdask

Shape = tuple[int, ...]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sleep:
    """Takes so many seconds, of each minibatch."""

    seconds: float

    def __call__(self) -> None:
        time.sleep(self.seconds)


@dataclass(frozen=True)
class Moods:
    """Takes time until a file says that all is over, and raises now and then while one says so.

    Parameters
    ----------
    folder
        Where the files "over" and "raising" are made.
    seconds
        Of each minibatch.
    """

    folder: str
    seconds: float

    def __call__(self) -> None:
        if not os.path.exists(f"{self.folder}/over"):
            time.sleep(self.seconds)
        if os.path.exists(f"{self.folder}/raising") and random.random() < 0.1:
            raise RuntimeError("the model raises now and then")


class CountingRows:
    """A first layer that passes features on in rows, and counts examples in each row.

    Its inputs are the features, in equal shares for the rows, and then the number of the example.
    With minibatches that are all full, an update of `sgd(rate)` adds one to the count of each of
    its examples in every row. A part of the layer has some of the rows.

    Parameters
    ----------
    rows, examples
        How many rows there are, and how many examples.
    rate
        The learning rate: a power of two, so that counts are exact.
    first, rows_in_all
        Of a part: its first row, and the rows of all parts.
    """

    def __init__(
        self, rows: int, examples: int, rate: float, first: int = 0, rows_in_all: int | None = None
    ) -> None:
        self.rows, self.examples, self.rate = rows, examples, rate
        self.first, self.rows_in_all = first, rows_in_all or rows

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return rows, and features of a row."""
        return self.rows, (input_shape[0] - 1) // self.rows_in_all

    def parameters(self, input_shape: Shape) -> Sequence[object]:
        """Return the counts: float32 (rows, examples)."""
        return [("count", (self.rows, self.examples), ("row", "example"))]

    def initial(self, input_shape: Shape) -> dict[str, object]:
        """Return that nothing was counted."""
        return {"count": dbdask.Constant(0.0)}

    def forward(
        self, parameters: Arrays, inputs: np.ndarray
    ) -> tuple[np.ndarray, tuple[np.ndarray | None, ...]]:
        """Return the features of the rows, float32 (examples, rows, width)."""
        rows, width = self.output_shape(inputs.shape[1:])
        start = self.first * width
        features = inputs[:, start : start + rows * width].copy()
        return features.reshape(len(inputs), rows, width), (inputs,)

    def backward(
        self,
        parameters: Arrays,
        kept: tuple[np.ndarray | None, ...],
        gradient: np.ndarray,
        into: Arrays,
        is_first: bool,
    ) -> None:
        """Fill the gradient of the counts."""
        assert is_first, "the layer must be the first one"
        (inputs,) = kept
        assert inputs is not None
        into["count"][...] = 0
        numbers = inputs[:, -1].astype(np.int64)
        np.add.at(into["count"], (slice(None), numbers), -len(inputs) / self.rate)

    def rows_needed(self, input_shape: Shape, first: int, last: int) -> tuple[int, int]:
        """Return all inputs."""
        return 0, input_shape[0]

    def part(self, input_shape: Shape, first: int, last: int) -> "CountingRows":
        """Return the layer of some rows."""
        return CountingRows(last - first, self.examples, self.rate, first, self.rows_in_all)


class Reversing:
    """A layer that reverses the rows of its input, and calls something before each gradient.

    Each part of it needs the rows of another part.
    """

    def __init__(self, before: Callable[[], None]) -> None:
        self.before = before

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the input."""
        return input_shape

    def parameters(self, input_shape: Shape) -> Sequence[object]:
        """Return that there are none."""
        return []

    def initial(self, input_shape: Shape) -> dict[str, object]:
        """Return that there are none."""
        return {}

    def forward(
        self, parameters: Arrays, inputs: np.ndarray
    ) -> tuple[np.ndarray, tuple[np.ndarray | None, ...]]:
        """Return the rows in reverse, float32 (examples, rows, ...)."""
        return inputs[:, ::-1].copy(), ()

    def backward(
        self,
        parameters: Arrays,
        kept: tuple[np.ndarray | None, ...],
        gradient: np.ndarray,
        into: Arrays,
        is_first: bool,
    ) -> np.ndarray:
        """Return the rows of the gradient in reverse."""
        self.before()
        return gradient[:, ::-1].copy()

    def rows_needed(self, input_shape: Shape, first: int, last: int) -> tuple[int, int]:
        """Return the rows at the other end."""
        return input_shape[0] - last, input_shape[0] - first

    def part(self, input_shape: Shape, first: int, last: int) -> "Reversing":
        """Return the layer of some rows, which is the same."""
        return self


class CountingSoftmax:
    """Softmax regression, with a count of each example before its parameters and one behind.

    Two shards hold one array of counts each. Under `sgd(rate)` a count grows by one whenever its
    example is applied.

    Parameters
    ----------
    features, classes, examples
        How many there are.
    rate
        The learning rate, as of `CountingRows`.
    before
        Is called before each gradient.
    """

    loss = "softmax"

    def __init__(
        self, features: int, classes: int, examples: int, rate: float, before: Callable[[], None]
    ) -> None:
        self.rate, self.before, self.examples = rate, before, examples
        self.network = dbdask.Network(
            input_shape=(features,), layers=[dbdask.Dense(classes)], loss="softmax"
        )
        inner = self.network.parameter_count
        self.layout = dbdask.Layout(
            (
                dbdask.Parameter("first", (examples,), ("example",)),
                dbdask.Parameter("regression", (inner,), ("weight",)),
                dbdask.Parameter("second", (examples,), ("example",)),
            )
        )
        self.inner = slice(examples, examples + inner)

    def initial_parameters(self, seed: int, start: int, stop: int) -> np.ndarray:
        """Return zeros."""
        return np.zeros(stop - start, np.float32)

    def loss_and_gradient(
        self,
        parameters: np.ndarray,
        inputs: np.ndarray,
        targets: np.ndarray | None,
        *,
        weights: np.ndarray | None,
        seed: int,
        gradient: np.ndarray,
    ) -> float:
        """Return the loss of the regression."""
        self.before()
        gradient[:] = 0
        numbers = inputs[:, -1].astype(np.int64)
        for counts in (gradient[: self.examples], gradient[-self.examples :]):
            np.add.at(counts, numbers, -len(inputs) / self.rate)
        features = np.ascontiguousarray(inputs[:, :-1])
        return self.network.loss_and_gradient(
            parameters[self.inner],
            features,
            targets,
            weights=weights,
            gradient=gradient[self.inner],
        )

    def predict(self, parameters: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Return the probabilities of the regression."""
        features = np.ascontiguousarray(inputs[:, :-1])
        return self.network.predict(parameters[self.inner], features)


def missing_updates(result: dbdask.Result, epochs: int, batch: int) -> int:
    """Return how many updates the rows of counts lack, added over the rows.

    Raises
    ------
    AssertionError
        An example was applied more often than there were epochs, or a part of a minibatch.
    """
    counts = [
        array.values
        for array in result.parameters.values()
        if any(str(dim).endswith("example") for dim in array.dims)
    ]
    most = max(float(each.max()) for each in counts)
    assert most <= epochs, f"an example was applied {most:g} times in {epochs} epochs"
    missing = sum(float((epochs - each).sum()) for each in counts) / batch
    assert missing == int(missing), f"{missing:g} updates are missing, a part of a minibatch"
    return int(missing)
