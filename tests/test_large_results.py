"""Results of which the parameters are never held whole: they score, predict and are saved."""

import numpy as np
import pytest
import xarray as xr

import dbdask
from dbdask import saving, stored_parameters
from dbdask.data import memory
from dbdask.metrics.history import History
from dbdask.models import piecewise
from dbdask.result import Result
from dbdask.saving import SavedVector
from dbdask.status import Status
from dbdask.worker import validation
from dbdask.worker.context import WorkerContext

ROWS = 300
LAYERS = [dbdask.LocallyConnected(2, 3), dbdask.Dense(9, "relu"), dbdask.Dense(4)]


@pytest.fixture
def data():
    rng = np.random.default_rng(5)
    images = rng.normal(size=(ROWS, 6, 6, 1)).astype(np.float32)
    return xr.Dataset(
        {"x": (("row", "a", "b", "c"), images), "label": ("row", rng.integers(0, 4, ROWS))}
    )


@pytest.fixture
def result(data):
    network = dbdask.Network(input_shape=(6, 6, 1), layers=LAYERS, loss="softmax")
    examples = dbdask.Examples(data, inputs="x", targets="label", along="row")
    vector = np.random.default_rng(6).normal(size=network.parameter_count).astype(np.float32)
    return Result(network, examples.for_loss("softmax", 4), vector, History(), Status("epochs", ""))


@pytest.fixture
def longest(monkeypatch, result):
    """The longest read of stored parameters; none may be of all of them."""
    lengths = []
    read = SavedVector.read

    def measured(self, start=0, stop=None):
        lengths.append((result.vector().size if stop is None else stop) - start)
        return read(self, start, stop)

    monkeypatch.setattr(SavedVector, "read", measured)
    monkeypatch.setattr(stored_parameters, "has_room_for_vector", lambda size, limit: False)
    monkeypatch.setattr(piecewise, "PIECE_BYTES", 200)
    monkeypatch.setattr(saving, "CHUNK", 16)
    monkeypatch.setattr(saving, "STEP", 48)
    return lambda: max(lengths)


def test_a_large_model_predicts_scores_and_is_saved_in_pieces(result, data, tmp_path, longest):
    examples = dbdask.Examples(data, inputs="x", targets="label", along="row")
    score, predicted = result.evaluate(examples), result.predict(data).values
    chances = result.predict_proba(data).values
    result.save(tmp_path / "one.zarr")
    dbdask.load(tmp_path / "one.zarr").save(tmp_path / "two.zarr")
    dbdask.load(tmp_path / "one.zarr").save(tmp_path / "two.zarr", overwrite=True)
    loaded = dbdask.load(tmp_path / "two.zarr")
    assert loaded.evaluate(examples) == pytest.approx(score, rel=1e-5)
    np.testing.assert_array_equal(loaded.predict(data).values, predicted)
    np.testing.assert_allclose(loaded.predict_proba(data).values, chances, rtol=1e-4, atol=1e-6)
    assert longest() <= 4 * 2 * 9  # a row of the filters
    np.testing.assert_array_equal(loaded.vector(), result.vector())


@pytest.mark.parametrize("spelled", ["as loaded", "URL", "link"])
def test_a_result_that_replaces_itself_reads_what_it_has_written(
    result, data, tmp_path, longest, spelled
):
    path = tmp_path / "one.zarr"
    result.save(path)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    again = {"as loaded": path, "URL": path.as_uri(), "link": tmp_path / "link" / "one.zarr"}
    loaded = dbdask.load(path)
    for _ in range(2):
        loaded.save(again[spelled], overwrite=True)
        np.testing.assert_array_equal(loaded.vector(), result.vector())
        np.testing.assert_array_equal(loaded.predict(data).values, result.predict(data).values)
    loaded.save(tmp_path / "two.zarr")
    assert loaded.stored.path == dbdask.load(again[spelled]).stored.path  # the other is a copy


def test_workers_with_little_memory_predict_in_pieces(
    result, data, tmp_path, longest, threads_client
):
    result.save(tmp_path / "one.zarr")
    predicted = dbdask.load(tmp_path / "one.zarr").predict(data.chunk(row=100))
    found = threads_client.compute(predicted).result()
    np.testing.assert_array_equal(found.values, result.predict(data).values)
    assert longest() <= 4 * 2 * 9  # a row of the filters


def test_a_vector_has_room_in_a_quarter_of_the_memory():
    assert memory.has_room_for_vector(100, 1600) and not memory.has_room_for_vector(101, 1600)
    assert memory.has_room_for_vector(10**15, None)


def test_a_model_of_the_users_own_gets_the_whole_vector(result, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_parameters, "has_room_for_vector", lambda size, limit: False)
    result.save(tmp_path / "one.zarr")
    own = type("Own", (), {"layout": result.model.layout})()
    reference = dbdask.load(tmp_path / "one.zarr")._vector
    model, vector = stored_parameters.model_with(own, reference)
    assert model is own
    np.testing.assert_array_equal(vector, result.vector())


@pytest.mark.parametrize("partitions", [1, 2])
def test_validation_beside_training_fetches_pieces(threads_client, data, monkeypatch, partitions):
    def losses():
        examples = dbdask.Examples(data.chunk(row=100), inputs="x", targets="label", along="row")
        train, held_out = examples.split(0.7)
        found = dbdask.downpour(
            dbdask.Network(input_shape=(6, 6, 1), layers=LAYERS, loss="softmax"),
            train,
            validation=held_out,
            validate_every=1,
            client=threads_client,
            optimizer=dbdask.sgd(0.05),
            batch_size=10,
            epochs=2,
            replicas=1,
            shards=4,
            partitions=partitions,
            progress=False,
        )
        return found.history["validation_loss"].dropna("record").values

    whole, lengths = losses(), []
    read = WorkerContext.read_copy

    def measured(self, handle, number, start, stop):
        lengths.append((stop - start, handle.size))
        return read(self, handle, number, start, stop)

    monkeypatch.setattr(WorkerContext, "read_copy", measured)
    monkeypatch.setattr(validation, "has_room_for_vector", lambda size, limit: False)
    monkeypatch.setattr(piecewise, "PIECE_BYTES", 200)
    np.testing.assert_allclose(losses(), whole, rtol=1e-5)
    assert len(whole) >= 2
    assert lengths and all(length < size / 2 for length, size in lengths)
