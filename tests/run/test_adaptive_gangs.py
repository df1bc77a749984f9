"""Partitioned replicas on clusters that adapt: gangs form as workers come, and end as they go."""

import pytest
from acting import After
from counting import missing_updates
from counting_parts import COUNTS, SlowDense, counted_pairs, counting_network
from distributed import Client, LocalCluster
from test_downpour import assert_nothing_left, labelled, write_store
from test_leaving import wait_until

import dbdask

ROWS, BATCH, SHARDS = 1200, 20, 2
QUICK = {"interval": "100ms", "wait_count": 30}  # it waits as long as by default: 3 s


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("adaptive-gangs") / "store.zarr", ROWS)


@pytest.fixture
def cluster():
    """A cluster without workers, whose workers will have one thread in this process."""
    with (
        LocalCluster(
            n_workers=0, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield local, client


def count(client, store, path, *, epochs, until=None, **options):
    """Train the counting network in two parts; slowly until there is a file at `until`."""
    result = dbdask.downpour(
        counting_network(ROWS, SHARDS, until),
        counted_pairs(store),
        client=client,
        optimizer=dbdask.sgd(float(BATCH)),
        batch_size=BATCH,
        epochs=epochs,
        partitions=2,
        shards=SHARDS,
        checkpoint=path,  # a worker that goes while the machine is busy may lose its shard
        progress=False,
        **options,
    )
    assert result.status.reason == "epochs"
    missing = missing_updates(result, epochs, SHARDS, BATCH, COUNTS)
    assert missing == result.history["rolled_back"].values[-1]
    assert result.history["step"].values[-1] == epochs * ROWS // BATCH
    assert_nothing_left(client)
    return result


@pytest.mark.parametrize("minimum", [0, 2])
def test_a_run_gets_the_workers_of_a_gang_from_a_cluster_that_has_none(
    cluster, store, tmp_path, minimum
):
    """With Dask's own target duration: little work that waits is no reason for two workers."""
    local, client = cluster
    local.adapt(minimum=minimum, maximum=4, **QUICK)
    result = count(client, store, str(tmp_path / "run.zarr"), epochs=2)
    assert result.history["replicas"].values[-1] >= 1


@pytest.mark.slow
def test_passes_get_the_workers_of_a_gang_from_a_cluster_that_has_none(cluster, store, tmp_path):
    local, client = cluster
    local.adapt(minimum=0, maximum=4, **QUICK)
    layers = [SlowDense.of(8, "tanh", None), dbdask.Dense(3)]
    result = dbdask.sandblaster(
        dbdask.Network(input_shape=(6,), layers=layers, loss="softmax"),
        labelled(store),
        client=client,
        iterations=5,
        tolerance=0.0,
        partitions=2,
        checkpoint=str(tmp_path / "run.zarr"),
        progress=False,
    )
    assert result.status.reason == "iterations"
    assert result.history["rolled_back"].values[-1] == 0
    assert_nothing_left(client)


class Adapting(After):
    """A callback that lets a cluster adapt otherwise, and sees how many gangs there are."""

    def __init__(self, action):
        super().__init__(1, lambda: action(self))
        self.gangs = []

    def __call__(self, record):
        self.gangs.append(int(record.replicas))
        super().__call__(record)

    def wait_for(self, gangs):
        """Wait until the run says that so many gangs train."""
        wait_until(lambda: self.gangs[-1] == gangs)


@pytest.mark.slow
def test_gangs_come_with_the_workers_and_go_with_them(cluster, store, tmp_path):
    local, client = cluster

    def adapt(seen):
        seen.wait_for(2)
        local.adapt(minimum=0, maximum=2, **QUICK)
        seen.wait_for(1)
        local.adapt(minimum=4, maximum=4, **QUICK)
        seen.wait_for(2)

    adapting = Adapting(adapt)
    local.adapt(minimum=0, maximum=4, target_duration="20ms", **QUICK)
    count(
        client,
        store,
        str(tmp_path / "run.zarr"),
        epochs=10,
        until=adapting.over,
        callbacks=[adapting],
    )
    adapting.done()
