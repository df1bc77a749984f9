"""Workers that stop without dying, and come back when nobody expects them any more."""

import os
import signal
import threading

import dask
import numpy as np
import pytest
import xarray as xr
from acting import After
from asking import workers_of
from distributed import Client, LocalCluster, Status
from test_downpour import assert_nothing_left, write_store
from test_leaving import addresses, shard_workers, wait_until
from test_recovery import assert_workers_run_tasks, train

import dbdask.run.preflight
from dbdask.data.block_provider import BlockProvider

SHORT = {
    "dbdask.silence": "500ms",
    "dbdask.ping": "1s",
    "dbdask.answer": "1s",
    "distributed.worker.memory.pause": False,  # tests pause workers themselves
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("silence") / "store.zarr")


@pytest.fixture
def client():
    with (
        dask.config.set(SHORT),
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.run(imported_by_checks)  # else the first check's imports may pass for silence
        yield client


def imported_by_checks():
    return dbdask.run.preflight.__name__


class Stopped:
    """Stops a worker's process, and lets it go on when the run has gone on without it."""

    def __init__(self, client, choose):
        self.client, self.choose = client, choose
        self.process = 0
        self.records_after = 0

    def stop(self):
        worker = self.choose(self.client)
        process = self.client.run(os.getpid, workers=[worker])[worker]
        os.kill(process, signal.SIGSTOP)
        self.process = process

    def go_on(self):
        if self.process:
            os.kill(self.process, signal.SIGCONT)
            self.process = 0

    def callback(self, until):
        """Count records since the stop; the worker comes back at the `until`-th."""

        def call(record):
            self.records_after += bool(self.process)
            if self.records_after == until:
                self.go_on()

        return call


def with_a_shard(client):
    return shard_workers(client)[0]


def without_a_shard(client):
    return sorted(addresses(client) - set(shard_workers(client)))[0]


def test_a_stopped_replica_is_done_without_and_its_late_pushes_count_once(client, store):
    stopped = Stopped(client, without_a_shard)
    try:
        callbacks = [After(3, stopped.stop), stopped.callback(12)]
        result = train(client, store, epochs=8, callbacks=callbacks)
    finally:
        stopped.go_on()
    assert stopped.records_after >= 12
    np.testing.assert_array_equal(result.parameters["count"].values, 8)
    assert_nothing_left(client)
    assert_workers_run_tasks(client)


@pytest.mark.parametrize("route", ["memory", "dask"])
def test_values_that_lie_on_a_stopped_worker_are_brought_again(client, store, route, monkeypatch):
    """All portions share one group of blocks, which was brought to the worker that stops."""
    monkeypatch.setattr("dbdask.data.routes.INLINE_BYTES", 0)
    data = xr.open_zarr(store, consolidated=False).load()
    data = data.chunk(row=100) if route == "dask" else data
    stopped, stayed = sorted(addresses(client))[:2]
    process = client.run(os.getpid, workers=[stopped])[stopped]
    futures, brought = BlockProvider.futures, threading.Event()

    def and_stop(provider, portion, workers=None):
        found = futures(provider, portion, workers)
        if list(workers) == [stopped] and not brought.is_set():
            wait_until(lambda: all(future.done() for future in found))
            os.kill(process, signal.SIGSTOP)
            brought.set()
        return found

    monkeypatch.setattr(BlockProvider, "futures", and_stop)
    try:
        result = train(client, data, workers=[stopped, stayed], shard_workers=[stayed], epochs=2)
    finally:
        os.kill(process, signal.SIGCONT)
    assert brought.is_set()
    np.testing.assert_array_equal(result.parameters["count"].values, 2)
    assert_workers_run_tasks(client)


def test_a_stopped_shard_is_replaced_and_the_old_one_is_refused(client, store, tmp_path):
    stopped = Stopped(client, with_a_shard)
    try:
        result = train(
            client,
            store,
            epochs=8,
            checkpoint=str(tmp_path / "run.zarr"),
            snapshot_every="300ms",
            callbacks=[After(6, stopped.stop), stopped.callback(8)],
        )
    finally:
        stopped.go_on()
    assert result.history["lost"].values[-1] >= 1
    counts = result.parameters["count"].values
    missing = 8 * 1200 - counts.sum()
    assert counts.max() <= 8
    assert 0 <= missing <= 20 * result.history["rolled_back"].values[-1]
    assert_workers_run_tasks(client)


def test_a_worker_that_has_stopped_before_the_run_is_done_without(client, store, caplog):
    stopped = Stopped(client, lambda client: sorted(addresses(client))[0])
    stopped.stop()
    try:
        result = train(client, store, epochs=8, callbacks=[stopped.callback(6)])
    finally:
        stopped.go_on()
    assert "is silent" in caplog.text
    assert result.history["replicas"].values[0] == 2
    np.testing.assert_array_equal(result.parameters["count"].values, 8)
    assert_nothing_left(client)
    assert_workers_run_tasks(client)


@pytest.mark.parametrize("has_shard", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_worker_that_dask_pauses_holds_nobody_up(client, store, has_shard):
    """What waits there to be begun would wait for ever; its shards go on serving."""
    paused = []

    def pause():
        worker = (with_a_shard if has_shard else without_a_shard)(client)
        client.run(set_status, "paused", workers=[worker])
        paused.append(worker)

    result = train(client, store, epochs=8, callbacks=[After(3, pause)])
    np.testing.assert_array_equal(result.parameters["count"].values, 8)
    assert workers_of(client)[paused[0]]["status"] == "paused"
    assert result.history["replicas"].values[-1] == 2
    assert result.history["lost"].values[-1] == 0
    client.run(set_status, "running", workers=paused)
    assert_nothing_left(client)
    assert_workers_run_tasks(client)


def set_status(name, dask_worker):
    dask_worker.status = Status[name]


def test_the_threads_of_this_process_are_those_of_before(store, threads_client):
    before = {t.name for t in threading.enumerate()}
    train(threads_client, store, epochs=1)
    wait_until(lambda: {t.name for t in threading.enumerate() if "dbdask" in t.name} <= before)
