"""Datasets drawn at random: examples and predictions equal what xarray and NumPy make of them.

A seed that fails is drawn again by `python -m tests.differential --seed N`.
"""

from functools import cache

import numpy as np
import pytest
from differential import observing
from differential.checking import QUICK_PREDICTS, check_seeds
from differential.trial import run

SEEDS = 25  # to a test
# The other half is in test_differential_more, which runs beside this file.
QUICK = range(0, 100, SEEDS)


@pytest.mark.parametrize("first", QUICK)
def test_drawn_datasets_show_what_xarray_shows(first, record_property):
    check_seeds(range(first, first + SEEDS), record_property, QUICK_PREDICTS)


@cache
def _seed_that_is_equal():
    """A seed whose dataset has no reason for an error."""
    trials = (run(seed, predict=False) for seed in range(200))
    return next(trial.seed for trial in trials if trial.verdict == "equal" and not trial.reasons)


def _another_value(found):
    found.read.inputs = found.read.inputs + np.float32(1)


def _a_row_less(found):
    found.read.valid[np.flatnonzero(found.read.valid)[0]] = False


def _a_raw_error(found):
    found.error = KeyError("x0")


def _an_error_without_reason(found):
    found.error = ValueError("inputs: variable 'x0' is missing")


@pytest.mark.parametrize(
    "spoil", [_another_value, _a_row_less, _a_raw_error, _an_error_without_reason]
)
def test_what_is_wrong_is_noticed(monkeypatch, spoil):
    seed = _seed_that_is_equal()

    def observe(data, asked):
        found = observing.observe(data, asked)
        spoil(found)
        return found

    monkeypatch.setattr("differential.trial.observe", observe)
    assert run(seed).verdict == "wrong"


def test_a_seed_draws_the_same_dataset_each_time():
    for seed in (3, 4, 5):
        assert run(seed, predict=False).describe() == run(seed, predict=False).describe()
