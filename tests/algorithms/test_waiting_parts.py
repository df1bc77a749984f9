"""How long each part waited for its peers, and Sandblaster's time by activity.

A clock that the test alone moves stands for `perf_counter`.
"""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from test_downpour import write_store
from test_partitions import minimise, train

from dbdask.algorithms import gradient_pass
from dbdask.algorithms.gradient_pass import IdleTime
from dbdask.data.feed import Reader
from dbdask.metrics import call_time, time_spent
from dbdask.metrics.bottleneck import bottleneck
from dbdask.metrics.time_spent import Spent, seconds_by_activity
from dbdask.models.evaluation import Evaluator
from dbdask.run.tally import Tally
from dbdask.worker import batch_replica, replica
from dbdask.worker.link import ServerLink
from dbdask.worker.mailbox import Mailbox
from dbdask.worker.share import PartOfGang

ROWS = 600


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("waiting") / "store.zarr", ROWS)


@pytest.fixture
def clock(monkeypatch):
    found = SimpleNamespace(now=1000.0)
    for module in (call_time, time_spent, replica, batch_replica):
        monkeypatch.setattr(module, "perf_counter", lambda: found.now)
    return found


class SlowPart:
    """Part 1 takes a second for each minibatch, all of it while part 0 waits for its message."""

    def __init__(self, clock, monkeypatch):
        self.steps, self._changed, self._awaited = 0, threading.Condition(), set()
        await_all, minibatch = Mailbox.await_all, PartOfGang.minibatch

        def note(mailbox, wanted, *arguments):
            with self._changed:
                self._awaited |= {(*a.place, a.portion) for a in wanted if a.sender == 1}
                self._changed.notify_all()
            return await_all(mailbox, wanted, *arguments)

        def slow(share, parameters, batch, portion, **options):
            if share.index == 1:
                peers = share.peers
                place = (peers.member.attempt, peers._step + 1, peers.portion)
                with self._changed:
                    assert self._changed.wait_for(lambda: place in self._awaited, 120)
                self.steps += 1
                clock.now += 1.0
            return minibatch(share, parameters, batch, portion, **options)

        monkeypatch.setattr(Mailbox, "await_all", note)
        monkeypatch.setattr(PartOfGang, "minibatch", slow)


@pytest.mark.parametrize("algorithm", [train, minimise])
def test_the_part_that_waits_longest_is_not_the_slow_one(
    threads_client, store, clock, monkeypatch, algorithm
):
    slow = SlowPart(clock, monkeypatch)
    options = {"iterations": 2} if algorithm is minimise else {}
    result = algorithm(threads_client, store, partitions=2, replicas=1, **options)
    history = result.history
    by_part = history["seconds_exchanging_by_part"]
    assert by_part.dims == ("record", "part") and slow.steps > 0
    assert by_part.values[-1] == pytest.approx([slow.steps, 0.0])
    assert history["seconds_exchanging"].values[-1] == pytest.approx(slow.steps)
    assert history["seconds_computing"].values[-1] == pytest.approx(slow.steps)
    assert seconds_by_activity(history)["exchanging"][-1] > 0
    assert "Part 1 is the slowest: the other part waits for it" in bottleneck(history)
    figure = result.plot("time")
    assert "Part 1 is the slowest" in figure.axes[0].get_title()
    bars = figure.axes[-1].containers[0]
    assert [bar.get_width() for bar in bars] == pytest.approx([slow.steps, 0.0])


def test_replicas_without_parts_show_none(threads_client, store):
    for algorithm in (train, minimise):
        history = algorithm(threads_client, store, replicas=1).history
        assert "seconds_exchanging_by_part" not in history and "part" not in history.sizes


# Sandblaster by activity


class Counted:
    """Functions that take some seconds each, and how often they were called."""

    def __init__(self, clock, monkeypatch):
        self.clock, self.monkeypatch, self.calls = clock, monkeypatch, {}

    def slow(self, kind, name, seconds):
        plain = getattr(kind, name)
        self.calls[name] = 0

        def ticking(*arguments, **options):
            self.calls[name] += 1
            self.clock.now += seconds
            return plain(*arguments, **options)

        self.monkeypatch.setattr(kind, name, ticking)

    def slow_reading(self, seconds):
        plain = Reader.minibatches
        self.calls["read"] = 0

        def minibatches(*arguments, **options):
            for batch in plain(*arguments, **options):
                self.calls["read"] += 1
                self.clock.now += seconds
                yield batch

        self.monkeypatch.setattr(Reader, "minibatches", minibatches)


def test_sandblaster_s_replicas_count_their_seconds_by_activity(
    threads_client, store, clock, monkeypatch
):
    counted = Counted(clock, monkeypatch)
    counted.slow_reading(2.0)
    counted.slow(Evaluator, "minibatch", 1.0)
    counted.slow(ServerLink, "fetch_vector", 3.0)
    counted.slow(ServerLink, "contribute", 5.0)
    history = minimise(threads_client, store, replicas=1, iterations=3).history
    wanted = {
        "reading": 2.0 * counted.calls["read"],
        "computing": 1.0 * counted.calls["minibatch"],
        "fetching": 3.0 * counted.calls["fetch_vector"],
        "pushing": 5.0 * counted.calls["contribute"],
    }
    found = {name: history[f"seconds_{name}"].values[-1] for name in wanted}
    assert found == pytest.approx(wanted) and min(counted.calls.values()) > 0
    assert "seconds_exchanging" not in history
    parts = seconds_by_activity(history)
    assert sum(values[-1] for values in parts.values()) <= history["seconds"].values[-1] + 1e-9
    assert (np.diff(history["seconds_waiting"].values) >= 0).all()


def idle_time(monkeypatch, clock, replicas):
    """Of two parts each."""
    monkeypatch.setattr(gradient_pass, "monotonic", lambda: clock.now)
    workforce = SimpleNamespace(replicas_at_once=lambda wanted: replicas.count)
    plan = SimpleNamespace(replicas=None, partitions=2)
    tally = Tally(None, lambda record: None, parts=2)
    tally.call.enter("first_task")
    return IdleTime(SimpleNamespace(tally=tally, workforce=workforce, plan=plan)), tally


def test_what_no_replica_reports_of_a_pass_is_waiting(monkeypatch, clock):
    """The first replica begins after 10 s; a second one is there from the 14th second on."""
    replicas = SimpleNamespace(count=1)
    with monkeypatch.context() as patched:
        idle, tally = idle_time(patched, clock, replicas)
        clock.now += 12.0
        tally.spend(Spent(), {part: Spent(computing=2.0) for part in (0, 1)})
        idle.look()
        clock.now += 2.0
        idle.look()
        replicas.count = 2
        clock.now += 6.0
        tally.spend(Spent(), {0: Spent(computing=5.0), 1: Spent(computing=3.0, exchanging=2.0)})
        idle.look()
        idle.note()
    possible = 2 * (2.0 + 2.0) + 4 * 6.0
    assert tally.spent.waiting == possible - (4.0 + 10.0)
    assert tally.exchanging == [0.0, 2.0]
