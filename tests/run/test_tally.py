"""The tally: steps and examples are counted once, whoever reports them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from dbdask.metrics.history import History, Record
from dbdask.metrics.time_spent import Spent
from dbdask.run.tally import Tally
from dbdask.worker.portion_order import PortionReport

BATCH, ROWS = 20, 90  # five steps, the last one short


def done(first, steps, *, finished=False, refused=()):
    """What a replica reports that began at a step of a portion of 90 examples."""
    return PortionReport(
        epoch=0,
        number=4,
        worker="w",
        first_step=first,
        examples_before=first * BATCH,
        steps=steps,
        examples=min(steps * BATCH, max(0, ROWS - first * BATCH)),
        examples_in_all=ROWS if finished else 0,
        finished=finished,
        refused=[(step, "weights") for step in refused],
    )


def tally(state=None):
    return Tally(state, lambda record: None)


@pytest.mark.parametrize(
    "reports",
    [
        [done(0, 5, finished=True)],
        [done(0, 2), done(2, 3, finished=True)],
        [done(3, 2, finished=True)],  # one died after three steps
        [done(5, 0, finished=True)],  # after the last one
        [done(0, 2), done(5, 0, finished=True)],
        [done(0, 5), done(4, 1, finished=True)],  # a step that not every shard had
        [done(0, 4), PortionReport(0, 4, "w"), done(4, 1, finished=True)],  # one failed
    ],
)
def test_a_portion_counts_once(reports):
    total = tally()
    for report in reports:
        total.add(report, 0, 2, None)
    assert (total.steps, total.examples) == (5, ROWS)


def test_a_refusal_that_is_reported_twice_counts_once():
    total = tally()
    total.add(done(0, 3, refused=[1, 2]), 0, 2, None)
    total.add(done(2, 3, finished=True, refused=[2, 4]), 0, 2, None)
    assert total.refused == 3


def test_a_resumed_run_and_one_that_goes_back_count_on_from_the_snapshot():
    total = tally()
    total.add(done(0, 2), 0, 2, None)
    state = total.state() | {"applied": 2}
    for again in (tally(state), total):
        again.add(done(2, 3, finished=True), 0, 2, None)
        assert (again.steps, again.examples) == (5, ROWS)
    total.go_back(state)
    assert (total.steps, total.examples) == (2, 2 * BATCH)
    total.add(done(2, 3, finished=True), 0, 2, None)
    assert (total.steps, total.examples) == (5, ROWS)


def finished(number, steps=16):
    return PortionReport(
        0, number, "w", steps=steps, examples=20 * steps, loss=float(number), weight=1.0,
        good=steps, pushes=steps, finished=True, examples_in_all=20 * steps,
    )  # fmt: skip


def test_a_snapshot_keeps_ranges_of_portions_and_a_packed_history():
    total = tally()
    for number in range(5000):
        total.add(finished(number), 0, 2, None)
    state = total.state()
    assert state["done"] == [[0, 0, 16, 320, 5000]]
    text = json.dumps(state)
    assert len(text) < 80 * 5000  # written out it is 200 a record
    again = tally(json.loads(text) | {"applied": 0})
    assert again.history.to_dataset().identical(total.history.to_dataset())
    again.add(finished(4999), 0, 2, None)
    assert (again.steps, again.examples) == (5000 * 16, 5000 * 320)


def test_a_snapshot_of_the_code_before_still_loads():
    total = tally()
    total.add(done(0, 2), 0, 2, None)
    state = total.state() | {"applied": 2, "done": [[0, 4, 2, 2 * BATCH]]}
    again = tally(state)
    again.add(done(2, 3, finished=True), 0, 2, None)
    assert (again.steps, again.examples) == (5, ROWS)


def test_what_a_history_is_packed_from_comes_out_bit_for_bit():
    rng = np.random.default_rng(0)
    records = [
        Record(
            seconds=float(rng.random() * 10.0 ** rng.integers(-8, 9)),
            epoch=n // 900,
            step=n * 3,
            examples=int(rng.integers(0, 2**60)),
            loss=float(rng.choice([np.nan, np.inf, -0.0, rng.normal()])),
            replicas=2,
            iteration=n if n > 1500 else math.nan,
        )
        for n in range(2700)
    ]
    history = History(records[:2600])
    first = history.to_json()
    for record in records[2600:]:
        history.append(record)
    found = history.to_json()
    assert found["packed"] == first["packed"] and len(found["packed"]) == 2
    again = History.from_json(json.loads(json.dumps(found)))
    known = [replace(r, loss=r.loss if math.isfinite(r.loss) else math.nan) for r in records]
    assert again.to_dataset().identical(History(known).to_dataset())
    assert History.from_json(again.to_json()).to_dataset().identical(again.to_dataset())


@pytest.mark.parametrize("exchanging", [0.0, 3.0])
def test_seconds_go_on_from_a_snapshot_with_exchanges_and_without(exchanging):
    first = Tally(None, lambda record: None)
    first.spent = Spent(computing=2.0, exchanging=exchanging)
    first.steps = 1
    first.record(epoch=0, **first.spent.columns())
    again = Tally(first.state() | {"applied": 1}, lambda record: None)
    assert again.spent == first.spent


@pytest.mark.parametrize(("parts", "kept"), [(2, [3.0, 1.0]), (3, [0.0, 0.0, 0.0]), (1, [])])
def test_seconds_by_part_go_on_from_a_snapshot_of_the_same_cut(parts, kept):
    first = Tally(None, lambda record: None, parts=2)
    first.spend(Spent(), {0: Spent(exchanging=3.0), 1: Spent(computing=2.0, exchanging=1.0)})
    first.steps = 1
    first.record(epoch=0, **first.seconds_columns())
    state = json.loads(json.dumps(first.state())) | {"applied": 1}
    again = Tally(state, lambda record: None, parts=parts)
    assert again.exchanging == kept
    assert again.spent == Spent(computing=2.0, exchanging=4.0)


def test_a_snapshot_of_sandblaster_from_before_keeps_its_exchanges():
    first = Tally(None, lambda record: None)
    first.steps = 1
    first.record(epoch=0, iteration=1, seconds_evaluating=5.0, seconds_exchanging=3.0)
    again = Tally(first.state() | {"applied": 0}, lambda record: None, parts=2)
    assert again.spent == Spent(exchanging=3.0) and again.exchanging == [0.0, 0.0]
