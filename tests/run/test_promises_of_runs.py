"""What users are promised of arguments and callbacks, beyond the numbers."""

import numpy as np
import pytest
import xarray as xr
from counting import CountingModel
from test_downpour import assert_nothing_left, counted, flat, labelled, network, train, write_store
from test_leaving import wait_until
from test_sandblaster import train as minimise

import dbdask
from dbdask.rpc.scheduler import WorkerFacts
from dbdask.run.preflight import check_memory
from dbdask.run.validating import Validator

both_algorithms = pytest.mark.parametrize("algorithm", [train, minimise])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("promises") / "store.zarr")


def test_minibatches_between_validations_count_though_an_epoch_is_one_portion(
    threads_client, store, monkeypatch
):
    steps, start = [], Validator.start

    def noted(validator, *arguments):
        steps.append(validator.tally.steps)
        start(validator, *arguments)

    monkeypatch.setattr(Validator, "start", noted)
    rows = labelled(store).isel(row=slice(0, 320))
    held_out = labelled(store).isel(row=slice(1000, 1200))
    result = dbdask.downpour(
        network(),
        rows,
        client=threads_client,
        batch_size=20,
        epochs=12,
        validation=held_out,
        validate_every=32,
        progress=False,
    )
    assert int(result.history["validation_loss"].notnull().sum()) == len(steps) >= 4
    assert steps[0] >= 32 and (np.diff(steps[:-1]) >= 32).all()  # the last one ends the run
    assert np.diff(steps).max() < 16 * 6  # the one before may still be under way


@pytest.mark.parametrize(("algorithm", "length"), [(train, "epochs"), (minimise, "iterations")])
@pytest.mark.parametrize(
    ("replicas", "told"), [(None, 2), pytest.param(1, 1, marks=pytest.mark.slow), (5, 5)]
)
def test_every_record_tells_how_many_replicas_trained(
    threads_client, store, algorithm, length, replicas, told
):
    held_out = labelled(store).isel(row=slice(1000, 1200))
    options = {"replicas": replicas, "validation": held_out, length: 2}
    result = algorithm(threads_client, store, **options)
    assert result.history["validation_loss"].notnull().any()
    assert set(result.history["replicas"].values) == {told}


def test_an_error_of_the_data_names_the_last_snapshot(threads_client, store, tmp_path):
    data = xr.open_zarr(store, consolidated=False).load()
    data["x"][700, 2] = np.nan
    path = str(tmp_path / "run.zarr")
    examples = dbdask.Examples(data, inputs="x", targets="label", along="row")
    for algorithm in (dbdask.downpour, dbdask.sandblaster):
        with pytest.raises(dbdask.DataError, match=r"row=700.*last snapshot is in .*resume=True"):
            algorithm(
                network(),
                examples,
                client=threads_client,
                checkpoint=f"{path}-{algorithm.__name__}",
            )
    wait_until(
        lambda: not threads_client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.tasks)
    )
    assert_nothing_left(threads_client)


def rechunked(store, path):
    xr.open_zarr(store, consolidated=False).load().drop_encoding().chunk(row=160).to_zarr(
        path, consolidated=False
    )
    return str(path)


def test_a_checkpoint_of_other_data_or_of_another_model_is_not_gone_on_from(
    threads_client, store, tmp_path
):
    path = str(tmp_path / "run.zarr")
    train(threads_client, store, epochs=2, checkpoint=path)
    relu = dbdask.Network(
        input_shape=(6,), layers=[dbdask.Dense(8, "relu"), dbdask.Dense(3)], loss="softmax"
    )
    examples = labelled(store)
    others = [
        (relu, examples, r"the model is another \(model 'layers'.*tanh.* there and .*relu"),
        (network(), examples.standardize(client=threads_client), "examples 'input_scalings'"),
        (
            network(),
            labelled(rechunked(store, tmp_path / "other.zarr")),
            "the data has other chunks",
        ),
    ]
    for model, data, message in others:
        with pytest.raises(dbdask.CheckpointError, match=message):
            dbdask.downpour(
                model,
                data,
                client=threads_client,
                optimizer=dbdask.sgd(0.1),
                batch_size=20,
                epochs=3,
                checkpoint=path,
                resume=True,
            )


@both_algorithms
def test_files_may_be_named_by_urls(threads_client, store, tmp_path, algorithm):
    url = f"file://{tmp_path}/kept"
    first = algorithm(threads_client, store, checkpoint=f"{url}/run.zarr")
    again = algorithm(threads_client, store, checkpoint=f"{url}/run.zarr", resume=True)
    np.testing.assert_array_equal(flat(again), flat(first))
    again.save(f"{url}/model.zarr")
    for place in (f"{url}/model.zarr", tmp_path / "kept" / "model.zarr"):
        np.testing.assert_array_equal(flat(dbdask.load(place)), flat(first))


def test_a_result_outlives_what_its_checkpoint_held(threads_client, store, tmp_path):
    path = str(tmp_path / "run.zarr")
    first = train(threads_client, store, epochs=1, checkpoint=path)
    before = flat(first)
    train(threads_client, store, epochs=2, checkpoint=path, resume=True)
    np.testing.assert_array_equal(flat(first), before)
    assert np.isfinite(first.evaluate(labelled(store))["loss"])


def test_totals_of_sandblaster_go_on_with_a_resumed_run(threads_client, store, tmp_path):
    path = str(tmp_path / "run.zarr")
    options = {"tolerance": 0.0, "checkpoint": path}
    first = minimise(threads_client, store, iterations=4, **options).history.isel(record=-1)
    again = minimise(threads_client, store, iterations=6, resume=True, **options)
    for name in ("bundles", "examples", "evaluations", "seconds_evaluating"):
        values = again.history[name].values
        assert values[-1] > float(first[name]) and (np.diff(values) >= 0).all(), name


def test_a_worker_that_cannot_see_the_data_is_named_with_the_remedy(process_client, store):
    data = xr.open_zarr(store, consolidated=False).load()
    data.chunk(row=100).to_zarr("memory://promises/store.zarr", consolidated=False)
    examples = dbdask.Examples(
        "memory://promises/store.zarr", inputs="x", targets="label", along="row"
    )
    with pytest.raises(dbdask.WorkerError, match=r"worker tcp://.* cannot take part.*every worker"):
        dbdask.downpour(network(), examples, client=process_client, progress=False)
    assert_nothing_left(process_client)


@both_algorithms
def test_a_worker_that_cannot_see_the_checkpoint_is_named_with_the_remedy(
    process_client, store, algorithm
):
    path = "memory://promises/run.zarr"
    said = rf"worker tcp://\S+ cannot take part: nothing is at checkpoint='{path}'.*every worker"
    with pytest.raises(dbdask.WorkerError, match=said) as raised:
        algorithm(process_client, store, checkpoint=path)
    assert "last snapshot" not in str(raised.value)
    assert_nothing_left(process_client)


@both_algorithms
def test_a_worker_with_another_dbdask_is_named_with_the_remedy(
    process_client, store, monkeypatch, algorithm
):
    monkeypatch.setattr("dbdask.run.preflight.__version__", "99.0")
    said = rf"worker tcp://\S+ has dbdask {dbdask.__version__}, the client 99\.0: install the same"
    with pytest.raises(dbdask.WorkerError, match=said):
        algorithm(process_client, store)
    assert_nothing_left(process_client)


def test_a_model_that_does_not_fit_a_workers_memory_is_named_before_it_is_placed():
    worker = WorkerFacts("tcp://10.0.0.1:1", "0", "10.0.0.1", 512 * 2**20)
    check_memory([worker], 100 * 2**20, 100 * 2**20, "model of 9 parameters", None)
    named = r"tcp://10\.0\.0\.1:1: a replica holds 300 MiB.*512 MiB.* of them with shards=$"
    with pytest.raises(ValueError, match=named):
        check_memory([worker], 300 * 2**20, 100 * 2**20, "model of 9 parameters", None)
    named = r"shards=, or cut a replica over 3 or more of them with partitions=$"
    with pytest.raises(ValueError, match=named):
        check_memory([worker], 300 * 2**20, 100 * 2**20, "model of 9 parameters", 3)


def test_examples_of_no_weight_are_passed_over(threads_client, store):
    data = xr.open_zarr(store, consolidated=False).load()
    weights = np.ones(1200, np.float32)
    weights[:400] = 0.0
    data["w"] = "row", weights
    examples = dbdask.Examples(data, inputs="x", targets="label", along="row", weights="w")
    result = dbdask.downpour(
        network(), examples, client=threads_client, batch_size=20, epochs=2, progress=False
    )
    assert np.isfinite(flat(result)).all()
    nothing = examples.isel(row=slice(0, 100))
    with pytest.raises(dbdask.DataError, match="weight"):
        result.evaluate(nothing)


def test_counts_stay_exact_though_portions_weigh_nothing(threads_client, store):
    result = dbdask.downpour(
        CountingModel(1200),
        counted(store),
        client=threads_client,
        optimizer=dbdask.sgd(20.0),
        batch_size=20,
        epochs=2,
        warmstart=7,
        n_push=3,
        progress=False,
    )
    np.testing.assert_array_equal(result.parameters["count"].values, 2)
