"""The history: what it keeps in JSON comes back, whichever version wrote it."""

import json

import numpy as np
import xarray as xr

from dbdask.metrics.call_time import CallSeconds
from dbdask.metrics.history import PACK, History, Record


def records(count, by_part):
    return [
        Record(0.5 * n, 0, n, 20 * n, loss=1.0 / n, seconds_exchanging_by_part=by_part(n))
        for n in range(1, count + 1)
    ]


def again(history):
    return History.from_json(json.loads(json.dumps(history.to_json())))


def test_seconds_by_part_come_back_packed_and_written_out():
    """Some records have none, and later ones are of another number of parts."""
    given = records(
        2 * PACK + 11,
        lambda n: (
            () if n % 7 == 0 else (0.1 * n, 0.2 * n) if n < PACK + 50 else (0.0, 1.0 * n, 2.0)
        ),
    )
    history = again(History(given))
    assert len(history.to_json()["packed"]) == 2
    for name in ("seconds_exchanging_by_part", "step", "loss", "seconds"):
        found, wanted = ([getattr(r, name) for r in some] for some in (history.records, given))
        assert found == wanted
    found = history.to_dataset()["seconds_exchanging_by_part"]
    assert found.dims == ("record", "part") and found.shape == (len(given), 3)
    np.testing.assert_array_equal(found[0], [0.1, 0.2, np.nan])
    assert np.isnan(found[6]).all() and found[-1].values.tolist() == [0.0, 2.0 * PACK + 11, 2.0]


def test_without_parts_nothing_is_shown_of_them():
    dataset = again(History(records(3, lambda n: ()))).to_dataset()
    assert "seconds_exchanging_by_part" not in dataset and "part" not in dataset.sizes


def test_the_seconds_of_the_call_are_attributes():
    history = History(records(2, lambda n: ()))
    assert history.to_dataset().attrs == {} and again(history).call is None
    history.call = CallSeconds(checking=0.1, shards=0.2, training=3.0, releasing=0.7)
    assert again(history).call == history.call
    assert again(history).to_dataset().attrs == history.call.attributes()


def test_a_history_of_before_loads():
    """It lacks the fields that came later, and has one that is forgotten."""
    history = History(records(5, lambda n: ()))
    kept = {"seconds", "epoch", "step", "examples", "loss"}
    old = {name: column for name, column in history.to_json().items() if name in kept}
    loaded = History.from_json(old | {"forgotten": [1.0] * 5})
    xr.testing.assert_identical(loaded.to_dataset(), history.to_dataset())
