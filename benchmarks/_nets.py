"""The nets of the comparisons of speed, their examples, and the same net as a PyTorch module."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

import dbdask

RATE = 0.001


@dataclass(frozen=True)
class Net:
    """A dense net of sigmoids with a softmax, and the number of examples of an epoch."""

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    batch: int
    rows: int
    activation: str = "sigmoid"

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the units of every layer, the inputs first."""
        return (self.inputs, *self.hidden, self.outputs)

    def network(self, input_shape: tuple[int, ...] | None = None) -> dbdask.Network:
        """Return the net of dbdask; it flattens inputs of another shape."""
        hidden = [dbdask.Dense(units, self.activation) for units in self.hidden]
        return dbdask.Network(
            input_shape=input_shape or (self.inputs,),
            layers=[*hidden, dbdask.Dense(self.outputs)],
            loss="softmax",
        )

    def module(self) -> Any:
        """Return the same net as a PyTorch module."""
        from torch import nn

        activation = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}[self.activation]
        layers: list[Any] = []
        for below, units in pairwise(self.widths):
            layers += [nn.Linear(below, units), activation()]
        return nn.Sequential(*layers[:-1])

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs, uint8 zeros and ones of (rows, inputs), and labels, int16 of (rows,)."""
        rng = np.random.default_rng(0)
        inputs = rng.integers(0, 2, size=(self.rows, self.inputs), dtype=np.uint8)
        return inputs, rng.integers(0, self.outputs, size=self.rows, dtype=np.int16)

    def write(self, path: str) -> None:
        """Write the examples to a Zarr store, in chunks of 1024 rows."""
        inputs, labels = self.values()
        data = xr.Dataset({"x": (("row", "feature"), inputs), "label": ("row", labels)})
        data.chunk({"row": 1024}).to_zarr(path, consolidated=False)


NETS = {
    "small": Net(784, (256,), 10, 128, 60_000),
    "medium": Net(784, (1024, 400), 10, 128, 60_000),
    "paper": Net(440, (2560,) * 4, 8192, 256, 32 * 256),
    "tiny": Net(784, (16,), 10, 128, 2_048),
}
COMPARED = ("small", "medium", "paper")  # "tiny" is there to try a program


def examples_of(path: str) -> dbdask.Examples:
    """Return the examples of a store that `Net.write` made."""
    return dbdask.Examples(path, inputs="x", targets="label", along="row")


def minibatches(
    inputs: np.ndarray, labels: np.ndarray, batch: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield minibatches of arrays in memory without end, every epoch in an order of its own."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(inputs))
        for start in range(0, len(inputs), batch):
            rows = order[start : start + batch]
            yield inputs[rows], labels[rows]
