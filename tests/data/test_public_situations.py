"""Situations that people reported publicly for tools of this kind, each with its source."""

import copy

import cftime
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

from dbdask import DataError, Examples

ROWS = 24


def seen(examples):
    """Return the inputs and the targets of all examples, in the order of their positions."""
    inputs, targets = [], []
    with examples.reader(prefetch=False) as reader:
        for block in np.flatnonzero(examples.recipe.block_rows).tolist():
            found = reader.block(block).minibatch
            inputs.append(found.inputs)
            targets.append(found.targets)
    return np.concatenate(inputs), np.concatenate(targets)


def as_values(data, **options):
    return Examples(data, **{"inputs": "x", "targets": "y", "along": "t"} | options).for_loss(
        "squared", 1
    )


def packed(path, values, scale, offset):
    """Write values as int16 with their own scale, and open them again."""
    encoding = {"dtype": "i2", "scale_factor": scale, "add_offset": offset, "_FillValue": -32767}
    data = xr.Dataset({"x": ("t", values), "y": ("t", values)})
    data.chunk(t=8).to_zarr(path, encoding={"x": encoding}, zarr_format=2)
    return xr.open_zarr(path)


def assert_shows(data, **options):
    """Assert that the examples see exactly what xarray shows."""
    inputs, targets = seen(as_values(data, **options))
    np.testing.assert_array_equal(inputs, data.x.values.astype(np.float32))
    np.testing.assert_array_equal(targets, data.y.values.astype(np.float32))


# What is left of the encoding says how the values were stored once, and not what they are.


def test_packed_files_of_unlike_scales_are_joined(tmp_path):
    """pydata/xarray#5739, #5490: February and May, packed with a scale each, concatenated."""
    winter = packed(tmp_path / "2", np.linspace(250.0, 270.0, ROWS), 0.001, 260.0)
    summer = packed(tmp_path / "5", np.linspace(290.0, 310.0, ROWS), 0.0007, 300.0)
    assert_shows(xr.concat([winter, summer], "t"))


def test_files_that_are_opened_together_keep_the_first_scale_in_their_encoding(tmp_path):
    """pydata/xarray#4282: open_mfdataset over packed files."""
    for number, middle in enumerate((10.0, 2000.0)):
        values = xr.Dataset({name: ("t", middle + np.linspace(-1, 1, ROWS)) for name in "xy"})
        encoding = {"dtype": "i2", "scale_factor": 1e-4, "add_offset": middle, "_FillValue": -32767}
        path = tmp_path / f"{number}.nc"
        values.to_netcdf(path, encoding={"x": encoding}, engine="scipy")
    paths = [tmp_path / "0.nc", tmp_path / "1.nc"]
    with xr.open_mfdataset(paths, combine="nested", concat_dim="t", engine="scipy") as data:
        assert data.x.encoding.get("add_offset", 10.0) == 10.0
        assert_shows(data)


def test_chunks_of_a_dimension_that_is_gone(tmp_path):
    """pydata/xarray#2278: open_zarr, then isel of one dimension: the chunks have another rank."""
    values = np.arange(3.0 * ROWS).reshape(3, ROWS)
    data = xr.Dataset({"x": (("v", "t"), values), "y": ("t", values[0])})
    data.chunk(v=1, t=8).to_zarr(tmp_path / "s", consolidated=False)
    for chunks in (None, {}):
        assert_shows(xr.open_zarr(tmp_path / "s", chunks=chunks, consolidated=False).isel(v=2))


def test_chunks_from_before_a_selection(tmp_path):
    """pydata/xarray#5219: a selection by list keeps encoding['chunks'] of the whole."""
    values = np.arange(float(ROWS))
    coords = {"t": np.arange(ROWS)}
    data = xr.Dataset({"x": ("t", values), "y": ("t", values)}, coords)
    data.chunk(t=2).to_zarr(tmp_path / "s", consolidated=False)
    opened = xr.open_zarr(tmp_path / "s", consolidated=False).sel(t=[1, 3, 4, 9, 23])
    assert_shows(opened)
    assert_shows(opened.compute())


def test_floats_whose_encoding_still_says_integer(tmp_path):
    """Deltares/dfm_tools#239, pydata/xarray#8135: opened from integers, changed, encoding kept."""
    data = packed(tmp_path / "s", np.linspace(0.0, 1.0, ROWS), 0.001, 0.0)
    changed = data.x * np.pi
    changed.encoding = dict(data.x.encoding)
    changed[3] = -32767.0  # once the fill value, now a number
    data = data.assign(x=changed)
    assert data.x.encoding["dtype"] == np.dtype("int16")
    assert_shows(data)


# Attributes as providers write them.


def store_with(path, stored, attributes, zarr_format=2, fill_value=None):
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    kinds = (("x", stored, attributes, fill_value), ("y", np.arange(len(stored)), {}, None))
    for name, values, own, fill in kinds:
        names = {"dimension_names": ["t"]} if zarr_format == 3 else {}
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=(8,),
            dtype=values.dtype,
            fill_value=fill,
            **names,
        )
        array[:] = values
        array.attrs.update(own)
        if zarr_format == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = ["t"]
    return str(path)


def assert_path_is_as_xarray_decodes(path):
    """Assert that a path and the Dataset of it show the same, missing values included."""
    shown = xr.open_zarr(path, consolidated=False).x.values
    kept = ~np.isnan(shown)
    for data in (path, xr.open_zarr(path, consolidated=False)):
        inputs, targets = seen(as_values(data, missing="drop"))
        np.testing.assert_array_equal(inputs, shown[kept].astype(np.float32))
        np.testing.assert_array_equal(targets, np.flatnonzero(kept))


@pytest.mark.filterwarnings("ignore:variable.*has multiple fill values")
def test_several_missing_values_in_one_attribute(tmp_path):
    """pydata/xarray#471: radar files list two kinds of missing values."""
    stored = np.arange(ROWS, dtype="f4")
    path = store_with(tmp_path / "s", stored, {"missing_value": [3.0, 17.0]})
    assert_path_is_as_xarray_decodes(path)


@pytest.mark.filterwarnings("ignore:variable.*has multiple fill values")
def test_a_fill_value_and_another_missing_value(tmp_path):
    """pydata/xarray#1976, #1749: -999 where nothing was measured, -99 where nothing was found."""
    stored = np.where(np.arange(ROWS) % 5 == 0, -999, np.arange(ROWS)).astype("i2")
    stored[7] = -99
    path = store_with(tmp_path / "s", stored, {"_FillValue": -999, "missing_value": -99})
    assert_path_is_as_xarray_decodes(path)


def test_unsigned_false_on_signed_bytes_that_are_scaled(tmp_path):
    """pydata/xarray#2583: OPeNDAP adds _Unsigned = "false"; valid_range is of another type."""
    stored = np.linspace(-128, 127, ROWS).astype("i1")
    attributes = {
        "_Unsigned": "false",
        "scale_factor": 0.003937008,
        "add_offset": 0.5,
        "_FillValue": -128,
        "valid_range": [-127, 127],
    }
    path = store_with(tmp_path / "s", stored, attributes)
    shown = xr.open_zarr(path, consolidated=False).x
    assert float(shown.min()) >= 0
    assert_path_is_as_xarray_decodes(path)


def test_unsigned_false_on_unsigned_bytes(tmp_path):
    """pydata/xarray#4954: OPeNDAP knows no signed bytes, and says so by _Unsigned = "false"."""
    stored = np.arange(ROWS).astype("i1") - 12
    path = store_with(tmp_path / "s", stored.view("u1"), {"_Unsigned": "false"})
    inputs, _ = seen(as_values(path))
    np.testing.assert_array_equal(inputs, stored.astype(np.float32))


@pytest.mark.filterwarnings("ignore:variable.*has multiple fill values")
def test_a_fill_value_of_nan_beside_a_missing_value(tmp_path):
    """pydata/xarray#7191, #7722: written anew, _FillValue is NaN and missing_value a number."""
    stored = np.arange(ROWS, dtype="f4")
    stored[2] = np.nan
    path = store_with(tmp_path / "s", stored, {"missing_value": 9.0}, fill_value=np.nan)
    assert_path_is_as_xarray_decodes(path)


@pytest.mark.filterwarnings("ignore:variable.*has multiple fill values")
def test_one_fill_value_in_two_precisions(tmp_path):
    """jbusecke/xMIP#5: 1e20 as float32 and as float64 are two numbers."""
    stored = np.arange(ROWS, dtype="f4")
    stored[[4, 5]] = np.float32(1e20)
    path = store_with(
        tmp_path / "s", stored, {"_FillValue": 1e20, "missing_value": 1.0000000200408773e20}
    )
    assert_path_is_as_xarray_decodes(path)


# Dtypes and indexes that are not NumPy's.


def with_labels(label, dim="t"):
    inputs = np.arange(ROWS, dtype="f4")
    return xr.Dataset({"x": (dim, inputs), "label": (dim, label)})


def labels_of(data, **options):
    examples = Examples(data, inputs="x", targets="label", along="t", **options)
    found = examples.find_classes()
    _, codes = seen(examples.with_classes(found).for_loss("softmax", len(found)))
    return [found[code] for code in codes]


def test_a_categorical_that_was_put_into_a_dataset():
    """pydata/xarray#8463, #9519: a Categorical as a variable, with an unused category."""
    names = np.array(["sea", "land", "ice"])[np.arange(ROWS) % 3]
    label = pd.Categorical(names, categories=["ice", "fog", "land", "sea"])
    data = with_labels(label)
    assert labels_of(data) == names.tolist()
    assert labels_of(copy.deepcopy(data)) == names.tolist()


def test_nullable_integers_with_a_gap():
    """pydata/xarray#10965: Int64 with a missing value, as it comes from a table."""
    label = pd.array(np.arange(ROWS) % 2, dtype="Int64")
    label[5] = pd.NA
    wanted = np.delete(np.arange(ROWS) % 2, 5).tolist()
    assert labels_of(with_labels(label), missing="drop") == wanted
    with pytest.raises(DataError, match="label.*t=5.*missing"):
        labels_of(with_labels(label))


@pytest.mark.parametrize("cut", [slice("2001", "2002"), "2001-03"], ids=str)
def test_a_calendar_without_leap_days_is_cut_by_text(cut):
    """pydata/xarray#9138: .sel with text after convert_calendar("noleap")."""
    time = xr.date_range("2000-01-01", periods=900, freq="D")
    values = np.arange(900, dtype="f4")
    data = xr.Dataset({"x": ("time", values), "y": ("time", values)}, {"time": time})
    data = data.convert_calendar("noleap", use_cftime=True)
    assert isinstance(data.time.values[0], cftime.DatetimeNoLeap)
    cutting = Examples(data, inputs="x", targets="y", along="time").sel(time=cut)
    assert len(cutting) == data.sel(time=cut).sizes["time"] > 0


def test_a_category_as_the_index_of_the_samples():
    """pydata/xarray#700: a CategoricalIndex along the sample dimension."""
    index = pd.CategoricalIndex([f"station {n}" for n in range(ROWS)], name="t")
    frame = pd.DataFrame({"x": np.arange(ROWS, dtype="f4"), "label": np.arange(ROWS) % 3}, index)
    data = frame.to_xarray()
    assert labels_of(data) == (np.arange(ROWS) % 3).tolist()
    few = Examples(data, inputs="x", targets="label", along="t").sel(t=["station 3", "station 7"])
    assert len(few) == 2


def test_labels_that_are_nullable_text():
    """pydata/xarray#10301: Series.convert_dtypes() makes text a dtype of its own."""
    frame = pd.DataFrame({"x": np.arange(ROWS), "label": np.where(np.arange(ROWS) % 2, "b", "a")})
    data = frame.convert_dtypes().rename_axis("t").to_xarray()
    wanted = np.where(np.arange(ROWS) % 2, "b", "a").tolist()
    assert labels_of(data) == wanted
