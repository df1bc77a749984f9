"""Load balancing without a cluster: simulated passes, on a simulated clock."""

import heapq

import pytest

from dbdask.schedule.bundles import (
    Assignment,
    Bundle,
    BundleAttempt,
    Pace,
    bundle_length,
    choose_backup,
    work_out,
)
from dbdask.schedule.portions import Portion


def portions(count):
    return [Portion(0, n, n, (n,), 0, 10, ()) for n in range(count)]


def simulate(count, seconds, pace=None, owners=None, task=0.0, with_backups=True, evaluation=0):
    """Run a pass; `seconds` gives a worker's time for a portion. Returns (end, owners, log)."""
    pace, owners = pace or Pace(), dict(owners or {})
    workers = sorted(seconds)
    assignment = Assignment(evaluation, portions(count), owners)
    copies, done, log = {}, set(), []
    events, now, order, launched = [], 0.0, 0, 0
    idle = list(workers)
    while len(done) < count:
        for worker in list(idle):
            out = work_out(copies.values(), pace, now)
            length = bundle_length(assignment.remaining, out, worker, workers, pace)
            bundle, is_backup = assignment.take(worker, length, workers), False
            if bundle is None:
                slowest = choose_backup(copies.values(), worker, pace, now)
                if slowest is None or not with_backups:
                    continue
                bundle, is_backup = slowest.bundle, True
                launched += 1
            idle.remove(worker)
            order += 1
            copies[order] = BundleAttempt(bundle, worker, now, is_backup)
            duration = task + len(bundle.portions) * seconds[worker]
            heapq.heappush(events, (now + duration, order))
            log.append((worker, [p.number for p in bundle.portions], is_backup))
        # Nothing may happen for a while, but the clock goes on: backups are looked at again.
        wake = events[0][0] if events else now + 1
        if idle and wake > now + 0.05:
            now += 0.05
            continue
        now, number = heapq.heappop(events)
        copy = copies.pop(number)
        idle.append(copy.worker)
        size = len(copy.bundle.portions)
        pace.note(copy.worker, size, size * seconds[copy.worker], 0.0, now - copy.since)
        for portion in copy.bundle.portions:
            done.add(portion.number)
            owners[portion.number] = copy.worker
    return now, owners, log


def test_every_portion_is_cut_once():
    _, _, log = simulate(50, {"a": 0.1, "b": 0.2, "c": 0.15})
    numbers = [n for _, bundle, is_backup in log if not is_backup for n in bundle]
    assert sorted(numbers) == list(range(50))


def test_a_worker_five_times_slower_holds_nobody_up():
    seconds = {"a": 0.1, "b": 0.1, "c": 0.1, "d": 0.5}
    perfect = 64 * 0.1 / 3.2
    pace = Pace()
    first, owners, _ = simulate(64, seconds, pace)
    second, _, _ = simulate(64, seconds, pace, owners)
    assert first <= 1.35 * perfect and second <= 1.1 * perfect
    static = 64 / 4 * 0.5  # a fourth of the batch each
    assert static > 3 * second


def test_a_worker_that_stops_is_replaced_by_backups():
    seconds = {"a": 0.1, "b": 0.1, "c": 50.0}
    pace = Pace(dict.fromkeys(seconds, 0.1), task=0.001)
    end, _, log = simulate(60, seconds, pace)
    assert end < 60 * 0.1 / 2 * 1.8
    assert any(is_backup for _, _, is_backup in log)
    without, _, _ = simulate(60, seconds, Pace(dict.fromkeys(seconds, 0.1)), with_backups=False)
    assert without > 30 * end


def test_portions_come_back_to_the_worker_that_holds_them():
    seconds = {"a": 0.1, "b": 0.1}
    pace = Pace()
    _, owners, _ = simulate(40, seconds, pace)
    _, _, log = simulate(40, seconds, pace, owners)
    moved = sum(owners[n] != worker for worker, bundle, _ in log for n in bundle)
    assert moved <= 4


def test_bundles_shorten_toward_the_tail():
    pace = Pace({"a": 1.0, "b": 1.0})
    lengths = [bundle_length(n, 0, "a", ["a", "b"], pace) for n in (100, 50, 20, 6, 1)]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] == 1


def test_what_costs_more_to_hand_out_than_to_do_is_not_cut_up():
    pace = Pace({"a": 0.01, "b": 0.01}, task=0.2)
    assert bundle_length(6, 0, "a", ["a", "b"], pace) == 6


def test_long_pushes_make_long_bundles_but_none_beyond_the_fair_part():
    pace = Pace({"a": 1.0, "b": 1.0}, push=0.5)
    assert bundle_length(200, 0, "a", ["a", "b"], pace) == 35
    assert bundle_length(40, 0, "a", ["a", "b"], pace) == 20


def test_a_lost_bundle_goes_out_again_as_it_is():
    assignment = Assignment(3, portions(10), {})
    bundle = assignment.take("a", 4, ["a", "b"])
    assignment.hand_back(bundle)
    assert assignment.remaining == 10
    assert assignment.take("b", 1, ["a", "b"]) is bundle
    other = assignment.take("a", 4, ["a", "b"])
    assert other.number == 1 and not set(other.portions) & set(bundle.portions)


@pytest.mark.parametrize("again", ["backup", "mine"])
def test_a_bundle_has_two_copies_at_most_and_on_two_workers(again):
    bundle = Bundle(0, 0, tuple(portions(2)))
    pace = Pace({"a": 1.0, "b": 1.0, "c": 1.0})
    copies = [BundleAttempt(bundle, "a", 0.0)]
    assert choose_backup(copies, "b", pace, 100.0) is copies[0]
    if again == "backup":
        copies.append(BundleAttempt(bundle, "b", 50.0, is_backup=True))
        assert choose_backup(copies, "c", pace, 100.0) is None
    else:
        assert choose_backup(copies, "a", pace, 100.0) is None
