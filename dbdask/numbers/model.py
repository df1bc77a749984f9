"""The model contract: what the verbs ask of a network, whoever wrote it."""

from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Model(Protocol):
    """A differentiable model over one flat float32 vector.

    Optional members are used where a model has them. `loss`, a name: "softmax" and "logistic" say
    that outputs are those of classes. `output_shape`, a tuple: the shape of one example's outputs.
    A model without a loss of these names gets integer variables as labels unless its
    `output_shape` has one element; several outputs for one label are then one for each class, and
    a single output is a value: `Result.predict` gives it as it is, `evaluate` gives its rmse and
    r2, and `predict_proba` refuses it.

    Sums over examples make portions additive: the verbs divide once, by the sum of weights.
    A model is pickled to every worker and called from several threads at once.

    Attributes
    ----------
    layout
        The parameters in their order in the flat vector: a `Layout`, or an iterable of
        (name, shape, dims) with an optional kind, "trained" or "buffer".
    """

    layout: Any

    def initial_parameters(self, seed: int, start: int, stop: int) -> np.ndarray:
        """Return elements `start` to `stop` of the initial vector: the same whatever the cut."""
        ...

    def loss_and_gradient(
        self,
        parameters: np.ndarray,
        inputs: np.ndarray,
        targets: np.ndarray,
        *,
        weights: np.ndarray | None,
        seed: int,
        gradient: np.ndarray,
    ) -> float:
        """Return the weighted sum of the losses; overwrite `gradient` with its gradient.

        Parameters
        ----------
        parameters, gradient
            Flat vectors of the layout's size.
        inputs
            float32 of shape (examples, *input_shape).
        targets
            int64 labels of shape (examples,), or float32 of (examples, *target_shape).
        weights
            None, one weight an example, or one a target element.
        seed
            For whatever is random in the model; a repeat of a minibatch has the same.
        """
        ...

    def predict(self, parameters: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Return outputs of shape (examples, outputs): probabilities where targets are classes."""
        ...
