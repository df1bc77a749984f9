"""Runs, passes and predictions whose data store fails: now and then, for one worker, for ever."""

import numpy as np
import pytest
import xarray as xr
from counting import CountingModel
from failing_store import Always, FailingStore, InOneProcess, Times
from test_downpour import assert_nothing_left, counted, write_store
from test_sandblaster import LinearCounting

import dbdask
from dbdask.data import retrying
from dbdask.errors import DataError
from dbdask.run.failures import MOST_ATTEMPTS

ROWS, BATCH = 200, 20
ALGORITHMS = {
    "downpour": (CountingModel, {"optimizer": dbdask.sgd(float(BATCH)), "batch_size": BATCH}),
    "sandblaster": (LinearCounting, {"l2": 1 / ROWS, "tolerance": 0.0, "iterations": 50}),
}
by_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
by_role = pytest.mark.parametrize("role", ["examples", "validation"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("failing") / "store.zarr", ROWS, chunk=20)


@pytest.fixture
def short_pauses(monkeypatch):
    monkeypatch.setattr("dbdask.schedule.retries.FIRST_PAUSE", 0.001)
    monkeypatch.setattr(retrying, "_said", {})


def train(client, algorithm, role, good, bad, **options):
    """Train on both stores, of which the bad one has the role."""
    model, settings = ALGORITHMS[algorithm]
    return getattr(dbdask, algorithm)(
        model(ROWS),
        counted(bad if role == "examples" else good),
        validation=counted(bad if role == "validation" else good),
        client=client,
        progress=False,
        **settings | options,
    )


def assert_exact(result):
    assert result.status.ok, result.status
    np.testing.assert_allclose(result.parameters["count"], 1, atol=1e-4)
    assert np.isfinite(result.history["validation_loss"].values[-1])


@pytest.mark.parametrize("failures", [1, 4])
@by_role
@by_algorithm
def test_a_read_that_fails_now_and_then_costs_nothing(
    threads_client, store, tmp_path, short_pauses, caplog, algorithm, role, failures
):
    fault = Times(tmp_path / "left", failures)
    result = train(threads_client, algorithm, role, store, FailingStore(store, "index/c/3", fault))
    assert_exact(result)
    assert not fault.left and "it is tried again" not in caplog.text
    assert "each read that fails like this is tried up to 5 times" in caplog.text
    assert_nothing_left(threads_client)


@by_role
@by_algorithm
def test_a_portion_that_cannot_be_read_is_tried_again(
    threads_client, store, tmp_path, short_pauses, caplog, algorithm, role
):
    fault = Times(tmp_path / "left", 12)  # two whole reads, and two tries of a third
    result = train(threads_client, algorithm, role, store, FailingStore(store, "index/c/3", fault))
    assert_exact(result)
    assert not fault.left and "it is tried again" in caplog.text
    assert_nothing_left(threads_client)


@by_role
@by_algorithm
def test_a_store_that_fails_for_ever_is_named(threads_client, store, short_pauses, algorithm, role):
    words = (
        rf"(portion|bundle).* failed {MOST_ATTEMPTS} times.*variable 'index' at \[60:80\].*"
        "key index/c/3 was tried 5 times.*503 slow down.*start again when it answers"
    )
    with pytest.raises(DataError, match=words):
        train(threads_client, algorithm, role, store, FailingStore(store, "index/c/3", Always()))
    assert_nothing_left(threads_client)


@by_role
@by_algorithm
def test_where_one_worker_cannot_read_the_others_do_its_work(
    process_client, store, tmp_path, algorithm, role
):
    bad = FailingStore(store, "index/c/", InOneProcess(tmp_path / "bad"))
    assert_exact(train(process_client, algorithm, role, store, bad))
    assert (tmp_path / "bad").exists()
    assert_nothing_left(process_client)


def test_a_gang_that_cannot_read_is_formed_again(threads_client, store, tmp_path, short_pauses):
    fault = Times(tmp_path / "left", 10)
    result = dbdask.downpour(
        dbdask.Network(input_shape=6, layers=[dbdask.Dense(4)], loss="softmax"),
        dbdask.Examples(
            FailingStore(store, "x/c/3", fault), inputs="x", targets="label", along="row"
        ),
        client=threads_client,
        partitions=2,
        progress=False,
    )
    assert result.status.ok and not fault.left
    assert_nothing_left(threads_client)


# Passes and predictions


def examples_of(store):
    return dbdask.Examples(store, inputs="x", targets="label", along="row")


def first_inputs(examples):
    with examples.reader(prefetch=False) as reader:
        return reader.block(0).minibatch.inputs


@pytest.mark.parametrize("failures", [1, 4])
@pytest.mark.parametrize("on_cluster", [False, True])
def test_a_pass_tries_again(threads_client, store, tmp_path, short_pauses, on_cluster, failures):
    fault = Times(tmp_path / "left", failures)
    client = threads_client if on_cluster else None
    standardized = examples_of(FailingStore(store, "x/c/3", fault)).standardize(client=client)
    assert not fault.left
    found, expected = first_inputs(standardized), first_inputs(examples_of(store).standardize())
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("on_cluster", [False, True])
def test_a_pass_over_a_store_that_fails_for_ever_is_an_error(
    threads_client, store, short_pauses, on_cluster
):
    client = threads_client if on_cluster else None
    with pytest.raises(DataError, match=r"'x' at .*was tried 5 times.*start again when it answers"):
        examples_of(FailingStore(store, "x/c/3", Always())).standardize(client=client)


def test_a_pass_goes_on_where_one_worker_cannot_read(process_client, store, tmp_path):
    bad = FailingStore(store, "x/c/3", InOneProcess(tmp_path / "bad"))
    examples_of(bad).check(client=process_client)


def test_a_prediction_tries_again(threads_client, store, tmp_path, short_pauses):
    result = dbdask.downpour(
        dbdask.Network(input_shape=6, layers=[dbdask.Dense(3)], loss="softmax"),
        examples_of(store),
        client=threads_client,
        progress=False,
    )
    fault = Times(tmp_path / "left", 4)
    data = xr.open_zarr(FailingStore(store, "x/c/3", fault), chunks=None, consolidated=False)
    with threads_client.as_current():
        predicted = result.predict(data).compute()
    assert not fault.left
    np.testing.assert_array_equal(predicted, result.predict(store).compute())
    with pytest.raises(DataError, match="was tried 5 times"):
        result.predict(FailingStore(store, "x/c/3", Always())).compute()
