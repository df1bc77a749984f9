"""Data on grids: a window of each input, circles, areas of cells, pasts of parts, chosen rules."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from test_prediction import result_of
from test_rows import metadata_only

import dbdask
from dbdask.errors import DataError

TIMES, LAT, LON = 16, 3, 8
ROUTES = {
    "store": lambda path: path,
    "lazy": lambda path: xr.open_zarr(path, chunks=None, consolidated=False),
    "dask": lambda path: xr.open_zarr(path, consolidated=False),
    "memory": lambda path: xr.open_zarr(path, consolidated=False).load(),
}

CLUSTERS = ["threads_client", pytest.param("process_client", marks=pytest.mark.slow)]


def world(seed=0):
    """Wind on a small globe, its climatology, its relief, and the areas of its cells."""
    rng = np.random.default_rng(seed)
    dims = ("time", "lat", "lon")
    return xr.Dataset(
        {
            "u": (dims, rng.normal(size=(TIMES, LAT, LON)).astype("f4")),
            "climatology": (dims, rng.normal(size=(TIMES, LAT, LON)).astype("f4")),
            "elevation": (dims[1:], rng.normal(size=(LAT, LON)).astype("f4")),
            "area": ("lat", np.array([0.5, 1.0, 0.5], "f4")),
        },
        coords={"time": np.arange(TIMES), "lat": [-60.0, 0, 60], "lon": np.arange(LON) * 45.0},
    )


def stored(folder, data, **chunks):
    encoding = {
        name: {"chunks": tuple(chunks.get(dim, data.sizes[dim]) for dim in array.dims)}
        for name, array in data.items()
    }
    path = folder / "world.zarr"
    data.to_zarr(path, encoding=encoding, consolidated=False)
    return str(path)


def of_points(data, **more):
    arguments = {
        "inputs": {"u": {"time": (-5, 0)}, "climatology": {"time": (1, 1)}, "elevation": None},
        "targets": "u",
        "along": ("time", "lat", "lon"),
    }
    return dbdask.Examples(data, **(arguments | more))


def values_of(examples):
    """Inputs and targets of all examples in store order, as values."""
    return examples.for_loss("squared", None).batch(len(examples))


def linear(examples):
    outputs = int(np.prod(examples.target_shape))
    return dbdask.Network(
        input_shape=examples.input_shape, layers=[dbdask.Dense(outputs)], loss="squared"
    )


def test_each_input_has_a_window_of_its_own():
    data = world()
    examples = of_points(data)
    assert examples.input_shape == (8,)
    inputs, targets, _ = values_of(examples)
    at = {"time": 7, "lat": 1, "lon": 4}
    row = np.ravel_multi_index(tuple(at.values()), (TIMES, LAT, LON))
    past = data["u"].isel(time=slice(2, 8), lat=1, lon=4)
    assert inputs[row, :6].tolist() == past.values.tolist()
    assert inputs[row, 6] == data["climatology"].isel(at | {"time": 8})
    assert inputs[row, 7] == data["elevation"].isel(lat=1, lon=4)
    assert targets[row] == data["u"].isel(at)


def test_windows_of_one_shape_are_stacked():
    data = world()
    inputs = {"u": {"time": (-1, 0)}, "climatology": {"time": (0, 1)}}
    examples = of_points(data, inputs=inputs)
    assert examples.input_shape == (2, 2)
    found = values_of(examples).inputs.reshape(TIMES, LAT, LON, 2, 2)
    assert np.array_equal(found[3, ..., 0, 1], data["climatology"][3])
    assert np.array_equal(found[3, ..., 1, 1], data["climatology"][4])


def test_one_window_for_all_is_the_same_as_that_window_for_each():
    window = {"time": (-2, 0), "lon": 3}
    names = ["u", "climatology"]
    common = of_points(world(), inputs=names, window=window)
    each = of_points(world(), inputs=dict.fromkeys(names, window))
    assert np.array_equal(values_of(common).inputs, values_of(each).inputs)
    assert common.description() == each.description()


def test_a_window_wraps_around_the_globe():
    data = world()
    examples = of_points(data, inputs={"u": {"lon": 5}}, edges={"lon": "wrap"})
    found = values_of(examples).inputs.reshape(TIMES, LAT, LON, 5)
    for place, offset in enumerate(range(-2, 3)):
        assert np.array_equal(found[..., place], data["u"].roll(lon=-offset))


@pytest.mark.parametrize("chunk", [3, LON])
def test_wrapping_does_not_depend_on_chunks(tmp_path, chunk):
    data = world()
    inputs = {"u": {"lon": (-7, -1), "time": (-1, 0)}, "elevation": {"lon": (2, 3)}}
    wanted = values_of(of_points(data, inputs=inputs, edges={"lon": "wrap"}))
    path = stored(tmp_path, data, lon=chunk, time=5)
    for opened in ROUTES.values():
        found = values_of(of_points(opened(path), inputs=inputs, edges={"lon": "wrap"}))
        order, here = (np.argsort(one.targets) for one in (found, wanted))
        assert np.array_equal(found.inputs[order], wanted.inputs[here])


def test_a_part_of_the_globe_ends_at_its_cuts_but_goes_on_over_the_seam():
    data = xr.Dataset({"x": ("lon", np.arange(8.0))})
    examples = dbdask.Examples(data, inputs="x", along="lon", window={"lon": 3}, edges="wrap")
    sea = examples.isel(lon=[0, 1, 5, 6, 7])
    assert sea.batch().inputs.tolist() == [[7, 0, 1], [0, 1, 1], [5, 5, 6], [5, 6, 7], [6, 7, 0]]
    inner = examples.isel(lon=slice(2, 5))
    assert inner.batch().inputs.tolist() == [[2, 2, 3], [2, 3, 4], [3, 4, 4]]


def test_time_is_dropped_where_longitudes_wrap():
    edges = {"lon": "wrap", "time": "drop"}
    window = {"time": (-2, 0), "lon": 3}
    examples = of_points(world(), inputs="u", window=window, edges=edges)
    assert len(examples) == (TIMES - 2) * LAT * LON
    described = json.loads(json.dumps(examples.description()))
    assert described["edges"] == {"time": "drop", "lat": "repeat", "lon": "wrap"}
    again = dbdask.Examples.from_description(described, world())
    assert np.array_equal(again.batch(50).inputs, examples.batch(50).inputs)


def test_the_cells_of_a_map_count_by_their_areas():
    data = world()
    maps = dbdask.Examples(
        data, inputs="elevation", targets="u", along="time", weights=data["area"]
    )
    _, targets, weights = maps.batch(4)
    assert targets.shape == weights.shape == (4, LAT, LON)
    assert np.array_equal(weights, np.broadcast_to(data["area"].values[:, None], weights.shape))
    model = linear(maps)
    result = result_of(maps, model, np.zeros(model.parameter_count, np.float32))
    scores = result.evaluate(maps)
    wide = data["u"].astype("f8")
    wanted = (wide**2).weighted(data["area"].astype("f8"))
    assert scores["rmse"] == pytest.approx(float(np.sqrt(wanted.mean())), rel=1e-6)
    per_example = 0.5 * wanted.sum(["lat", "lon"]) / float(data["area"].mean())
    assert scores["loss"] == pytest.approx(float(per_example.mean()), rel=1e-6)


def test_weights_of_elements_follow_the_order_of_the_targets():
    data = world()
    data["v"] = data["u"].transpose("time", "lon", "lat") + 1
    data["cell"] = ("lon", "lat"), np.arange(LON * LAT).reshape(LON, LAT).astype("f4")
    data["index"] = ("time", "lat"), np.ones((TIMES, LAT), "f4")
    arguments = {"inputs": "elevation", "along": "time"}
    both = dbdask.Examples(data, targets=["u", "v"], weights="cell", **arguments)
    weights = both.batch(2).weights
    assert weights.shape == (2, LAT, LON, 2)
    assert all(np.array_equal(one, data["cell"].T) for one in np.moveaxis(weights[0], -1, 0))
    joined = dbdask.Examples(data, targets=["u", "index"], weights="area", **arguments)
    weights = joined.batch(2).weights
    assert weights.shape == joined.batch(2).targets.shape == (2, LAT * LON + LAT)
    assert weights[0].tolist() == [*np.repeat([0.5, 1, 0.5], LON), 0.5, 1, 0.5]
    with pytest.raises(ValueError, match=r"weights: .*'cell' has the dimension 'lon'.*'lat'"):
        dbdask.Examples(data, targets=["u", "index"], weights="cell", **arguments)


def test_a_missing_cell_of_a_map_has_no_weight_whatever_its_area():
    data = world()
    data["u"][2, 1, 3] = np.nan
    maps = dbdask.Examples(
        data, inputs="elevation", targets="u", along="time", weights="area", missing="mask"
    )
    weights = maps.batch(4).weights
    assert weights[2, 1, 3] == 0 and weights[2, 1, 4] == 1 and weights[2, 0, 3] == 0.5


def test_windows_of_a_part_reach_back_and_its_targets_are_its_own():
    data = world()
    examples = of_points(data, edges={"time": "drop"}, targets="climatology")
    assert len(examples) == (TIMES - 6) * LAT * LON
    apart = examples.split(0.5)
    parts = examples.split(0.5, overlap=True)
    assert len(apart[1]) == (TIMES / 2 - 6) * LAT * LON
    assert len(parts[1]) == (TIMES / 2 - 1) * LAT * LON
    train, test = map(values_of, parts)
    assert not set(train.targets.tolist()) & set(test.targets.tolist())
    assert test.inputs[0, :6].tolist() == data["u"][3:9, 0, 0].values.tolist()
    assert not set(train.inputs[:, 6]) & set(data["climatology"][TIMES // 2 :].values.ravel())


def test_the_past_of_a_part_is_seen_until_a_cut():
    data = xr.Dataset({"x": ("t", np.arange(20.0))})
    examples = dbdask.Examples(data, inputs="x", along="t", window={"t": (-3, 0)})
    part = examples.split(0.25, 0.25, 0.5, overlap=True)[2]
    assert part.batch(1).inputs.tolist() == [[7, 8, 9, 10]]
    assert part.isel(t=slice(0, 4)).batch(1).inputs.tolist() == [[7, 8, 9, 10]]
    assert part.isel(t=slice(1, 4)).batch(1).inputs.tolist() == [[11, 11, 11, 11]]
    assert part.split(0.5)[1].batch(1).inputs.tolist() == [[15, 15, 15, 15]]
    later = part.split(0.1, overlap=True)
    assert later[0].batch(1).inputs.tolist() == [[7, 8, 9, 10]]
    assert later[1].batch(1).inputs.tolist() == [[8, 9, 10, 11]]
    short = examples.isel(t=slice(8, 20)).split(0.1, 0.9, overlap=True)[1]
    assert short.batch(1).inputs.tolist() == [[8, 8, 8, 9]]


def test_a_past_ends_where_its_group_begins():
    data = xr.Dataset({"x": ("t", np.arange(12.0)), "g": ("t", np.repeat([1, 2], 6))})
    examples = dbdask.Examples(data, inputs="x", along="t", window={"t": (-4, 0)}, groups="g")
    assert examples.split(2 / 3, overlap=True)[1].batch(1).inputs.tolist() == [[6, 6, 6, 7, 8]]


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"seed": 1}, ValueError, "overlap=True needs parts in store order.*got seed=1"),
        ({"overlap": "yes"}, TypeError, "overlap must be True or False, got 'yes'"),
    ],
)
def test_a_wrong_overlap_is_named(keywords, error, words):
    with pytest.raises(error, match=words):
        of_points(world()).split(0.5, **({"overlap": True} | keywords))


def test_chosen_inputs_are_scaled_and_others_stay():
    data = world()
    data["flag"] = data["u"] > 0
    examples = of_points(data, inputs=["u", "flag", "climatology"])
    plain = values_of(examples).inputs
    scaled = examples.standardize(variables=["climatology"], targets=False)
    found = values_of(scaled).inputs
    assert np.array_equal(found[:, :2], plain[:, :2])
    wide = data["climatology"].values.astype("f8").ravel()
    np.testing.assert_allclose(found[:, 2], (wide - wide.mean()) / wide.std(), atol=1e-5)
    both = scaled.standardize(variables=("u",), targets=False)
    assert np.array_equal(values_of(both).inputs[:, 1:], found[:, 1:])
    together = examples.standardize(variables=["u", "climatology"], targets=False)
    assert both.description() == together.description()
    again = dbdask.Examples.from_description(json.loads(json.dumps(scaled.description())), data)
    assert np.array_equal(again.batch(40).inputs, found[:40])


def test_only_what_is_not_scaled_is_warned_of():
    data = world()
    data["u"] = data["u"] + 300
    examples = of_points(data, inputs=["u", "climatology"], targets="climatology")
    named = []
    for part in (examples, examples.standardize(variables=["u"], targets=False)):
        part = part.for_loss("squared", None)
        with part.reader(prefetch=False) as reader:
            reader.block(0)
            named.append([one.name for one in reader.magnitudes if one.role == "inputs"])
    assert named == [["u", "climatology"], ["climatology"]]


def holed(data):
    """The world with a gap in a predictor, and one in what is predicted."""
    data = data.copy(deep=True)
    data["climatology"][4, 1, 2] = np.nan
    data["elevation"][0, 0] = np.nan
    return data


def test_missing_inputs_are_left_out_where_that_is_chosen():
    rules = {"climatology": "drop", "elevation": "mask"}
    data = holed(world())
    examples = of_points(data, missing=rules)
    inputs, targets, weights = values_of(examples)
    dropped = data["climatology"].isnull().shift(time=-1, fill_value=False)
    assert len(inputs) == len(examples) - int(dropped.sum()) == TIMES * LAT * LON - 1
    assert weights is None and np.isfinite(inputs).all()
    assert np.isin(inputs[0, 7], np.float32(np.nanmean(data["elevation"].values.astype("f8"))))
    assert not np.isin(targets, data["u"].values[dropped.values]).any()
    with pytest.raises(DataError, match=r"'elevation' at lat=0.*missing=\{'elevation': \"drop\"\}"):
        of_points(data, missing={"climatology": "drop"}).batch()


def test_a_prediction_leaves_out_what_training_did():
    data = holed(world())
    examples = of_points(
        data, missing={"climatology": "drop", "elevation": "mask"}, edges={"time": "drop"}
    )
    result = result_of(examples, linear(examples))
    result = pickle.loads(pickle.dumps(result))
    prediction = result.predict(data).compute()
    assert prediction.dims == ("time", "lat", "lon")
    gaps = np.isnan(prediction)
    wanted = data["climatology"].isnull().shift(time=-1, fill_value=True)
    assert np.array_equal(gaps, wanted | (data["time"] < 5))


def test_predictions_wrap_by_every_route(tmp_path):
    data = world()
    examples = of_points(
        data,
        inputs={"u": {"lon": 3, "time": (-1, 0)}, "elevation": {"lon": (-2, 2)}},
        edges={"lon": "wrap", "time": "drop"},
    ).standardize(variables=["u"])
    result = result_of(examples, linear(examples))
    result.save(tmp_path / "model.zarr")
    result = dbdask.load(tmp_path / "model.zarr")
    wanted = result.predict(data).compute()
    assert np.isnan(wanted[0]).all() and np.isfinite(wanted[1:]).all()
    turned = result.predict(data.roll(lon=3, roll_coords=True)).compute()
    np.testing.assert_allclose(turned, wanted.roll(lon=3, roll_coords=True), rtol=1e-6)
    path = stored(tmp_path, data, lon=3, time=7)
    for name, opened in ROUTES.items():
        found = result.predict(opened(path))
        xr.testing.assert_equal(found.compute(), wanted)
        assert name == "memory" or found.chunksizes["lon"] == (3, 3, 2)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_grid_trains_alike_by_every_route(tmp_path, request, cluster):
    client = request.getfixturevalue(cluster)
    data = holed(world())
    path = stored(tmp_path, data, lon=3, time=7)
    trained = {}
    for name, opened in ROUTES.items():
        examples = dbdask.Examples(
            opened(path),
            inputs={"u": {"time": (-2, -1), "lon": 3}, "climatology": None, "elevation": None},
            targets="u",
            along=("time", "lat", "lon"),
            edges={"lon": "wrap", "time": "drop"},
            weights="area",
            missing={"climatology": "drop", "elevation": "mask"},
        )
        train, held_out = examples.split(0.75, overlap=True)
        train = train.standardize(variables=["climatology"], client=client)
        assert len(held_out) == TIMES // 4 * LAT * LON
        trained[name] = dbdask.downpour(
            linear(train),
            train,
            client=client,
            batch_size=16,
            replicas=1,
            validation=held_out,
            progress=False,
        )
    for name, result in trained.items():
        for parameter, values in trained["store"].parameters.items():
            assert np.array_equal(result.parameters[parameter], values), name
        loss, wanted = (one.history["validation_loss"] for one in (result, trained["store"]))
        assert np.array_equal(loss, wanted, equal_nan=True), name


def test_what_is_said_of_a_huge_grid_is_small(tmp_path):
    store = metadata_only(tmp_path / "big.zarr", 10**8, 10**5)
    tracemalloc.start()
    examples = dbdask.Examples(
        store, inputs={"x": {"t": (-5, 5)}}, targets="y", along="t", edges="wrap"
    )
    parts = [*examples.split(0.9, overlap=True), *examples.split(0.9, seed=0)]
    for part in parts:
        assert len(part) == part.cut(1280, 128).rows
        assert len(pickle.dumps(part.worker_side())) < 50_000
    small = pickle.loads(pickle.dumps(parts[1].for_loss("squared", 1).worker_side()))
    with small.reader(prefetch=False) as reader:
        for block in (900, 999):
            assert reader.block(block).valid.sum() == 10**5
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**8


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"window": {"time": 3}},
            ValueError,
            r"window must be None if inputs gives each variable a window, got \{'time': 3\}",
        ),
        ({"inputs": {"u": {"time": 2}}}, ValueError, r"inputs\['u'\]\['time'\] must be odd"),
        ({"inputs": {"u": {"k": 3}}}, ValueError, r"inputs\['u'\]: dimension 'k' is not in along"),
        ({"inputs": {"u": 3}}, TypeError, r"inputs\['u'\] must be a mapping such as"),
        ({"inputs": {"w": None}}, ValueError, "inputs: no variable 'w'"),
        ({"inputs": {}}, ValueError, "inputs must name at least one variable"),
        ({"edges": {"lon": "mirror"}}, ValueError, r"edges\['lon'\] must be one of 'repeat'"),
        ({"edges": {"x": "drop"}}, ValueError, "edges: dimension 'x' is not in along"),
        ({"edges": 3}, TypeError, "edges must be one of 'repeat', 'drop', 'wrap', or a mapping"),
        (
            {"groups": "lon", "edges": {"lon": "wrap"}},
            ValueError,
            "edges: 'lon' cannot be \"wrap\", because the groups 'lon' lie along it",
        ),
        ({"weights": "k"}, ValueError, "weights: variable 'k' has the dimension 'j'"),
        ({"missing": {"w": "drop"}}, ValueError, "missing: 'w' is not a variable of these examp"),
        ({"missing": {"u": "no"}}, ValueError, r"missing\['u'\] must be one of 'error', 'drop'"),
        ({"missing": 0}, TypeError, "missing must be one of 'error', 'drop', 'mask', or a map"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, words):
    data = world().assign(k=("j", np.ones(2)))
    with pytest.raises(error, match=words):
        of_points(data, **arguments)


@pytest.mark.parametrize(
    ("variables", "error", "words"),
    [
        ("u", TypeError, "variables must be a list of names of inputs, got 'u'"),
        ([], ValueError, "variables must name at least one input"),
        (["v"], ValueError, "variables: 'v' is not one of the inputs u"),
        (["area"], ValueError, "'area' is not one of the inputs u; targets=True scales targets"),
    ],
)
def test_a_wrong_variable_to_scale_is_named(variables, error, words):
    examples = of_points(world(), inputs="u", targets="area")
    with pytest.raises(error, match=words):
        examples.standardize(variables=variables)


def test_other_windows_than_those_of_training_are_named():
    train = of_points(world())
    other = of_points(world(), inputs={"u": {"time": 1}, "climatology": None, "elevation": None})
    with pytest.raises(ValueError, match=r"examples have the window \[.*give the same window"):
        other.prepared_like(train)
