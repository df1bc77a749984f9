"""Checks of `predict`: its shape, its meaning, and that each example counts alone."""

import numpy as np

from dbdask.models.model_trial import Faulty, Trial, is_close


def check_predict(trial: Trial, outputs: int | None) -> int:
    """Return how many outputs `predict` gives an example, after all checks of it.

    Raises
    ------
    Faulty
        A check failed.
    """
    count = len(trial.batch)
    given, arrays = trial.predict(trial.batch.inputs)
    values = np.array(given)
    if values.dtype.kind not in "iuf" or values.ndim < 2 or len(values) != count:
        raise Faulty(
            f"model.predict must return numbers of shape (examples, outputs), ({count}, "
            f"{outputs or 'n'}), got {values.dtype} {values.shape}"
        )
    size = int(values[0].size)
    if outputs is not None and size != outputs:
        raise Faulty(
            f"model.predict must return {outputs} outputs an example, shape ({count}, {outputs}), "
            f"got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise Faulty("model.predict returned outputs that are not finite")
    _check_probabilities(trial, values.reshape(count, -1))
    _check_predict_again(trial, values, given, arrays)
    return size


def _check_probabilities(trial: Trial, values: np.ndarray) -> None:
    loss = getattr(trial.model, "loss", None)
    outside = values.min() < -1e-6 or values.max() > 1 + 1e-5
    if loss in ("softmax", "logistic") and outside:
        raise Faulty(
            f"model.predict must return probabilities, because loss is {loss!r}: got values from "
            f"{values.min():.4g} to {values.max():.4g}; apply the "
            f"{'softmax' if loss == 'softmax' else 'logistic function'} to the outputs"
        )
    if loss == "softmax" and not is_close(values.sum(axis=1), np.ones(len(values))):
        raise Faulty(
            "model.predict must return probabilities that add up to 1 for each example, because "
            f"loss is 'softmax': got sums from {values.sum(axis=1).min():.4g} to "
            f"{values.sum(axis=1).max():.4g}"
        )


def _check_predict_again(
    trial: Trial, values: np.ndarray, given: object, arrays: dict[str, np.ndarray]
) -> None:
    """Raise Faulty if `predict` depends on earlier calls, their arrays, or other examples."""
    for array in arrays.values():
        array[...] = 1e3
    again = np.array(trial.predict(trial.batch.inputs)[0])
    trial.predict(trial.batch.inputs[::-1])
    if not is_close(again, values):
        raise Faulty(
            "model.predict gives other results for the same arguments: nothing in it may be "
            "random, and it may keep no array that it is given"
        )
    if not is_close(given, values):
        raise Faulty(
            "model.predict returns an array that is changed later, by the next call or with its "
            "arguments: return a new one"
        )
    alone, _ = trial.predict(trial.batch.inputs[:1])
    if not is_close(np.asarray(alone)[0], values[0]):
        raise Faulty(
            "model.predict gives an example other outputs alone than among others: they must "
            "depend on the example only (statistics of a minibatch have no place in predict)"
        )
