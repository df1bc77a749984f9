"""A model that counts: at the end the parameters are how often each example was applied."""

import numpy as np

from dbdask.numbers.layout import Layout, Parameter


class CountingModel:
    """The gradient of example i is minus one at index i.

    Under `sgd(batch_size)` with minibatches that are all full, parameter i is the number of
    times that example i was applied.
    """

    loss = "squared"

    def __init__(self, examples: int) -> None:
        self.layout = Layout((Parameter("count", (examples,), ("example",)),))

    def initial_parameters(self, seed: int, start: int, stop: int) -> np.ndarray:
        return np.zeros(stop - start, np.float32)

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        gradient[:] = 0
        np.add.at(gradient, inputs.reshape(-1).astype(np.int64), -1)
        return float(len(inputs))

    def predict(self, parameters, inputs):
        return parameters[inputs.reshape(-1).astype(np.int64)][:, None]
