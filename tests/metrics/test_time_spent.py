"""Seconds by activity: nothing is counted twice, and the sentence names the largest."""

import math

import numpy as np
import pytest
import xarray as xr

from dbdask.metrics import time_spent
from dbdask.metrics.bottleneck import ADVICE, bottleneck
from dbdask.metrics.history import History, Record
from dbdask.metrics.time_spent import ACTIVITIES, Spent, seconds_by_activity


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time_spent, "perf_counter", lambda: self.now)

    def tick(self, seconds):
        self.now += seconds


def test_each_second_counts_once(monkeypatch):
    clock, spent = Clock(monkeypatch), Spent()
    began = clock.now
    clock.tick(1)
    with spent.on("reading"):
        clock.tick(2)
    with spent.on("fetching"):
        clock.tick(4)
        with spent.on("pushing"):
            clock.tick(8)
            with spent.on("computing"):
                clock.tick(16)
        clock.tick(32)
    clock.tick(64)
    spent.wait_since(began)
    assert spent == Spent(reading=2, computing=16, fetching=36, pushing=8, waiting=65)
    assert spent.total == clock.now - began


def test_an_error_ends_the_time_of_its_block(monkeypatch):
    clock, spent = Clock(monkeypatch), Spent()
    with pytest.raises(KeyError), spent.on("computing"):
        clock.tick(3)
        raise KeyError
    assert spent.computing == 3


def history_of(**columns):
    """A history of one record for each value: {activity: seconds so far}."""
    rows = zip(*columns.values(), strict=True)
    records = [
        Record(
            seconds=float(number),
            epoch=0,
            step=number,
            examples=number,
            **{f"seconds_{name}": value for name, value in zip(columns, row, strict=True)},
        )
        for number, row in enumerate(rows, 1)
    ]
    return History(records).to_dataset()


@pytest.mark.parametrize("most", ACTIVITIES)
def test_the_sentence_names_the_largest_and_what_to_change(most):
    history = history_of(**{name: [1.0, 20.0 if name == most else 1.0] for name in ACTIVITIES})
    said = bottleneck(history)
    assert said.lower().startswith(most) and "80%" in said and ADVICE[most] in said


def test_sandblasters_own_time_is_the_rest():
    history = history_of(evaluating=[0.5, 1.0], commanding=[0.25, 0.5])
    parts = seconds_by_activity(history)
    np.testing.assert_allclose(parts["other"], [0.25, 0.5])
    assert bottleneck(history).startswith("Evaluating takes 50% of the time")


def test_a_record_without_seconds_carries_the_last_ones_on():
    columns = {name: [1.0, math.nan, 3.0] for name in ACTIVITIES}
    assert seconds_by_activity(history_of(**columns))["reading"].tolist() == [1.0, 1.0, 3.0]


def test_a_history_that_knows_no_seconds_says_nothing():
    assert bottleneck(History([Record(1.0, 0, 1, 1)]).to_dataset()) == ""
    assert bottleneck(xr.Dataset()) == ""


def test_exchanges_are_told_where_there_are_any():
    assert "seconds_exchanging" not in Spent(computing=1.0).columns()
    assert Spent(exchanging=2.0).columns()["seconds_exchanging"] == 2.0
    names = [name for name in ACTIVITIES if name != "exchanging"]
    without = history_of(**{name: [1.0, 2.0] for name in names})
    assert list(seconds_by_activity(without)) == names
