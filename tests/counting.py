"""A model that counts: at the end the parameters are how often each example was applied."""

import time

import numpy as np

from dbdask.models.layout import Layout, Parameter


class CountingModel:
    """The gradient of example i is minus one at index i.

    Under `sgd(batch_size)` with minibatches that are all full, parameter i is the number of
    times that example i was applied. With `mirrors` the counts stand there several times over, so
    that each of as many shards holds all of them.
    """

    loss = "squared"

    def __init__(self, examples: int, mirrors: int = 1, seconds: float = 0.0) -> None:
        self.examples, self.mirrors, self.seconds = examples, mirrors, seconds
        self.layout = Layout((Parameter("count", (mirrors * examples,), ("example",)),))

    def initial_parameters(self, seed: int, start: int, stop: int) -> np.ndarray:
        return np.zeros(stop - start, np.float32)

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        time.sleep(self.seconds)
        gradient[:] = 0
        for mirror in gradient.reshape(self.mirrors, self.examples):
            np.add.at(mirror, inputs.reshape(-1).astype(np.int64), -1)
        return float(len(inputs))

    def predict(self, parameters, inputs):
        return parameters[inputs.reshape(-1).astype(np.int64)][:, None]


def missing_updates(result, epochs: int, mirrors: int, batch_size: int, name: str = "count") -> int:
    """Updates that the counts lack, added over the mirrors; no count is above `epochs`."""
    counts = result.parameters[name].values
    assert counts.max() <= epochs, f"an example was applied {counts.max():g} times"
    missing = float((epochs - counts).sum()) / batch_size
    assert missing == int(missing), "a part of a minibatch is missing"
    return int(missing)
