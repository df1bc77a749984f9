"""The time of a call: every second belongs to one stage, by a clock that the test moves."""

import json
import math

import pytest

from dbdask.metrics import call_time
from dbdask.metrics.call_time import ENDING, STAGES, STARTING, CallClock, CallSeconds


class Clock:
    def __init__(self, monkeypatch):
        self.now = 50.0
        monkeypatch.setattr(call_time, "perf_counter", lambda: self.now)

    def tick(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_every_second_belongs_to_one_stage(clock):
    call = CallClock()
    for number, stage in enumerate(STAGES):
        call.enter(stage)
        clock.tick(2.0**number)
    call.enter("training")
    clock.tick(1000.0)
    found = call.seconds()
    assert [getattr(found, stage) for stage in STAGES] == [1, 2, 4, 8, 16, 1032, 64, 128, 256]
    assert (found.starting, found.ending) == (31, 448)
    assert found.total == clock.now - 50.0 == found.starting + found.training + found.ending


def test_the_first_task_ends_where_the_first_replica_begins_with_a_minibatch(clock):
    call = CallClock()
    call.enter("first_task")
    clock.tick(10)
    call.note_training(4.0)
    assert call.trained_for == 4.0
    clock.tick(5)
    call.note_training(5.0)  # of a second task: the start is over
    found = call.seconds()
    assert (found.first_task, found.training) == (6, 9)


def test_a_stage_begins_after_the_one_before(clock):
    call = CallClock()
    clock.tick(3)
    call.enter("first_task")
    clock.tick(1)
    call.note_training(100.0)
    found = call.seconds()
    assert (found.checking, found.first_task, found.training) == (3, 0, 1)


def test_a_call_that_loses_shards_at_its_end_trains_again(clock):
    call = CallClock()
    call.enter("first_task")
    clock.tick(1)
    call.note_training(0.0)
    clock.tick(2)
    call.enter("parameters")
    clock.tick(4)
    call.train_again()
    clock.tick(8)
    found = call.seconds()
    assert (found.first_task, found.training, found.parameters) == (1, 10, 4)


@pytest.mark.parametrize(
    ("setting_up", "lasted", "late"), [(3, 10, 0), (3, 6, 0), (3, 4, 1), (3, 2, 3), (0, 0, 0)]
)
def test_set_up_is_late_where_another_replica_trains_already(clock, setting_up, lasted, late):
    """The first has trained for 5 s; this one began its set-up `setting_up + lasted` ago."""
    call = CallClock()
    assert call.late(3.0, 0.0) == 0
    call.enter("first_task")
    clock.tick(20)
    call.note_training(5.0)
    assert call.late(setting_up, lasted) == late


def test_attributes_and_json_bring_the_seconds_back():
    wanted = CallSeconds(*(0.1 * number for number in range(len(STAGES))), first_record=7)
    found = wanted.attributes()
    assert CallSeconds.from_attributes(found) == wanted
    assert CallSeconds.from_json(json.loads(json.dumps(wanted.to_json()))) == wanted
    assert found["seconds_starting"] == math.fsum(
        found[f"seconds_starting_{name}"] for name in STARTING
    )
    assert found["seconds_ending"] == math.fsum(found[f"seconds_ending_{name}"] for name in ENDING)
    assert CallSeconds.from_attributes({"title": "a history of before"}) is None
