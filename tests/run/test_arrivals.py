"""Workers that are on their way when a run begins."""

import asyncio
import logging
import threading

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster, Worker

import dbdask
from dbdask import Dense, Examples, Network
from dbdask.rpc.arrivals import has_every_worker


@pytest.fixture
def client():
    """A client of a cluster that has no worker yet."""
    empty = {"n_workers": 0, "threads_per_worker": 1, "processes": False}
    with LocalCluster(**empty, dashboard_address=":0") as cluster, Client(cluster) as client:
        yield client


def train(algorithm, client, **options):
    inputs = np.arange(60, dtype="f4").reshape(20, 3) / 60
    data = xr.Dataset({"x": (("t", "f"), inputs), "y": ("t", inputs.sum(axis=1))})
    examples = Examples(data, inputs="x", targets="y", along="t")
    model = Network(input_shape=3, layers=[Dense(1)], loss="squared")
    return getattr(dbdask, algorithm)(model, examples, client=client, progress=False, **options)


@pytest.mark.parametrize("algorithm", ["downpour", "sandblaster"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda cluster: cluster.scale(2),
        # An adaptive cluster starts workers for waiting tasks only.
        lambda cluster: cluster.adapt(minimum=0, maximum=2, interval="100ms"),
    ],
    ids=["scale", "adapt"],
)
def test_the_first_workers_are_waited_for(client, algorithm, ask):
    ask(client.cluster)
    assert train(algorithm, client).status.ok


@pytest.mark.parametrize("algorithm", ["downpour", "sandblaster"])
def test_where_none_comes_the_error_says_what_to_do(client, algorithm):
    with (
        dask.config.set({"dbdask.arrival": "0.3s"}),
        pytest.raises(dbdask.WorkerError, match="has no worker: start one .* none came in 0.3 s"),
    ):
        train(algorithm, client)
    assert not client.futures


# Workers that are named


class SecondIsLate(Worker):
    """The worker named 1 comes when it may."""

    may_come = threading.Event()

    async def start_unsafe(self):
        while self.name == 1 and not self.may_come.is_set():
            await asyncio.sleep(0.01)
        return await super().start_unsafe()


@pytest.fixture
def late_cluster():
    """A cluster of the worker 0; 1 will come late."""
    SecondIsLate.may_come.clear()
    few = {"n_workers": 1, "threads_per_worker": 1, "processes": False}
    with LocalCluster(**few, worker_class=SecondIsLate, dashboard_address=":0") as cluster:
        yield cluster
        SecondIsLate.may_come.set()


class OnceSaid(logging.Handler):
    """Acts once the run has said some words."""

    def __init__(self, words, action):
        super().__init__()
        self.words, self.action = words, action

    def emit(self, record):
        if self.words in record.getMessage():
            self.action()


@pytest.fixture
def once_said():
    """Have something done once a run has said some words."""
    logger, handlers = logging.getLogger("dbdask"), []

    def add(words, action):
        handlers.append(OnceSaid(words, action))
        logger.addHandler(handlers[-1])

    yield add
    for handler in handlers:
        logger.removeHandler(handler)


@pytest.mark.parametrize("algorithm", ["downpour", "sandblaster"])
@pytest.mark.parametrize("argument", ["workers", "shard_workers"])
@pytest.mark.parametrize("knows", [True, False], ids=["by cluster", "by address"])
def test_a_named_worker_that_arrives_second_is_waited_for(
    late_cluster, once_said, algorithm, argument, knows
):
    once_said(f"{argument}=['1'] names no running worker", SecondIsLate.may_come.set)
    to = late_cluster if knows else late_cluster.scheduler_address
    with dask.config.set({"dbdask.arrival": "60s"}), Client(to, set_as_default=False) as client:
        late_cluster.scale(2)
        assert train(algorithm, client, **{argument: "1"}).status.ok
    assert SecondIsLate.may_come.is_set()


@pytest.mark.parametrize("argument", ["workers", "shard_workers"])
def test_a_name_that_no_worker_will_have_is_refused_once_all_have_come(
    late_cluster, once_said, argument
):
    words = f"{argument}=['typo'] names no running worker"
    once_said(words, SecondIsLate.may_come.set)
    match = r"typo'\] names no running worker; there are: [^,]+, [^,]+$"
    with (
        dask.config.set({"dbdask.arrival": "1h"}),
        Client(late_cluster, set_as_default=False) as client,
        pytest.raises(dbdask.WorkerError, match=match),
    ):
        late_cluster.scale(2)
        train("downpour", client, **{argument: "typo"})
    assert SecondIsLate.may_come.is_set()


@pytest.mark.parametrize("argument", ["workers", "shard_workers"])
def test_a_name_that_nothing_is_known_of_is_refused_after_a_while(late_cluster, argument):
    match = r"typo'\] names no running worker, and none came in 0.3 s \(dbdask\.arrival\); there"
    with (
        dask.config.set({"dbdask.arrival": "0.3s"}),
        Client(late_cluster.scheduler_address, set_as_default=False) as client,
        pytest.raises(dbdask.WorkerError, match=match),
    ):
        train("downpour", client, **{argument: "typo"})


def test_an_adaptive_cluster_may_start_a_worker_of_any_name(client):
    client.cluster.scale(1)
    client.wait_for_workers(1)
    assert has_every_worker(client, ["0"])
    client.cluster.adapt(minimum=1, maximum=2)
    assert not has_every_worker(client, ["0"])
