"""Runs of both algorithms that end after a snapshot are gone on with, whatever ended them.

The rules are those of `test_ends`: what an ended run leaves is the last good snapshot, and a run
that goes on from it ends where an unbroken one does, to the bit.
"""

import threading

import dask
import numpy as np
import pytest
import test_ends
import xarray as xr
from distributed import Client, LocalCluster
from test_downpour import assert_nothing_left
from test_ends import (
    AFTER,
    ALGORITHMS,
    PASS,
    Spoiled,
    fail,
    goes_on,
    interrupt,
    of_bad_data,
    raising,
    the_snapshot,
)
from test_leaving import wait_until

import dbdask
from dbdask.algorithms.downpour_method import Downpour
from dbdask.algorithms.sandblaster_method import Sandblaster
from dbdask.errors import DataError, ModelError, ShardLost, WorkerError
from dbdask.storage import checkpoint
from dbdask.worker.context import contexts_on

store, whole = test_ends.store, test_ends.whole
SPOILED_AFTER = {"downpour": AFTER, "sandblaster": 3 * PASS}
METHODS = {"downpour": Downpour, "sandblaster": Sandblaster}
SOON = "1us"


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """A run commits each snapshot before it works on, so there is one when it is spoiled."""
    for method in METHODS.values():
        monkeypatch.setattr(method, "advance", settling(method.advance))


def settling(advance):
    async def advance_settled(method, run):
        await run.snapshots.settle()
        await advance(method, run)

    return advance_settled


def progress_of(path):
    """How far the last snapshot has come: in minibatches, or in iterations."""
    state = the_snapshot(path, alone=False).state
    return state["method"]["iteration"] if "method" in state else state["steps"]


class Closing:
    """What closes a client or a cluster while a minibatch is computed."""

    close = None


def closing(loss, gradient):
    Closing.close()
    return loss


def of_bad_model(loss, gradient):
    raise ModelError("spoiled")


ERRORS = {
    "data": (DataError, of_bad_data, {}),
    "contract": (ModelError, of_bad_model, {}),
    "portion": (WorkerError, raising, {}),
    "callback": (ArithmeticError, None, {"callbacks": [fail]}),
}
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("algorithm", "what"),
    [
        ("downpour", "contract"),
        pytest.param("downpour", "portion", marks=slow),
        ("sandblaster", "data"),
        pytest.param("sandblaster", "contract", marks=slow),
        ("sandblaster", "portion"),
        ("sandblaster", "callback"),
    ],
)
def test_a_run_that_an_error_ended_after_a_snapshot_goes_on(
    threads_client, store, tmp_path, whole, algorithm, what
):
    error, act, options = ERRORS[what]
    path, model = str(tmp_path / "run.zarr"), Spoiled(act, SPOILED_AFTER[algorithm])
    with pytest.raises(error, match=None if act is None else "spoiled"):
        ALGORITHMS[algorithm](
            threads_client, store, model, checkpoint=path, snapshot_every=SOON, **options
        )
    assert progress_of(path) > 0
    goes_on(threads_client, store, algorithm, path, whole)
    assert_nothing_left(threads_client)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_whose_client_is_closed_goes_on_with_another(
    threads_client, store, tmp_path, whole, algorithm
):
    path = str(tmp_path / "run.zarr")
    client = Client(threads_client.cluster, set_as_default=False)

    def close():
        """Close the client while a minibatch is computed, which ends when it is closed."""
        Spoiled.mended = True
        threading.Thread(target=client.close).start()
        wait_until(lambda: client.status == "closed")

    Closing.close = close
    model = Spoiled(closing, SPOILED_AFTER[algorithm])
    with (
        dask.config.set({"dbdask.lease": "200ms"}),  # by which workers notice a client that is gone
        pytest.raises(ShardLost, match=r"closed.*run\.zarr'.*resume=True"),
    ):
        ALGORITHMS[algorithm](client, store, model, checkpoint=path, snapshot_every=SOON)
    assert progress_of(path) > 0
    goes_on(threads_client, store, algorithm, path, whole)
    wait_until(lambda: not threads_client.run_on_scheduler(tasks_of))
    wait_until(lambda: not any(threads_client.run(contexts_on).values()))
    assert_nothing_left(threads_client)


def tasks_of(dask_scheduler):
    """The tasks that a scheduler has, and the actors of its workers."""
    return len(dask_scheduler.tasks) + sum(len(w.actors) for w in dask_scheduler.workers.values())


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_whose_cluster_is_closed_goes_on_with_another(
    threads_client, store, tmp_path, whole, algorithm
):
    path, closed = str(tmp_path / "run.zarr"), threading.Event()

    def linger():
        """Begin to close the cluster; each minibatch takes its time until it is closed."""
        if not Spoiled.interrupted:
            Spoiled.interrupted = True
            thread.start()
        closed.wait(0.2)

    with LocalCluster(
        processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"
    ) as cluster:

        def close():
            cluster.close()
            closed.set()

        thread = threading.Thread(target=close)
        Closing.close = linger
        client = Client(cluster, set_as_default=False)
        model = Spoiled(closing, SPOILED_AFTER[algorithm])
        with pytest.raises((ShardLost, WorkerError), match=r"run\.zarr'.*resume=True"):
            ALGORITHMS[algorithm](client, store, model, checkpoint=path, snapshot_every=SOON)
        thread.join(60)
        client.close()
    assert progress_of(path) > 0
    goes_on(threads_client, store, algorithm, path, whole)


@pytest.mark.parametrize(
    ("algorithm", "options", "reason"),
    [
        ("downpour", {"target_loss": 100.0}, "target"),
        pytest.param("downpour", {"epochs": 1}, "epochs", marks=slow),
        pytest.param("sandblaster", {"tolerance": 1e9}, "tolerance", marks=slow),
    ],
)
def test_a_run_that_reached_its_end_goes_on_beyond_it(
    threads_client, store, tmp_path, whole, algorithm, options, reason
):
    """Only a call sets an end: without it, or with a later one, the same training goes on."""
    path = str(tmp_path / "run.zarr")
    result = ALGORITHMS[algorithm](threads_client, store, checkpoint=path, **options)
    assert result.status.reason == reason
    goes_on(threads_client, store, algorithm, path, whole)


def test_a_target_is_looked_for_anew_by_the_run_that_goes_on(threads_client, store, tmp_path):
    """A snapshot does not know of a target: the same call trains until it meets it again."""
    path, options = str(tmp_path / "run.zarr"), {"target_loss": 100.0}
    first = ALGORITHMS["downpour"](threads_client, store, checkpoint=path, **options)
    again = ALGORITHMS["downpour"](threads_client, store, checkpoint=path, resume=True, **options)
    assert first.status.reason == again.status.reason == "target"
    assert again.history["step"].values[-1] > first.history["step"].values[-1]
    the_snapshot(path)


@slow
@pytest.mark.parametrize("iterations", [300, 600])
def test_a_run_that_converged_to_float32_precision_is_at_its_end_again(
    threads_client, store, tmp_path, iterations
):
    """No step lowers the loss any more, whatever number of iterations is allowed."""
    path = str(tmp_path / "run.zarr")
    data = xr.open_zarr(store, consolidated=False)
    data["sum"] = data["x"].sum("feature") + data["label"]
    examples = dbdask.Examples(data.load(), inputs="x", targets="sum", along="row")
    model = dbdask.Network(input_shape=6, layers=[dbdask.Dense(1)], loss="squared")

    def minimise(**options):
        settings = {"tolerance": 0.0, "iterations": 300, "replicas": 1, "portion_size": 1200}
        options = settings | {"client": threads_client, "progress": False} | options
        return dbdask.sandblaster(model, examples, checkpoint=path, **options)

    result = minimise()
    assert result.status.reason == "precision" and result.status.ok
    last = the_snapshot(path)
    vector = checkpoint.VectorReference(path, last.group).read()
    np.testing.assert_array_equal(vector, result.vector())
    again = minimise(resume=True, iterations=iterations)
    assert again.status.reason == "precision"
    np.testing.assert_allclose(again.vector(), result.vector(), rtol=1e-4, atol=1e-5)
    the_snapshot(path)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_that_ctrl_c_ends_goes_on(threads_client, store, tmp_path, whole, algorithm):
    path = str(tmp_path / "run.zarr")
    options = {"checkpoint": path, "snapshot_every": SOON, "callbacks": [interrupt]}
    with pytest.warns(dbdask.TrainingWarning, match="interrupted"):
        result = ALGORITHMS[algorithm](threads_client, store, Spoiled(), **options)
    assert result.status.reason == "interrupted"
    assert progress_of(path) > 0
    goes_on(threads_client, store, algorithm, path, whole)
