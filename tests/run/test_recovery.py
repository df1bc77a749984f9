"""What happens when workers are killed or the user interrupts."""

import os
import signal
import threading
import time

import dask
import numpy as np
import pytest
from acting import After, SlowUntil, over
from asking import workers_of
from counting import CountingModel
from distributed import Client, LocalCluster
from test_downpour import assert_nothing_left, counted, write_store

import dbdask
from dbdask.storage import sealed


class SlowCounting(CountingModel):
    """Takes its time, so that a run lasts long enough to be disturbed."""

    def loss_and_gradient(self, parameters, inputs, targets, **rest):
        time.sleep(0.005)
        return super().loss_and_gradient(parameters, inputs, targets, **rest)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("recovery") / "store.zarr")


@pytest.fixture
def cluster():
    with (
        dask.config.set({"dbdask.lease": "2s"}),  # workers read it where they start
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def train(client, store, **options):
    """Train a model that counts; it is slow until an `After` among the callbacks has acted."""
    settings = {"optimizer": dbdask.sgd(20.0), "batch_size": 20, "progress": False, "shards": 2}
    model = SlowUntil(SlowCounting(1200), over(options.get("callbacks", ())), 45)
    return dbdask.downpour(model, counted(store), client=client, **(settings | options))


def kill_a_shard(client):
    """SIGKILL the process of a worker that holds a shard; returns its address."""
    holders = client.run_on_scheduler(
        lambda dask_scheduler: [a for a, w in dask_scheduler.workers.items() if w.actors]
    )
    pids = client.run(os.getpid, workers=holders[:1])
    os.kill(pids[holders[0]], signal.SIGKILL)
    return holders[0]


def assert_workers_run_tasks(client):
    addresses = list(workers_of(client))
    futures = [client.submit(abs, -n, workers=[a], pure=False) for n, a in enumerate(addresses)]
    assert [future.result(timeout=120) for future in futures] == list(range(len(addresses)))


def assert_one_snapshot(path):
    """Nothing lies in a checkpoint but one snapshot, and what the checkpoint is of."""
    _, *others = sealed.children(path)
    assert others == ["zarr.json"], others


def test_a_killed_shard_comes_back_from_the_checkpoint(cluster, store, tmp_path):
    result = train(
        cluster,
        store,
        epochs=8,
        checkpoint=str(tmp_path / "run.zarr"),
        snapshot_every="300ms",
        callbacks=[After(6, lambda: kill_a_shard(cluster))],
    )
    assert result.status.reason == "epochs"
    assert result.history["lost"].values[-1] >= 1
    counts = result.parameters["count"].values
    assert counts.max() <= 8
    missing = 8 * 1200 - counts.sum()
    rolled_back = int(result.history["rolled_back"].values[-1])
    assert 0 <= missing <= 20 * rolled_back
    assert_one_snapshot(str(tmp_path / "run.zarr"))
    assert_nothing_left(cluster)
    assert_workers_run_tasks(cluster)


def test_a_killed_shard_without_a_checkpoint_is_an_error_that_names_the_remedy(cluster, store):
    with pytest.raises(dbdask.ShardLost, match=r"checkpoint=.*shard_copies=2"):
        train(cluster, store, epochs=50, callbacks=[After(4, lambda: kill_a_shard(cluster))])
    assert_nothing_left(cluster)
    assert_workers_run_tasks(cluster)


def test_the_only_shard_takes_the_whole_run_back(cluster, store, tmp_path):
    result = train(
        cluster,
        store,
        epochs=6,
        shards=1,
        checkpoint=str(tmp_path / "run.zarr"),
        snapshot_every="300ms",
        callbacks=[After(5, lambda: kill_a_shard(cluster))],
    )
    np.testing.assert_array_equal(result.parameters["count"].values, 6)
    assert result.history["lost"].values[-1] == 1
    assert_one_snapshot(str(tmp_path / "run.zarr"))


def test_ctrl_c_stops_the_run_and_keeps_what_was_learnt(threads_client, store):
    main = threading.main_thread().ident
    stop = After(3, lambda: signal.pthread_kill(main, signal.SIGINT))
    with pytest.warns(dbdask.TrainingWarning, match="interrupted.*parameters=result"):
        result = train(threads_client, store, epochs=500, callbacks=[stop])
    assert result.status.reason == "interrupted" and not result.status.ok
    assert result.parameters["count"].values.sum() > 0
    assert_nothing_left(threads_client)
