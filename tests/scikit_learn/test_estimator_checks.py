"""scikit-learn's own checks of estimators, with the exceptions and their reasons."""

import numpy as np
import pytest

pytest.importorskip("sklearn.utils.validation", reason="needs scikit-learn: dbdask[sklearn]")

from sklearn.utils.estimator_checks import parametrize_with_checks

import dbdask
from dbdask.sklearn import (
    DownpourClassifier,
    DownpourRegressor,
    SandblasterClassifier,
)

DOWNPOUR = {"epochs": 8, "optimizer": dbdask.adam(0.02), "random_state": 0}
ESTIMATORS = [
    DownpourClassifier(16, **DOWNPOUR),
    DownpourRegressor(16, **DOWNPOUR),
    SandblasterClassifier(16, iterations=20, l2=0.001, random_state=0),
]
QUICK = [
    DownpourClassifier(2, epochs=1, batch_size=64, random_state=0),
    DownpourRegressor(2, epochs=1, batch_size=64, random_state=0),
    SandblasterClassifier(2, iterations=1, random_state=0),
]
"""For checks that do not ask how well an estimator learns."""
WEIGHTS = "check_sample_weight_equivalence_on_dense_data"
SUBSETS = {
    "check_methods_subset_invariance": "the last digit of a float32 prediction may depend on "
    "how many rows are predicted together"
}
"""This check allows a difference of about one unit of the last digit, and passes mostly."""


def exceptions(estimator):
    """Return the checks that fail, and why."""
    if isinstance(estimator, SandblasterClassifier):
        return SUBSETS | {
            WEIGHTS: "the scaling of features does not heed weights, and float32 tells a sum of "
            "repeated terms from a product; the test below compares what remains"
        }
    reason = "a sample that is repeated falls into several minibatches, a heavy one into one"
    return SUBSETS | {WEIGHTS: reason}


@parametrize_with_checks(QUICK, legacy=False, expected_failed_checks=exceptions, xfail_strict=True)
def test_checks_of_the_interface(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=exceptions)
def test_all_checks(estimator, check):
    check(estimator)


def test_a_weight_counts_as_a_repetition():
    """L-BFGS of a convex model sees weights and repetitions alike, as far as float32 goes."""
    rng = np.random.default_rng(0)
    X, weight = rng.normal(size=(80, 3)), rng.integers(0, 4, 80)
    y = (X @ [1, 2, -1] + rng.logistic(size=80) > 0).astype(int)
    convex = SandblasterClassifier((), standardize=False, l2=0.01, iterations=20, random_state=0)
    weighted = convex.fit(X, y, sample_weight=weight).predict_proba(X)
    repeated = convex.fit(np.repeat(X, weight, axis=0), np.repeat(y, weight)).predict_proba(X)
    np.testing.assert_allclose(weighted, repeated, atol=1e-3)
    unweighted = convex.fit(X, y).predict_proba(X)
    assert np.abs(unweighted - weighted).max() > 0.02
