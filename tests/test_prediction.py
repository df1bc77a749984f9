"""Predictions as arrays: what they take from the data, what they leave there, what they cost."""

import pickle

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import dbdask
from dbdask.metrics.history import History
from dbdask.result import Result
from dbdask.status import Status

# What Zarr says of text of fixed length, and xarray of text that dask holds.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have a Zarr V3 specification"),
    pytest.mark.filterwarnings("ignore:variable .* has data in the form of a dask array"),
]

TIMES = np.datetime64("2001-01-31T06", "ns") + np.arange(11) * np.timedelta64(6, "h")


def result_of(examples, model, parameters=None):
    """A result without a run: the parameters are the model's initial ones, or given."""
    size = sum(np.prod(p.shape, dtype=int) for p in model.layout.parameters)
    vector = model.initial_parameters(0, 0, size) if parameters is None else parameters
    return Result(model, examples, vector, History(), Status("epochs", "made by hand"))


def network(examples, outputs, loss):
    return dbdask.Network(
        input_shape=examples.input_shape, layers=[dbdask.Dense(outputs)], loss=loss
    )


def field(rng):
    """Eleven times on a grid of 3 by 4, with coordinates of many kinds."""
    dims = ("time", "y", "x")
    return xr.Dataset(
        {
            "warm": (dims, rng.normal(size=(11, 3, 4)).astype("f4"), {"units": "K"}),
            "wet": (dims, rng.normal(size=(11, 3, 4)), {"units": "kg m-2", "valid": np.True_}),
        },
        coords={
            "time": ("time", TIMES, {"long_name": "time"}),
            "x": np.arange(4) * 0.1,
            "y": ("y", np.arange(3, dtype="i2"), {"axis": "Y"}),
            "lat": (("y", "x"), rng.normal(size=(3, 4)), {"known": True, "made": None}),
            "season": ("time", np.array(["dry", "wet", "dusk"])[np.arange(11) % 3]),
            "daylight": ("time", np.arange(11) % 2 == 0),
            "run": 7,
            "model": "north",
        },
    )


def written(predicted, path, how):
    """Write a prediction as it is, and read it back."""
    if how in ("v2", "v3"):
        predicted.to_zarr(path, zarr_format=int(how[1]), mode="w", consolidated=False)
        return xr.open_zarr(path, consolidated=False).load()
    predicted.to_netcdf(path, engine=how)
    with xr.open_dataset(path, engine=how) as again:
        return again.load()


def stored_of(data, path, how):
    """The data as they come out of a file or a store: with all that it noted on them."""
    packed = {"wet": {"dtype": "i2", "scale_factor": 0.001, "_FillValue": -99}}
    times = {"time": {"units": "hours since 1900-01-01", "dtype": "f8", "_FillValue": -1.0}}
    data = data.drop_attrs() if how == "scipy" else data.assign(lat=data["lat"].drop_attrs())
    data["wet"].attrs.pop("valid", None)
    if how in ("v2", "v3"):
        chunked = data.chunk(time=4, y=3, x=2)
        chunked["lat"] = chunked["lat"].chunk(y=1, x=4)
        encoding = {**packed, **times}
        chunked.to_zarr(path, zarr_format=int(how[1]), encoding=encoding, consolidated=False)
        return xr.open_zarr(path, consolidated=False)
    data.to_netcdf(path, engine=how, encoding={**packed, **times})
    return xr.open_dataset(path, engine=how, chunks={"time": 4})


@pytest.mark.parametrize("came", ["v2", "v3", "scipy", "h5netcdf", "memory", "uneven"])
def test_a_prediction_can_be_written_whatever_the_data_came_from(tmp_path, came):
    data = field(np.random.default_rng(0))
    if came == "uneven":
        given = data.chunk(time=(3, 5, 2, 1), y=(1, 2), x=4)
        given["lat"] = given["lat"].chunk(y=(1, 2), x=(1, 3))
    else:
        given = data if came == "memory" else stored_of(data, tmp_path / "data", came)
    examples = dbdask.Examples(
        given, inputs="warm", targets="wet", along=("time", "y", "x")
    ).standardize(targets=False)
    predicted = result_of(examples, network(examples, 1, "squared")).predict(given)
    assert not predicted.encoding
    assert not any(coord.encoding for coord in predicted.coords.values())
    assert set(predicted.coords) == set(given["wet"].coords)
    for how in ("v2", "v3", "scipy", "h5netcdf"):
        again = written(predicted, tmp_path / f"out-{how}", how)
        xr.align(given, again, join="exact")
        xr.testing.assert_equal(again["wet"], predicted.compute())
        assert again["wet"].attrs.get("units") == given["wet"].attrs.get("units")
    given.close()


@pytest.mark.parametrize("labels", [["sea", "land", "ice"], [3, 5, 9], [0.5, 1.5, 2.5]])
def test_labels_can_be_written_in_every_format(tmp_path, labels):
    rng = np.random.default_rng(1)
    data = xr.Dataset(
        {
            "x": (("row", "f"), rng.normal(size=(30, 4))),
            "y": ("row", np.array(labels)[rng.integers(0, 3, 30)]),
        }
    ).chunk(row=7)
    data["y"].encoding.update(chunks=(30,), compressors=None, _FillValue=None)
    examples = dbdask.Examples(data, inputs="x", targets="y", along="row", classes=labels)
    result = result_of(examples, network(examples, 3, "softmax"))
    for predicted in (result.predict(data), result.predict_proba(data)):
        for how in ("v2", "v3", "scipy", "h5netcdf"):
            again = written(predicted, tmp_path / f"{predicted.ndim}-{how}", how)
            xr.testing.assert_equal(again["y"], predicted.compute())


def test_several_targets_can_be_written_together(tmp_path):
    data = field(np.random.default_rng(2)).chunk(time=(2, 9))
    examples = dbdask.Examples(data, inputs="warm", targets=["wet", "warm"], along="time")
    predicted = result_of(examples, network(examples, 24, "squared")).predict(data)
    for how in ("v2", "v3", "scipy", "h5netcdf"):
        again = written(predicted, tmp_path / how, how)
        xr.testing.assert_equal(again, predicted.compute())
        xr.align(data, again, join="exact")


def test_a_multiindex_is_written_after_reset_index_as_xarray_asks(tmp_path):
    index = pd.MultiIndex.from_product([["a", "b"], [1, 2, 3]], names=["station", "day"])
    coords = xr.Coordinates.from_pandas_multiindex(index, "row")
    data = xr.Dataset({"x": ("row", np.arange(6.0)), "y": ("row", np.arange(6.0))}, coords)
    examples = dbdask.Examples(data, inputs="x", targets="y", along="row")
    predicted = result_of(examples, network(examples, 1, "squared")).predict(data)
    xr.align(data, predicted, join="exact")
    flat = predicted.reset_index("row")
    again = written(flat, tmp_path / "out", "v2")
    xr.testing.assert_equal(again["y"].set_index(row=["station", "day"]), predicted.compute())


def test_the_data_keep_their_own_attributes_and_encodings():
    data = field(np.random.default_rng(3))
    data["lat"].encoding["chunks"] = (1, 4)
    before = data.copy(deep=True)
    examples = dbdask.Examples(data, inputs="warm", targets="wet", along="time")
    predicted = result_of(examples, network(examples, 12, "squared")).predict(data)
    xr.testing.assert_identical(data, before)
    assert data["lat"].encoding == {"chunks": (1, 4)}
    assert predicted["lat"].attrs == {"known": 1}


def test_a_coordinate_with_the_name_of_the_prediction_or_of_its_classes_stays_behind():
    rng = np.random.default_rng(4)
    data = xr.Dataset(
        {"x": (("row", "f"), rng.normal(size=(8, 2))), "y": ("row", np.arange(8) % 2)},
        coords={"class": ("row", list("abcdefgh")), "f": [10, 20]},
    ).set_coords("y")
    examples = dbdask.Examples(data, inputs="x", targets="y", along="row")
    result = result_of(examples, network(examples, 2, "softmax"))
    assert set(result.predict(data).coords) == {"class"}
    probabilities = result.predict_proba(data)
    assert probabilities["class"].values.tolist() == [0, 1]
    wide = data.drop_vars("class").rename(f="class")
    examples = dbdask.Examples(wide, inputs="x", targets="y", along="row")
    result = result_of(examples, network(examples, 2, "softmax"))
    assert result.predict_proba(wide)["class"].values.tolist() == [0, 1]
    examples = dbdask.Examples(wide, inputs="x", targets="y", along=("row", "class"))
    result = result_of(examples, network(examples, 2, "softmax"))
    with pytest.raises(ValueError, match="dimension 'class'.*rename"):
        result.predict_proba(wide)


@pytest.mark.parametrize("route", ["store", "dask", "memory"])
def test_windows_over_the_borders_of_chunks_see_the_same_values(tmp_path, route):
    rng = np.random.default_rng(5)
    data = xr.Dataset({name: (("t", "f"), rng.normal(size=(40, 3))) for name in ("x", "z")})
    data["y"] = "t", rng.normal(size=40)
    chunked = data.chunk(t=(9, 0, 9, 9, 9, 4), f=2)
    whole = data.chunk(t=9, f=2)
    whole.to_zarr(tmp_path / "data.zarr", consolidated=False)
    given = {"store": tmp_path / "data.zarr", "dask": chunked, "memory": data}[route]
    options = {"inputs": ["x", "z"], "targets": "y", "along": "t", "edges": "drop"}
    examples = dbdask.Examples(given, window={"t": (-12, 3)}, **options)
    model = network(examples, 1, "squared")
    values = np.stack([data["x"], data["z"]], axis=-1)
    weights = model.layout.views(model.initial_parameters(0, 0, 16 * 6 + 1))
    (matrix,) = (view for view in weights.values() if view.ndim == 2)
    (bias,) = (view for view in weights.values() if view.ndim == 1)
    wanted = np.full(40, np.nan)
    for t in range(12, 37):
        window = values[t - 12 : t + 4].astype("f4").ravel()
        wanted[t] = (matrix.reshape(1, -1) @ window + bias)[0]
    found = result_of(examples, model).predict(given).compute(scheduler="threads")
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("route", ["store", "dask", "memory"])
def test_a_block_costs_one_small_task(tmp_path, route):
    data = xr.Dataset({"x": ("t", np.arange(1000.0)), "y": ("t", np.arange(1000.0))})
    data.chunk(t=10).to_zarr(tmp_path / "data.zarr", consolidated=False)
    opened = {"store": tmp_path / "data.zarr", "dask": data.chunk(t=10)}.get(route, data)
    examples = dbdask.Examples(opened, inputs="x", targets="y", along="t")
    result = result_of(examples, network(examples, 1, "squared"))
    array = result.predict(opened).data
    (layer,) = (
        layer
        for layer in array.dask.layers.values()
        if any(isinstance(key, tuple) and key[0] == array.name for key in layer)
    )
    blocks = examples.grid.block_count
    assert len(layer) == blocks * (2 if route == "dask" else 1)
    own = 0 if route != "dask" else len(opened["x"].data.dask)
    assert len(array.dask) <= len(layer) + own + 2
    if route == "store":
        tasks = {key: layer[key] for key in list(layer)[:100]}
        assert len(pickle.dumps(tasks)) < 100 * 500


def test_the_parameters_are_in_the_graph_once():
    data = xr.Dataset({"x": ("t", np.arange(300.0)), "y": ("t", np.arange(300.0))}).chunk(t=10)
    examples = dbdask.Examples(data, inputs="x", targets="y", along="t")
    result = result_of(examples, network(examples, 1, "squared"))
    (graph,) = dask.optimize(result.predict(data).data)
    holders = [key for key, task in dict(graph.dask).items() if "Predictor(" in repr(task)]
    assert len(holders) == 1


@pytest.mark.parametrize(
    ("dtype", "scaled", "wanted"),
    [
        ("f8", True, "f8"),
        ("i8", True, "f8"),
        ("u4", True, "f8"),
        ("f4", True, "f4"),
        ("i2", True, "f4"),
        ("f8", False, "f4"),
    ],
)
def test_scaled_targets_come_back_in_a_dtype_that_holds_them(tmp_path, dtype, scaled, wanted):
    rng = np.random.default_rng(6)
    part = rng.uniform(size=400)
    top = {"i2": 20_000, "f4": 300.0}.get(dtype, 2.4e6)
    data = xr.Dataset({"x": ("t", part), "y": ("t", (top + 100 * part).astype(dtype))})
    examples = dbdask.Examples(data, inputs="x", targets="y", along="t")
    examples = examples.standardize(targets=scaled).for_loss("squared", 1)
    model = network(examples, 1, "squared")
    # The least-squares fit of one standardised variable by another that is linear in it.
    result = result_of(examples, model, np.array([1.0, 0.0], "f4"))
    result.save(tmp_path / "model.zarr")
    for one in (result, dbdask.load(tmp_path / "model.zarr")):
        predicted = one.predict(data).compute()
        assert predicted.dtype == wanted
        if scaled:
            assert float(abs(predicted - (top + 100 * part)).max()) < 1


def test_parameters_read_lazily_are_in_regular_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("dbdask.result.EAGER_BYTES", 64)
    data = xr.Dataset({"x": (("t", "f"), np.ones((5, 7))), "y": ("t", np.ones(5))})
    examples = dbdask.Examples(data, inputs="x", targets="y", along="t")
    model = dbdask.Network(
        input_shape=(7,), layers=[dbdask.Dense(9, "relu"), dbdask.Dense(1)], loss="squared"
    )
    result = result_of(examples, model)
    result.save(tmp_path / "model.zarr")
    parameters = dbdask.load(tmp_path / "model.zarr").parameters
    assert all(isinstance(variable.data, da.Array) for variable in parameters.values())
    parameters.to_zarr(tmp_path / "parameters.zarr", zarr_format=2, consolidated=False)
    again = xr.open_zarr(tmp_path / "parameters.zarr", consolidated=False)
    xr.testing.assert_equal(again.load(), result.parameters)


@pytest.mark.filterwarnings("ignore:The specified chunks separate")
@pytest.mark.parametrize("opened", [None, {}, {"t": 200}, {"t": 50}, {"t": (30, 70, 60, 240)}])
def test_a_prediction_has_the_chunks_of_the_data(tmp_path, opened):
    rng = np.random.default_rng(5)
    data = xr.Dataset({"x": (("t", "f"), rng.normal(size=(400, 3))), "y": ("t", np.zeros(400))})
    data.chunk(t=100).to_zarr(tmp_path / "data.zarr", consolidated=False)
    given = tmp_path / "data.zarr"
    if opened is not None:
        given = xr.open_zarr(given, chunks=opened, consolidated=False)
    examples = dbdask.Examples(given, inputs="x", targets="y", along="t")
    predicted = result_of(examples, network(examples, 1, "squared")).predict(given)
    regular = {None: (100,) * 4, 200: (200,) * 2, 50: (50,) * 8, (30, 70, 60, 240): (240, 160)}
    assert predicted.chunks == (regular[(opened or {}).get("t")],)
    layers = result_of(examples, network(examples, 1, "squared"))
    weights = {name: array.values for name, array in layers.parameters.items()}
    (matrix,) = [w for w in weights.values() if w.ndim == 2]
    (bias,) = [w for w in weights.values() if w.ndim == 1]
    expected = data["x"].values.astype("f4") @ matrix.reshape(3, 1) + bias
    np.testing.assert_allclose(predicted.values, expected[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 5, 10])
@pytest.mark.parametrize("window", [11, (-6, 0)])
def test_data_shorter_than_the_window_are_predicted_by_the_rule_of_the_edges(rows, window):
    rng = np.random.default_rng(6)
    data = xr.Dataset({"x": (("t", "f"), rng.normal(size=(40, 2))), "y": ("t", np.zeros(40))})
    first, last = (-5, 5) if window == 11 else window
    short = data.isel(t=slice(rows))
    padded = short["x"].pad(t=(-first, last), mode="edge").values
    width = last - first + 1
    seen = np.stack([padded[t : t + width] for t in range(rows)]).astype("f4").reshape(rows, -1)
    for edges in ("repeat", "drop"):
        examples = dbdask.Examples(
            data, inputs="x", targets="y", along="t", window={"t": window}, edges=edges
        )
        result = result_of(examples, network(examples, 1, "squared"))
        if edges == "drop" and rows < width:
            with pytest.raises(ValueError, match="windows are longer"):
                result.predict(short)
            continue
        predicted = result.predict(short).values
        matrix, bias = (result.parameters[name].values for name in result.parameters)
        matrix, bias = (matrix, bias) if matrix.ndim > bias.ndim else (bias, matrix)
        expected = (seen @ matrix.reshape(-1, 1) + bias)[:, 0]
        whole = slice(-first, rows - last) if edges == "drop" else slice(None)
        np.testing.assert_allclose(predicted[whole], expected[whole], rtol=1e-5, atol=1e-6)


def test_predictions_say_in_words_what_flags_stand_for(tmp_path):
    rng = np.random.default_rng(7)
    flags = {"flag_values": np.array([2, 5, 9], "i1"), "flag_meanings": "sea land ice"}
    labels = np.array([2, 5, 9], "i1")[np.arange(12) % 3]
    data = xr.Dataset({"x": (("row", "f"), rng.normal(size=(12, 2))), "y": ("row", labels, flags)})
    examples = dbdask.Examples(data, inputs="x", targets="y", along="row")
    result = result_of(examples, network(examples, 3, "softmax"))
    result.predict(data).to_zarr(tmp_path / "out.zarr", consolidated=False)
    result.predict_proba(data).to_netcdf(tmp_path / "out.nc", engine="h5netcdf")
    again = xr.open_zarr(tmp_path / "out.zarr", consolidated=False)["y"]
    with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf") as probabilities:
        for shown in (again, probabilities["class"]):
            assert np.asarray(shown.attrs["flag_values"]).tolist() == [2, 5, 9]
            assert shown.attrs["flag_meanings"] == "sea land ice"
    assert dbdask.Examples(again.to_dataset(), inputs="y", targets="y", along="row").has_labels
