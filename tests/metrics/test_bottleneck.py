"""The bottleneck in words: of short calls, of Sandblaster, and of the parts of a replica."""

import numpy as np
import pytest

from dbdask.metrics.bottleneck import ADVICE, ADVICE_FOR_PASSES, bottleneck
from dbdask.metrics.call_time import CallSeconds
from dbdask.metrics.history import History, Record
from dbdask.metrics.time_spent import ACTIVITIES, seconds_by_activity

INSIDE = [name for name in ACTIVITIES if name != "exchanging"]


def history_of(*rows, call=None):
    """A history of one record for each row of values."""
    records = [
        Record(**({"seconds": float(n), "epoch": 0, "step": n, "examples": n} | row))
        for n, row in enumerate(rows, 1)
    ]
    history = History(records)
    history.call = call
    return history.to_dataset()


def seconds(**by_activity):
    return {f"seconds_{name}": value for name, value in by_activity.items()}


BUSY = seconds(reading=1.0, computing=6.0, fetching=1.0, pushing=1.0, waiting=1.0)


def test_a_call_that_is_mostly_set_up_says_so():
    call = CallSeconds(checking=0.5, shards=6.0, first_task=1.5, training=2.0, releasing=1.0)
    said = bottleneck(history_of(BUSY, call=call))
    assert said.startswith("Starting and ending take 82% of the time (8 s and 1 s)")
    assert "making the shards" in said and "fewer, longer calls with more epochs" in said
    assert "resume" not in said


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("cluster", "client="),
        ("workers", "client="),
        ("concluding", "validation="),
        ("parameters", "checkpoint="),
        ("first_task", "longer calls"),
    ],
)
def test_the_longest_stage_has_its_remedy(stage, names):
    call = CallSeconds(training=1.0, shards=0.5, **{stage: 3.0})
    said = bottleneck(history_of(BUSY | {"iteration": 1.0}, call=call))
    assert names in said and "more iterations" in said


def test_a_long_call_names_the_share_of_all_its_time():
    call = CallSeconds(checking=1.0, training=8.0, releasing=1.0)
    said = bottleneck(history_of(BUSY, call=call))
    assert said == f"Computing takes 48% of the time: {ADVICE['computing']}."


def test_a_resumed_call_speaks_of_itself():
    """Of ten seconds of computing, nine were those of the call before."""
    rows = [
        seconds(reading=0.0, computing=9.0, fetching=0.0, pushing=0.0, waiting=0.0),
        seconds(reading=3.0, computing=10.0, fetching=0.0, pushing=0.0, waiting=0.0),
    ]
    call = CallSeconds(training=4.0, first_record=1)
    assert bottleneck(history_of(*rows, call=call)).startswith("Reading takes 75% of the time")
    assert bottleneck(history_of(*rows)).startswith("Computing takes 77% of the time")


def test_a_resumed_call_with_nothing_to_do_is_start_and_end():
    call = CallSeconds(checking=1.0, shards=1.0, first_record=1)
    assert bottleneck(history_of(BUSY, call=call)).startswith("Starting and ending take 100%")


@pytest.mark.parametrize(("starting", "says"), [(1.0, ""), (3.0, "Starting and ending take 60%")])
def test_a_method_that_counts_no_activities_tells_of_its_start_and_end(starting, says):
    """A method of your own need not count them."""
    call = CallSeconds(shards=starting, training=2.0)
    said = bottleneck(history_of({}, call=call))
    assert said.startswith(says) and bool(said) == bool(says)


# Sandblaster

PASSES = {"seconds": 12.0, "iteration": 1.0} | seconds(evaluating=9.0, commanding=1.0)


def test_the_passes_are_divided_as_their_replicas_spend_their_time():
    """Two replicas, and passes of 9 s: 18 s of replicas."""
    busy = seconds(
        reading=2.0, computing=8.0, fetching=1.0, pushing=1.0, exchanging=4.0, waiting=2.0
    )
    parts = seconds_by_activity(history_of(PASSES | busy))
    found = {name: float(values[-1]) for name, values in parts.items()}
    assert found == pytest.approx(
        {
            "reading": 1.0, "computing": 4.0, "fetching": 0.5, "pushing": 0.5, "exchanging": 2.0,
            "waiting": 1.0, "commanding": 1.0, "other": 2.0,
        }
    )  # fmt: skip


@pytest.mark.parametrize("most", ACTIVITIES)
def test_sandblaster_s_sentence_names_the_activity_and_an_argument_of_its_own(most):
    busy = seconds(**{name: 50.0 if name == most else 1.0 for name in ACTIVITIES})
    said = bottleneck(history_of(PASSES | busy))
    assert said.lower().startswith(most) and ADVICE_FOR_PASSES[most] in said
    for argument in ("n_fetch", "n_push", "batch_size", "local_optimizer"):
        assert argument not in said


@pytest.mark.parametrize("advice", [ADVICE["reading"], ADVICE_FOR_PASSES["reading"]])
def test_what_changes_reading_is_named_by_arguments(advice):
    assert "along=" in advice and "chunks" in advice and "memory_limit" in advice


def test_the_set_up_is_no_part_of_the_passes():
    """The first pass lasted 5 s, of which replicas were set up for 4 s; the shards took 2 s."""
    row = {"seconds": 8.0} | seconds(evaluating=5.0, commanding=0.5, computing=2.0)
    call = CallSeconds(shards=2.0, first_task=4.0, training=2.0)
    parts = seconds_by_activity(history_of(row, call=call))
    assert {name: float(values[-1]) for name, values in parts.items()} == {
        "computing": 1.0,
        "commanding": 0.5,
        "other": 0.5,
    }


def test_passes_of_an_older_version_stay_undivided():
    before = PASSES | seconds(exchanging=3.0)
    after = {"seconds": 20.0} | seconds(evaluating=15.0, commanding=2.0, exchanging=3.0)
    resumed = seconds(reading=0.0, computing=5.0, fetching=0.0, pushing=0.0, waiting=1.0)
    parts = seconds_by_activity(history_of(before))
    assert {name: float(v[-1]) for name, v in parts.items()} == {
        "evaluating": 9.0, "commanding": 1.0, "other": 2.0,
    }  # fmt: skip
    parts = seconds_by_activity(history_of(before, after | resumed))
    np.testing.assert_allclose(parts["evaluating"], [9.0, 9.0])
    np.testing.assert_allclose(parts["computing"] + parts["waiting"], [0.0, 6.0])
    assert parts["exchanging"].tolist() == [0.0, 0.0]


# Parts


def exchanged(*by_part, computing=20.0):
    waited = seconds(exchanging=sum(by_part), exchanging_by_part=by_part)
    idle = seconds(reading=0.0, fetching=0.0, pushing=0.0, waiting=0.0)
    return idle | waited | seconds(computing=computing)


def test_the_slowest_part_is_named_if_the_others_wait_for_it():
    said = bottleneck(history_of(exchanged(5.0, 1.0, 4.0)))
    assert "Part 1 is the slowest: the other parts wait for it 35% of the time" in said
    assert "workers=" in said and said.startswith("Computing takes 67%")


@pytest.mark.parametrize("by_part", [(5.0, 4.9), (0.0, 0.0), (1.0, 2.0, 1.5)])
def test_no_part_is_named_if_they_wait_alike(by_part):
    assert "slowest" not in bottleneck(history_of(exchanged(*by_part)))


def test_a_resumed_call_names_the_part_that_was_slow_in_it():
    """Before it, another part was; or the cut was another."""
    call = CallSeconds(training=10.0, first_record=1)
    for before in ((9.0, 0.0), (9.0, 0.0, 9.0)):
        total = [0.0, 8.0] if len(before) == 3 else [9.0, 8.0]
        rows = exchanged(*before), exchanged(*total, computing=30.0)
        said = bottleneck(history_of(*rows, call=call))
        assert "Part 0 is the slowest: the other part waits" in said


def test_a_record_without_seconds_of_parts_changes_nothing():
    said = bottleneck(history_of(exchanged(5.0, 1.0), {"validation_loss": 0.5}))
    assert "Part 1 is the slowest: the other part waits for it 31% of the time" in said
