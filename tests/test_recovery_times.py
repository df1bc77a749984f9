"""Which record shows that training goes on after a kill, in the program that measures it."""

import pytest

import dbdask
from benchmarks.recovery import Case, GangWatch, Killer, cases
from dbdask.run.gangs import Gangs

KILLED = 100.0


def killer(case, began=()):
    """One that has killed at second 100 of the clock, 10 of the run, when 50 steps were counted."""
    gangs = GangWatch()
    gangs.began = dict(enumerate(began))
    found = Killer(None, 0, case, gangs)
    found.began, found.killed_at, found.step = KILLED - 10.0, KILLED, 50
    return found


def record(seconds, step, lost=0):
    return dbdask.Record(seconds=seconds, epoch=0, step=step, examples=0, lost=lost)


@pytest.mark.parametrize(
    ("made", "counts"),
    [
        (record(11.0, 60, lost=1), True),
        (record(11.0, 60), False),  # a replica that has not met the loss yet
        (record(11.0, 50, lost=1), False),  # no step more
    ],
)
def test_without_partitions_a_step_after_the_loss_counts(made, counts):
    assert killer(Case("recovered")).counts(made) is counts


@pytest.mark.parametrize(
    ("began", "made", "counts"),
    [
        ((0.0, 100.5), record(11.0, 60), True),
        ((0.0,), record(11.0, 60), False),  # what is left of the gang reports earlier steps
        ((0.0, 101.5), record(11.0, 60), False),  # made before the new gang began
        ((0.0, 100.5), record(11.0, 50), False),
    ],
)
def test_with_partitions_a_step_of_a_new_gang_counts(began, made, counts):
    assert killer(Case("a member", 2, holds=False), began).counts(made) is counts


def test_a_member_with_a_shard_is_recovered_from_when_the_loss_is_known_too():
    one = killer(Case("a member", 2), (0.0, 100.5))
    assert not one.counts(record(11.0, 60))
    assert one.counts(record(11.0, 60, lost=1))


def test_the_first_work_of_each_gang_is_noted():
    places = {"a, b": 0, "c, d": 1}
    before, given = Gangs.next_attempt, []
    gangs = Gangs(None, "run", b"", None, None, lambda: None)
    gangs.number_of = places.__getitem__
    Gangs.next_attempt = lambda gangs, place: given.append(place)
    try:
        with GangWatch() as watch:
            for place in ("a, b", "c, d", "a, b"):
                gangs.next_attempt(place)
    finally:
        Gangs.next_attempt = before
    assert given == ["a, b", "c, d", "a, b"]
    assert list(watch.began) == [0, 1] and watch.began[0] <= watch.began[1]


def test_a_gang_loses_a_member_with_a_shard_and_one_without():
    assert [(case.holds, case.checkpoint) for case in cases(2)] == [(True, True), (False, False)]
    assert all(case.partitions == 2 for case in cases(2))
