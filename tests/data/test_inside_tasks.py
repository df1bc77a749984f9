"""Training from inside a Dask task, and with a client that somebody closes."""

import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from acting import SlowUntil, touch
from counting import CountingModel
from distributed import Client, LocalCluster, get_client, get_worker, worker_client
from search_path import SEARCH_PATH
from test_downpour import assert_nothing_left, counted, write_store
from test_leaving import wait_until
from test_sandblaster import LinearCounting

import dbdask
from dbdask.errors import DataError, ShardLost, WorkerError

ROWS = 200
ALGORITHMS = {
    "downpour": {"optimizer": dbdask.sgd(20.0), "batch_size": 20},
    "sandblaster": {"l2": 1 / ROWS, "portion_size": 50, "tolerance": 0.0, "iterations": 50},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("inside") / "store.zarr", ROWS)


@pytest.fixture(scope="module")
def lone_client():
    """One worker of one thread, which the task that trains takes for itself."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def trained(store, client=None, model=None):
    result = dbdask.downpour(
        model or CountingModel(ROWS),
        counted(store),
        client=client,
        progress=False,
        **ALGORITHMS["downpour"],
    )
    return result.parameters["count"].values


def with_current_client(store):
    return trained(store)


def with_get_client(store):
    return trained(store, get_client())


def with_worker_client(store):
    with worker_client() as client:
        return trained(store, client)


def standardized(store):
    examples = dbdask.Examples(store, inputs="x", targets="label", along="row")
    return examples.standardize(client=get_client()).input_shape


def minimized(store, client=None):
    result = dbdask.sandblaster(
        LinearCounting(ROWS),
        counted(store),
        client=client,
        progress=False,
        **ALGORITHMS["sandblaster"],
    )
    return result.parameters["count"].values


def minimized_with_worker_client(store):
    with worker_client() as client:
        return minimized(store, client)


@pytest.mark.parametrize("how", [minimized, minimized_with_worker_client])
def test_a_task_can_train_with_sandblaster(lone_client, store, how):
    future = lone_client.submit(how, store, pure=False)
    np.testing.assert_allclose(future.result(60), 1, atol=1e-4)
    assert lone_client.submit(threads_of_pool).result() == 1
    future.release()
    wait_until_forgotten(lone_client)
    assert_nothing_left(lone_client)


@pytest.mark.parametrize("how", [with_current_client, with_get_client, with_worker_client])
def test_a_task_can_train_on_the_cluster_that_runs_it(lone_client, store, how):
    future = lone_client.submit(how, store, pure=False)
    np.testing.assert_array_equal(future.result(60), 1)
    assert lone_client.submit(threads_of_pool).result() == 1
    future.release()
    wait_until_forgotten(lone_client)
    assert_nothing_left(lone_client)


def wait_until_forgotten(client):
    """Wait until the scheduler has forgotten the test's own tasks, which it does in a moment."""
    wait_until(
        lambda: not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
    )


def threads_of_pool():
    return len(get_worker().executor._threads)


def test_a_task_can_standardize_on_the_cluster_that_runs_it(lone_client, store):
    future = lone_client.submit(standardized, store, pure=False)
    assert future.result(60) == (6,)


async def in_a_coroutine(store):
    return trained(store, get_client())


def test_a_coroutine_of_a_worker_is_told_what_to_do(lone_client, store):
    with pytest.raises(TypeError, match="client must be synchronous"):
        lone_client.submit(in_a_coroutine, store, pure=False).result(60)


class Bad(CountingModel):
    def loss_and_gradient(self, *arguments, **options):
        raise DataError("the data are bad")


def fails(store):
    with worker_client() as client:
        return trained(store, client, Bad(ROWS))


def test_the_error_of_a_run_inside_a_task_comes_out_of_it(lone_client, store):
    with pytest.raises(DataError, match="the data are bad"):
        lone_client.submit(fails, store, pure=False).result(60)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_no_error_is_its_own_cause(threads_client, store, tmp_path, checkpoint):
    path = str(tmp_path / "run.zarr") if checkpoint else None
    for kind, make in ((DataError, Bad), (WorkerError, Failing)):
        with pytest.raises(kind) as caught:
            dbdask.downpour(
                make(ROWS),
                counted(store),
                client=threads_client,
                progress=False,
                checkpoint=path and f"{path}-{kind.__name__}",
                **ALGORITHMS["downpour"],
            )
        chain, error = [], caught.value
        while error is not None:
            assert error not in chain
            chain.append(error)
            error = error.__cause__ or error.__context__


class Failing(CountingModel):
    def loss_and_gradient(self, *arguments, **options):
        raise ArithmeticError("always")


# A client that is closed


def test_a_closed_client_is_refused(store):
    with LocalCluster(processes=False, n_workers=1, dashboard_address=":0") as cluster:
        with Client(cluster, set_as_default=False) as client:
            pass
        for algorithm, options in ALGORITHMS.items():
            with pytest.raises(ValueError, match="client must be open, got a closed one"):
                getattr(dbdask, algorithm)(
                    CountingModel(ROWS), counted(store), client=client, **options
                )


@pytest.mark.parametrize(
    ("close", "algorithm"),
    [
        ("client", "downpour"),
        ("cluster", "sandblaster"),
        pytest.param("client", "sandblaster", marks=pytest.mark.slow),
        pytest.param("cluster", "downpour", marks=pytest.mark.slow),
    ],
)
def test_a_client_that_is_closed_meanwhile_ends_the_run(store, tmp_path, algorithm, close, caplog):
    cluster = LocalCluster(
        processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"
    )
    client = Client(cluster, set_as_default=False)
    before = shard_threads()
    path, over = str(tmp_path / "run.zarr"), str(tmp_path / "over")

    def act():
        {"client": client, "cluster": cluster}[close].close()
        touch(over)

    closing = threading.Thread(target=act)
    options = ALGORITHMS[algorithm] | ({"epochs": 50} if algorithm == "downpour" else {})
    model = CountingModel if algorithm == "downpour" else LinearCounting

    def callback(record):
        if not closing.ident:
            closing.start()

    with pytest.raises(ShardLost, match="(closed|closed its connection).*resume=True"):
        getattr(dbdask, algorithm)(
            SlowUntil(model(ROWS), over, 5),
            counted(store),
            client=client,
            checkpoint=path,
            callbacks=[callback],
            progress=False,
            **options,
        )
    closing.join(120)
    client.close()
    cluster.close()
    assert "never retrieved" not in caplog.text
    wait_until(lambda: not shard_threads() - before)


def shard_threads():
    """The threads of shards in this process."""
    gc.collect()  # an error that was caught holds what its frames hold
    return {thread.ident for thread in threading.enumerate() if "dbdask-shard" in thread.name}


PROGRAM = """
import sys, threading
import dbdask
from distributed import Client
from counting import CountingModel

def close(record):
    threading.Thread(target=client.close).start()

if __name__ == "__main__":
    address, store, path = sys.argv[1:]
    client = Client(address)  # with an event loop of its own, which ends with it
    try:
        dbdask.downpour(
            CountingModel(200, seconds=0.02),
            dbdask.Examples(store, inputs="index", targets="zero", along="row"),
            optimizer=dbdask.sgd(20.0), batch_size=20, epochs=50, checkpoint=path,
            callbacks=[close], progress=False,
        )
    except dbdask.ShardLost as error:
        print(error)
"""


def test_a_client_that_is_closed_with_its_event_loop_ends_the_run(lone_client, store, tmp_path):
    program = tmp_path / "train.py"
    program.write_text(PROGRAM)
    path = str(tmp_path / "run.zarr")
    done = subprocess.run(
        [sys.executable, str(program), lone_client.scheduler.address, store, path],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": SEARCH_PATH},
    )
    assert "the client was closed while the run was under way" in done.stdout, done.stderr
    assert f"checkpoint={path!r}, resume=True" in done.stdout
    assert f"{os.sep}dbdask{os.sep}" not in done.stderr  # Dask may log that its connection closed
    assert "never retrieved" not in done.stderr
