"""Every evaluation of a pass by itself: later passes repair what a wrong one did to the end."""

import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from distributed import get_worker
from routing import Answered, disturb, finish
from test_bundles import portions
from test_downpour import assert_nothing_left, counted, labelled, network, write_store
from test_sandblaster import ROWS, LinearCounting, objective

import dbdask
from dbdask.algorithms import gradient_pass
from dbdask.algorithms.gradient_pass import GradientPass, PassStatistics
from dbdask.algorithms.sandblaster_method import Sandblaster
from dbdask.run.tally import Tally
from dbdask.run.worker_notices import WorkerNotices
from dbdask.worker.batch_replica import BundleReport
from dbdask.worker.batch_shard import BatchShard

SHARDS = 2
PORTION = 50  # rows: one minibatch
LONGEST = 30.0  # seconds that a model is held up where the test fails


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("pass") / "store.zarr")


@pytest.fixture(params=["threads", "processes"])
def client(request, threads_client, process_client):
    return threads_client if request.param == "threads" else process_client


@pytest.fixture
def evaluations(monkeypatch):
    """Point, mean loss and gradient of each evaluation, as the shards hold them at its end."""
    seen, plain = [], Sandblaster._evaluate

    async def evaluate(method, run, request):
        answer = await plain(method, run, request)
        point, gradient = [await run.server.read(n) for n in (request.point, request.into)]
        seen.append((point, answer[0], gradient))
        return answer

    monkeypatch.setattr(Sandblaster, "_evaluate", evaluate)
    return seen


def count(client, store, model=None, **options):
    settings = {"l2": 1 / ROWS, "portion_size": PORTION, "shards": SHARDS, "tolerance": 0.0}
    settings |= {"iterations": 3, "progress": False}
    model = model or LinearCounting(ROWS)
    return dbdask.sandblaster(model, counted(store), client=client, **(settings | options))


def assert_each_counted_once(evaluations):
    """Without the penalty each example's part of the mean gradient is minus one, once."""
    assert len(evaluations) >= 3
    for point, loss, gradient in evaluations:
        np.testing.assert_allclose(ROWS * gradient - point, -1.0, atol=1e-5)
        assert loss == pytest.approx(-point.sum() / ROWS, abs=1e-6)


# What a pass adds up


@pytest.mark.parametrize(
    ("client", "options"),
    [
        ("processes", {}),
        ("processes", {"shards": 3, "portion_size": 7}),
        ("threads", {"replicas": 5}),
        pytest.param("threads", {}, marks=pytest.mark.slow),
        pytest.param("threads", {"shards": 3, "portion_size": 7}, marks=pytest.mark.slow),
        pytest.param("processes", {"replicas": 5}, marks=pytest.mark.slow),
    ],
    indirect=["client"],
)
def test_every_pass_counts_every_example_exactly_once(client, store, evaluations, options):
    history = count(client, store, **options).history
    assert_each_counted_once(evaluations)
    passes = history["evaluations"].values
    np.testing.assert_array_equal(history["examples"].values, ROWS * passes)
    assert passes[-1] == len(evaluations)


@pytest.mark.parametrize(
    ("client", "portion_size"),
    [
        ("processes", 33),
        ("threads", 128),
        pytest.param("processes", 128, marks=pytest.mark.slow),
        pytest.param("threads", 33, marks=pytest.mark.slow),
    ],
    indirect=["client"],
)
def test_every_evaluation_is_that_of_one_process(client, store, evaluations, portion_size):
    dbdask.sandblaster(
        network(),
        labelled(store),
        client=client,
        l2=1e-3,
        portion_size=portion_size,
        shards=3,
        iterations=6,
        tolerance=0.0,
        progress=False,
    )
    alone = objective(store, 1e-3)
    assert len(evaluations) > 6
    for point, loss, gradient in evaluations:
        value, expected = alone(point)
        assert loss + 1e-3 / 2 * float(point @ point) == pytest.approx(value, rel=1e-5)
        np.testing.assert_allclose(gradient, expected, atol=3e-7 + 1e-6 * np.abs(expected).max())


# What comes twice, or late


class Echo:
    """Each contribution comes twice while its pass is open, after one of the pass before.

    Where `is_lost` says so for (shard, evaluation, bundle) the first answer is lost: the replica
    hears what the second one says.
    """

    def __init__(self, is_lost):
        self.is_lost = is_lost
        self.held, self.again, self.stale = {}, [], []
        self.lost = set()

    def start(self, way, place, request, sent, into):
        if request.method != "contribute":
            return way.start(request, sent, into)
        evaluation, bundle = request.arguments
        old = self.held.get((place, evaluation - 1))
        if old is not None:
            self.stale.append(finish(way.start(*old)))
        kept = request, sent.copy()
        self.held.setdefault((place, evaluation), kept)
        answer = finish(way.start(request, sent))
        self.again.append(finish(way.start(*kept)))
        if not self.is_lost(place, evaluation, bundle):
            return Answered(answer)
        self.lost.add((evaluation, bundle))
        return Answered(self.again[-1])


def test_what_comes_twice_or_from_an_earlier_pass_is_not_added(
    threads_client, store, evaluations, monkeypatch, request
):
    places = []

    def is_lost(place, evaluation, bundle):
        places.append(place)
        return place == places[0] and bundle == 0  # from one shard of two, once a pass

    echo = Echo(is_lost)
    request.addfinalizer(disturb(echo.start))
    monkeypatch.setattr(gradient_pass, "choose_backup", lambda *_: None)
    history = count(threads_client, store).history
    assert_each_counted_once(evaluations)
    assert echo.again and not any(echo.again)
    assert echo.stale and not any(echo.stale)
    assert len(set(places)) == SHARDS
    assert history["repeated"].values[-1] == len(echo.lost) == len(evaluations)


# Backup copies: a model that is held up on the first worker that comes to it

GATE = None  # of the test that runs; workers in threads share this module


class HeldUp(LinearCounting):
    """The linear counting model, behind the gate."""

    def loss_and_gradient(self, parameters, inputs, targets, **options):
        GATE.enter(get_worker())
        return super().loss_and_gradient(parameters, inputs, targets, **options)


class Gate:
    """Counts the minibatches of each task, and holds up the first task of all in its first."""

    def __init__(self):
        self.minibatches = Counter()  # by key of the task
        self.held = self.holder = None
        self.go_on = threading.Event()
        self._lock = threading.Lock()

    def enter(self, worker):
        key = worker.get_current_task()
        with self._lock:
            self.minibatches[key] += 1
            is_first = self.held is None
            if is_first:
                self.held, self.holder = key, worker.address
        if is_first:
            assert self.go_on.wait(LONGEST), "nothing let the first task go on"
        else:
            self.follow(worker.address, bundle_of(key)[0])

    def follow(self, worker, evaluation):
        """What all other minibatches do."""


def bundle_of(key):
    """Pass and number of a task's bundle: its key is dbdask-bundle-RUN-PASS-NUMBER-MORE."""
    return tuple(int(part) for part in key.split("-")[3:5])


@pytest.fixture
def backups_at_first_only(monkeypatch):
    """The first pass alone has backup copies, so that they can be counted."""
    plain = gradient_pass.choose_backup

    def choose(copies, *more):
        return plain([copy for copy in copies if copy.bundle.evaluation == 0], *more)

    monkeypatch.setattr(gradient_pass, "choose_backup", choose)


def set_gate(monkeypatch, gate, portions_a_bundle):
    monkeypatch.setitem(globals(), "GATE", gate)
    monkeypatch.setattr(gradient_pass, "bundle_length", lambda *_: portions_a_bundle)
    return gate


def test_a_copy_that_lost_stops_by_itself_between_two_minibatches(
    threads_client, store, evaluations, monkeypatch, backups_at_first_only
):
    gate = set_gate(monkeypatch, Gate(), 6)
    plain = WorkerNotices.send

    async def send(notices, workers, function, *arguments):
        await plain(notices, workers, function, *arguments)
        if function.__name__ == "unwant":  # the backup is done, and the workers have heard it
            gate.go_on.set()

    monkeypatch.setattr(WorkerNotices, "send", send)
    history = count(threads_client, store, HeldUp(ROWS)).history
    assert_each_counted_once(evaluations)
    copies = {
        key: n for key, n in gate.minibatches.items() if bundle_of(key) == bundle_of(gate.held)
    }
    assert copies.pop(gate.held) == 1
    assert list(copies.values()) == [6]
    assert history["backups_launched"].values[-1] == history["backups_won"].values[-1] == 1
    assert history["repeated"].values[-1] == 0
    assert_nothing_left(threads_client)


class LateGate(Gate):
    """Opens with the second pass, whose other tasks wait until the late one was taken in."""

    def __init__(self):
        super().__init__()
        self.taken_in = threading.Event()

    def follow(self, worker, evaluation):
        if evaluation == 1 and worker == self.holder:  # it gets new work when the old came back
            self.taken_in.set()
        elif evaluation == 1:
            assert self.taken_in.wait(LONGEST), "the late task never came back"


def test_a_late_push_of_a_copy_that_lost_changes_nothing_in_the_next_pass(
    threads_client, store, evaluations, monkeypatch, backups_at_first_only
):
    gate = set_gate(monkeypatch, LateGate(), 1)
    late = []
    open_pass, contribute = BatchShard._open, BatchShard.contribute

    def opened(shard, evaluation, commands):
        open_pass(shard, evaluation, commands)
        if evaluation == 1:
            gate.go_on.set()

    def contributed(shard, evaluation, bundle, gradient):
        is_open = shard._pass.evaluation
        is_new = contribute(shard, evaluation, bundle, gradient)
        if evaluation != is_open:
            late.append((evaluation, is_open, is_new))
        return is_new

    monkeypatch.setattr(BatchShard, "_open", opened)
    monkeypatch.setattr(BatchShard, "contribute", contributed)
    history = count(threads_client, store, HeldUp(ROWS), shards=1).history
    assert_each_counted_once(evaluations)
    assert late == [(0, 1, False)]
    assert history["backups_launched"].values[-1] == history["backups_won"].values[-1] == 1
    assert history["repeated"].values[-1] == 1


class Clock:
    """Stands for the run's clock."""

    def __init__(self):
        self.now = 0.0

    def seconds(self):
        return self.now


class Hands:
    """A workforce that notes what it is given; all of `workers` are free that do nothing."""

    def __init__(self, workers):
        self.roster, self.given = SimpleNamespace(workers=workers), []
        self.clock, self.teams = Clock(), workers

    def workers_of(self, places):
        return list(places)

    def idle_places(self, replicas):
        return [w for w in self.roster.workers if all(w != worker for _, worker, _ in self.given)]

    def places(self, worker, replicas):
        return 1

    def replicas_at_once(self, replicas):
        return len(self.teams)

    def give(self, bundle, function, order, worker, *, take, take_back, by_parts):
        self.given.append((bundle, worker, take))


def test_a_bundle_that_is_done_gets_no_further_copy_though_its_loser_is_out():
    hands = Hands(["a", "b", "c"])
    clock = hands.clock
    told = []
    server = SimpleNamespace(
        handle=None, notices=SimpleNamespace(unwant=lambda *what: told.append(what))
    )
    plan = SimpleNamespace(run="run", replicas=None)
    tally = Tally(None, lambda record: None)
    run = SimpleNamespace(
        plan=plan, workforce=hands, roster=hands.roster, server=server, clock=clock, tally=tally
    )
    work = GradientPass(run, portions(3), PassStatistics(), "x")

    def end(worker):
        """The worker's task ends with success, if it has one; it is given the next, or none."""
        for given in [given for given in hands.given if given[1] == worker]:
            hands.given.remove(given)
            given[2](BundleReport(worker, working=1.0, finished=True))
        work._hand_out()
        return [bundle.number for bundle, other, _ in hands.given if other == worker]

    work._hand_out()
    others = sorted(bundle.number for bundle, worker, _ in hands.given if worker != "b")
    clock.now = 1.0
    assert end("b") == []
    clock.now = 10.0
    first = end("b")
    assert told == []
    clock.now = 11.0
    assert sorted(first + end("b")) == others
    (((loser,), (identity,)),) = told
    assert loser in ("a", "c") and identity == (0, *first)
    clock.now = 12.0
    assert end("b") == [] and work.portions_done == 3
