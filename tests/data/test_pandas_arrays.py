"""Dtypes that are not NumPy's: values where xarray has values, missing where it has missing."""

import pickle
import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from seeing import seen

from dbdask.data.examples import Examples
from dbdask.data.pandas_arrays import numpy_dtype, to_numpy
from dbdask.data.sources import open_source

ARRAYS = {
    "Int8": pd.array([3, -4, 5, 0], dtype="Int8"),
    "Int64 with a gap": pd.array([3, None, 5, 0], dtype="Int64"),
    "UInt64 beyond float64": pd.array([2**64 - 1, 2**64 - 2, 5, 0], dtype="UInt64"),
    "UInt64 with a gap": pd.array([2**64 - 1, 2**64 - 2, None, 0], dtype="UInt64"),
    "Float32": pd.array([0.5, None, 2, 3], dtype="Float32"),
    "Float64": pd.array([0.1, 0.2, 2, 3], dtype="Float64"),
    "boolean": pd.array([True, False, True, True], dtype="boolean"),
    "boolean with a gap": pd.array([True, None, True, True], dtype="boolean"),
    "string": pd.array(["a", "b", None, ""], dtype="string"),
    "category of text": pd.Categorical(["b", "a", "b", None], categories=["b", "a", "c"]),
    "category of numbers": pd.Categorical([20, 10, 20, 10]),
    "category of numbers with a gap": pd.Categorical([20, 10, None, 10]),
    "category of large numbers": pd.Categorical([2**60 + 1, None, 2**60, 2**60 + 1]),
    "category of floats": pd.Categorical([0.5, 1.5, None, 0.5]),
    "category of booleans": pd.Categorical([True, False, None, True]),
    "category of nothing": pd.Categorical([None, None, None, None]),
    "sparse": pd.arrays.SparseArray([0, 0, 7, 0]),
    "sparse floats": pd.arrays.SparseArray([0, np.nan, 7, 0]),
    "period": pd.period_range("2000", periods=4, freq="D").array,
    "zoned": pd.date_range("2000", periods=4, tz="Europe/Berlin").array,
    "interval": pd.interval_range(0, 4).array,
    "category of intervals": pd.cut([1, 2, 3, np.nan], 2),
}


def wanted_of(array):
    """Return what pandas itself says of every element."""
    return [None if pd.isna(value) else value for value in array]


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("cut", [slice(0, 4), slice(1, 3), slice(2, 3), slice(2, 2)])
def test_values_and_gaps_are_those_of_pandas(kind, cut):
    array = ARRAYS[kind]
    dtype = numpy_dtype(array)
    values = to_numpy(array[cut], dtype)
    assert values.dtype == dtype
    found = [None if pd.isna(value) else value for value in values.tolist()]
    assert found == wanted_of(array[cut])


def table(array):
    return pd.DataFrame({"x": np.arange(4.0), "y": array}).to_xarray()


NUMBERS = [
    name
    for name in ARRAYS
    if name.split()[0] not in ("string", "period", "zoned", "interval", "category", "UInt64")
]
NUMBERS += ["category of numbers", "category of numbers with a gap", "category of floats"]


@pytest.mark.filterwarnings("ignore:.*left out as missing")
@pytest.mark.parametrize("kind", NUMBERS)
def test_inputs_and_targets_of_pandas_dtypes(kind):
    array = ARRAYS[kind]
    wanted = [np.nan if value is None else np.float32(value) for value in wanted_of(array)]
    data = table(array)
    inputs = seen(Examples(data, inputs="y", along="index", missing="drop"))[0]
    np.testing.assert_array_equal(inputs, wanted)
    described = Examples(data, inputs="x", targets="y", along="index", missing="drop")
    np.testing.assert_array_equal(seen(described.for_loss("squared", 1))[1], wanted)


@pytest.mark.filterwarnings("ignore:.*left out as missing")
@pytest.mark.parametrize("kind", [name for name in ARRAYS if name != "category of nothing"])
def test_labels_of_pandas_dtypes(kind):
    array = ARRAYS[kind]
    data = table(array)
    if kind in ("period", "zoned", "interval", "category of intervals"):
        name = str(array.dtype) if "object" not in str(data.y.dtype) else "object"
        with pytest.raises(TypeError, match=r"'y' has dtype .*give array.astype\(str\)") as said:
            Examples(data, inputs="x", targets="y", along="index")
        assert name.split("[")[0] in str(said.value)
        return
    examples = Examples(data, inputs="x", targets="y", along="index", missing="drop")
    labels = wanted_of(array)
    wanted = sorted({label for label in labels if label is not None})
    assert examples.find_classes() == wanted
    codes = seen(examples.with_classes(wanted))[1]
    expected = [np.nan if label is None else wanted.index(label) for label in labels]
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize(
    "kind",
    [
        "Int8",
        "string",
        "category of text",
        "period",
        "zoned",
        "category of numbers",
        "boolean",
        "interval",
    ],
)
def test_groups_of_pandas_dtypes(kind):
    array = ARRAYS[kind]
    array = array[~pd.isna(array)][:2].repeat(3)
    data = pd.DataFrame({"x": np.arange(6.0), "g": array}).to_xarray()
    described = Examples(data, inputs="x", along="index", groups="g", window={"index": (0, 1)})
    assert seen(described)[0][:, 1].tolist() == [1, 2, 2, 4, 5, 5]
    assert "g" in str(open_source(data).variables)


INDEXES = {
    "dates": pd.date_range("2000-01", periods=90),
    "zone": pd.date_range("2000-01", periods=90, tz="Europe/Berlin"),
    "periods": pd.period_range("2000-01-01", periods=90, freq="D"),
    "text": pd.Index([f"n{number:02}" for number in range(90)]),
    "categories": pd.CategoricalIndex([f"n{number:02}" for number in range(90)]),
    "nullable": pd.Index(pd.array(range(90), dtype="Int64")),
    "intervals": pd.interval_range(0, 90),
    "floats": pd.Index(np.arange(90) / 2),
}
CUTS = {
    "dates": ["2000-02", slice("2000-02-01", "2000-02-10"), "2000-01-05"],
    "zone": ["2000-02", slice("2000-02-01", "2000-02-10"), slice("2000-03", None)],
    "periods": ["2000-02", slice("2000-02-01", "2000-02-10"), pd.Period("2000-01-05")],
    "text": ["n07", ["n03", "n09"], slice("n10", "n20")],
    "categories": ["n07", ["n03", "n09"]],
    "nullable": [7, [3, 9], slice(10, 20)],
    "intervals": [3.5, [3.5, 8.5]],
    "floats": [3.5, [3.5, 8.5], slice(10, 20.2)],
}


@pytest.mark.parametrize("kind", INDEXES)
def test_cuts_are_those_of_xarray_whatever_the_index(kind):
    data = xr.Dataset({"x": ("n", np.arange(90.0))}, coords={"n": INDEXES[kind]})
    examples = Examples(data, inputs="x", along="n")
    inner = examples.isel(n=slice(2, 80))
    for cut in CUTS[kind]:
        for described, given in ((examples, data), (inner, data.isel(n=slice(2, 80)))):
            wanted = np.atleast_1d(given.sel(n=cut).x.values)
            whole = seen(described.sel(n=cut))[0]
            np.testing.assert_array_equal(whole[~np.isnan(whole)], wanted, err_msg=f"{cut}")
    if kind in ("floats", "intervals"):
        with pytest.raises((KeyError, ValueError), match=r"sel: 'n' (has no|cannot be cut by)"):
            examples.sel(n="z")
        return
    with pytest.raises(KeyError, match=r"sel: 'n' has no coordinate .* it goes from"):
        examples.sel(n="1999-07-05" if kind in ("dates", "zone", "periods") else "z")


def _levels():
    index = pd.MultiIndex.from_product([["a", "b", "c"], range(30)], names=["letter", "number"])
    coords = xr.Coordinates.from_pandas_multiindex(index, "n")
    return xr.Dataset({"x": ("n", np.arange(90.0)), "g": ("n", np.repeat([1, 2, 3], 30))}, coords)


@pytest.mark.parametrize(
    "cut",
    [
        {"n": ("a", 3)},
        {"n": "b"},
        {"letter": "b"},
        {"letter": "c", "number": 4},
        {"number": 7},
        {"n": [("a", 3), ("b", 5)]},
    ],
)
def test_levels_of_an_index_are_cut_as_xarray_cuts_them(cut):
    data = _levels()
    whole = seen(Examples(data, inputs="x", along="n").sel(**cut))[0]
    np.testing.assert_array_equal(whole[~np.isnan(whole)], np.atleast_1d(data.sel(cut).x.values))


def test_levels_are_groups_labels_and_aligned():
    data = _levels()
    window = {"n": (-1, 0)}
    by_level, by_number = (
        seen(Examples(data, inputs="x", along="n", groups=name, window=window))[0]
        for name in ("letter", "g")
    )
    np.testing.assert_array_equal(by_level, by_number)
    labelled = Examples(data, inputs="x", targets="letter", along="n")
    assert labelled.find_classes() == ["a", "b", "c"]
    mask = (data.x > 40).isel(n=slice(None, None, -1))
    assert len(Examples(data, inputs="x", along="n").where(mask)) == 49
    assert len(pickle.dumps(labelled.worker_side())) < 6000


@pytest.mark.parametrize("kind", INDEXES)
def test_masks_and_arrays_are_matched_by_labels_of_any_kind(kind):
    data = xr.Dataset({"x": ("n", np.arange(90.0))}, coords={"n": INDEXES[kind]})
    mask = (data.x >= 80).isel(n=slice(None, None, -1))
    kept = Examples(data, inputs="x", along="n").where(mask)
    assert len(kept) == 10 and np.nanmin(seen(kept)[0]) == 80
    same = Examples(data, inputs="x", targets=(data.x * 2).rename("y"), along="n")
    assert seen(same)[1].tolist() == (data.x * 2).values.tolist()
    with pytest.raises(ValueError, match=r"'y' is at n=.* where the given Dataset is at n="):
        Examples(data, inputs="x", targets=data.x[::-1].rename("y"), along="n")


def test_a_missing_value_is_named_by_its_zoned_time():
    values = np.where(np.arange(90) == 4, np.nan, 1.0)
    data = xr.Dataset({"x": ("n", values)}, coords={"n": INDEXES["zone"]})
    with pytest.raises(Exception, match=r"n=4 \(2000-01-05 00:00:00\+01:00\) is missing"):
        seen(Examples(data, inputs="x", along="n"))


@pytest.mark.filterwarnings("ignore:.*left out as missing")
def test_objects_of_numbers_are_numbers_in_memory_and_named_in_dask():
    values = np.array([1, None, 2.5, 1], object)
    data = xr.Dataset({"x": ("n", values)})
    inputs = seen(Examples(data, inputs="x", along="n", missing="drop"))[0]
    np.testing.assert_array_equal(inputs, np.array([1, np.nan, 2.5, 1], np.float32))
    with pytest.raises(TypeError, match=r"'x' has dtype object; give numbers: array.astype\(float"):
        Examples(data.chunk(n=2), inputs="x", along="n")


@pytest.mark.parametrize("route", ["memory", "chunks of memory", "store", "lazy", "dask"])
def test_calendars_as_inputs_are_refused_with_a_remedy_that_works(tmp_path, route):
    pytest.importorskip("cftime")
    path = tmp_path / "c.zarr"
    times = xr.date_range("2000-01-01", periods=4, calendar="360_day", use_cftime=True)
    data = xr.Dataset({"x": ("t", times)})
    data.to_zarr(path, consolidated=False)
    shown = xr.open_zarr(path, chunks=None if route == "lazy" else {}, consolidated=False)
    given = {"memory": data, "chunks of memory": data.chunk(t=2), "store": path}.get(route, shown)
    with pytest.raises(TypeError, match="inputs: variable 'x' has dtype object") as refused:
        Examples(given, inputs="x", along="t")
    remedy = re.search(r"\(\(array.*'s'\)\)", str(refused.value)).group()
    array = shown.x if route == "store" else given.x
    seconds = Examples(given, inputs=eval(remedy, {"array": array, "np": np}), along="t")
    assert seen(seconds)[0].tolist() == [0, 86400, 172800, 259200]
    if "memory" not in route:
        assert "with decode_times=False" in str(refused.value)
        numbers = xr.open_zarr(path, decode_times=False, consolidated=False)
        assert seen(Examples(numbers, inputs="x", along="t"))[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("route", ["memory", "store", "dask"])
def test_calendars_of_models_are_cut_matched_and_grouped(tmp_path, route):
    pytest.importorskip("cftime")
    times = xr.date_range("2000-01-01", periods=90, calendar="noleap", use_cftime=True)
    data = xr.Dataset({"x": ("time", np.arange(90.0))}, coords={"time": times})
    data.to_zarr(tmp_path / "c.zarr", consolidated=False)
    given = {"memory": data, "store": tmp_path / "c.zarr"}.get(route)
    given = xr.open_zarr(tmp_path / "c.zarr", consolidated=False) if given is None else given
    examples = Examples(given, inputs="x", targets=(2 * data.x).rename("y"), along="time")
    for cut in ("2000-02", slice("2000-02-03", "2000-02-10")):
        whole = seen(examples.sel(time=cut))[0]
        np.testing.assert_array_equal(whole[~np.isnan(whole)], data.sel(time=cut).x.values)
    assert len(examples.where((data.x > 80)[::-1])) == 9
    days = data.assign(g=("time", times.to_numpy()))
    grouped = Examples(days, inputs="x", along="time", groups="g", window={"time": (0, 1)})
    assert seen(grouped)[0][:3].tolist() == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.filterwarnings("ignore:.*left out as missing")
def test_tables_that_were_reported_publicly():
    # pydata/xarray#10301: a Series of converted dtypes; #10965: nullable numbers, concatenated.
    series = pd.Series([1, 2, 4], index=pd.Index([1, 2, 4], name="n"), name="x").convert_dtypes()
    data = series.to_xarray().to_dataset()
    assert seen(Examples(data, inputs="x", along="n"))[0].tolist() == [1, 2, 4]
    both = xr.concat([data, data], "n", data_vars="all", join="outer")
    assert seen(Examples(both, inputs="x", along="n"))[0].tolist() == [1, 2, 4, 1, 2, 4]
    # pydata/xarray#10965 and #9661: a column of nullable numbers with a gap, and a text column
    frame = pd.DataFrame({"v": pd.array([1, 2, None], "Int64"), "s": pd.array(["a", "b", None])})
    data = frame.to_xarray()
    described = Examples(data, inputs="v", targets="s", along="index", missing="drop")
    assert described.find_classes() == ["a", "b"]
    np.testing.assert_array_equal(seen(described.with_classes(["a", "b"]))[0], [1, 2, np.nan])
    # pydata/xarray#9307 and #11248: times of a zone are cut by position
    zoned = pd.date_range("2016", periods=32, freq="h", tz="America/New_York")
    data = xr.Dataset({"x": ("example", np.arange(32.0))}, {"example": zoned})  # and #716
    cut = Examples(data.isel(example=slice(3, 9)), inputs="x", along="example")
    assert len(cut.sel(example=slice("2016-01-01 04:00", "2016-01-01 06:00"))) == 3
