"""Datasets drawn at random: examples and predictions equal what xarray and NumPy make of them.

A seed that fails is drawn again by `python -m tests.differential --seed N`.
"""

import pytest
from differential.counting import run_all

QUICK, SLOW = range(0, 200, 50), range(1000, 4000, 100)


def _compare(seeds, record_property):
    wrong, counts = run_all(seeds)
    record_property("differential", counts)
    if wrong:
        shown = "\n\n".join(f"{trial.describe()}\n  WRONG: {trial.wrong}" for trial in wrong[:5])
        pytest.fail(f"{len(wrong)} of {len(seeds)} datasets, the first of them:\n{shown}", False)


@pytest.mark.parametrize("first", QUICK)
def test_drawn_datasets_show_what_xarray_shows(first, record_property):
    _compare(range(first, first + QUICK.step), record_property)


@pytest.mark.slow
@pytest.mark.parametrize("first", SLOW)
def test_many_drawn_datasets_show_what_xarray_shows(first, record_property):
    _compare(range(first, first + SLOW.step), record_property)
