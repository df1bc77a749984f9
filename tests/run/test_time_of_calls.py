"""The start and the end of a call are in its history, by a clock that the test alone moves."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from test_downpour import labelled, network, write_store

import dbdask
from dbdask.metrics import call_time, time_spent
from dbdask.metrics.bottleneck import bottleneck
from dbdask.models.evaluation import Evaluator
from dbdask.run import training
from dbdask.run.parameter_server import ParameterServer
from dbdask.run.run import Run
from dbdask.worker import batch_replica, replica

ROWS, BATCH, STEP = 600, 20, 0.5
WRITTEN = Path(__file__).parents[1] / "storage" / "written_before"
TICKS = {
    "checking": 11.0,
    "shards": 7.0,
    "first_task": 5.0,
    "concluding": 3.0,
    "parameters": 4.0,
    "releasing": 2.0,
}
both = pytest.mark.parametrize("algorithm", ["downpour", "sandblaster"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("calls") / "store.zarr", ROWS)


class Clock:
    """Stands for `perf_counter` wherever seconds are counted for the history."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        for module in (call_time, time_spent, replica, batch_replica):
            monkeypatch.setattr(module, "perf_counter", lambda: self.now)

    def ticking(self, seconds, function):
        """The same function, which takes so long."""

        def slow(*arguments, **options):
            self.now += seconds
            return function(*arguments, **options)

        return slow


class Steps:
    """Counts minibatches; each takes half a second."""

    def __init__(self, clock, monkeypatch):
        self.count, plain = 0, Evaluator.minibatch

        def minibatch(*arguments, **options):
            self.count += 1
            clock.now += STEP
            return plain(*arguments, **options)

        monkeypatch.setattr(Evaluator, "minibatch", minibatch)


def slow_call(clock, monkeypatch, algorithm):
    """Let each stage of a call take as long as `TICKS` says, and the first task of a worker."""
    module = importlib.import_module(f"dbdask.algorithms.{algorithm}")
    tasks = {"downpour": replica, "sandblaster": batch_replica}[algorithm]
    places = [
        (module, "shared_arguments", "checking"),
        (training, "make_shards", "shards"),
        (Run, "conclude", "concluding"),
        (ParameterServer, "read", "parameters"),
        (training, "release", "releasing"),
    ]
    for place, name, stage in places:
        slow = clock.ticking(TICKS[stage], getattr(place, name))
        monkeypatch.setattr(place, name, slow)
    open_context, opened = tasks.open_context, []

    def open_once(*arguments):
        if not opened:
            opened.append(True)
            clock.now += TICKS["first_task"]
        return open_context(*arguments)

    monkeypatch.setattr(tasks, "open_context", open_once)


def train(algorithm, client, store, **options):
    settings = {"client": client, "replicas": 1, "progress": False} | options
    if algorithm == "downpour":
        settings = {"optimizer": dbdask.sgd(0.1), "batch_size": BATCH} | settings
        return dbdask.downpour(network(), labelled(store), **settings)
    settings = {"iterations": 3, "tolerance": 0.0} | settings
    return dbdask.sandblaster(network(), labelled(store), **settings)


@both
def test_what_is_slow_is_seen_in_its_stage_and_all_stages_are_the_call(
    threads_client, store, monkeypatch, tmp_path, algorithm
):
    clock = Clock(monkeypatch)
    steps = Steps(clock, monkeypatch)
    slow_call(clock, monkeypatch, algorithm)
    result = train(algorithm, threads_client, store)
    history = result.history
    found = history.attrs
    for stage, seconds in TICKS.items():
        side = "ending" if stage in call_time.ENDING else "starting"
        assert found[f"seconds_{side}_{stage}"] == pytest.approx(seconds, abs=1e-9), stage
    assert found["seconds_training"] == pytest.approx(STEP * steps.count, abs=1e-9)
    sums = [found[f"seconds_{name}"] for name in ("starting", "training", "ending")]
    assert sum(sums) == pytest.approx(clock.now - 1000.0, abs=1e-9)
    assert sums[0] == pytest.approx(23, abs=1e-9) and sums[2] == pytest.approx(9, abs=1e-9)
    assert found["seconds_starting_cluster"] == 0 and found["first_record"] == 0

    assert history["seconds_computing"].values[-1] == pytest.approx(STEP * steps.count)
    if algorithm == "downpour":  # the set-up of a replica is no waiting
        assert history["seconds_waiting"].values[-1] == pytest.approx(0.0, abs=1e-9)
    said = bottleneck(history)
    assert said.startswith("Starting and ending take") and "checking the arguments" in said

    result.save(tmp_path / "model.zarr")
    assert dbdask.load(tmp_path / "model.zarr").history.identical(history)
    detached = result.detached().history
    assert detached.identical(history)


@both
def test_a_resumed_call_has_a_start_and_an_end_of_its_own(
    threads_client, store, monkeypatch, tmp_path, algorithm
):
    clock = Clock(monkeypatch)
    Steps(clock, monkeypatch)
    slow_call(clock, monkeypatch, algorithm)
    length = {"downpour": "epochs", "sandblaster": "iterations"}[algorithm]
    options = {"checkpoint": str(tmp_path / "run.zarr"), "resume": "auto"}
    first = train(algorithm, threads_client, store, **{length: 2}, **options).history
    again = train(algorithm, threads_client, store, **{length: 4}, **options).history
    assert again.attrs["seconds_starting_shards"] == pytest.approx(TICKS["shards"], abs=1e-9)
    assert again.attrs["first_record"] == first.sizes["record"] < again.sizes["record"]
    before = again.isel(record=slice(first.sizes["record"]))
    np.testing.assert_array_equal(before["seconds_computing"], first["seconds_computing"])
    total = again["seconds_computing"].values[-1]
    done_by_call = total - first["seconds_computing"].values[-1]
    assert again.attrs["seconds_training"] == pytest.approx(done_by_call, abs=1e-9)


def test_a_cluster_of_the_call_s_own_is_a_stage(store, monkeypatch):
    """Its start is one, and its close is part of the end."""
    clock, session = Clock(monkeypatch), importlib.import_module("dbdask.run.session")
    plain = session.LocalCluster

    class Slow(plain):
        def __enter__(self):
            clock.now += 13.0
            return super().__enter__()

        def __exit__(self, *error):
            clock.now += 17.0
            super().__exit__(*error)

    def local_cluster(**options):
        return Slow(n_workers=1, processes=False, **options)

    monkeypatch.setattr(session, "LocalCluster", local_cluster)
    monkeypatch.setattr(session, "default_client", lambda: None)
    found = train("downpour", None, store).history
    assert found.attrs["seconds_starting_cluster"] == 13.0
    assert found.attrs["seconds_ending_releasing"] == 17.0
    assert "client= that stays open" in bottleneck(found)


def test_a_result_that_an_older_version_saved_tells_nothing_of_its_call():
    history = dbdask.load(WRITTEN / "model").history
    assert history.attrs == {} and history.sizes["record"] > 0
    assert "Starting" not in bottleneck(history)
