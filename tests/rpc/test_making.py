"""Shards are made where they are meant to be, however long that takes."""

import threading
import time

import pytest
from acting import After, SlowUntil
from counting import CountingModel
from distributed import Client, LocalCluster
from faults import everyone
from test_downpour import assert_nothing_left, counted, write_store
from test_leaving import wait_until

import dbdask
from dbdask.errors import ShardLost
from dbdask.rpc.making import submit_actor, wait_until_made

ROWS, SHARDS = 600, 4


class SlowToBegin(CountingModel):
    """Takes its time over the numbers that a shard starts with."""

    def initial_parameters(self, seed, start, stop):
        time.sleep(0.7)
        return super().initial_parameters(seed, start, stop)


@pytest.fixture
def client():
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def shards_by_worker(dask_scheduler):
    return {
        address: sum(str(task.key).startswith("dbdask-shard") for task in worker.has_what)
        for address, worker in dask_scheduler.workers.items()
    }


def test_no_idle_worker_steals_a_shard_that_waits_to_be_made(client, tmp_path):
    """Dask keeps a stolen actor in the books of its first worker, which could never retire."""
    holder, *_ = everyone(client)
    seen = []
    look = After(1, lambda: seen.append(client.run_on_scheduler(shards_by_worker)))
    dbdask.downpour(
        SlowUntil(SlowToBegin(ROWS), look.over, 5),
        counted(write_store(tmp_path / "store.zarr", ROWS)),
        client=client,
        shards=SHARDS,
        shard_workers=holder,
        epochs=4,
        callbacks=[look],
        progress=False,
    )
    look.done()
    assert [{a: n for a, n in shards.items() if n} for shards in seen] == [{holder: SHARDS}]
    assert_nothing_left(client)
    client.retire_workers([holder])
    wait_until(lambda: holder not in everyone(client))


class Endless:
    """An actor whose making does not end before `over`."""

    begun, over = threading.Event(), threading.Event()

    def __init__(self):
        self.begun.set()
        self.over.wait()


def test_an_actor_that_the_scheduler_forgets_is_not_waited_for(threads_client):
    """The user releases what the client holds; the deadline of its making is a minute."""
    client, worker = threads_client, everyone(threads_client)[0]

    def forget(dask_scheduler):
        for name in list(dask_scheduler.clients):
            dask_scheduler.client_releases_keys(keys=["endless"], client=name, stimulus_id="test")

    def let_go(dask_scheduler):
        """Dask counts an actor that was released while it was made as one of its worker's."""
        for state in dask_scheduler.workers.values():
            state.actors = {task for task in state.actors if task.key != "endless"}

    async def make():
        await wait_until_made(
            client, submit_actor(client, Endless, (), "endless", worker), "it", worker
        )

    def act():
        assert Endless.begun.wait(120)
        client.run_on_scheduler(forget)

    acting = threading.Thread(target=act)
    acting.start()
    began = time.monotonic()
    try:
        with pytest.raises(ShardLost, match="it was lost while it was made"):
            client.sync(make)
        assert time.monotonic() - began < 30
    finally:
        Endless.over.set()
        acting.join()
        client.run_on_scheduler(let_go)
