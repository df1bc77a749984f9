"""A test over seeds: it fails with what is wrong, and hands counts and seeds to the summary."""

from collections.abc import Callable
from typing import Any

import pytest

from .counting import run_all

QUICK_PREDICTS = 5
"""Of so many seeds of a quick test one predicts; of a long one, all do."""


def check_seeds(
    seeds: range, record_property: Callable[[str, Any], None], predict_every: int = 1
) -> None:
    """Compare the datasets of the seeds with what xarray and NumPy make of them."""
    wrong, counts = run_all(seeds, predict_every)
    # Plain dicts: what comes from a worker of xdist knows no others.
    record_property("differential", {of: dict(each) for of, each in counts.items()})
    record_property("drawn seeds", ["datasets", seeds.start, seeds.stop])
    if wrong:
        shown = "\n\n".join(f"{trial.describe()}\n  WRONG: {trial.wrong}" for trial in wrong[:5])
        pytest.fail(f"{len(wrong)} of {len(seeds)} datasets, the first of them:\n{shown}", False)
