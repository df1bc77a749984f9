"""`Examples.batch` and `Examples.minibatches`: what training sees, in its order."""

import gc
import threading

import numpy as np
import pytest
import xarray as xr

import dbdask
from dbdask.data.feed import Reader

ROWS = 700
SEEN: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []


class Recorder:
    """Keeps a copy of every minibatch that it is trained on, in this process."""

    loss, output_shape = "squared", (1,)
    layout = (("nothing", (1,)),)

    def initial_parameters(self, seed, start, stop):
        return np.zeros(stop - start, np.float32)

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        gradient[:] = 0
        SEEN.append((inputs.copy(), targets.copy(), None if weights is None else weights.copy()))
        return 0.0

    def predict(self, parameters, inputs):
        return np.zeros((len(inputs), 1), np.float32)


class Labels(Recorder):
    """The same with labels."""

    loss, output_shape = "softmax", (3,)


class Large(Recorder):
    """So many parameters that a portion has the fewest minibatches."""

    layout = (("nothing", (100,)),)


def data(rows=ROWS, gaps=0):
    rng = np.random.default_rng(0)
    y = rng.normal(size=rows).astype(np.float32)
    y[rng.permutation(rows)[:gaps]] = np.nan
    return xr.Dataset(
        {
            "x": (("t", "f"), rng.normal(size=(rows, 4)).astype(np.float32)),
            "y": ("t", y),
            "label": ("t", np.arange(rows) % 3),
            "w": ("t", rng.uniform(0.5, 2, rows).astype(np.float32)),
        }
    ).chunk(t=50)


def stored(path, **options):
    data(**options).to_zarr(path, consolidated=False)
    return str(path)


CASES = {
    "values": (Recorder, {}, {}),
    "labels": (Labels, {"targets": "label"}, {}),
    "weights": (Recorder, {"weights": "w"}, {}),
    "windows": (Recorder, {"window": {"t": 3}}, {}),
    "left out": (Recorder, {"missing": "drop"}, {"gaps": 90}),
    "left out of a large model": (Large, {"missing": "drop"}, {"gaps": 360, "rows": 2000}),
    "masked": (Recorder, {"missing": "mask"}, {"gaps": 90}),
}


@pytest.mark.filterwarnings("ignore:examples.*missing", "ignore:.*left out")
@pytest.mark.parametrize("case", CASES)
def test_they_are_those_of_a_lone_replica_in_its_order(threads_client, tmp_path, monkeypatch, case):
    monkeypatch.setattr("dbdask.schedule.portions.NOMINAL_FLOPS", 6e4)  # 100 parameters are many
    kind, how, values = CASES[case]
    store = stored(tmp_path / "store.zarr", **values)
    given = {"inputs": "x", "targets": "y", "along": "t"} | how
    examples = dbdask.Examples(store, **given).standardize()
    SEEN.clear()
    dbdask.downpour(
        kind(),
        examples,
        client=threads_client,
        replicas=1,
        batch_size=16,
        epochs=2,
        seed=3,
        progress=False,
    )
    again = [
        batch
        for epoch in range(2)
        for batch in examples.minibatches(16, seed=3, epoch=epoch, model=kind())
    ]
    assert len(again) == len(SEEN) > 50
    for found, seen in zip(again, SEEN, strict=True):
        for one, other in zip(found, seen, strict=True):
            assert (one is None) == (other is None)
            assert one is None or (one.dtype == other.dtype and np.array_equal(one, other))


def test_without_a_model_the_order_is_the_same(tmp_path):
    examples = dbdask.Examples(stored(tmp_path / "s.zarr"), inputs="x", targets="label", along="t")
    alone = list(examples.minibatches(16, seed=1))
    for one, other in zip(alone, examples.minibatches(16, seed=1, model=Labels()), strict=True):
        assert np.array_equal(one.inputs, other.inputs)
        assert one.targets.dtype == np.int64 and np.array_equal(one.targets, other.targets)


def test_an_epoch_has_every_example_once_and_each_epoch_its_own_order():
    examples = dbdask.Examples(data(), inputs="x", targets="y", along="t")
    epochs = [
        np.concatenate([batch.targets for batch in examples.minibatches(32, epoch=epoch)])
        for epoch in range(2)
    ]
    assert not np.array_equal(*epochs)
    for targets in epochs:
        np.testing.assert_array_equal(np.sort(targets), np.sort(data()["y"].values))


@pytest.fixture
def closed(monkeypatch):
    """List the readers that were closed."""
    found = []
    close = Reader.close

    def noted(reader):
        found.append(reader)
        close(reader)

    monkeypatch.setattr(Reader, "close", noted)
    return found


def test_the_reader_ends_with_the_iteration_or_when_it_is_dropped(tmp_path, closed):
    examples = dbdask.Examples(stored(tmp_path / "s.zarr"), inputs="x", targets="y", along="t")
    assert len(list(examples.minibatches(32))) == 22 and len(closed) == 1
    for _ in examples.minibatches(32):
        break
    gc.collect()
    assert len(closed) == 2
    begun = examples.minibatches(32)
    next(begun)
    assert len(closed) == 2
    del begun
    gc.collect()
    assert len(closed) == 3


def test_it_reads_ahead(tmp_path, monkeypatch):
    """The chunks of every shuffle group but the first are read on another thread."""
    monkeypatch.setattr("dbdask.data.examples.MIX_BYTES", 5000)
    examples = dbdask.Examples(stored(tmp_path / "s.zarr"), inputs="x", targets="y", along="t")
    groups = {portion.group for portion in examples.cut(128, 8).portions(0, 0)}
    started = []
    start = threading.Thread.start

    def noted(thread):
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    assert len(list(examples.minibatches(8))) >= ROWS / 8
    assert started.count("dbdask-prefetch") == len(groups) - 1 > 1


def test_a_batch_is_the_first_examples_in_store_order():
    examples = dbdask.Examples(data(), inputs="x", targets="y", along="t", weights="w")
    inputs, targets, weights = examples.batch()
    given = data().isel(t=slice(8))
    for found, name in ((inputs, "x"), (targets, "y"), (weights, "w")):
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, given[name])
    assert [len(array) for array in examples.batch(120)] == [120] * 3  # three chunks
    assert len(examples.isel(t=slice(5)).batch(8).inputs) == 5


def test_a_batch_is_scaled_and_complete_as_in_training():
    examples = dbdask.Examples(data(gaps=300), inputs="x", targets="y", along="t", missing="drop")
    scaled = examples.standardize()
    assert np.isfinite(scaled.batch(100).targets).all() and len(scaled.batch(100).inputs) == 100
    mean = np.mean(scaled.batch(ROWS).targets)
    assert abs(mean) < 1e-5 < abs(np.mean(examples.batch(ROWS).targets))
    masked = dbdask.Examples(data(gaps=300), inputs="x", targets="y", along="t", missing="mask")
    weights = masked.batch(ROWS).weights
    assert weights.shape == (ROWS,) and weights.sum() == ROWS - 300


def test_a_drawn_batch_is_the_first_of_training():
    examples = dbdask.Examples(data(), inputs="x", targets="y", along="t")
    drawn = examples.batch(8, seed=5)
    np.testing.assert_array_equal(drawn.inputs, next(examples.minibatches(8, seed=5)).inputs)
    assert not np.array_equal(drawn.inputs, examples.batch(8, seed=6).inputs)


def test_inputs_alone_are_enough():
    found = dbdask.Examples(data(), inputs="x", along="t").batch(3)
    assert found.targets is None and found.weights is None and found.inputs.shape == (3, 4)


def test_a_model_decides_what_targets_are():
    examples = dbdask.Examples(data(), inputs="x", targets="label", along="t")
    assert examples.batch(3).targets.dtype == np.int64
    assert examples.batch(3, model=Recorder()).targets.dtype == np.float32


@pytest.mark.parametrize("route", ["store", "dask", "memory"])
def test_every_route_gives_the_same(tmp_path, route):
    store = stored(tmp_path / "s.zarr")
    given = {
        "store": store,
        "dask": xr.open_zarr(store, consolidated=False),
        "memory": xr.open_zarr(store, consolidated=False).load(),
    }[route]
    options = {"inputs": "x", "targets": "y", "along": "t"}
    found = dbdask.Examples(given, **options).batch(60)
    np.testing.assert_array_equal(found.inputs, dbdask.Examples(store, **options).batch(60).inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be a whole number, got 2.0"),
        ({"batch_size": 2, "seed": -1}, "seed must be at least 0, got -1"),
        ({"batch_size": 2, "epoch": True}, "epoch must be a whole number, got True"),
    ],
)
def test_wrong_arguments_are_named_at_once(arguments, message):
    examples = dbdask.Examples(data(), inputs="x", targets="y", along="t")
    with pytest.raises((TypeError, ValueError), match=message):
        examples.minibatches(**arguments)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        examples.batch(0)


def test_nothing_left_is_an_error():
    empty = data().assign(y=("t", np.full(ROWS, np.nan, np.float32)))
    examples = dbdask.Examples(empty, inputs="x", targets="y", along="t", missing="drop")
    for seed in (None, 0):
        with pytest.raises(dbdask.DataError, match="no example"):
            examples.batch(4, seed=seed)
