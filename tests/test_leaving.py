"""Workers that leave in mid-training hand their shards on: nothing is rolled back."""

import logging
import threading
import time

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from test_downpour import assert_nothing_left, write_store
from test_recovery import after, assert_workers_run_tasks, train

import dbdask

EPOCHS = 8


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("leaving") / "store.zarr")


@pytest.fixture
def cluster():
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client


def shard_workers(client):
    return client.run_on_scheduler(
        lambda dask_scheduler: [a for a, w in dask_scheduler.workers.items() if w.actors]
    )


def addresses(client):
    return set(client.scheduler_info(n_workers=-1)["workers"])


def wait_until(condition, seconds=30.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


class Aside(threading.Thread):
    """Does something beside the verb, and lets its error come out."""

    def __init__(self, action):
        super().__init__()
        self.action, self.error = action, None

    def run(self):
        try:
            self.action()
        except BaseException as error:
            self.error = error

    def done(self):
        self.join(60)
        if self.error is not None:
            raise self.error


def train_while(client, store, action, **options):
    """Train the counting model, and begin `action` when training is under way."""
    beside = Aside(action)
    result = train(
        client,
        store,
        epochs=options.pop("epochs", EPOCHS),
        callbacks=[after(4, beside.start)],
        **options,
    )
    beside.done()
    return result


def test_a_retired_worker_hands_its_shard_on_and_goes(cluster, store):
    _, client = cluster
    gone = []

    def retire():
        worker = shard_workers(client)[0]
        client.retire_workers([worker])
        wait_until(lambda: worker not in addresses(client))
        gone.append(worker)

    result = train_while(client, store, retire)
    assert len(gone) == 1
    np.testing.assert_array_equal(result.parameters["count"].values, EPOCHS)
    assert result.history["lost"].values[-1] == result.history["rolled_back"].values[-1] == 0
    assert_nothing_left(client)
    assert_workers_run_tasks(client)


def test_scaling_down_loses_no_update(cluster, store):
    local, client = cluster

    def scale():
        local.scale(1)
        wait_until(lambda: len(addresses(client)) == 1)

    result = train_while(client, store, scale)
    np.testing.assert_array_equal(result.parameters["count"].values, EPOCHS)
    assert result.history["lost"].values[-1] == 0
    assert_nothing_left(client)


def test_the_only_home_of_the_shards_is_asked_in_vain(cluster, store, caplog):
    _, client = cluster
    home = sorted(addresses(client))[0]
    with caplog.at_level(logging.WARNING, "dbdask"):
        result = train_while(
            client, store, lambda: client.retire_workers([home]), shard_workers=home
        )
    assert "cannot leave: it holds parameter shards" in caplog.text
    np.testing.assert_array_equal(result.parameters["count"].values, EPOCHS)
    assert home in addresses(client)


def test_a_new_worker_takes_part_and_a_users_own_handler_stays(cluster, store):
    local, client = cluster
    heard = []
    client.subscribe_topic("all", heard.append)
    result = train_while(client, store, lambda: local.scale(4), epochs=20)
    assert result.history["replicas"].values[-1] == 4
    before = len(heard)
    client.log_event("all", {"action": "mine"})
    wait_until(lambda: len(heard) > before)
    np.testing.assert_array_equal(result.parameters["count"].values, 20)


def test_an_adaptive_cluster_sees_the_demand(store):
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as local,
        Client(local, set_as_default=False) as client,
    ):
        # It waits before it scales down: between two epochs there is no demand for a moment.
        local.adapt(minimum=1, maximum=3, interval="100ms", target_duration="20ms", wait_count=100)
        seen = []
        result = train(
            client,
            store,
            epochs=200,
            callbacks=[lambda record: seen.append(record.replicas) or record.replicas == 3],
        )
        assert result.status.reason == "callback", max(seen)
        assert result.history["rolled_back"].values[-1] == 0
        assert_nothing_left(client)


def test_a_run_whose_own_workers_have_left_ends_though_there_are_others(cluster, store):
    _, client = cluster
    mine, *others = sorted(addresses(client))
    with (
        dask.config.set({"dbdask.arrival": "2s"}),
        pytest.raises(dbdask.WorkerError, match=r"no worker of workers=\[.*is left to train on"),
    ):
        train_while(
            client,
            store,
            lambda: client.retire_workers([mine]),
            epochs=10_000,
            workers=mine,
            shard_workers=others,
        )
    assert_nothing_left(client)
