"""Datasets drawn at random: examples and predictions equal what xarray and NumPy make of them.

A seed that fails is drawn again by `python -m tests.differential --seed N`.
"""

from functools import cache

import numpy as np
import pytest
from differential import observing
from differential.counting import run_all
from differential.trial import run

SEEDS = 25  # to a test
QUICK, SLOW = (0,), (*range(25, 100, SEEDS), *range(1000, 4000, SEEDS))


def _compare(seeds, record_property):
    wrong, counts = run_all(seeds)
    # Plain dicts: what comes from a worker of xdist knows no others.
    plain = {of: dict(each) for of, each in counts.items()}
    record_property("differential", plain)
    if wrong:
        shown = "\n\n".join(f"{trial.describe()}\n  WRONG: {trial.wrong}" for trial in wrong[:5])
        pytest.fail(f"{len(wrong)} of {len(seeds)} datasets, the first of them:\n{shown}", False)


@pytest.mark.parametrize("first", QUICK)
def test_drawn_datasets_show_what_xarray_shows(first, record_property):
    _compare(range(first, first + SEEDS), record_property)


@pytest.mark.slow
@pytest.mark.parametrize("first", SLOW)
def test_many_drawn_datasets_show_what_xarray_shows(first, record_property):
    _compare(range(first, first + SEEDS), record_property)


@cache
def _seed_that_is_equal():
    return next(trial.seed for trial in map(run, range(200)) if trial.verdict == "equal")


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
        assert run(seed).describe() == run(seed).describe()
