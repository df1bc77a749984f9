"""The result: scores, predictions on the data's own grid, and what is kept of it."""

import warnings

import numpy as np
import pytest
import xarray as xr

import dbdask
from dbdask.metrics.call_time import STAGES
from dbdask.metrics.history import History, Record
from dbdask.metrics.time_spent import ACTIVITIES, OCCASIONAL


@pytest.fixture
def grid(tmp_path):
    """Two fields on (lat, lon, time), a target that is linear in them, land missing."""
    rng = np.random.default_rng(0)
    shape = (4, 5, 30)
    warm, wet = rng.normal(10, 3, size=shape), rng.normal(size=shape)
    target = 2 * warm - wet + 5
    land = np.zeros(shape, bool)
    land[1, 2] = True
    data = xr.Dataset(
        {
            "warm": (("lat", "lon", "time"), np.where(land, np.nan, warm)),
            "wet": (("lat", "lon", "time"), wet),
            "target": (("lat", "lon", "time"), target, {"units": "K"}),
        },
        coords={
            "lat": np.linspace(-10, 10, 4),
            "lon": np.linspace(0, 8, 5),
            "time": np.arange("2000-01-01", "2000-01-31", dtype="datetime64[D]").astype("M8[ns]"),
        },
    )
    path = tmp_path / "grid.zarr"
    data.chunk({"time": 7}).to_zarr(path, consolidated=False)
    return str(path), data


def fit(client, path, **options):
    examples = dbdask.Examples(
        path,
        inputs=["warm", "wet"],
        targets="target",
        along=("time", "lat", "lon"),
        missing="drop",
    ).standardize(client=client)
    model = dbdask.Network(
        input_shape=examples.input_shape, layers=[dbdask.Dense(1)], loss="squared"
    )
    settings = {"optimizer": dbdask.sgd(0.2), "batch_size": 20, "epochs": 10, "progress": False}
    return examples, dbdask.downpour(
        model, examples, client=client, replicas=1, **(settings | options)
    )


@pytest.mark.filterwarnings("ignore:.*left out as missing")
def test_a_prediction_is_on_the_data_and_in_the_targets_own_units(threads_client, grid):
    path, data = grid
    examples, result = fit(threads_client, path, epochs=2)
    predicted = result.predict(path)
    xr.align(data, predicted, join="exact")
    assert predicted.name == "target" and predicted.dims == data["target"].dims
    assert predicted.attrs["units"] == "K"
    values = predicted.compute(scheduler="threads")
    assert np.isnan(values.values[1, 2]).all()
    assert np.isfinite(values.values).sum() == values.size - 30
    np.testing.assert_allclose(values.values[0, 0], data["target"].values[0, 0], atol=1.0)
    scores = result.evaluate(examples)
    difference = (values - data["target"]).values
    assert scores["rmse"] == pytest.approx(np.sqrt(np.nanmean(difference**2)), abs=1e-5)
    assert scores["r2"] > 0.99


@pytest.mark.filterwarnings("ignore:.*left out as missing")
@pytest.mark.parametrize("route", ["lazy", "dask", "memory"])
def test_every_route_predicts_the_same(threads_client, grid, route):
    path, _ = grid
    _, result = fit(threads_client, path, epochs=1)
    opened = xr.open_zarr(path, consolidated=False, chunks={} if route == "dask" else None)
    given = opened.load() if route == "memory" else opened
    wanted = result.predict(path).compute(scheduler="threads")
    xr.testing.assert_identical(
        result.predict(given).compute(scheduler="threads").drop_attrs(), wanted.drop_attrs()
    )


@pytest.mark.filterwarnings("ignore:.*left out as missing")
def test_a_saved_result_predicts_the_same_and_says_how_it_went(threads_client, grid, tmp_path):
    path, _ = grid
    examples, result = fit(threads_client, path, epochs=2)
    kept = tmp_path / "model.zarr"
    result.save(kept)
    again = dbdask.load(kept)
    xr.testing.assert_identical(again.parameters, result.parameters)
    xr.testing.assert_equal(
        again.predict(path).compute(scheduler="threads"),
        result.predict(path).compute(scheduler="threads"),
    )
    assert again.evaluate(examples) == result.evaluate(examples)
    assert again.status == result.status
    xr.testing.assert_identical(again.history, result.history)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        result.save(kept)
    result.save(kept, overwrite=True)


def test_what_is_no_saved_result_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.zarr"):
        dbdask.load(tmp_path / "nothing.zarr")


@pytest.fixture
def labelled(tmp_path):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(300, 4)).astype(np.float32)
    names = np.array(["low", "mid", "top"])
    data = xr.Dataset(
        {
            "x": (("row", "feature"), values),
            "name": ("row", names[np.digitize(values[:, 0], [-0.5, 0.5])]),
        }
    )
    data.chunk({"row": 64}).to_zarr(tmp_path / "names.zarr", zarr_format=2)
    return str(tmp_path / "names.zarr"), data


def test_classes_come_back_as_their_labels(threads_client, labelled):
    path, data = labelled
    examples = dbdask.Examples(
        path, inputs="x", targets="name", along="row", classes=["low", "mid", "top"]
    )
    model = dbdask.Network(input_shape=(4,), layers=[dbdask.Dense(3)], loss="softmax")
    result = dbdask.downpour(
        model,
        examples,
        client=threads_client,
        optimizer=dbdask.adagrad(0.3),
        batch_size=30,
        epochs=20,
        progress=False,
    )
    predicted = result.predict(path).compute(scheduler="threads")
    assert (predicted.values == data["name"].values).mean() > 0.9
    accuracy = (predicted.values == data["name"].values).mean()
    assert result.evaluate(examples)["accuracy"] == pytest.approx(accuracy)
    probabilities = result.predict_proba(path).compute(scheduler="threads")
    assert probabilities.dims == ("row", "class")
    np.testing.assert_allclose(probabilities.sum("class"), 1, rtol=1e-5)
    best = probabilities["class"].values[probabilities.argmax("class")]
    np.testing.assert_array_equal(best, predicted.values)


def test_history_survives_json_and_shows_only_what_applies():
    history = History([Record(1.0, 0, 5, 100, loss=0.5), Record(2.0, 1, 9, 180, loss=0.25)])
    dataset = history.to_dataset()
    assert "validation_loss" not in dataset and "iteration" not in dataset
    assert set(dataset.coords) == {"seconds", "epoch", "step", "examples"}
    xr.testing.assert_identical(History.from_json(history.to_json()).to_dataset(), dataset)


@pytest.mark.filterwarnings("ignore:.*left out as missing")
def test_a_learning_curve_is_a_figure(threads_client, grid, tmp_path):
    path, _ = grid
    _, result = fit(threads_client, path, epochs=1)
    result.plot().savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="what must be 'loss' or 'time', got 'times'"):
        result.plot("times")


@pytest.mark.filterwarnings("ignore:.*left out as missing")
def test_the_time_of_a_run_is_a_figure(threads_client, grid, tmp_path):
    """A lone replica's seconds are no more than the run's, and a resumed run counts on."""
    path, _ = grid
    checkpoint = str(tmp_path / "run.zarr")
    spent, shown = [], [name for name in ACTIVITIES if name not in OCCASIONAL]
    for epochs in (2, 4):
        _, result = fit(threads_client, path, epochs=epochs, checkpoint=checkpoint, resume="auto")
        history = result.history.isel(record=-1)
        parts = [float(history[f"seconds_{name}"]) for name in shown]
        assert min(parts) >= 0 and parts[shown.index("computing")] > 0
        spent.append(sum(parts))
        assert spent[-1] <= float(history["seconds"])
    assert spent[0] < spent[1]
    figure = result.plot("time")
    assert "of the time" in figure.axes[0].get_title()
    assert [text.get_text() for text in figure.axes[0].get_legend().texts] == shown
    heights = [[bar.get_height() for bar in bars] for bars in figure.axes[0].containers]
    np.testing.assert_allclose(np.sum(heights, axis=0), 100, atol=1e-6)
    stages = [bars[0].get_width() for bars in figure.axes[1].containers]
    assert len(figure.axes) == 2 and len(stages) == len(STAGES)
    sides = ("starting", "training", "ending")
    attributes = [result.history.attrs[f"seconds_{name}"] for name in sides]
    np.testing.assert_allclose(sum(stages), sum(attributes))


@pytest.mark.filterwarnings("ignore:.*left out as missing")
def test_validation_is_in_the_targets_own_units(threads_client, grid):
    path, _ = grid
    held_out = dbdask.Examples(
        path,
        inputs=["warm", "wet"],
        targets="target",
        along=("time", "lat", "lon"),
        missing="drop",
    ).isel(time=slice(21, 30))
    _, result = fit(threads_client, path, epochs=2, validation=held_out, optimizer=dbdask.sgd(0.01))
    wanted = result.evaluate(held_out)
    assert result.history["validation_rmse"].values[-1] == pytest.approx(wanted["rmse"], rel=1e-4)
    assert result.history["validation_loss"].values[-1] == pytest.approx(wanted["loss"], rel=1e-4)


@pytest.mark.parametrize("labels", [[0, 1], [0.0, 1.0], ["no", "yes"], [7, 3]])
def test_one_logistic_output_tells_two_classes_apart(threads_client, labels):
    rng = np.random.default_rng(4)
    values = rng.normal(size=(400, 3)).astype(np.float32)
    truth = (values.sum(axis=1) > 0).astype(int)
    data = xr.Dataset({"x": (("row", "f"), values), "y": ("row", np.array(labels)[truth])})
    examples = dbdask.Examples(
        data, inputs="x", targets="y", along="row", classes=None if labels[0] == 0 else labels
    ).standardize(client=threads_client)
    model = dbdask.Network(input_shape=(3,), layers=[dbdask.Dense(1)], loss="logistic")
    result = dbdask.downpour(
        model,
        examples,
        client=threads_client,
        optimizer=dbdask.adagrad(0.3),
        batch_size=20,
        epochs=5,
        progress=False,
    )
    predicted = result.predict(data).compute(scheduler="threads")
    accuracy = (predicted == data["y"]).mean()
    assert accuracy > 0.95
    scores = result.evaluate(examples)
    assert scores["accuracy"] == pytest.approx(float(accuracy))
    assert scores["loss"] < 0.3
    probabilities = result.predict_proba(data).compute(scheduler="threads")
    assert probabilities["class"].values.tolist() == labels
    np.testing.assert_allclose(probabilities.sum("class"), 1, rtol=1e-5)
    best = probabilities["class"].values[probabilities.argmax("class")]
    np.testing.assert_array_equal(best, predicted)


class _Centroids:
    """A model of a user's own, which says nothing of its outputs: nearest of three fixed points."""

    layout = (("offset", (3, 2), ("class", "feature")),)

    def initial_parameters(self, seed, start, stop):
        return np.arange(6, dtype=np.float32)[start:stop]

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        gradient[:] = 0
        return float(len(inputs))

    def predict(self, parameters, inputs):
        points = parameters.reshape(3, 2)
        return -np.square(inputs[:, None] - points).sum(axis=2)


def test_a_users_own_model_need_not_say_how_many_outputs_it_has(threads_client):
    points = np.arange(6, dtype=np.float32).reshape(3, 2)
    truth = np.arange(30) % 3
    data = xr.Dataset({"x": (("row", "f"), points[truth]), "y": ("row", truth)})
    examples = dbdask.Examples(data, inputs="x", targets="y", along="row")
    result = dbdask.downpour(_Centroids(), examples, client=threads_client, progress=False)
    np.testing.assert_array_equal(result.predict(data).compute(scheduler="threads"), truth)
    assert result.predict_proba(data).sizes["class"] == 3
    assert result.evaluate(examples)["accuracy"] == 1


@pytest.mark.parametrize("algorithm", [dbdask.downpour, dbdask.sandblaster])
@pytest.mark.parametrize("labels", [["sea"], [0], [7]])
def test_a_single_class_is_that_class(threads_client, algorithm, labels):
    values = np.random.default_rng(4).normal(size=(60, 3)).astype(np.float32)
    data = xr.Dataset({"x": (("row", "f"), values), "y": ("row", np.repeat(labels, 60))})
    examples = dbdask.Examples(data, inputs="x", targets="y", along="row", classes=labels)
    model = dbdask.Network(input_shape=(3,), layers=[dbdask.Dense(1)], loss="softmax")
    result = algorithm(model, examples, client=threads_client, validation=examples, progress=False)
    assert result.evaluate(examples) == {"loss": 0.0, "accuracy": 1.0}
    assert result.history["validation_accuracy"].values[-1] == 1
    np.testing.assert_array_equal(result.predict(data).compute(scheduler="threads"), data["y"])
    probabilities = result.predict_proba(data).compute(scheduler="threads")
    assert probabilities.shape == (60, 1) and (probabilities == 1).all()
    assert probabilities["class"].values.tolist() == labels


def test_the_lone_output_of_a_logistic_loss_has_no_single_class(threads_client):
    data = xr.Dataset({"x": ("row", np.ones(9)), "y": ("row", np.repeat("sea", 9))})
    examples = dbdask.Examples(data, inputs="x", targets="y", along="row", classes=["sea"])
    model = dbdask.Network(input_shape=(), layers=[dbdask.Dense(1)], loss="logistic")
    with pytest.raises(ValueError, match="one class, the lone output.*'softmax', or two classes"):
        dbdask.downpour(model, examples, client=threads_client, progress=False)


class _Linear:
    """A model of a user's own: `outputs` linear outputs of which each fits the targets."""

    def __init__(self, outputs=1, loss=None, output_shape=None):
        self.layout = (("weights", (2, outputs), ("feature", "output")),)
        self.outputs = outputs
        if loss is not None:
            self.loss = loss
        if output_shape is not None:
            self.output_shape = output_shape

    def initial_parameters(self, seed, start, stop):
        return np.zeros(2 * self.outputs, np.float32)[start:stop]

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        errors = self.predict(parameters, inputs) - targets.reshape(-1, 1)
        gradient[:] = (inputs.T @ errors).ravel()
        return 0.5 * float(np.square(errors).sum())

    def predict(self, parameters, inputs):
        return inputs @ parameters.reshape(2, self.outputs)


COUNTS = np.random.default_rng(8).integers(0, 5, size=(400, 2)).astype(np.float32)


def _counts(**options):
    data = xr.Dataset(
        {
            "x": (("row", "f"), COUNTS),
            "rain": ("row", (COUNTS @ [3, 2]).astype(np.int64)),
            "kind": ("row", np.array(["wet", "dry"])[COUNTS[:, 0].astype(int) % 2]),
        }
    )
    options = {"targets": "rain"} | options
    return data, dbdask.Examples(data, inputs="x", along="row", **options)


@pytest.mark.parametrize("loss", [None, "poisson", "squared"])
@pytest.mark.parametrize("output_shape", [None, (), (1,)])
def test_whole_numbers_and_a_lone_output_of_a_users_own_are_values(
    threads_client, tmp_path, loss, output_shape
):
    data, examples = _counts()
    model = _Linear(loss=loss, output_shape=output_shape)
    settings = {"client": threads_client, "progress": False, "validation": examples}
    result = dbdask.downpour(
        model, examples, optimizer=dbdask.sgd(0.05), batch_size=20, epochs=10, **settings
    )
    result.save(tmp_path / "model.zarr")
    for one in (result, dbdask.load(tmp_path / "model.zarr", model=model)):
        predicted = one.predict(data)
        assert predicted.dims == ("row",) and predicted.name == "rain"
        np.testing.assert_allclose(predicted.compute(scheduler="threads"), data["rain"], atol=0.05)
        found = one.evaluate(examples)
        assert set(found) == {"loss", "rmse", "r2"} and found["r2"] > 0.999
        with pytest.raises(ValueError, match="loss is 'softmax' or 'logistic'"):
            one.predict_proba(data)
    assert "validation_accuracy" not in result.history


def test_values_with_several_outputs_of_a_users_own_are_given_as_they_are(threads_client):
    data, _ = _counts()
    data["rain"] = data["rain"].astype(np.float32)
    examples = dbdask.Examples(data, inputs="x", targets="rain", along="row")
    result = dbdask.sandblaster(_Linear(3), examples, client=threads_client, progress=False)
    predicted = result.predict(data).compute(scheduler="threads")
    assert predicted.dims == ("row", "output") and predicted.name == "rain"
    wanted = np.broadcast_to(data["rain"].values[:, None], (400, 3))
    np.testing.assert_allclose(predicted, wanted, atol=0.01)
    assert set(result.evaluate(examples)) == {"loss"}


def test_classes_that_were_asked_for_do_not_make_a_lone_output_a_class(threads_client):
    data, examples = _counts(targets="kind", classes=["wet", "dry"])
    result = dbdask.downpour(_Linear(), examples, client=threads_client, progress=False)
    predicted = result.predict(data).compute(scheduler="threads")
    assert predicted.dtype == np.float32 and predicted.dims == ("row",)
    assert set(result.evaluate(examples)) == {"loss"}


def test_one_number_an_example_is_an_input(threads_client, tmp_path):
    values = np.random.default_rng(2).normal(size=300)
    data = xr.Dataset({"x": ("row", values), "y": ("row", 3 * values + 1)})
    examples = dbdask.Examples(data, inputs="x", targets="y", along="row").standardize(
        client=threads_client
    )
    assert examples.input_shape == ()
    model = dbdask.Network(input_shape=(), layers=[dbdask.Dense(1)], loss="squared")
    result = dbdask.sandblaster(model, examples, client=threads_client, progress=False)
    result.save(tmp_path / "model.zarr")
    for one in (result, dbdask.load(tmp_path / "model.zarr")):
        assert one.model.input_shape == () and one.evaluate(examples)["r2"] > 0.9999
        predicted = one.predict(data).compute(scheduler="threads")
        np.testing.assert_allclose(predicted, data["y"], atol=0.01)


def _trained_on(client, examples, outputs=2):
    model = dbdask.Network(
        input_shape=examples.input_shape, layers=[dbdask.Dense(outputs)], loss="softmax"
    )
    return dbdask.downpour(model, examples, client=client, batch_size=20, progress=False)


@pytest.mark.filterwarnings("ignore:.*left out as missing")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("route", ["store", "lazy", "dask", "memory"])
def test_a_declared_missing_label_is_written_as_one(threads_client, tmp_path, zarr_format, route):
    values = np.random.default_rng(6).normal(size=(60, 3)).astype(np.float32)
    truth = np.where(np.arange(60) < 5, -9, values[:, 0] > 0).astype(np.int16)
    declared = {"_FillValue": -9} if zarr_format == 3 else {"missing_value": -9}
    data = xr.Dataset({"x": (("row", "f"), values), "y": ("row", truth, declared)})
    path = tmp_path / "data.zarr"
    data.to_zarr(path, zarr_format=zarr_format, consolidated=False)
    opened = xr.open_zarr(path, consolidated=False, chunks={} if route == "dask" else None)
    given = {"store": path, "memory": opened.load()}.get(route, opened)
    examples = dbdask.Examples(given, inputs="x", targets="y", along="row", missing="drop")
    result = _trained_on(threads_client, examples)
    result.save(tmp_path / "model.zarr")
    data["x"][7] = np.nan
    for trained in (result, dbdask.load(tmp_path / "model.zarr")):
        predicted = trained.predict(data)
        if route == "store":
            assert predicted.dtype.kind == "i" and predicted.values[7] == -9
        else:  # a Dataset means what it shows: NaN
            assert predicted.dtype == np.float64 and np.isnan(predicted.values[7])
        predicted.to_zarr(tmp_path / "out.zarr", mode="w", consolidated=False)
        again = xr.open_zarr(tmp_path / "out.zarr", consolidated=False)["y"]
        assert again.isnull().values.nonzero()[0].tolist() == [7]


@pytest.mark.parametrize("labels", [[0, 1], [0.25, 0.5]])
def test_numbers_as_labels_are_missing_as_nan(threads_client, labels):
    values = np.random.default_rng(6).normal(size=(60, 3)).astype(np.float32)
    truth = np.array(labels)[np.arange(60) % 2]
    data = xr.Dataset({"x": (("row", "f"), values), "y": ("row", truth)})
    classes = labels if labels[1] != 1 else None
    examples = dbdask.Examples(data, inputs="x", targets="y", along="row", classes=classes)
    result = _trained_on(threads_client, examples)
    data["x"][7, 1] = np.nan
    predicted = result.predict(data)
    assert predicted.dtype == np.float64
    assert predicted.isnull().values.nonzero()[0].tolist() == [7]
    assert set(predicted.dropna("row").values) <= set(labels)


@pytest.mark.filterwarnings("ignore:.*left out as missing")
@pytest.mark.parametrize("labels", [[2**53, 2**53 + 1], [2**63 + 1, 2**63 + 2], [0, -(2**62) - 1]])
def test_labels_that_float64_cannot_tell_apart_stay_whole(threads_client, labels):
    values = np.random.default_rng(6).normal(size=(60, 3)).astype(np.float32)
    truth = np.array(labels)[(values[:, 0] > 0).astype(int)]
    data = xr.Dataset({"x": (("row", "f"), values), "y": ("row", truth)})
    examples = dbdask.Examples(
        data, inputs="x", targets="y", along="row", classes=labels, missing="drop"
    )
    result = _trained_on(threads_client, examples)
    data["x"][7] = np.nan
    predicted = result.predict(data).compute(scheduler="threads")
    missing = predicted.attrs["missing_label"]
    assert predicted.dtype == truth.dtype and missing not in labels
    assert (predicted == missing).values.nonzero()[0].tolist() == [7]
    assert set(np.delete(predicted.values, 7).tolist()) == set(labels)


def test_labels_stay_whole_where_every_example_can_be_formed(threads_client):
    pixels = np.random.default_rng(6).integers(0, 256, size=(60, 3)).astype(np.uint8)
    data = xr.Dataset({"x": (("row", "f"), pixels), "y": ("row", np.arange(60) % 2)})
    window = {"row": 3}
    for edges, dtype in (("repeat", np.int64), ("drop", np.float64)):
        examples = dbdask.Examples(
            data, inputs="x", targets="y", along="row", window=window, edges=edges
        )
        predicted = _trained_on(threads_client, examples).predict(data)
        assert predicted.dtype == dtype
        assert int(predicted.isnull().sum()) == (2 if edges == "drop" else 0)


@pytest.mark.filterwarnings("ignore:.*left out as missing")
def test_text_labels_are_missing_as_no_text(threads_client):
    values = np.random.default_rng(6).normal(size=(60, 3)).astype(np.float32)
    data = xr.Dataset({"x": (("row", "f"), values), "y": ("row", np.array(["a", "b"] * 30))})
    for classes, gap in ((["a", "b"], ""), (["a", "b", ""], "missing")):
        examples = dbdask.Examples(data, inputs="x", targets="y", along="row", classes=classes)
        result = _trained_on(threads_client, examples, len(classes))
        gappy = data.assign(x=data["x"].where(data["row"] != 7))
        predicted = result.predict(gappy)
        assert predicted.attrs == ({"missing_label": gap} if gap else {})
        predicted = predicted.values
        assert str(predicted[7]) == str(gap) and set(np.delete(predicted, 7)) <= set(classes)


@pytest.mark.filterwarnings("ignore:.*left out as missing")
@pytest.mark.parametrize("missing", ["drop", "mask"])
def test_r2_is_averaged_over_targets_of_unlike_units(threads_client, missing):
    rng = np.random.default_rng(9)
    values = rng.normal(size=(600, 2)).astype(np.float32)
    noise = rng.normal(size=600)
    data = xr.Dataset(
        {
            "x": (("row", "f"), values),
            "pressure": ("row", 100_000 + 900 * values[:, 0]),
            "moisture": ("row", 0.01 * values[:, 1] + 0.01 * noise),
            "flat": ("row", np.ones(600)),
        }
    )
    data["moisture"][5] = np.nan
    examples = dbdask.Examples(
        data,
        inputs="x",
        targets=["pressure", "moisture", "flat"],
        along="row",
        weights=xr.DataArray(rng.uniform(0.5, 1.5, 600), dims="row", name="trust"),
        missing=missing,
    ).standardize(client=threads_client)
    model = dbdask.Network(input_shape=(2,), layers=[dbdask.Dense(3)], loss="squared")
    result = dbdask.downpour(
        model,
        examples,
        client=threads_client,
        optimizer=dbdask.adagrad(0.3),
        batch_size=20,
        epochs=4,
        progress=False,
    )
    predicted = result.predict(data).compute(scheduler="threads")
    weights = examples.recipe.weights.read()
    r2 = []
    for name in ("pressure", "moisture"):
        known = np.isfinite(data[name].values)
        truth, found, weight = (v[known] for v in (data[name].values, predicted[name], weights))
        spread = weight * (truth - np.average(truth, weights=weight)) ** 2
        r2.append(1 - (weight * (truth - found.values) ** 2).sum() / spread.sum())
    assert r2[0] > 0.9 > r2[1]
    assert result.evaluate(examples)["r2"] == pytest.approx(np.mean(r2), abs=5e-3)


def test_nothing_to_score_is_said(threads_client):
    data = xr.Dataset({"x": (("row", "f"), np.ones((30, 2))), "y": ("row", np.ones(30))})
    examples = dbdask.Examples(data, inputs="x", targets="y", along="row")
    model = dbdask.Network(input_shape=(2,), layers=[dbdask.Dense(1)], loss="squared")
    result = dbdask.downpour(model, examples, client=threads_client, progress=False)
    unweighted = dbdask.Examples(
        data * 0, inputs="x", targets="y", along="row", weights=data["y"] * 0
    )
    with pytest.raises(ValueError, match="no example with a weight above 0"):
        result.evaluate(unweighted)


def _warned(train):
    """What a training run warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train()
    return [str(one.message) for one in caught if "left out" in str(one.message)]


def _downpour(client, examples, outputs):
    model = dbdask.Network(
        input_shape=examples.input_shape, layers=[dbdask.Dense(outputs)], loss="softmax"
    )
    return dbdask.downpour(
        model, examples, client=client, batch_size=20, epochs=3, replicas=2, progress=False
    )


def _sandblaster(client, examples, outputs):
    model = dbdask.Network(
        input_shape=examples.input_shape, layers=[dbdask.Dense(outputs)], loss="softmax"
    )
    return dbdask.sandblaster(
        model, examples, client=client, iterations=5, portion_size=50, progress=False
    )


@pytest.mark.parametrize("train", [_downpour, _sandblaster])
def test_what_is_left_out_is_counted_once_and_named(threads_client, tmp_path, train):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(400, 2)).astype(np.float32)
    labels = np.array(["calm", "storm"])[rng.integers(0, 2, 400)]
    labels[[250, 251]] = "fog"
    data = xr.Dataset(
        {"x": (("hour", "f"), values), "y": ("hour", labels)}, coords={"hour": np.arange(400) * 6}
    )
    classes = ["calm", "fog", "storm"]

    def examples(gaps):
        given = data.assign(x=data["x"].where(~data["hour"].isin(data["hour"][gaps])))
        path = tmp_path / f"{len(gaps)}.zarr"
        given.chunk(hour=64).to_zarr(path, mode="w", zarr_format=2)
        return dbdask.Examples(
            path, inputs="x", targets="y", along="hour", classes=classes, missing="drop"
        )

    many = examples(range(100, 140))
    (found,) = _warned(lambda: train(threads_client, many, 3))
    assert found.startswith("40 of 400 examples (10.0 %) are left out as missing, the first for ")
    assert (
        found.endswith("inputs: variable 'x' at hour=100 (600), f=0") or "hour=100 (600)" in found
    )
    assert "no example is left" not in found
    (found,) = _warned(lambda: train(threads_client, examples([250, 251]), 3))
    assert found.startswith("2 of 400 examples (0.5 %)")
    assert found.endswith("no example is left of class fog")
    assert _warned(lambda: train(threads_client, examples([250]), 3)) == []


@pytest.mark.parametrize("train", [_downpour, _sandblaster])
def test_windows_that_leave_their_group_are_not_missing(threads_client, train):
    data = xr.Dataset(
        {
            "x": ("row", np.arange(200.0)),
            "y": ("row", np.arange(200) % 2),
            "group": ("row", np.arange(200) // 20),
        }
    )
    # At the edge of a group: only windows that are cut anyway look at it.
    data["x"][19] = np.nan
    examples = dbdask.Examples(
        data,
        inputs="x",
        targets="y",
        along="row",
        window={"row": (1, 1)},
        edges="drop",
        groups="group",
        missing="drop",
    )
    report = examples.isel(row=slice(19, None)).check()
    assert report.dropped == 9 and report.first_dropped == ""
    assert _warned(lambda: train(threads_client, examples.isel(row=slice(19, None)), 2)) == []


def test_a_prediction_has_the_coordinates_and_the_order_of_the_data(threads_client, tmp_path):
    rng = np.random.default_rng(7)
    dims = ("y", "time", "x")
    data = xr.Dataset(
        {
            "field": (dims, rng.normal(size=(3, 20, 4))),
            "seen": (dims, rng.normal(size=(3, 20, 4))),
        },
        coords={
            "time": ("time", np.arange(20), {"units": "days"}),
            "x": np.arange(4) * 10,
            "lat": (("y", "x"), rng.normal(size=(3, 4)), {"units": "degrees_north"}),
            "season": ("time", np.arange(20) % 4),
            "model": "north",
        },
    )
    data.to_zarr(tmp_path / "data.zarr", zarr_format=2, consolidated=False)
    for along in ("time", ("time", "y", "x")):
        examples = dbdask.Examples(data, inputs="field", targets="seen", along=along)
        outputs = int(np.prod(examples.target_shape))
        model = dbdask.Network(
            input_shape=examples.input_shape, layers=[dbdask.Dense(outputs)], loss="squared"
        )
        result = dbdask.downpour(model, examples, client=threads_client, progress=False)
        for given in (data, tmp_path / "data.zarr", data.transpose("x", "y", "time")):
            predicted = result.predict(given)
            shown = given if isinstance(given, xr.Dataset) else data
            xr.testing.assert_identical(
                predicted.coords.to_dataset(), shown["seen"].coords.to_dataset()
            )
            assert predicted.dims == shown["seen"].dims
            np.testing.assert_array_equal(
                predicted.transpose(*dims), result.predict(data).transpose(*dims)
            )


def test_only_examples_are_scored(threads_client):
    data = xr.Dataset({"x": (("row", "f"), np.ones((30, 2))), "y": ("row", np.ones(30))})
    examples = dbdask.Examples(data, inputs="x", targets="y", along="row")
    model = dbdask.Network(input_shape=(2,), layers=[dbdask.Dense(1)], loss="squared")
    result = dbdask.downpour(model, examples, client=threads_client, progress=False)
    with pytest.raises(TypeError, match="examples must be dbdask.Examples, got Dataset"):
        result.evaluate(data)
