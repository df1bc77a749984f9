"""Passes over the data on a cluster: what may keep them from ending, and how they say so."""

import logging
import threading

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster, get_worker
from failing_store import Always, FailingStore, Times

import dbdask
from dbdask.data import retrying
from dbdask.data.cluster_sweeps import measure_batch
from dbdask.data.sweeps import sweep
from dbdask.errors import DataError, StoreFailed, WorkerError

PASSES = ["standardize", "check", "find_classes"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("sweeps") / "store.zarr")
    values().chunk(t=5).to_zarr(path, consolidated=False)
    return path


def values():
    inputs = np.arange(160, dtype="f4").reshape(40, 4)
    return xr.Dataset({"x": (("t", "f"), inputs), "y": ("t", np.arange(40) % 3)})


def examples_of(data):
    return dbdask.Examples(data, inputs="x", targets="y", along="t")


def cluster_of(workers):
    return LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=":0"
    )


@pytest.mark.parametrize("name", PASSES)
def test_a_client_that_cannot_work_is_refused(threads_client, path, name):
    closed = Client(threads_client.scheduler.address, set_as_default=False)
    closed.close()
    with pytest.raises(ValueError, match="client must be open, got a closed one"):
        getattr(examples_of(path), name)(client=closed)
    with pytest.raises(TypeError, match=r"client must be a dask.distributed.Client, got 'here'"):
        getattr(examples_of(path), name)(client="here")


class Closing:
    """Closes what the test says once a chunk is read, and lets the read wait for that."""

    close = None
    began, over = threading.Event(), threading.Event()

    def __call__(self):
        self.began.set()
        self.over.wait(60)
        return False


@pytest.mark.parametrize("closes", ["client", "cluster"])
def test_a_client_that_is_closed_meanwhile_is_named(path, monkeypatch, closes):
    monkeypatch.setattr("dbdask.data.sweeps.BATCH_BYTES", 1)
    monkeypatch.setattr(Closing, "began", threading.Event())
    monkeypatch.setattr(Closing, "over", threading.Event())
    cluster = cluster_of(1)
    client = Client(cluster, set_as_default=False)

    def close():
        Closing.began.wait(60)
        {"client": client, "cluster": cluster}[closes].close()

    closing = threading.Thread(target=close)
    closing.start()
    try:
        # The workers of a cluster that is closed may be gone before its scheduler is.
        words = "a pass over the data failed, because the .*clos|the cluster has no worker"
        with (
            dask.config.set({"dbdask.arrival": "0.3s"}),
            pytest.raises(WorkerError, match=words if closes == "cluster" else words.split("|")[0]),
        ):
            examples_of(FailingStore(path, "x/c/3", Closing())).check(client=client)
    finally:
        Closing.over.set()
        closing.join(60)
        client.close()
        cluster.close()


def own_cause(text):
    error = OSError(text)
    error.__cause__ = error
    return error


def own_cause_that_stays(text):
    error = ValueError(text)
    error.__cause__ = error
    return error


@pytest.mark.parametrize("make", [own_cause, own_cause_that_stays])
def test_an_error_that_is_its_own_cause_comes_out(threads_client, path, monkeypatch, make):
    monkeypatch.setattr("dbdask.schedule.retries.FIRST_PAUSE", 0.001)
    with pytest.raises(DataError, match="503 slow down"):
        examples_of(FailingStore(path, "x/c/3", Always(), make)).check(client=threads_client)


def chain_of(error):
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain, error


def test_an_error_of_a_batch_has_an_end_when_it_leaves_the_worker(path):
    examples = examples_of(FailingStore(path, "x/c/3", Always(), own_cause_that_stays))
    with pytest.raises(DataError) as caught:
        measure_batch(examples.recipe, lambda reader, block, blocks: reader.raw_block(block), (3,))
    chain, rest = chain_of(caught.value)
    assert rest is None and len(chain) == 2


def test_blocks_that_dask_cannot_compute_are_tried_again(threads_client, tmp_path, monkeypatch):
    monkeypatch.setattr("dbdask.schedule.retries.FIRST_PAUSE", 0.001)
    fault = Times(tmp_path / "left")

    def block(value):
        if fault():
            raise OSError("503 slow down")
        return value

    whole = values()
    found = da.from_array(whole["x"].values, chunks=(5, 4)).map_blocks(
        block, dtype="f4", meta=np.empty((0, 0), "f4")
    )
    examples = examples_of(whole.assign(x=(("t", "f"), found)))
    fault.add(4)
    examples.check(client=threads_client)
    assert not fault.left
    fault.add(100)
    with pytest.raises(OSError, match="503 slow down"):
        examples.check(client=threads_client)


tried = []


def read_but_at_the_first(reader, block, blocks):
    """Fail on the worker that comes first: it cannot reach the store."""
    tried.append(get_worker().address)
    if tried[-1] == tried[0]:
        raise StoreFailed("for this worker")
    return block


def test_a_batch_is_given_to_a_worker_that_has_not_failed(threads_client, path, monkeypatch):
    monkeypatch.setattr("dbdask.schedule.retries.FIRST_PAUSE", 0.001)
    tried.clear()
    recipe = examples_of(path).recipe
    assert list(sweep(recipe, read_but_at_the_first, threads_client)) == list(range(8))
    assert len(set(tried)) == 2


def test_workers_that_do_not_come_are_named(path, caplog):
    with (
        dask.config.set({"dbdask.arrival": "0.3s"}),
        cluster_of(0) as cluster,
        Client(cluster, set_as_default=False) as client,
        caplog.at_level(logging.WARNING, logger="dbdask"),
    ):
        for name in PASSES:
            with pytest.raises(WorkerError, match=r"has no worker: start one .* came in 0.3 s"):
                getattr(examples_of(path), name)(client=client)
        assert not client.futures
    assert "the cluster has no worker: one is waited for, up to 0.3 s" in caplog.text


def test_an_adaptive_cluster_is_asked_for_a_worker(path):
    with cluster_of(0) as cluster, Client(cluster, set_as_default=False) as client:
        cluster.adapt(minimum=0, maximum=1, interval="100ms")
        examples_of(path).check(client=client)


def test_where_all_workers_leave_others_are_waited_for_and_then_named(path, monkeypatch):
    monkeypatch.setattr("dbdask.data.cluster_sweeps.COUNT_SECONDS", 0.05)
    monkeypatch.setattr(Closing, "began", threading.Event())
    monkeypatch.setattr(Closing, "over", threading.Event())
    with (
        dask.config.set({"dbdask.arrival": "0.3s"}),
        cluster_of(1) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):

        def leave():
            Closing.began.wait(60)
            cluster.scale(0)

        leaving = threading.Thread(target=leave)
        leaving.start()
        try:
            with pytest.raises(WorkerError, match="has no worker"):
                examples_of(FailingStore(path, "x/c/3", Closing())).check(client=client)
        finally:
            Closing.over.set()
            leaving.join(60)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(retrying, "_said", {})
