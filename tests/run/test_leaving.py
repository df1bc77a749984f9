"""Workers that leave in mid-training hand their shards on: nothing is rolled back."""

import asyncio
import logging
import threading
import time
import types

import dask
import numpy as np
import pytest
from acting import After
from asking import workers_of
from distributed import Client, LocalCluster
from test_downpour import assert_nothing_left, write_store
from test_recovery import assert_workers_run_tasks, train

import dbdask
from dbdask.rpc.scheduler import WorkerFacts
from dbdask.run import shard_placement
from dbdask.run.shard_placement import ShardPlacement

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
    return set(workers_of(client))


def wait_until(condition, seconds=120.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def train_while(client, store, action, **options):
    """Train the counting model, and begin `action` when training is under way."""
    beside = After(4, action)
    result = train(client, store, callbacks=[beside], **({"epochs": EPOCHS} | options))
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


def test_training_goes_on_while_a_worker_that_leaves_is_retired(cluster, store, monkeypatch):
    """It moves the user's data first, and may stop just then."""
    _, client = cluster
    asked, heard, went_on, retire = [], [], threading.Event(), shard_placement.retire

    async def slow(client, worker):
        asked.append(worker)
        heard.append(await asyncio.to_thread(went_on.wait, 30))
        return await retire(client, worker)

    monkeypatch.setattr(shard_placement, "retire", slow)
    beside = After(4, lambda: client.retire_workers(shard_workers(client)[:1]))
    result = train(
        client,
        store,
        epochs=EPOCHS,
        callbacks=[beside, lambda record: went_on.set() if asked else None],
    )
    beside.done()
    assert heard == [True]  # training did not wait
    np.testing.assert_array_equal(result.parameters["count"].values, EPOCHS)
    wait_until(lambda: not set(asked) & addresses(client))
    assert_nothing_left(client)


def test_the_end_of_a_run_waits_a_moment_for_workers_that_leave(monkeypatch, caplog):
    waiting = []

    async def retire(client, worker):
        if worker == "broken":
            raise OSError("no answer")
        if worker == "holder":
            return False
        waiting.append(worker)
        try:
            await asyncio.sleep(0.01 if worker == "slow" else 3600)
            return True
        finally:
            waiting.remove(worker)

    async def nothing(*arguments):
        pass

    async def live():
        workers = ["broken", "holder", "slow", "stopped"]
        facts = {"other": WorkerFacts("other", "other", "here", 0)}
        roster = types.SimpleNamespace(closing=set(), leaving=set(), away=set(), facts=facts)
        server = types.SimpleNamespace(
            can_leave=lambda *_: True, move=nothing, workers=workers, copies=1, wanted=1
        )
        workforce, tally = types.SimpleNamespace(roster=roster), types.SimpleNamespace()
        placement = ShardPlacement(None, server, workforce, None, tally, None)
        placement._hear({"action": "retire-workers", "could-not-retire": workers})
        await asyncio.wait_for(placement.reconcile(), 30)
        with dask.config.set({"dbdask.answer": "1s"}):
            await asyncio.wait_for(placement.end(), 30)
        assert len(asyncio.all_tasks()) == 1 and not waiting
        assert roster.leaving == {"slow", "stopped"}  # the others stay, and get work

    monkeypatch.setattr(shard_placement, "retire", retire)
    asyncio.run(live())
    assert "worker broken could not be retired, and stays: OSError('no answer')" in caplog.text
    assert "worker holder could not be retired, and stays: Dask has not" in caplog.text


def test_scaling_down_loses_no_update(cluster, store, quick_turns):
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
    assert "start another one, or widen shard_workers=, and then ask it again" in caplog.text
    np.testing.assert_array_equal(result.parameters["count"].values, EPOCHS)
    assert home in addresses(client)


def test_a_new_worker_takes_part_and_a_users_own_handler_stays(cluster, store):
    local, client = cluster
    heard, four_train = [], threading.Event()

    def scale():
        local.scale(4)
        assert four_train.wait(60)

    def look(record):
        if record.replicas == 4:
            four_train.set()

    client.subscribe_topic("all", heard.append)
    beside = After(4, scale)
    result = train(client, store, epochs=20, callbacks=[beside, look])
    beside.done()
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
