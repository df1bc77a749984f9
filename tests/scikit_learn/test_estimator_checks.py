"""scikit-learn's own checks of estimators, with the exceptions and their reasons."""

import pytest

pytest.importorskip("sklearn.utils.validation", reason="needs scikit-learn: dbdask[sklearn]")

from sklearn.utils.estimator_checks import parametrize_with_checks

import dbdask
from dbdask.sklearn import (
    DownpourClassifier,
    DownpourRegressor,
    SandblasterClassifier,
)

DOWNPOUR = {"epochs": 40, "batch_size": 16, "optimizer": dbdask.adam(0.01), "random_state": 0}
ESTIMATORS = [
    DownpourClassifier(16, **DOWNPOUR),
    DownpourRegressor(16, **DOWNPOUR),
    SandblasterClassifier(16, iterations=30, l2=0.01, random_state=0),
]


def exceptions(estimator):
    """Checks that fail, and why."""
    return {}


@parametrize_with_checks(ESTIMATORS, expected_failed_checks=exceptions)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)
