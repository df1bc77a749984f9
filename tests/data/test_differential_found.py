"""What drawn datasets found, each as a small dataset of its own."""

import json
import warnings
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from differential.observing import read_blocks

from dbdask import DataError, Dense, Examples, Network
from dbdask.result import History, Result, Status


def _read(data, **more):
    return read_blocks(Examples(data, inputs="x", along="t", missing="drop", **more))


def _kept(data, **more):
    read = _read(data, **more)
    return read.positions[read.valid].ravel().tolist()


def _arrays(path, zarr_format=2, **arrays):
    """Write arrays over `t` as they are: each is values, attributes, and the array's fill."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for name, (values, attrs, fill) in arrays.items():
        names = {"dimension_names": ["t"]} if zarr_format == 3 else {}
        values = np.asarray(values)
        array = group.create_array(
            name, shape=values.shape, chunks=(2,), dtype=values.dtype, fill_value=fill, **names
        )
        array[:] = values
        array.attrs.update(attrs | ({} if names else {"_ARRAY_DIMENSIONS": ["t"]}))
    return str(path)


def _result(examples, units=1):
    model = Network(input_shape=examples.input_shape, layers=[Dense(units)], loss="squared")
    vector = np.ones(model.parameter_count, np.float32)
    return Result(model, examples, vector, History(), Status("epochs", ""))


@pytest.mark.parametrize(
    "encoding",
    [
        {"dtype": np.dtype("int32"), "missing_value": 1},
        {"dtype": np.dtype("int32"), "_FillValue": 0.7},
        {"dtype": "int16", "scale_factor": 0.5, "_FillValue": 2},
    ],
)
@pytest.mark.parametrize("blocks", [None, {"t": 2}])
def test_an_encoding_that_was_left_over_changes_nothing(encoding, blocks):
    data = xr.Dataset({"x": ("t", [0.0, 1, 2.5]), "y": ("t", [1, 2, 3])}, {"t": [0, 1, 2]})
    data["x"].encoding = encoding
    data = data.reindex(t=[0, 1, 2, 9]).chunk(blocks or {})
    read = _read(data if blocks else data.load())
    assert read.inputs.tolist() == [0, 1, 2.5]
    assert read.valid.tolist() == [True, True, True, False]


@pytest.mark.parametrize("attrs", [{"missing_value": 1}, {"_FillValue": 1, "scale_factor": 0.1}])
def test_attributes_of_a_dataset_that_shows_raw_values_are_not_applied(tmp_path, attrs):
    path = _arrays(tmp_path / "raw.zarr", x=(np.arange(4), attrs, None))
    shown = xr.open_zarr(path, consolidated=False, mask_and_scale=False)
    assert _read(shown).inputs.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("chunks", [None, {}])
def test_zeros_that_xarray_shows_as_missing_are_missing(tmp_path, chunks):
    path = _arrays(tmp_path / "v2.zarr", x=(np.arange(4, dtype="u1"), {}, 0))
    assert _kept(xr.open_zarr(path, consolidated=False, chunks=chunks)) == [1, 2, 3]
    assert _kept(path) == [0, 1, 2, 3]


@pytest.mark.parametrize("role", ["inputs", "targets", "weights"])
def test_a_fill_of_a_v2_array_masks_integers(tmp_path, role):
    numbers, plain = (np.arange(1, 5), {}, 2), (np.ones(4), {}, 0)
    roles = {"inputs": "x", "targets": "y", "weights": "w"}
    arrays = {name: numbers if name == roles[role] else plain for name in roles.values()}
    path = _arrays(tmp_path / "v2.zarr", **arrays)
    examples = Examples(path, **roles, along="t", missing="drop").for_loss("squared", 1)
    assert read_blocks(examples).valid.tolist() == [True, False, True, True]


@pytest.mark.parametrize("name", ["_FillValue", "missing_value"])
@pytest.mark.parametrize("fill", [-9999, 300, 1e20, -1e300])
@pytest.mark.parametrize("dtype", ["u1", "u8", "i2", "i8"])
def test_a_fill_that_no_value_can_be_masks_nothing(tmp_path, name, fill, dtype):
    limits = np.iinfo(dtype)
    if limits.min <= fill <= limits.max:
        pytest.skip("the dtype holds it")
    values = np.array([0, 1, limits.max, limits.min], dtype)
    path = _arrays(tmp_path / "v3.zarr", 3, x=(values, {name: fill}, 0))
    assert _read(path).inputs.tolist() == values.astype(np.float32).tolist()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["u1", "f8"])
@pytest.mark.parametrize("fill", ["NaN", "none", "", None, float("nan")])
def test_a_fill_that_is_no_number_is_named_or_masks_nothing(tmp_path, zarr_format, dtype, fill):
    values = np.arange(4).astype(dtype)
    path = _arrays(tmp_path / "odd.zarr", zarr_format, x=(values, {"_FillValue": fill}, None))
    try:
        assert _read(path).inputs.tolist() == [0, 1, 2, 3]
    except ValueError as error:
        assert "'x'" in str(error) and "_FillValue" in str(error)


def test_a_float_fill_of_a_v3_array_may_be_a_plain_number(tmp_path):
    path = _arrays(tmp_path / "v3.zarr", 3, x=([1.0, 1e20, 3.0], {"_FillValue": 1e20}, 0))
    assert _kept(path) == [0, 2]


def test_units_that_are_no_time_are_named(tmp_path):
    path = _arrays(tmp_path / "t.zarr", x=(np.arange(4), {"units": "hours since the flood"}, 0))
    with pytest.raises((ValueError, TypeError), match="'x'"):
        _read(path)


@pytest.mark.parametrize("dtype", ["Int64", "UInt8", "Float32", "Float64", "boolean"])
@pytest.mark.parametrize("role", ["x", "y", "w"])
def test_nullable_numbers_have_values_and_gaps(dtype, role):
    columns = dict.fromkeys("xyw", np.array([1.0, 0, 1, 1]))
    columns[role] = pd.array([1, None, 0, 1], dtype=dtype)
    data = xr.Dataset({name: ("t", values) for name, values in columns.items()})
    examples = Examples(data, inputs="x", targets="y", weights="w", along="t", missing="drop")
    read = read_blocks(examples.for_loss("squared", 1))
    assert read.valid.tolist() == [True, False, True, True]
    found = {"x": read.inputs, "y": read.targets, "w": read.weights}[role]
    assert found.tolist() == [1, 0, 1]


@pytest.mark.parametrize("first", [280.0, 1.7e9, 2460000.5])
@pytest.mark.parametrize("targets", [False, True])
def test_the_mean_is_taken_off_before_anything_is_rounded(first, targets):
    part = np.random.default_rng(0).uniform(size=50)
    data = xr.Dataset({"x": ("t", first + part), "y": ("t", first + part)})
    examples = Examples(data, inputs="x", targets="y", along="t").standardize()
    read = read_blocks(examples.for_loss("squared", 1))
    wanted = (first + part - np.mean(first + part)) / np.std(first + part)
    found = read.targets if targets else read.inputs
    np.testing.assert_allclose(found, wanted, rtol=3e-7, atol=1e-7 + 10 * np.spacing(first))


@pytest.mark.parametrize(
    "labels",
    [
        [20240101.0, 20240102.0, np.nan],
        [2.0**53 - 6, 2.0**53 - 5, 2.0**53 - 4],
        [278.0835571, 278.0835572],
        np.array([2**63, 2**63 + 1], "u8"),
        np.array([16777216, 16777217], "u4"),
    ],
)
def test_labels_are_found_in_their_own_dtype(labels):
    values = np.asarray(labels)
    data = xr.Dataset({"x": ("t", np.zeros(len(values))), "y": ("t", values)})
    found = Examples(data, inputs="x", targets="y", along="t").find_classes()
    assert found == sorted(value for value in values.tolist() if value == value)


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1"])
def test_an_unknown_label_is_refused_whatever_its_dtype(dtype):
    labels = np.array([0, 1, np.iinfo(dtype).max], dtype)
    data = xr.Dataset({"x": ("t", np.zeros(3)), "y": ("t", labels)})
    examples = Examples(data, inputs="x", targets="y", along="t").for_loss("softmax", 2)
    with pytest.raises(DataError, match="'y' at t=2"):
        read_blocks(examples)


def test_flags_of_a_dataset_are_not_unsigned_again():
    first = np.iinfo("i8").min
    attrs = {"_Unsigned": "true", "flag_values": [first, first + 1], "flag_meanings": "a b"}
    data = xr.Dataset({"x": ("t", [0.0, 1]), "y": ("t", np.array([first, first + 1]), attrs)})
    examples = Examples(data, inputs="x", targets="y", along="t")
    assert examples.find_classes() == [first, first + 1]
    assert read_blocks(examples.for_loss("softmax", 2)).targets.tolist() == [0, 1]


def test_two_fills_are_read_without_a_warning(tmp_path):
    attrs = {"_FillValue": -9999.0, "missing_value": -1.0}
    path = _arrays(tmp_path / "two.zarr", x=([1.0, -1, -9999, 2], attrs, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _kept(path) == [0, 3]


def test_a_scale_that_is_infinite_warns_of_nothing_raw(tmp_path):
    path = _arrays(tmp_path / "inf.zarr", x=(np.arange(1, 5), {"scale_factor": np.inf}, None))
    for decoded in (True, False):
        opened = xr.open_zarr(path, consolidated=False, chunks=None, mask_and_scale=decoded)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            for data in (opened, opened.isel(t=[0, 1])):
                with pytest.raises(DataError, match="'x' .*infinite") if decoded else nullcontext():
                    _read(data)


@pytest.mark.parametrize("packing", [{"scale_factor": 2}, {"add_offset": 3}])
@pytest.mark.parametrize("fill", [{}, {"missing_value": 5}])
@pytest.mark.parametrize("dtype", ["f4", "f8", "u8", "i2"])
def test_a_scale_may_be_an_integer(tmp_path, packing, fill, dtype):
    values = {"u8": [1, 5, 2**63 + 2**41], "i2": [1, 5, -3]}.get(dtype, [1.5, 5, np.nan, 2])
    values = np.array(values, dtype)
    path = _arrays(tmp_path / "scaled.zarr", 3, x=(values, packing | fill, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = _read(path)
    kept = values[(values == values) & ~((values == 5) & bool(fill))].astype(np.float64)
    wanted = kept * packing.get("scale_factor", 1) + packing.get("add_offset", 0)
    np.testing.assert_array_equal(read.inputs, wanted.astype(np.float32))


def test_a_block_may_hold_no_example():
    data = xr.Dataset({"x": ("t", [np.nan] * 3), "z": (("t", "f"), np.ones((3, 2)))})
    read = read_blocks(Examples(data, inputs=["x", "z"], along="t", missing="drop"))
    assert not read.valid.any() and read.inputs.shape == (0, 3)


def test_numbers_that_differ_are_no_constant_in_any_dtype():
    values = np.array([20240100, 20240102, 20240104], np.float32)
    data = xr.Dataset({"x": ("t", values), "y": ("t", values)})
    scaled = Examples(data, inputs="x", targets="y", along="t").standardize()
    read = read_blocks(scaled.for_loss("squared", 1))
    wanted = np.array([-1, 0, 1]) * np.sqrt(1.5)
    np.testing.assert_allclose(read.inputs, wanted, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(read.targets, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("values", [[True, np.nan, False], [1, None, 2.5], [b"a", None, 3]])
@pytest.mark.parametrize("role", ["x", "y", "w"])
def test_objects_that_are_no_numbers_are_named(values, role):
    columns = dict.fromkeys("xyw", np.array([1.0, 0, 1]))
    columns[role] = np.array(values, object)
    data = xr.Dataset({name: ("t", column) for name, column in columns.items()})
    try:
        examples = Examples(data, inputs="x", targets="y", weights="w", along="t", missing="drop")
        read = read_blocks(examples.standardize().for_loss("squared", 1))
    except (ValueError, TypeError) as error:
        assert repr(role) in str(error) and type(error) in (ValueError, TypeError, DataError)
    else:
        assert read.valid.tolist() == [True, False, True]


def test_objects_of_a_block_without_examples_are_no_puzzle():
    x = np.array([True, np.nan, np.nan, np.nan], object)
    data = xr.Dataset({"x": ("t", x), "y": ("t", np.arange(4.0))})
    examples = Examples(data, inputs="x", targets="y", along="t", missing="drop").standardize()
    assert read_blocks(examples).valid.tolist() == [True, False, False, False]
    masked = Examples(data, inputs="x", targets="y", along="t", missing="mask").standardize()
    portion = masked.cut(4, 1).contiguous()[0]
    with masked.reader(prefetch=False) as reader:
        assert [batch.inputs.tolist() for batch in reader.minibatches(portion, 1)] == [[0]] * 4
    with pytest.raises(TypeError, match="'x' has dtype object; give numbers"):
        Examples(data.chunk(t=2), inputs="x", targets="y", along="t", missing="drop")


def test_a_reference_file_system_is_a_store_like_others(tmp_path):
    from fsspec.implementations.reference import ReferenceFileSystem

    path = _arrays(tmp_path / "data.zarr", x=(np.arange(4.0), {}, None))
    references = {}
    for file in (tmp_path / "data.zarr").rglob("*"):
        if file.is_file():
            key = str(file.relative_to(path))
            references[key] = file.read_text() if file.name.startswith(".z") else [str(file)]
    (tmp_path / "refs.json").write_text(json.dumps({"version": 1, "refs": references}))
    options = {"fo": str(tmp_path / "refs.json"), "remote_protocol": "file"}
    system = ReferenceFileSystem(
        **options, remote_options={"asynchronous": True}, asynchronous=True
    )
    store = zarr.storage.FsspecStore(system, read_only=True)
    lazy = {"storage_options": options, "consolidated": False}
    data = xr.open_dataset("reference://", engine="zarr", chunks=None, backend_kwargs=lazy)
    for given in (store, data):
        assert _read(given).inputs.tolist() == [0, 1, 2, 3]


def test_a_path_is_predicted_on_though_xarray_cannot_open_it(tmp_path):
    path = _arrays(
        tmp_path / "v3.zarr",
        3,
        x=([1.0, 1e20, 3.0], {"_FillValue": 1e20}, 0),
        y=(np.arange(3.0), {}, 0),
        t=(np.array([5, 6, 7]), {}, 0),
    )
    examples = Examples(path, inputs="x", targets="y", along="t", missing="drop")
    predicted = _result(examples.for_loss("squared", 1)).predict(path).compute()
    np.testing.assert_array_equal(predicted, [2, np.nan, 4])
    assert predicted["t"].values.tolist() == [5, 6, 7]


def test_a_prediction_warns_of_no_fills(tmp_path):
    attrs = {"_FillValue": -9999.0, "missing_value": -1.0}
    path = _arrays(tmp_path / "v2.zarr", x=([1.0, -1], attrs, 0), y=(np.arange(2.0), {}, 0))
    examples = Examples(path, inputs="x", targets="y", along="t", missing="drop")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predicted = _result(examples.for_loss("squared", 1)).predict(path).compute()
    np.testing.assert_array_equal(predicted, [2, np.nan])


def test_labels_beyond_every_integer_dtype_are_predicted_and_written(tmp_path):
    labels = np.array([0.0, 2.0**63, 2.0**64, np.nan])
    data = xr.Dataset({"x": ("t", [0.0, 1, 2, 3]), "y": ("t", labels)})
    examples = Examples(data, inputs="x", targets="y", along="t", missing="drop")
    examples = examples.with_classes(examples.find_classes()).for_loss("softmax", 3)
    model = Network(input_shape=(), layers=[Dense(3)], loss="softmax")
    vector = np.array([0, 1, 2, 0, 0, -1.5], np.float32)
    predicted = Result(model, examples, vector, History(), Status("epochs", "")).predict(data)
    predicted.to_zarr(tmp_path / "y.zarr", consolidated=False)
    found = xr.open_zarr(tmp_path / "y.zarr", consolidated=False)["y"]
    assert found.values.tolist() == [0, 2.0**63, 2.0**64, 2.0**64]


def test_inputs_without_a_sample_dimension_are_predicted_along_it():
    data = xr.Dataset({"x": ("t", [1.0, 2]), "y": (("t", "s"), np.ones((2, 3)))})
    examples = Examples(data, inputs="x", targets="y", along=("t", "s"))
    predicted = _result(examples.for_loss("squared", 1)).predict(data).compute()
    np.testing.assert_array_equal(predicted, [[2, 2, 2], [3, 3, 3]])
    xr.align(data, predicted, join="exact")


@pytest.mark.parametrize("zarr_format, other", [(2, 3), (3, 2)])
def test_a_prediction_remembers_no_store(tmp_path, zarr_format, other):
    data = xr.Dataset({"x": ("t", [1.0, 2]), "y": ("t", [1.0, 2])}, {"t": [3, 4]})
    data.to_zarr(tmp_path / "data.zarr", zarr_format=zarr_format, consolidated=False)
    for chunks in ({}, None):
        opened = xr.open_zarr(tmp_path / "data.zarr", consolidated=False, chunks=chunks)
        examples = Examples(opened, inputs="x", targets="y", along="t").for_loss("squared", 1)
        predicted = _result(examples).predict(opened)
        path = tmp_path / f"predicted-{chunks is None}.zarr"
        predicted.to_zarr(path, zarr_format=other, consolidated=False)
        found = xr.open_zarr(path, consolidated=False)["y"]
        np.testing.assert_array_equal(found, [2, 3])
        xr.align(data, found, join="exact")


@pytest.mark.parametrize("per", ["variable", "feature"])
def test_a_variable_without_sample_dimensions_is_measured_under_a_mask(per):
    data = xr.Dataset({"x": ("t", [1.0, 9, 3]), "z": ("f", [1.0, 3])})
    mask = xr.DataArray([True, False, True], dims="t")
    kept = Examples(data, inputs=["x", "z"], along="t").where(mask).where(mask)
    read = read_blocks(kept.standardize(per=per))
    other = [-1, 1] if per == "variable" else [0, 0]
    assert read.inputs.tolist() == [[-1, *other], [1, *other]]


def test_windows_that_leave_out_the_present_stay_in_their_group():
    groups = np.repeat(np.arange(8), [1, 4, 2, 5, 1, 1, 6, 3])
    data = xr.Dataset({"x": ("t", np.arange(len(groups), dtype="f4")), "g": ("t", groups)})
    for window in ((2, 4), (-4, -2), (1, 1), (-1, -1)):
        examples = Examples(
            data.chunk(t=3), inputs="x", along="t", window={"t": window}, groups="g"
        )
        read = read_blocks(examples)
        for position, seen in zip(read.positions.ravel(), read.inputs, strict=True):
            mine = np.flatnonzero(groups == groups[position])
            offsets = np.arange(window[0], window[1] + 1)
            assert seen.tolist() == np.clip(position + offsets, mine[0], mine[-1]).tolist()


def test_targets_that_are_coordinates_of_the_data_are_predicted():
    values = np.arange(8.0, dtype=np.float32)
    data = xr.Dataset({"x": ("t", values), "y": ("t", values), "z": ("t", -values)}).set_coords("z")
    examples = Examples(data, inputs="x", targets=["y", "z"], along="t")
    model = Network(input_shape=examples.input_shape, layers=[Dense(2)], loss="squared")
    vector = np.array([1.0, -1.0, 0.0, 0.0], np.float32)
    result = Result(model, examples, vector, History(), Status("epochs", ""))
    found = result.predict(data).compute()
    np.testing.assert_array_equal(found["y"], values)
    np.testing.assert_array_equal(found["z"], -values)
    assert list(found.data_vars) == ["y", "z"]


def test_a_target_that_xarray_cannot_decode_is_predicted_on_the_coordinates(tmp_path):
    labels = np.arange(6, dtype=np.uint16) % 2
    attrs = {"_Unsigned": "false", "_FillValue": 65535}
    numbers = np.arange(6.0, dtype=np.float32)
    path = _arrays(
        tmp_path / "data", x=(numbers, {}, 0), y=(labels, attrs, None), t=(numbers, {}, 0)
    )
    with pytest.raises(OverflowError):
        xr.open_zarr(path, consolidated=False)
    examples = Examples(path, inputs="x", targets="y", along="t").for_loss("softmax", 2)
    model = Network(input_shape=examples.input_shape, layers=[Dense(2)], loss="softmax")
    vector = np.zeros(model.parameter_count, np.float32)
    result = Result(model, examples, vector, History(), Status("epochs", ""))
    found = result.predict(path).compute()
    np.testing.assert_array_equal(found["t"], numbers)
    assert set(found.values.tolist()) == {0}
