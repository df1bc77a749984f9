"""Common parts of the estimators: shared parameters, checks of X, training, predictions."""

import copy
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Self

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from distributed import Client
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from dbdask.data.examples import Examples
from dbdask.models.layers import Dense, as_whole
from dbdask.models.model import Model
from dbdask.models.network import Network
from dbdask.result import Result
from dbdask.sklearn.containers import (
    SAMPLE,
    DuckArray,
    Inputs,
    check_same_samples,
    duck_array,
    inputs_of,
    inputs_of_array,
    is_plain,
)
from dbdask.sklearn.local_client import client_of_fit

TARGET, WEIGHT = "y", "sample_weight"
FLOATS = (np.float64, np.float32)
SHARED = ("client", "parameters", "callbacks")
"""Parameters that a clone shares: a client belongs to its process, a callback keeps what it saw."""

ModelOf = Callable[[tuple[int, ...], int], Model]


class NetworkEstimator(BaseEstimator):
    """An estimator whose network is trained on a Dask cluster.

    A subclass for a method of training has `__init__`, `_train` and `_curve`. A subclass for a
    kind of targets has `fit` and the predictions.
    """

    hidden_layer_sizes: int | Sequence[int]
    activation: str
    model: Model | ModelOf | None
    standardize: bool
    parameters: Any
    client: Client | None
    replicas: int | None
    random_state: Any

    result_: Result
    n_features_in_: int
    n_iter_: int
    loss_: float
    loss_curve_: list[float]

    _loss: str  # of the network of dense layers

    def _train(
        self,
        model: Model,
        examples: Examples,
        *,
        client: Client,
        replicas: int | None,
        parameters: Any,
        seed: int,
        once: bool,
    ) -> Result:
        """Train the model; `once`: for a single pass, as `partial_fit` does."""
        raise NotImplementedError

    def _curve(self, history: xr.Dataset) -> list[float]:
        """Return the loss of each epoch or iteration."""
        raise NotImplementedError

    def __sklearn_clone__(self) -> Self:
        made = type(self)(
            **{
                name: value if name in SHARED else clone(value, safe=False)
                for name, value in self.get_params(deep=False).items()
            }
        )
        for name in ("_metadata_request", "_sklearn_output_config"):
            if name in vars(self):
                setattr(made, name, copy.deepcopy(getattr(self, name)))
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "client": None}

    # Checks

    def _checked(self, X: Any, y: Any, *, reset: bool, **rules: bool) -> tuple[Inputs, DuckArray]:
        """Return the inputs that X holds, and y as an array: (samples,) or (samples, outputs).

        Parameters
        ----------
        X, y
            Containers. In memory, `sklearn.utils.validation.validate_data` checks them with
            `rules`; lazy values are checked when they are read.
        reset
            Whether to set the number and the names of the features, or to compare them.
        """
        if is_plain(X) and is_plain(y):
            X, y = validate_data(self, X, y, reset=reset, dtype=FLOATS, **rules)
            return inputs_of_array(X), y
        if y is None:
            raise ValueError("y must be given, got None: the estimator learns from targets")
        inputs = self._inputs(X, reset=reset)
        check_same_samples(X, "y", y)
        y = duck_array("y", y)
        if len(y) != inputs.samples:
            raise ValueError(f"X and y must be of one length, got {inputs.samples} and {len(y)}")
        return inputs, y

    def _inputs(self, X: Any, *, reset: bool = False) -> Inputs:
        """Return the inputs that X holds, with its features set or compared."""
        if is_plain(X):
            inputs = inputs_of_array(validate_data(self, X, reset=reset, dtype=FLOATS))
            return inputs if reset else self._alike(inputs)
        inputs = inputs_of(X)
        if not reset:
            self._alike(inputs)
        empty = np.empty((0, inputs.features))
        alike = empty if inputs.names is None else pd.DataFrame(empty, columns=inputs.names)
        validate_data(self, alike, reset=reset, skip_check_array=True)
        return inputs

    def _alike(self, inputs: Inputs) -> Inputs:
        """Return the inputs; raise ValueError if they are of another kind than those of `fit`."""
        wanted = list(self.result_.examples.recipe.inputs.names)
        if inputs.variables != wanted:
            raise ValueError(
                f"X must be of the kind that fit was given, with the variables {wanted}, got "
                f"{inputs.variables}"
            )
        return inputs

    def _weights(self, sample_weight: Any, X: Any, samples: int) -> DuckArray | None:
        """Return the weights of the examples, float64 (samples,), or None."""
        if sample_weight is None:
            return None
        check_same_samples(X, WEIGHT, sample_weight)
        weights = sample_weight
        if is_plain(weights):
            like = np.empty((samples, 0))
            weights = _check_sample_weight(weights, like, ensure_non_negative=True)
            if not weights.any():
                raise ValueError("sample_weight must be above 0 for some sample, got only zeros")
        weights = duck_array(WEIGHT, weights)
        if weights.shape != (samples,):
            raise ValueError(f"sample_weight must have shape ({samples},), got {weights.shape}")
        return weights

    # Training

    def _learn(
        self,
        inputs: Inputs,
        targets: DuckArray,
        weights: DuckArray | None,
        *,
        classes: int | None,
        once: bool,
    ) -> None:
        """Train, and keep the result.

        Parameters
        ----------
        inputs, targets, weights
            The examples. Targets are class indices, int64 (samples,), or values, float64
            (samples,) or (samples, outputs).
        classes
            How many classes the indices are of; None: values.
        once
            One pass only, which goes on from the training before if there is one.
        """
        goes_on = once and hasattr(self, "result_")
        seed = seed_of(self.random_state) + (self.n_iter_ if goes_on else 0)
        examples = _examples(inputs, targets, weights, classes)
        client, replicas = client_of_fit(self.client, self.replicas)
        if goes_on:
            examples = examples.prepared_like(self.result_.examples)
            model, start = self.result_.model, self.result_
        else:
            outputs = classes or int(np.prod(targets.shape[1:]))
            model, start = self._model(examples.input_shape, outputs), self.parameters
            if self.standardize:
                examples = examples.standardize(
                    targets=classes is None, per="feature", client=client
                )
        result = self._train(
            model,
            examples,
            client=client,
            replicas=replicas,
            parameters=start,
            seed=seed,
            once=once,
        )
        curve = self._curve(result.history)
        self.loss_curve_ = [*self.loss_curve_, *curve] if goes_on else curve
        self.n_iter_ = len(self.loss_curve_)
        self.loss_ = self.loss_curve_[-1]
        self.result_ = result.detached()

    def _model(self, input_shape: tuple[int, ...], outputs: int) -> Model:
        """Return the user's model, or a network of dense layers."""
        if isinstance(self.model, Model):
            return self.model
        if self.model is not None:
            return self.model(input_shape, outputs)
        sizes = self.hidden_layer_sizes
        listed = list(sizes) if isinstance(sizes, Sequence) else [sizes]
        hidden = [Dense(as_whole("hidden_layer_sizes", n), self.activation) for n in listed]
        return Network(input_shape=input_shape, layers=[*hidden, Dense(outputs)], loss=self._loss)

    # Predictions

    def _predicted(self, X: Any, method: str) -> tuple[Inputs, DuckArray]:
        """Return the inputs, and what a method of the result predicts for them: (samples, ...).

        The values are lazy unless X is in memory and of neither dask nor xarray.
        """
        check_is_fitted(self)
        inputs = self._inputs(X)
        prediction: xr.DataArray = getattr(self.result_, method)(inputs.dataset)
        values: da.Array = prediction.transpose(SAMPLE, ...).data
        return inputs, values.compute(scheduler="synchronous") if is_plain(X) else values


def seed_of(random_state: Any) -> int:
    """Return the seed of a run: a whole number as it is, else drawn as scikit-learn draws.

    Examples
    --------
    >>> seed_of(7)
    7
    """
    generator = check_random_state(random_state)
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(generator.randint(2**31 - 1))


def _examples(
    inputs: Inputs, targets: DuckArray, weights: DuckArray | None, classes: int | None
) -> Examples:
    added = {TARGET: ((SAMPLE, *("output",) * (targets.ndim - 1)), targets)}
    if weights is not None:
        added[WEIGHT] = ((SAMPLE,), weights)
    if taken := [name for name in added if name in inputs.dataset]:
        raise ValueError(f"X may not have a variable named {taken[0]!r}: rename it")
    return Examples(
        inputs.dataset.assign(added),
        inputs=inputs.variables,
        targets=TARGET,
        weights=None if weights is None else WEIGHT,
        along=SAMPLE,
        classes=None if classes is None else range(classes),
    )
