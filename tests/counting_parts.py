"""A network that counts, and can be cut: each part counts every example for itself."""

import os
import time

import numpy as np

import dbdask


class Counting:
    """A layer whose gradient for example i is minus one at index i of each row.

    Under `sgd(batch_size)` with minibatches that are all full, element i of a row is the number of
    times that example i was applied to it.

    Parameters
    ----------
    rows, examples
        How many rows of counts there are, and how many examples.
    until
        Path of a file: the layer takes its time until the file is there. None: it never does.
    minibatches
        How many a process computes before it slows down.
    seconds
        What every other takes longer.
    """

    def __init__(self, rows, examples, until=None, minibatches=30, seconds=0.1):
        self.rows, self.examples = rows, examples
        self.until, self.minibatches, self.seconds = until, minibatches, seconds

    def output_shape(self, input_shape):
        return (self.rows,)

    def parameters(self, input_shape):
        return [("count", (self.rows, self.examples), ("row", "example"))]

    def initial(self, input_shape):
        return {"count": dbdask.Constant(0.0)}

    def forward(self, parameters, inputs):
        return np.zeros((len(inputs), self.rows), np.float32), (inputs,)

    def backward(self, parameters, kept, gradient, into, is_first):
        self._linger()
        into["count"][...] = 0
        np.add.at(into["count"], (slice(None), kept[0][:, 0].astype(np.int64)), -1)
        return np.zeros_like(kept[0])

    def _linger(self):
        self.minibatches -= 1
        linger(self.until if self.minibatches < 0 else None, self.seconds)

    def rows_needed(self, input_shape, first, last):
        return 0, input_shape[0]

    def part(self, input_shape, first, last):
        return Counting(last - first, self.examples, self.until, self.minibatches, self.seconds)


class Silent:
    """A layer with one output, which is always 0."""

    def output_shape(self, input_shape):
        return (1,)

    def parameters(self, input_shape):
        return []

    def initial(self, input_shape):
        return {}

    def forward(self, parameters, inputs):
        return np.zeros((len(inputs), 1), np.float32), (inputs,)

    def backward(self, parameters, kept, gradient, into, is_first):
        return np.zeros_like(kept[0])


def counting_network(examples, rows, until=None, **slowness):
    """Return a network of the counting layer, for `counted_pairs`."""
    layers = [Counting(rows, examples, until, **slowness), Silent()]
    return dbdask.Network(input_shape=(2,), layers=layers, loss="squared")


COUNTS = "counting_0_count"
"""The name of the counts among the parameters."""


def counted_pairs(store):
    """Examples whose first input is their index, and whose target is 0."""
    return dbdask.Examples(store, inputs=["index", "zero"], targets="zero", along="row")


class SlowDense(dbdask.Dense):
    """A dense layer that takes its time until a file is there."""

    until = None
    minibatches = 8

    @classmethod
    def of(cls, units, activation, until):
        layer = cls(units, activation)
        object.__setattr__(layer, "until", until)
        return layer

    def part(self, input_shape, first, last):
        return SlowDense.of(last - first, self.activation, self.until)

    def backward(self, *arguments):
        object.__setattr__(self, "minibatches", self.minibatches - 1)
        linger(self.until if self.minibatches < 0 else None, 0.1)
        return super().backward(*arguments)


def linger(until, seconds):
    """Take so many seconds, or until a file is there; none without a file to wait for."""
    for _ in range(int(seconds / 0.001) if until is not None else 0):
        if os.path.exists(until):  # so that a stopped process is late, it is looked for often
            return
        time.sleep(0.001)
