"""Workers that are on their way when a run begins."""

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import dbdask
from dbdask import Dense, Examples, Network


@pytest.fixture
def client():
    """A client of a cluster that has no worker yet."""
    empty = {"n_workers": 0, "threads_per_worker": 1, "processes": False}
    with LocalCluster(**empty, dashboard_address=":0") as cluster, Client(cluster) as client:
        yield client


def train(algorithm, client):
    inputs = np.arange(60, dtype="f4").reshape(20, 3) / 60
    data = xr.Dataset({"x": (("t", "f"), inputs), "y": ("t", inputs.sum(axis=1))})
    examples = Examples(data, inputs="x", targets="y", along="t")
    model = Network(input_shape=3, layers=[Dense(1)], loss="squared")
    return getattr(dbdask, algorithm)(model, examples, client=client, progress=False)


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
