"""More datasets drawn at random, beside those of test_differential; the long tests predict on all.

A seed that fails is drawn again by `python -m tests.differential --seed N`.
"""

import pytest
from differential.checking import QUICK_PREDICTS, check_seeds

SEEDS = 25  # to a test
QUICK = range(100, 200, SEEDS)
LONG = (*range(0, 200, SEEDS), *range(1000, 4000, SEEDS))


@pytest.mark.parametrize("first", QUICK)
def test_more_drawn_datasets_show_what_xarray_shows(first, record_property):
    check_seeds(range(first, first + SEEDS), record_property, QUICK_PREDICTS)


@pytest.mark.slow
@pytest.mark.parametrize("first", LONG)
def test_many_drawn_datasets_are_shown_predicted_and_written(first, record_property):
    check_seeds(range(first, first + SEEDS), record_property)
