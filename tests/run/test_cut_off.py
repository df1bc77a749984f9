"""A worker whose cable is cut: in a network namespace of its own, which the test makes and ends.

It runs on and holds what it held; nobody hears it, and no connection is closed.
"""

import os
import subprocess
import sys

import dask
import numpy as np
import pytest
from acting import After
from distributed import Client, LocalCluster
from faults import everyone, holders
from search_path import SEARCH_PATH
from test_downpour import assert_nothing_left, write_store
from test_leaving import wait_until
from test_recovery import train

from dbdask.worker.context import contexts_on

HERE, THERE = "10.211.77.1", "10.211.77.2"
SHORT = {"dbdask.silence": "500ms", "dbdask.ping": "2s", "dbdask.answer": "1s"}
NAMES = {name.upper().replace("DBDASK.", "DASK_DBDASK__"): value for name, value in SHORT.items()}


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


@pytest.fixture
def cable():
    """The near end of a cable to a namespace of its own, which has the same name."""
    name = f"dbdask{os.getpid() % 100_000}"
    try:
        made = ip("netns", "add", name, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `ip` to make a network namespace with")
    if made.returncode:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    try:
        far = ("netns", "exec", name, "ip")
        ip("link", "add", name, "type", "veth", "peer", "name", "far", "netns", name)
        ip("address", "add", f"{HERE}/30", "dev", name)
        ip("link", "set", name, "up")
        ip(*far, "address", "add", f"{THERE}/30", "dev", "far")
        ip(*far, "link", "set", "far", "up")
        ip(*far, "link", "set", "lo", "up")
        yield name
    finally:
        ip("netns", "delete", name)


@pytest.fixture
def client(cable, tmp_path):
    with (
        dask.config.set(SHORT),
        LocalCluster(
            n_workers=2, threads_per_worker=1, host=HERE, dashboard_address=f"{HERE}:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        subprocess.Popen(
            [
                *("ip", "netns", "exec", cable, sys.executable, "-m", "dask", "worker"),
                *(cluster.scheduler_address, "--host", THERE, "--nthreads", "1", "--no-nanny"),
                *("--no-dashboard", "--local-directory", str(tmp_path)),
            ],
            env=os.environ | NAMES | {"PYTHONPATH": SEARCH_PATH},
            stderr=subprocess.DEVNULL,
        ) as worker,
    ):
        try:
            client.wait_for_workers(3, timeout=60)
            yield client
        finally:
            worker.kill()


@pytest.mark.chaos
@pytest.mark.parametrize("copies", [1, 2])
def test_a_worker_that_is_cut_off_is_done_without(client, cable, tmp_path, copies):
    store = write_store(tmp_path / "store.zarr")
    far = next(worker for worker in everyone(client) if THERE in worker)
    cut = []

    def act():
        assert copies == 1 or far in holders(client)
        ip("link", "set", cable, "down")
        cut.append(True)

    result = train(
        client,
        store,
        epochs=10,
        shards=3,
        shard_copies=copies,
        shard_workers=None if copies == 2 else [w for w in everyone(client) if w != far],
        callbacks=[After(4, act)],
    )
    assert cut
    np.testing.assert_array_equal(result.parameters["count"].values, 10)
    assert result.history["rolled_back"].values[-1] == 0
    assert (copies == 2) == (result.history["lost"].values[-1] > 0)
    ip("link", "set", cable, "up")
    # Back on the net, the worker finds out by itself that the run has ended.
    wait_until(lambda: not any(client.run(contexts_on, on_error="ignore").values()), seconds=60)
    assert_nothing_left(client)
