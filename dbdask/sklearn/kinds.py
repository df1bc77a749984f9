"""The two kinds of estimators: of classes, and of values."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.validation import column_or_1d

from dbdask.sklearn.class_labels import classes_of, decoded, encoded, weighted
from dbdask.sklearn.containers import in_memory
from dbdask.sklearn.estimator import NetworkEstimator


class NetworkClassifier(ClassifierMixin, NetworkEstimator):
    """An estimator of classes."""

    class_weight: Mapping[Any, float] | str | None
    classes_: np.ndarray

    _loss = "softmax"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on data; an earlier training is forgotten.

        Parameters
        ----------
        X
            (samples, features): an array or a dataframe of NumPy, pandas or dask; or an xarray
            DataArray, or a Dataset, whose variables are joined. Samples are the first dimension.
        y
            (samples,): labels of any kind that sorts.
        sample_weight
            (samples,): weights of the samples, at least 0; None: all are 1.

        Raises
        ------
        ValueError
            The data are not as above. Lazy data raise `dbdask.DataError`, which is one, when a
            value that is missing or infinite is read.
        """
        return self._fit(X, y, sample_weight, classes=None, once=False)

    def _fit(self, X: Any, y: Any, sample_weight: Any, *, classes: Any, once: bool) -> Self:
        goes_on = once and hasattr(self, "result_")
        inputs, labels = self._checked(X, y, reset=not goes_on)
        if goes_on:
            found = self.classes_
        else:
            given = labels if classes is None else column_or_1d(classes)
            found = classes_of(given, self.client)
        indices = encoded(labels, found)
        weights = weighted(
            self._weights(sample_weight, X, inputs.samples),
            self.class_weight,
            indices,
            found,
            self.client,
        )
        self.classes_ = found
        self._learn(inputs, indices, weights, classes=len(found), once=once)
        return self

    def predict(self, X: Any) -> Any:
        """Predict labels, (samples,): a NumPy array; lazy and of the kind of X for dask and xarray.

        Raises
        ------
        NotFittedError
            Nothing was trained.
        ValueError
            X does not fit what was trained.
        """
        inputs, indices = self._predicted(X, "predict")
        return inputs.like(decoded(indices, self.classes_), {})

    def predict_proba(self, X: Any) -> Any:
        """Predict the probability of each class, (samples, classes), in the order of `classes_`.

        What is returned, and raised, is as for `predict`; a DataArray has a dimension `class`.
        """
        inputs, values = self._predicted(X, "predict_proba")
        return inputs.like(values, {"class": self.classes_})

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy on X against the labels y; the arguments are those of `fit`."""
        held = (in_memory(one, self.client) for one in (y, self.predict(X)))
        weights = None if sample_weight is None else in_memory(sample_weight, self.client)
        return float(accuracy_score(*held, sample_weight=weights))


class NetworkRegressor(RegressorMixin, NetworkEstimator):
    """An estimator of values."""

    _loss = "squared"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on data; an earlier training is forgotten.

        Parameters
        ----------
        X
            As for `DownpourClassifier.fit`.
        y
            (samples,) or (samples, outputs): numbers.
        sample_weight
            (samples,): weights of the samples, at least 0; None: all are 1.

        Raises
        ------
        ValueError
            As for `DownpourClassifier.fit`.
        """
        return self._fit(X, y, sample_weight, once=False)

    def _fit(self, X: Any, y: Any, sample_weight: Any, *, once: bool) -> Self:
        goes_on = once and hasattr(self, "result_")
        inputs, values = self._checked(X, y, reset=not goes_on, multi_output=True, y_numeric=True)
        if values.ndim == 2 and values.shape[1] == 1:
            values = (
                column_or_1d(values, warn=True) if isinstance(values, np.ndarray) else values[:, 0]
            )
        weights = self._weights(sample_weight, X, inputs.samples)
        self._learn(inputs, values.astype(np.float64), weights, classes=None, once=once)
        return self

    def predict(self, X: Any) -> Any:
        """Predict values, float64 of (samples,) or (samples, outputs), in the units of y.

        They are a NumPy array; lazy and of the kind of X for dask and xarray.

        Raises
        ------
        NotFittedError
            Nothing was trained.
        ValueError
            X does not fit what was trained.
        """
        inputs, values = self._predicted(X, "predict")
        coords = {} if values.ndim == 1 else {"output": np.arange(values.shape[1])}
        return inputs.like(values.astype(np.float64), coords)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the coefficient of determination, r2; the arguments are those of `fit`."""
        held = (in_memory(one, self.client) for one in (y, self.predict(X)))
        weights = None if sample_weight is None else in_memory(sample_weight, self.client)
        return float(r2_score(*held, sample_weight=weights))
