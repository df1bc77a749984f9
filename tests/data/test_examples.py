"""Examples: what is fed equals what xarray and NumPy make of the same description."""

import json
import pickle

import numpy as np
import pytest
import xarray as xr

from dbdask.data.examples import Examples
from dbdask.errors import DataError


def _fed(examples, batch_size=7):
    """All examples in store order: inputs, targets, weights."""
    portions = examples.cut(batch_size, batch_size).contiguous()
    with examples.reader() as reader:
        batches = [b for p in portions for b in reader.minibatches(p, batch_size)]
    return tuple(
        None if parts[0] is None else np.concatenate(parts)
        for parts in zip(*((b.inputs, b.targets, b.weights) for b in batches), strict=True)
    )


@pytest.fixture
def speech(tmp_path):
    rng = np.random.default_rng(0)
    lengths = [13, 1, 40, 8, 22, 16]
    data = xr.Dataset(
        {
            "energy": (("frame", "mel"), rng.normal(3, 2, (100, 4)).astype(np.float32)),
            "phoneme": ("frame", rng.integers(0, 5, 100)),
            "utterance": ("frame", np.repeat(np.arange(6) + 10, lengths)),
        },
        coords={"frame": np.arange(100) * 0.5},
    )
    path = tmp_path / "speech.zarr"
    data.to_zarr(
        path,
        consolidated=False,
        encoding={"energy": {"chunks": (17, 4)}, "phoneme": {"chunks": (30,)}},
    )
    return path, data


def _windows(values, first, last, bounds):
    """Windows with repeated edges, one position at a time: the oracle."""
    rows = []
    for position in range(len(values)):
        low, high = next((a, b) for a, b in bounds if a <= position < b)
        rows.append([values[min(max(position + o, low), high - 1)] for o in range(first, last + 1)])
    return np.array(rows, np.float32)


GROUPS = [(0, 13), (13, 14), (14, 54), (54, 62), (62, 84), (84, 100)]


@pytest.mark.parametrize("window, span", [(11, (-5, 5)), ((-5, 0), (-5, 0)), ((1, 3), (1, 3))])
@pytest.mark.parametrize("groups", [None, "utterance"])
def test_windows_repeat_the_edges(speech, window, span, groups):
    path, data = speech
    examples = Examples(
        path,
        inputs="energy",
        targets="phoneme",
        along="frame",
        window={"frame": window},
        groups=groups,
    )
    inputs, targets, weights = _fed(examples)
    bounds = GROUPS if groups else [(0, 100)]
    np.testing.assert_array_equal(inputs, _windows(data.energy.values, *span, bounds))
    np.testing.assert_array_equal(targets, data.phoneme.values)
    assert targets.dtype == np.int64 and inputs.dtype == np.float32 and weights is None
    assert examples.input_shape == inputs.shape[1:] and len(examples) == 100


def test_windows_equal_xarray_rolling(speech):
    path, data = speech
    examples = Examples(path, inputs="energy", along="frame", window={"frame": 5}, edges="drop")
    rolled = data.energy.rolling(frame=5, center=True).construct("offset").dropna("frame")
    np.testing.assert_array_equal(
        _fed(examples)[0], rolled.transpose("frame", "offset", "mel").values
    )
    assert len(examples) == 96


def test_dropped_edges_end_at_groups(speech):
    path, data = speech
    examples = Examples(
        path, inputs="energy", along="frame", window={"frame": 9}, edges="drop", groups="utterance"
    )
    centres = [p for a, b in GROUPS for p in range(a + 4, b - 4)]
    whole = _windows(data.energy.values, -4, 4, [(0, 100)])
    np.testing.assert_array_equal(_fed(examples)[0], whole[centres])


@pytest.mark.parametrize("edges", ["repeat", "drop"])
def test_windows_never_cross_a_cut(speech, edges):
    path, data = speech
    examples = Examples(path, inputs="energy", along="frame", window={"frame": 7}, edges=edges)
    part = examples.isel(frame=slice(20, 61))
    assert len(part) == (41 if edges == "repeat" else 35)
    alone = _windows(data.energy.values[20:61], -3, 3, [(0, 41)])
    wanted = alone if edges == "repeat" else alone[3:-3]
    np.testing.assert_array_equal(_fed(part)[0], wanted)


def _grids(path, zarr_format=3, order=("lat", "lon", "time")):
    rng = np.random.default_rng(1)
    shape = {"time": 12, "lat": 6, "lon": 8}
    field = rng.normal(size=(12, 6, 8)).astype(np.float32)
    dims = ("time", "lat", "lon")
    data = xr.Dataset(
        {
            "sst": (dims, field),
            "wind": (dims, (field * 3).round(2)),
            "height": (("lat", "lon"), rng.normal(size=(6, 8)).astype(np.float32)),
            "profile": ((*dims, "level"), rng.normal(size=(12, 6, 8, 3)).astype(np.float32)),
            "target": (dims, field**2),
            "area": ("lat", np.cos(np.linspace(-1, 1, 6))),
        },
        coords={name: np.arange(size) for name, size in shape.items()},
    ).transpose(*order, ...)
    packed = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 1.0, "_FillValue": -9999}
    chunks = {"time": 5, "lat": 4, "lon": 3}
    data.to_zarr(
        path,
        consolidated=False,
        zarr_format=zarr_format,
        encoding={
            "wind": packed,
            **{name: {"chunks": [chunks[d] for d in order]} for name in ("sst", "target")},
        },
    )
    return xr.open_zarr(path, chunks=None, consolidated=False).load()


ALONG = ("time", "lat", "lon")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_grids_stack_channels_last_and_broadcast(tmp_path, zarr_format):
    data = _grids(tmp_path / "grid.zarr", zarr_format)
    examples = Examples(
        tmp_path / "grid.zarr",
        inputs=["sst", "wind", "height"],
        targets="target",
        along=ALONG,
        weights="area",
    )
    assert examples.input_shape == (3,) and examples.target_shape == ()
    full = xr.broadcast(data.sst, data.wind, data.height, data.target, data.area)
    columns = {v.name: v.transpose(*ALONG).values.astype(np.float32) for v in full}
    inputs, targets, weights = _by_position(examples)
    np.testing.assert_array_equal(
        inputs, np.stack([columns[n] for n in ("sst", "wind", "height")], -1)
    )
    np.testing.assert_array_equal(targets, columns["target"])
    np.testing.assert_array_equal(weights, columns["area"])


def _by_position(examples):
    """Examples put at their places in the sample space."""
    shape = [sum(n) for n in examples.grid.lengths]
    found = None
    with examples.reader() as reader:
        for block in range(examples.grid.block_count):
            one = reader.block(block)
            values = (one.minibatch.inputs, one.minibatch.targets, one.minibatch.weights)
            if found is None:
                found = [
                    None if v is None else np.full((*shape, *v.shape[1:]), -1, v.dtype)
                    for v in values
                ]
            at = tuple(positions[one.valid] for positions in one.positions)
            for whole, part in zip(found, values, strict=True):
                if whole is not None:
                    whole[at] = part
    return found


def test_unlike_shapes_are_joined(tmp_path):
    data = _grids(tmp_path / "grid.zarr")
    examples = Examples(tmp_path / "grid.zarr", inputs=["profile", "sst"], along=ALONG)
    wanted = np.concatenate(
        [data.profile.transpose(*ALONG, "level"), data.sst.transpose(*ALONG).values[..., None]], -1
    )
    np.testing.assert_array_equal(_by_position(examples)[0], wanted)


def test_windows_over_several_dimensions(tmp_path):
    data = _grids(tmp_path / "grid.zarr")
    examples = Examples(
        tmp_path / "grid.zarr",
        inputs=["sst", "height"],
        along=ALONG,
        window={"lat": 3, "time": (-2, 0)},
    )
    assert examples.input_shape == (3, 3, 2)
    sst = np.pad(data.sst.transpose(*ALONG).values, ((2, 0), (1, 1), (0, 0)), "edge")
    height = np.pad(data.height.transpose("lat", "lon").values, ((1, 1), (0, 0)), "edge")
    inputs = _by_position(examples)[0]
    for t in range(3):
        for y in range(3):
            np.testing.assert_array_equal(inputs[..., t, y, 0], sst[t : t + 12, y : y + 6])
            wanted = np.broadcast_to(height[y : y + 6], (12, 6, 8))
            np.testing.assert_array_equal(inputs[..., t, y, 1], wanted)


def test_one_dimension_leaves_the_others_as_features(tmp_path):
    data = _grids(tmp_path / "grid.zarr")
    examples = Examples(tmp_path / "grid.zarr", inputs="sst", targets="target", along="time")
    assert examples.input_shape == (6, 8) == examples.target_shape
    inputs, targets, _ = _fed(examples)
    np.testing.assert_array_equal(inputs, data.sst.transpose("time", ...).values)
    np.testing.assert_array_equal(targets, data.target.transpose("time", ...).values)


def test_where_keeps_positions_and_hides_their_gaps(tmp_path):
    data = _grids(tmp_path / "grid.zarr")
    sea = data.height > 0
    gappy = data.assign(sst=data.sst.where(sea))
    examples = Examples(gappy, inputs="sst", targets="target", along=ALONG).where(sea)
    kept = np.broadcast_to(sea.transpose("lat", "lon").values, (12, 6, 8))
    assert len(examples) == kept.sum()
    inputs, targets, _ = _by_position(examples)
    np.testing.assert_array_equal(inputs[kept], data.sst.transpose(*ALONG).values[kept])
    assert (targets[~kept] == -1).all()
    again = examples.where(data.sst.transpose(*ALONG)[3] > 0)
    both = kept & (data.sst.transpose(*ALONG)[3] > 0).values
    assert len(again) == both.sum()


def test_sel_and_isel_cut_as_xarray_does(speech):
    path, data = speech
    examples = Examples(path, inputs="energy", along="frame")
    part = examples.sel(frame=slice(10.0, 30.0)).isel(frame=slice(5, None))
    wanted = data.sel(frame=slice(10.0, 30.0)).isel(frame=slice(5, None)).energy
    np.testing.assert_array_equal(_fed(part)[0], wanted.values)
    odd = examples.isel(frame=np.arange(100) % 2 == 1)
    np.testing.assert_array_equal(_fed(odd)[0], data.energy.values[1::2])


def test_split_in_store_order(speech):
    path, data = speech
    examples = Examples(path, inputs="energy", along="frame", window={"frame": 3})
    train, rest = examples.split(0.8)
    np.testing.assert_array_equal(
        _fed(train)[0], _windows(data.energy.values[:80], -1, 1, [(0, 80)])
    )
    np.testing.assert_array_equal(
        _fed(rest)[0], _windows(data.energy.values[80:], -1, 1, [(0, 20)])
    )
    assert [len(part) for part in examples.split(0.5, 0.3, 0.2)] == [50, 30, 20]


def test_split_draws_whole_groups(speech):
    path, _ = speech
    examples = Examples(path, inputs="utterance", along="frame", groups="utterance")
    parts = examples.split(0.6, 0.4, seed=1)
    seen = [set(_fed(part)[0].astype(int).tolist()) for part in parts]
    assert seen[0] | seen[1] == set(range(10, 16)) and not seen[0] & seen[1]
    assert sum(len(part) for part in parts) == 100
    assert len(examples.split(0.6, seed=1)[0]) == len(parts[0])


def test_split_draws_whole_chunks(speech):
    path, _ = speech
    examples = Examples(path, inputs="energy", along="frame", window={"frame": 5})
    train, rest = examples.split(0.7, seed=2)
    assert len(train) + len(rest) == 100 and 55 <= len(train) <= 85
    assert examples.split(0.7, seed=2)[0].recipe == train.recipe
    assert examples.split(0.7, seed=3)[0].recipe.selection != train.recipe.selection


@pytest.mark.parametrize("per", ["variable", "feature"])
def test_standardize_equals_numpy(speech, per):
    path, data = speech
    part = Examples(path, inputs="energy", along="frame", window={"frame": 5}).isel(
        frame=slice(3, 90)
    )
    values = data.energy.values[3:90].astype(np.float64)
    axis = 0 if per == "feature" else None
    wanted = (values - values.mean(axis)) / values.std(axis)
    inputs = _fed(part.standardize(per=per))[0]
    np.testing.assert_allclose(inputs[:, 2], wanted, rtol=1e-4, atol=1e-5)


def test_standardize_counts_masked_grids_and_static_variables_once(tmp_path):
    data = _grids(tmp_path / "grid.zarr")
    sea = data.height > 0
    examples = Examples(
        tmp_path / "grid.zarr", inputs=["sst", "height"], targets="target", along=ALONG
    )
    scaled = examples.where(sea).standardize()
    for scaling, values in zip(
        scaled.recipe.inputs.scalings, (data.sst.where(sea), data.height.where(sea)), strict=True
    ):
        np.testing.assert_allclose(scaling.mean, float(values.astype("f8").mean()), rtol=1e-9)
        np.testing.assert_allclose(scaling.deviation, float(values.astype("f8").std()), rtol=1e-9)
    mean, deviation = scaled.target_scaling
    assert mean.shape == () and float(mean) == pytest.approx(float(data.target.where(sea).mean()))
    assert float(deviation) == pytest.approx(float(data.target.where(sea).std()))


def test_constants_and_labels_are_not_scaled_away(speech):
    _, data = speech
    constant = data.assign(flat=("frame", np.full(100, 0.1, np.float32)))
    scaled = Examples(constant, inputs="flat", targets="phoneme", along="frame").standardize()
    assert scaled.recipe.inputs.scalings[0].deviation == (1.0,)
    inputs, targets, _ = _fed(scaled)
    np.testing.assert_allclose(inputs, 0, atol=1e-7)
    np.testing.assert_array_equal(targets, data.phoneme.values)
    named = scaled.with_classes([0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match="targets=True.*labels"):
        named.standardize(targets=True)


def test_standardize_is_the_same_on_a_cluster(speech, threads_client, monkeypatch):
    path, data = speech
    examples = Examples(path, inputs="energy", along="frame")
    held = Examples(data.chunk(frame=17), inputs="energy", along="frame")
    there = examples.standardize().recipe.inputs.scalings
    assert held.standardize(client=threads_client).recipe.inputs.scalings == there
    monkeypatch.setattr("dbdask.data.sweeps._current_client", lambda: None)
    assert examples.standardize().recipe.inputs.scalings == there


def _with_gaps(fill=np.nan):
    x = np.arange(24, dtype=np.float32).reshape(12, 2)
    y = np.arange(24, dtype=np.float32).reshape(12, 2) * 10
    x[4, 1], y[7, 0] = fill, fill
    return xr.Dataset(
        {"x": (("time", "c"), x), "y": (("time", "d"), y)}, coords={"time": np.arange(12) * 100}
    )


def test_missing_is_an_error_that_names_the_place():
    examples = Examples(_with_gaps(), inputs="x", targets="y", along="time")
    with pytest.raises(DataError, match=r"inputs: variable 'x' at time=4 \(400\) is missing.*drop"):
        _fed(examples)


@pytest.mark.parametrize("missing", ["error", "drop", "mask"])
def test_infinity_is_always_an_error(missing):
    examples = Examples(_with_gaps(np.inf), inputs="x", targets="y", along="time", missing=missing)
    with pytest.raises(DataError, match="'x' at time=4 .*is infinite"):
        _fed(examples)


def test_missing_examples_are_dropped():
    examples = Examples(
        _with_gaps(), inputs="x", targets="y", along="time", window={"time": 3}, missing="drop"
    )
    inputs, targets, _ = _fed(examples)
    assert targets[:, 1].tolist() == [10.0, 30.0, 50.0, 130.0, 170.0, 190.0, 210.0, 230.0]
    assert np.isfinite(inputs).all()
    with pytest.warns(UserWarning, match=r"4 of 12 examples \(33.3 %\).*'x' at time=4"):
        report = examples.check()
    assert (report.examples, report.dropped) == (8, 4)


def test_check_raises_as_training_does_for_masked_inputs_without_a_value():
    data = _with_gaps().assign(x=lambda found: found["x"] * np.nan)
    examples = Examples(data, inputs="x", targets="y", along="time", missing="mask")
    with pytest.raises(DataError, match="'x' has no value that is not missing"):
        examples.check()
    with pytest.raises(DataError, match="'x' has no value that is not missing"):
        examples.worker_side()


def test_missing_elements_are_masked():
    examples = Examples(_with_gaps(), inputs="x", targets="y", along="time", missing="mask")
    inputs, targets, weights = _fed(examples.standardize(targets=False), batch_size=12)
    assert inputs[4, 1] == 0 and np.isfinite(inputs).all() and np.isfinite(targets).all()
    wanted = np.ones((12, 2))
    wanted[7, 0] = 0
    np.testing.assert_array_equal(weights, wanted)
    x = _with_gaps().x.values
    plain = pickle.loads(pickle.dumps(examples.worker_side()))
    assert _fed(plain)[0][4, 1] == pytest.approx(np.nanmean(x))


@pytest.mark.parametrize(
    "labels, classes, codes",
    [
        (["b", "a", "c", "a"], ["a", "b", "c"], [1, 0, 2, 0]),
        ([20, 10, 30, 10], [10, 20, 30], [1, 0, 2, 0]),
        ([2.0, 1.0, 0.0, 1.0], [0, 1, 2], [2, 1, 0, 1]),
        ([3, 1, 0, 1], None, [3, 1, 0, 1]),
    ],
)
def test_labels_become_class_indices(labels, classes, codes):
    data = xr.Dataset({"x": ("n", np.arange(4.0)), "y": ("n", labels)})
    examples = Examples(data, inputs="x", targets="y", along="n", classes=classes)
    assert _fed(examples)[1].tolist() == codes
    assert examples.output_classes == (None if classes is None else classes)


def test_flag_values_are_classes():
    y = xr.DataArray(
        np.array([8, 2, 4, 2], np.int8),
        dims="n",
        attrs={"flag_values": np.array([2, 4, 8], np.int8), "flag_meanings": "sea ice land"},
    )
    examples = Examples(
        xr.Dataset({"x": ("n", np.arange(4.0)), "y": y}), inputs="x", targets="y", along="n"
    )
    assert _fed(examples)[1].tolist() == [2, 0, 1, 0]
    assert examples.output_classes == [2, 4, 8]
    assert examples.recipe.classes.meanings == ("sea", "ice", "land")


def test_find_classes_collects_what_occurs(speech):
    path, data = speech
    examples = Examples(path, inputs="energy", targets="phoneme", along="frame")
    assert examples.find_classes() == sorted(set(data.phoneme.values.tolist()))
    words = data.assign(word=("frame", np.array(["no", "yes"])[data.phoneme.values % 2]))
    text = Examples(words, inputs="energy", targets="word", along="frame")
    assert text.find_classes() == ["no", "yes"]
    with pytest.raises(ValueError, match="are text; give classes="):
        text.for_loss("softmax", 2)


def test_labels_outside_the_classes_are_named(speech):
    path, _ = speech
    examples = Examples(path, inputs="energy", targets="phoneme", along="frame")
    with pytest.raises(DataError, match=r"'phoneme' at frame=\d+ .* is 4, which is not a whole"):
        _fed(examples.for_loss("softmax", 4))
    assert _fed(examples.for_loss("softmax", 5))[1].max() == 4
    assert _fed(examples.for_loss("squared", 1))[1].dtype == np.float32


def test_a_group_that_returns_is_an_error():
    data = xr.Dataset({"x": ("t", np.arange(9.0)), "g": ("t", list("aabbbbcca"))})
    examples = Examples(data.chunk(t=3), inputs="x", along="t", groups="g")
    said = "groups: 'g' is 'a', then '.', then 'a' again"
    with pytest.raises(DataError, match=said):
        _fed(examples)
    with pytest.raises(DataError, match=said):  # else it would be in both parts
        examples.split(0.5, seed=0)


def test_zero_fill_value_loses_no_class(tmp_path):
    data = xr.Dataset(
        {
            "x": (("n", "p"), np.arange(40, dtype=np.uint8).reshape(10, 4)),
            "y": ("n", np.arange(10) % 3),
        }
    )
    encoding = {"x": {"_FillValue": 0}, "y": {"_FillValue": 0}}
    data.to_zarr(tmp_path / "v2.zarr", zarr_format=2, encoding=encoding)
    inputs, targets, _ = _fed(Examples(tmp_path / "v2.zarr", inputs="x", targets="y", along="n"))
    np.testing.assert_array_equal(inputs, data.x.values)
    np.testing.assert_array_equal(targets, data.y.values)


@pytest.mark.parametrize("chunks", [None, {}])
def test_zeros_that_xarray_shows_as_missing_are_named(tmp_path, chunks):
    data = xr.Dataset({"x": ("n", np.arange(10) % 3), "y": ("n", np.arange(10.0))})
    path = tmp_path / "v2.zarr"
    data.to_zarr(path, zarr_format=2, encoding={"x": {"_FillValue": 0}}, consolidated=False)
    opened = xr.open_zarr(path, chunks=chunks, consolidated=False)
    said = (
        r"'x' at n=0 is missing.*zeros of it are shown as missing.* v2 .*"
        r"give the path.*use_zarr_fill_value_as_mask=False.*mask_and_scale=\{'x': False\}"
    )
    for role in ({"inputs": "x", "targets": "y"}, {"inputs": "y", "targets": "x"}):
        with pytest.raises(DataError, match=said):
            Examples(opened, **role, along="n").check()
    with pytest.warns(UserWarning, match=r"4 of 10 examples.*zeros of it.*give the path"):
        Examples(opened, inputs="x", along="n", missing="drop").check()
    # Both remedies that the message names, of those that this xarray heeds.
    unmasked = xr.open_zarr(path, consolidated=False, mask_and_scale={"x": False})
    for remedied in (path, unmasked):
        inputs = _fed(Examples(remedied, inputs="x", along="n"))[0]
        np.testing.assert_array_equal(inputs, data.x.values)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"inputs": "nothing"}, "inputs: no variable 'nothing'"),
        ({"along": "time"}, "along: no dimension 'time'"),
        ({"window": {"frame": 4}}, "must be odd and at least 1, got 4"),
        ({"window": {"frame": -1}}, "must be odd and at least 1, got -1"),
        ({"window": {"frame": 101}}, "101 positions along 'frame' are more than its 100"),
        ({"window": {"mel": 3}}, "dimension 'mel' is not in along"),
        ({"window": {"frame": (2, -2)}}, "first <= last"),
        ({"edges": "mirror"}, "edges must be one of 'repeat', 'drop', 'wrap', got 'mirror'"),
        ({"missing": "ignore"}, "missing must be one of"),
        ({"weights": "energy"}, "weights: variable 'energy' has the dimension 'mel'"),
        ({"classes": [1, 1]}, "classes must be unique, got 1 twice"),
        ({"targets": xr.DataArray(np.zeros(7), dims="frame")}, "length 7 along 'frame'"),
    ],
)
def test_wrong_arguments_are_named(speech, arguments, message):
    given = {"inputs": "energy", "targets": "phoneme", "along": "frame"} | arguments
    with pytest.raises(ValueError, match=message):
        Examples(speech[0], **given)


def test_cuts_that_leave_nothing_are_errors(speech):
    examples = Examples(
        speech[0], inputs="energy", along="frame", window={"frame": 11}, edges="drop"
    )
    with pytest.raises(ValueError, match="no examples"):
        examples.isel(frame=slice(0, 10))
    with pytest.raises(ValueError, match="no examples"):
        examples.isel(frame=[])
    with pytest.raises(ValueError, match="above 0 and below 1, got 1.5"):
        examples.split(1.5)
    with pytest.raises(ValueError, match="not in along"):
        examples.isel(mel=0)


def test_examples_are_immutable_and_travel_light(speech):
    examples = Examples(speech[1], inputs="energy", targets="phoneme", along="frame")
    with pytest.raises(AttributeError, match="cannot be changed"):
        examples.recipe = None
    big = xr.Dataset({"x": (("n", "p"), np.zeros((20_000, 50)))})
    assert len(pickle.dumps(Examples(big, inputs="x", along="n"))) < 10_000
    assert len(pickle.dumps(Examples(speech[0], inputs="energy", along="frame"))) < 10_000


def test_description_knows_everything_but_the_data(speech):
    path, data = speech
    examples = Examples(
        path,
        inputs="energy",
        targets="phoneme",
        along="frame",
        groups="utterance",
        window={"frame": 3},
        classes=[0, 1, 2, 3, 4],
    ).standardize()
    told = json.loads(json.dumps(examples.description()))
    again = Examples.from_description(told)
    assert again.input_shape == (3, 4) and again.output_classes == [0, 1, 2, 3, 4]
    fresh = again.rebind(data.drop_vars("phoneme"))
    np.testing.assert_array_equal(_fed(fresh)[0], _fed(examples)[0])
    with pytest.raises(ValueError, match="trained on"):
        again.rebind(data.isel(mel=slice(2)))


def test_prepared_like_scales_once(speech):
    path, _ = speech
    examples = Examples(path, inputs="energy", targets="phoneme", along="frame")
    train, held_out = examples.split(0.7)
    train = train.standardize()
    once = _fed(held_out.prepared_like(train))[0]
    np.testing.assert_array_equal(_fed(held_out.standardize().prepared_like(train))[0], once)
    np.testing.assert_array_equal(once, _fed(held_out.prepared_like(train).prepared_like(train))[0])


def test_dataarrays_beside_the_data(speech):
    path, data = speech
    weights = xr.DataArray(np.linspace(0, 1, 100), dims="frame", name="trust")
    examples = Examples(
        path, inputs=data.energy * 2, targets="phoneme", along="frame", weights=weights
    )
    inputs, _, found = _fed(examples)
    np.testing.assert_array_equal(inputs, data.energy.values * 2)
    np.testing.assert_allclose(found, weights.values, rtol=1e-6)
    with pytest.raises(DataError, match="weights: variable 'trust' at frame=0 .*is negative"):
        _fed(Examples(path, inputs="energy", targets="phoneme", along="frame", weights=weights - 1))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            slice(1, 3),
            "sel: 't' selects nothing: no examples; a slice goes in the order of the lab",
        ),
        ([1, 3], "sel: the labels of 't' must be given in the order of the data, without repeats"),
        ([3, 3], "sel: the labels of 't' must be given in the order of the data, without repeats"),
        ([], "sel: 't' selects nothing: no examples"),
        (9, "sel: 't' has no coordinate 9 among these examples"),
    ],
)
def test_errors_of_sel_name_sel(labels, said):
    data = xr.Dataset({"x": ("t", np.arange(5.0))}, {"t": np.arange(5)[::-1]})
    examples = Examples(data, inputs="x", along="t")
    assert len(examples.sel(t=[3, 1])) == 2
    with pytest.raises((ValueError, KeyError), match=said):
        examples.sel(t=labels)


@pytest.mark.parametrize("weight", [np.inf, -np.inf, 1e39, -1e39])
def test_a_weight_that_is_not_finite_is_not_called_negative(weight):
    data = xr.Dataset({"x": ("t", [1.0, 2, 3]), "w": ("t", [1.0, weight, -1])})
    examples = Examples(data, inputs="x", weights="w", along="t")
    with pytest.raises(DataError, match="'w' at t=1 is infinite, or too large for float32; weig"):
        examples.check()
    with pytest.raises(DataError, match="'w' at t=2 is negative; weights must be 0 or more"):
        examples.isel(t=[0, 2]).check()


def _pictures(rows=6, height=3, width=3):
    """Pictures whose dimensions come in different orders, and what an oracle makes of them."""
    rng = np.random.default_rng(5)
    dims = ("row", "y", "x")
    return xr.Dataset(
        {name: (dims, rng.normal(size=(rows, height, width))) for name in ("red", "green", "seen")}
    )


@pytest.mark.parametrize("width", [3, 2])
def test_features_are_matched_by_the_names_of_their_dimensions(width):
    data = _pictures(width=width)

    def described(given):
        return Examples(given, inputs=["red", "green"], targets="seen", along="row")

    trained = described(data).standardize(per="feature")
    turned = data.transpose("x", "row", "y")
    turned["green"] = turned["green"].transpose("row", "x", "y")
    own = described(turned)
    stacked = np.stack([data[n].transpose("row", "x", "y").values for n in ("red", "green")], -1)
    np.testing.assert_array_equal(_fed(own)[0], stacked.astype(np.float32))
    inputs, targets, _ = _fed(trained)
    for given in (trained, Examples.from_description(trained.description())):
        again = _fed(own.prepared_like(given))
        np.testing.assert_array_equal(again[0], inputs)
        np.testing.assert_array_equal(again[1], targets)
        np.testing.assert_array_equal(_fed(given.rebind(turned))[0], inputs)


def test_a_variable_may_be_input_and_target_in_two_orders():
    data = _pictures(width=2)
    data["green"] = data["green"].transpose("x", "row", "y")
    examples = Examples(data, inputs="red", targets=["green", "red"], along="row")
    inputs, targets, _ = _fed(examples)
    np.testing.assert_array_equal(inputs, data["red"].values.astype(np.float32))
    turned = [data[name].transpose("row", "x", "y").values for name in ("green", "red")]
    np.testing.assert_array_equal(targets, np.stack(turned, -1).astype(np.float32))


def test_what_was_not_trained_on_is_named():
    data = _pictures()
    trained = Examples(data, inputs=["red", "green"], along="row")
    renamed = data.rename(x="column")
    with pytest.raises(ValueError, match="'red' has, .* 'y', 'column', .* have 'y', 'x'; rename"):
        trained.rebind(renamed)
    with pytest.raises(ValueError, match="inputs: variable 'red' has, .*rename"):
        Examples(renamed, inputs=["red", "green"], along="row").prepared_like(trained)
    with pytest.raises(ValueError, match="inputs are green, red, .* are red, green; .*same order"):
        Examples(data, inputs=["green", "red"], along="row").prepared_like(trained)
    with pytest.raises(ValueError, match="has 1 variables .red., the training examples have 2"):
        Examples(data, inputs="red", along="row").prepared_like(trained)
    past = Examples(data, inputs="red", along="row", window={"row": (-2, 0)})
    centred = Examples(data, inputs="red", along="row", window={"row": 3})
    with pytest.raises(ValueError, match=r"window .*\[-1, 1\].*examples .*\[-2, 0\]"):
        centred.prepared_like(past)


class Undecodable(xr.DataArray):
    """A variable whose labels raise an error that is made of five arguments."""

    __slots__ = ()

    @property
    def indexes(self):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


def test_an_error_of_any_type_comes_out_as_it_is_and_a_note_names_the_argument():
    data = xr.Dataset({"x": ("row", np.zeros(4)), "y": ("row", np.zeros(4))})
    given = Undecodable(np.zeros(4), dims="row", name="z")
    with pytest.raises(UnicodeDecodeError, match="invalid start byte") as caught:
        Examples(data, inputs=given, targets="y", along="row")
    assert caught.value.__notes__ == ["in the argument inputs"]


def _labelled_field():
    rng = np.random.default_rng(8)
    days = np.datetime64("2001-01-01", "ns") + np.arange(6) * np.timedelta64(1, "D")
    return xr.Dataset(
        {
            "field": (("time", "lat"), rng.normal(size=(6, 5))),
            "height": ("lat", rng.normal(size=5)),
        },
        coords={"time": days, "lat": np.linspace(-40, 40, 5)},
    )


@pytest.mark.parametrize("route", ["store", "memory"])
@pytest.mark.parametrize(
    "cut", [{"lat": slice(None, None, -1)}, {"lat": slice(1, 4), "time": [4, 0, 2]}, {}]
)
def test_masks_are_matched_by_label_as_xarray_does(tmp_path, route, cut):
    data = _labelled_field()
    data.to_zarr(tmp_path / "field.zarr", consolidated=False)
    given = data if route == "memory" else tmp_path / "field.zarr"
    mask = (data["field"] > 0).isel(cut)
    kept = data["field"].where(mask)
    wanted = kept.reindex_like(data).notnull().values
    examples = Examples(given, inputs="field", along=("time", "lat")).where(mask)
    assert len(examples) == wanted.sum()
    inputs = _by_position(examples)[0]
    np.testing.assert_array_equal(inputs[wanted], data["field"].values[wanted].astype(np.float32))
    assert (inputs[~wanted] == -1).all()


def test_masks_of_other_labels_leave_nothing():
    data = _labelled_field()
    examples = Examples(data, inputs="field", along=("time", "lat"))
    mask = xr.ones_like(data["height"], bool)
    with pytest.raises(ValueError, match="no examples are left"):
        examples.where(mask.assign_coords(lat=mask.lat + 1))
    with pytest.raises(ValueError, match="mask has the label 3.0 twice along 'lat'"):
        examples.where(mask.assign_coords(lat=[1.0, 2.0, 3.0, 3.0, 4.0]))
    assert len(examples.isel(lat=slice(1, 4)).where(mask.isel(lat=slice(2, 4)))) == 12
    assert len(examples.isel(lat=slice(1, 4)).where(mask[1:4].drop_vars("lat"))) == 18


@pytest.mark.parametrize("role", ["inputs", "targets", "weights", "groups"])
def test_dataarrays_must_have_the_labels_of_the_data(role):
    data = _labelled_field()
    turned = data["height"].isel(lat=slice(None, None, -1)).rename("turned")
    given = {"inputs": "field", "targets": "field", "along": ("time", "lat"), role: turned}
    words = rf"{role}: DataArray 'turned' is at lat=40.0 where .* is at lat=-40.0 \(position 0\)"
    with pytest.raises(ValueError, match=words + ".*xarray.align"):
        Examples(data, **given)
    Examples(data, **given | {role: turned.reindex_like(data)})
    Examples(data, **given | {role: turned.drop_vars("lat")})


def test_a_dataarray_stays_with_the_data_that_it_was_given_with():
    data = _labelled_field()
    along = ("time", "lat")
    twice = (data["field"] * 2).rename("twice")
    examples = Examples(data, inputs=["field", twice], along=along)
    np.testing.assert_array_equal(_fed(examples.rebind(data))[0], _fed(examples)[0])
    with pytest.raises(ValueError, match=r"inputs: 'twice' was given as a DataArray.*data.assign"):
        examples.rebind(data * 100)
    again = _fed(examples.rebind((data * 100).assign(twice=twice)))[0]
    np.testing.assert_array_equal(again[:, 1], _fed(examples)[0][:, 1])

    height = (data["height"] + 1).rename("raised")
    static = Examples(data, inputs=["field", height], along=along)
    fresh = data.drop_vars("height").isel(time=slice(0, 4)) * 3
    wanted = np.broadcast_to(height.values.astype(np.float32), (4, 5)).ravel()
    np.testing.assert_array_equal(_fed(static.rebind(fresh))[0][:, 1], wanted)
    with pytest.raises(ValueError, match="'raised' was given as a DataArray"):
        static.rebind(fresh.assign_coords(lat=fresh.lat + 1))
    with pytest.raises(ValueError, match="'raised' was given as a DataArray"):
        static.rebind(fresh.drop_vars("lat"))


def test_a_dataarray_of_the_dataset_is_its_variable():
    data = _labelled_field()
    examples = Examples(data, inputs=data["field"], targets=data["height"], along=("time", "lat"))
    assert examples.recipe.inputs.variables[0].key == "field"
    half = examples.rebind((data / 2)[["field"]])
    np.testing.assert_allclose(_fed(half)[0], _fed(examples)[0] / 2)


def _counted(targets):
    rng = np.random.default_rng(2)
    return xr.Dataset({"x": (("row", "f"), rng.normal(size=(40, 3))), "y": targets})


@pytest.mark.parametrize("wanted", [None, True])
@pytest.mark.parametrize("dtype", [np.int32, np.float64])
def test_targets_of_the_squared_loss_are_scaled_whatever_their_dtype(dtype, wanted):
    values = (100 + 50 * np.arange(40)).astype(dtype)
    data = _counted(("row", values))
    described = Examples(data, inputs="x", targets="y", along="row")
    examples = described.standardize(targets=wanted).for_loss("squared", 1)
    mean, deviation = examples.target_scaling
    assert float(mean) == pytest.approx(values.mean())
    assert float(deviation) == pytest.approx(values.std())
    wanted_targets = (values - values.mean()) / values.std()
    np.testing.assert_allclose(_fed(examples)[1], wanted_targets, rtol=1e-5, atol=1e-6)
    unscaled = described.standardize(targets=False).for_loss("squared", 1)
    np.testing.assert_array_equal(_fed(unscaled)[1], values.astype(np.float32))


@pytest.mark.parametrize("loss", ["logistic", None])
def test_targets_of_other_losses_stay_as_they_are(loss):
    ones = np.eye(4, dtype=np.float32)[np.arange(40) % 4]
    data = _counted((("row", "o"), ones))
    scaled = Examples(data, inputs="x", targets="y", along="row").standardize()
    examples = scaled.for_loss(loss, 4)
    assert examples.target_scaling is None
    np.testing.assert_array_equal(_fed(examples)[1], ones)
    assert _fed(scaled.for_loss("squared", 4))[1].min() < 0


def test_what_cannot_be_scaled_is_said_before_training():
    data = _counted(("row", np.arange(40) % 4)).assign(word=("row", list("ab") * 20))
    numbers = Examples(data, inputs="x", targets="y", along="row")
    with pytest.raises(ValueError, match="targets=True: a 'softmax' loss takes labels"):
        numbers.standardize(targets=True).for_loss("softmax", 4)
    assert numbers.standardize().for_loss("softmax", 4).target_scaling is None
    with pytest.raises(ValueError, match="targets=True needs targets"):
        Examples(data, inputs="x", along="row").standardize(targets=True)
    words = Examples(data, inputs="x", targets="word", along="row", classes=["a", "b"])
    with pytest.raises(TypeError, match="targets: variable 'word' has dtype"):
        words.standardize().for_loss("squared", 1)
    with pytest.raises(ValueError, match="'word' has 2 classes, the model has 5 outputs"):
        words.for_loss("softmax", 5)


def test_dataarrays_may_share_a_name_or_have_none(speech):
    path, data = speech
    energy = data.energy.drop_vars("frame")
    examples = Examples(
        path, inputs=[energy * 2], targets=(energy.sum("mel")).rename("energy"), along="frame"
    )
    again = Examples.from_description(json.loads(json.dumps(examples.description())))
    assert again.input_shape == (4,) and again.target_shape == ()
    nameless = [xr.DataArray(energy.values * n, dims=energy.dims) for n in (1, 2)]
    both = Examples(path, inputs=nameless, targets=nameless[0], along="frame")
    assert both.recipe.inputs.names == ("inputs_0", "inputs_1")
    assert both.recipe.targets.names == ("targets",)
    with pytest.raises(ValueError, match="inputs: two variables have the name 'energy'"):
        Examples(path, inputs=["energy", energy * 2], along="frame")


def test_cuts_take_what_xarray_takes(speech):
    path, data = speech
    examples = Examples(path, inputs="energy", along="frame")
    cut = {"frame": slice(3, 20)}
    np.testing.assert_array_equal(_fed(examples.isel(cut))[0], data.isel(cut).energy)
    near = {"frame": [1.2, 7.1]}
    wanted = data.sel(near, method="nearest").energy
    np.testing.assert_array_equal(_fed(examples.sel(near, method="nearest"))[0], wanted)
    assert [len(part) for part in examples.split(np.float32(0.5))] == [50, 50]


@pytest.mark.parametrize(
    "loss, targets, message",
    [
        ("softmax", "energy", r"targets have shape \(4,\), a 'softmax' loss takes one label"),
        ("squared", "energy", "4 elements for each example, the model has 3 outputs"),
        ("squared", ["phoneme", "utterance"], "2 elements for each example, the model has 3"),
        ("logistic", "energy", "4 elements for each example, the model has 3 outputs"),
    ],
)
def test_targets_that_do_not_fit_the_outputs_are_named(speech, loss, targets, message):
    examples = Examples(speech[0], inputs="energy", targets=targets, along="frame")
    with pytest.raises(ValueError, match=message):
        examples.for_loss(loss, 3)


def test_a_missing_label_that_is_left_out_is_named_by_its_place():
    labels = np.where(np.arange(40) == 6, np.nan, np.arange(40) % 2)
    data = xr.Dataset({"x": ("row", np.arange(40.0)), "y": ("row", labels)})
    examples = Examples(data, inputs="x", targets="y", along="row", missing="drop")
    with pytest.warns(UserWarning, match="the first for targets: variable 'y' at row=6$"):
        examples.for_loss("softmax", 2).check()
