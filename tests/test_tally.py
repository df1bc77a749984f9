"""The tally: steps and examples are counted once, whoever reports them."""

import pytest

from dbdask.verbs.replica import PortionReport
from dbdask.verbs.tally import Tally

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
