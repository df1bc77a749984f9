"""A path means what the store declares, with attributes as the world writes them."""

import numpy as np
import pytest
import xarray as xr
import zarr
from seeing import as_float, seen

from dbdask.data.declared import number
from dbdask.data.examples import Examples
from dbdask.data.sources import open_source
from dbdask.errors import DataError

VALUES = {
    "i1": [0, 1, -1, -66, 100, 127, -128],
    "u1": [0, 1, 255, 190, 100, 127, 128],
    "i2": [0, 1, -1, -999, 9999, 32767, -32768],
    "i4": [0, 1, -1, -999, 9999, 2**24 + 1, -(2**31)],
    "i8": [0, 1, -1, -999, 9999, 2**53 + 1, -(2**63)],
    "u8": [0, 1, 2, 999, 9999, 2**53 + 1, 2**64 - 1],
    "f4": [0, 1, -1, -999, 9999, np.nan, np.float32(1e20)],
    "f8": [0, 1, -1, -999, 9999, np.nan, 1e20],
}


def store(path, dtype, attributes, zarr_format=2, fill_value=None):
    """Write a store with a variable `x` that has these attributes, however odd."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    values = np.array(VALUES[dtype], dtype)
    names = {"dimension_names": ["t"]} if zarr_format == 3 else {}
    fill_value = 0 if zarr_format == 3 else fill_value
    array = group.create_array(
        "x", shape=values.shape, chunks=(4,), dtype=values.dtype, fill_value=fill_value, **names
    )
    array[:] = values
    array.attrs.update(attributes if names else {"_ARRAY_DIMENSIONS": ["t"], **attributes})
    return path


def fed(given):
    return seen(Examples(given, inputs="x", along="t", missing="drop"))[0]


SANE = [
    {},
    {"_FillValue": -999},
    {"_FillValue": 9999, "missing_value": 1},
    {"missing_value": [1, 0]},
    {"_FillValue": 0},
    {"scale_factor": 0.01},
    {"scale_factor": 0.5, "add_offset": 10.0},
    {"add_offset": 3.0, "_FillValue": 1},
    {"scale_factor": 2.0, "_FillValue": -999, "missing_value": 9999},
    {"scale_factor": 3},
    {"valid_range": [0, 10], "valid_min": 0, "valid_max": "10"},
    {"valid_min": "east", "units": "K"},
    {"units": "days"},
    {"_FillValue": -1},
    {"missing_value": -9999.0},
    {"missing_value": 9.969209968386869e36},
    {"missing_value": "NaN"},
    {"missing_value": "east"},
    {"missing_value": "-998"},
    {"missing_value": 0.5},
    {"missing_value": [1, 2**70, -5]},
    {"missing_value": []},
    {"_Unsigned": "true"},
    {"_Unsigned": "false"},
    {"_Unsigned": "true", "_FillValue": -1},
    {"_Unsigned": "true", "missing_value": 255},
    {"_Unsigned": "true", "_FillValue": -1, "scale_factor": 0.1},
    {"flag_values": "0b, 1b", "flag_masks": 3, "flag_meanings": 5},
]


@pytest.mark.filterwarnings("ignore:.*left out as missing", "ignore::xarray.SerializationWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "dtype",
    [
        dtype if dtype in ("i1", "f4") else pytest.param(dtype, marks=pytest.mark.slow)
        for dtype in VALUES
    ],
)
def test_a_path_and_xarray_show_the_same_of_sane_attributes(tmp_path, dtype):
    tried = 0
    for attributes in SANE:
        if dtype == "i8" and "_Unsigned" in attributes:
            continue  # xarray rounds before it compares with the fill, a path does not
        if dtype[0] == "f" and attributes.get("scale_factor") == 3:
            continue  # by a whole scale xarray makes integers of floats
        path = store(tmp_path / "x.zarr", dtype, attributes)
        opened = [xr.open_zarr(path, chunks=chunks, consolidated=False) for chunks in (None, {})]
        try:
            wanted = as_float(xr.open_zarr(path, consolidated=False)["x"])
        except Exception:
            continue  # what xarray cannot read is tried below
        if np.isnan(wanted).all():
            continue
        tried += 1
        for given in (path, *opened):
            said = f"{attributes}, {type(given).__name__}"
            meant = wanted
            if given is path and dtype[1] == "8" and attributes.get("scale_factor") == 3:
                meant = exactly(VALUES[dtype], 3)  # xarray's own product overflows
            np.testing.assert_array_equal(fed(given), meant.astype(np.float32), err_msg=said)
    assert tried > 20


def exactly(values, factor):
    """The values times a factor, in whole numbers of Python, which have no end."""
    return np.array([float(int(value) * factor) for value in values])


@pytest.mark.filterwarnings("ignore:.*left out as missing")
@pytest.mark.parametrize(
    "dtype, attributes, wanted",
    [
        # Same bytes, whichever sign the fill is written in: xarray refuses one of the two.
        ("i1", {"_Unsigned": "true", "_FillValue": 255}, [0, 1, None, 190, 100, 127, 128]),
        ("i1", {"_Unsigned": "true", "_FillValue": -1}, [0, 1, None, 190, 100, 127, 128]),
        ("i1", {"_Unsigned": "true", "missing_value": -1}, [0, 1, None, 190, 100, 127, 128]),
        ("u1", {"_Unsigned": "false", "_FillValue": 255}, [0, 1, None, -66, 100, 127, -128]),
        ("i1", {"missing_value": 255}, [0, 1, -1, -66, 100, 127, -128]),
        # Numbers as text, as CDL writes them, and in arrays of one element.
        ("i1", {"scale_factor": "0.5"}, [0, 0.5, -0.5, -33, 50, 63.5, -64]),
        ("i1", {"scale_factor": "2b", "add_offset": "1s"}, [1, 3, -1, -131, 201, 255, -255]),
        ("i1", {"scale_factor": [0.5]}, [0, 0.5, -0.5, -33, 50, 63.5, -64]),
        ("i1", {"add_offset": [2.0], "_FillValue": [1]}, [2, None, 1, -64, 102, 129, -126]),
        # A whole scale would make integers, which have no NaN: xarray cannot read them.
        ("i1", {"scale_factor": 2, "_FillValue": 1}, [0, None, -2, -132, 200, 254, -256]),
        ("i1", {"scale_factor": None, "_FillValue": None}, [0, 1, -1, -66, 100, 127, -128]),
    ],
)
def test_what_xarray_cannot_read_is_read_as_it_is_meant(tmp_path, dtype, attributes, wanted):
    path = store(tmp_path / "x.zarr", dtype, attributes)
    np.testing.assert_array_equal(fed(path), np.array(wanted, np.float32))


@pytest.mark.filterwarnings("ignore:.*left out as missing")
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
@pytest.mark.parametrize("fill", [0, 1, 100])
def test_the_fill_of_a_v2_array_is_missing_unless_it_is_zero(tmp_path, zarr_format, dtype, fill):
    path = store(tmp_path / "x.zarr", dtype, {}, zarr_format, fill_value=fill)
    values = np.array(VALUES[dtype], np.float32)
    masked = zarr_format == 2 and fill != 0
    wanted = np.where(values == fill, np.nan, values) if masked else values
    np.testing.assert_array_equal(fed(path), wanted)


@pytest.mark.parametrize("fill", [0, 3])
@pytest.mark.parametrize("packing", [{"scale_factor": 0.5}, {"_Unsigned": "true"}])
def test_packed_zeros_of_a_v2_array_are_values(tmp_path, fill, packing):
    path = store(tmp_path / "x.zarr", "i1", packing, fill_value=fill)
    shown = np.array(VALUES["i1"], "i1")
    shown = shown.view("u1") if "_Unsigned" in packing else shown * 0.5
    np.testing.assert_array_equal(fed(path), shown.astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0, 0.0, "east", "0", [1.0, 2.0], [], True])
@pytest.mark.parametrize("name", ["scale_factor", "add_offset"])
def test_packing_that_cannot_be_decided_is_named(tmp_path, name, value):
    if name == "add_offset" and value in (0, "0"):
        return
    path = store(tmp_path / "x.zarr", "i2", {name: value})
    said = rf"inputs: variable 'x' declares {name}=.*, which must be a finite number.*correct the"
    with pytest.raises(ValueError, match=said):
        Examples(path, inputs="x", along="t")
    group = zarr.open_group(path, mode="a")
    group.create_array("y", shape=(7,), chunks=(7,), dtype="f4").attrs["_ARRAY_DIMENSIONS"] = ["t"]
    assert len(Examples(path, inputs="y", along="t")) == 7  # whoever does not use it may go on


@pytest.mark.parametrize("value", [True, "TRUE", "True", 1])
def test_a_sign_that_xarray_does_not_know_is_named(tmp_path, value):
    path = store(tmp_path / "x.zarr", "i1", {"_Unsigned": value})
    with pytest.raises(ValueError, match=r"'x' declares _Unsigned=.*must be 'true' or 'false'"):
        Examples(path, inputs="x", along="t")


@pytest.mark.parametrize("units", ["days since 2000-01-01", "seconds since 1970-01-01 00:00:00Z"])
def test_times_are_no_inputs_and_say_so(tmp_path, units):
    path = store(tmp_path / "x.zarr", "i2", {"units": units})
    for given in (path, xr.open_zarr(path, consolidated=False)):
        with pytest.raises(TypeError, match=r"inputs: variable 'x' has dtype datetime64\[ns\]"):
            Examples(given, inputs="x", along="t")


@pytest.mark.parametrize("units", ["days since 0000-00-00", "number since start", "since"])
def test_units_that_are_no_date_are_named(tmp_path, units):
    path = store(tmp_path / "x.zarr", "i2", {"units": units})
    with pytest.raises(ValueError, match=r"inputs: variable 'x' cannot be decoded: .*since"):
        Examples(path, inputs="x", along="t")


@pytest.mark.filterwarnings("ignore:.*left out as missing")
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("fill", [-999.0, "AAAAAAA4j8A=", [-999.0], "NaN"])
def test_fills_of_v3_floats_are_read_as_xarray_or_others_write_them(tmp_path, dtype, fill):
    path = store(tmp_path / "x.zarr", dtype, {"_FillValue": fill}, zarr_format=3)
    values = np.array(VALUES[dtype], np.float32)
    wanted = values if fill == "NaN" else np.where(values == -999, np.nan, values)
    np.testing.assert_array_equal(fed(path), wanted)


def test_scales_that_lazy_datasets_cannot_apply_are_named_at_the_door(tmp_path):
    path = store(tmp_path / "x.zarr", "i2", {"scale_factor": "0.01"})
    lazy = xr.open_zarr(path, chunks=None, consolidated=False)
    with pytest.raises(TypeError, match="inputs: variable 'x' has dtype text; give numbers"):
        Examples(lazy, inputs="x", along="t")


@pytest.mark.parametrize("attributes", [{}, {"scale_factor": 0.5}, {"_Unsigned": "true"}])
@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_a_fill_in_text_is_named_where_it_occurs(tmp_path, dtype, attributes):
    path = store(tmp_path / "x.zarr", dtype, {"missing_value": "9999", **attributes})
    described = Examples(path, inputs="x", along="t", missing="drop")
    with pytest.raises(
        DataError, match=r"'x' holds 9999(.0)?, which may be its declared fill '9999"
    ):
        seen(described)
    assert seen(described.isel(t=slice(0, 4)))[0][0] == 0


@pytest.mark.filterwarnings("ignore:.*left out as missing")
@pytest.mark.parametrize(
    "dtype, attributes, wanted",
    [
        # pydap/pydap#297: a server that gives every attribute as text
        ("i2", {"scale_factor": "0.5", "missing_value": "-32768"}, [0, 0.5, -0.5, -499.5, 4999.5]),
        # pydata/xarray#4631: lists of one element
        ("i2", {"scale_factor": [0.5], "add_offset": [1.0]}, [1, 1.5, 0.5, -498.5, 5000.5]),
        # pydata/xarray#8957: scaled integers in units of a duration, with a fill
        ("i8", {"scale_factor": 0.5, "units": "seconds", "_FillValue": -1}, [0, 0.5, None, -499.5]),
        # pydata/xarray#2583: a sign that is declared and the same
        ("i2", {"_Unsigned": "false", "scale_factor": 0.5}, [0, 0.5, -0.5, -499.5, 4999.5]),
        # pydata/xarray#471: several missing values
        ("i2", {"missing_value": [1, -999]}, [0, None, -1, None, 9999]),
    ],
)
def test_attributes_that_were_reported_publicly(tmp_path, dtype, attributes, wanted):
    found = fed(store(tmp_path / "x.zarr", dtype, attributes))[: len(wanted)]
    np.testing.assert_array_equal(found, np.array(wanted, np.float32))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_fill_that_floats_round_is_named_where_it_occurs(tmp_path, dtype):
    path = store(tmp_path / "x.zarr", dtype, {"missing_value": 1e20})
    described = Examples(path, inputs="x", along="t", missing="drop")
    if dtype == "f8":
        np.testing.assert_array_equal(seen(described)[0][-2:], [np.nan, np.nan])
        return
    with pytest.raises(DataError, match=r"'x' holds 1e\+20, which may be its declared fill"):
        seen(described)
    assert seen(described.isel(t=slice(0, 4)))[0][3] == -999
    exactly = store(tmp_path / "x.zarr", dtype, {"missing_value": float(np.float32(1e20))})
    np.testing.assert_array_equal(fed(exactly)[-2:], [np.nan, np.nan])


@pytest.mark.filterwarnings("ignore:.*left out as missing")
@pytest.mark.parametrize("chunks", [None, {}])
def test_integers_in_days_whose_gaps_xarray_loses_are_named(tmp_path, chunks):
    path = store(tmp_path / "x.zarr", "i2", {"units": "days", "_FillValue": -999})
    options = {"chunks": chunks, "consolidated": False}
    wanted = np.where(np.equal(VALUES["i2"], -999), np.nan, VALUES["i2"])
    np.testing.assert_array_equal(fed(path), wanted)
    whole = xr.open_zarr(path, decode_timedelta=False, **options)
    np.testing.assert_array_equal(fed(whole), wanted)
    opened = xr.open_zarr(path, **options)
    if opened.x.dtype.kind == "f":  # another xarray, which keeps them
        np.testing.assert_array_equal(fed(opened), wanted)
        return
    with pytest.raises(DataError, match=r"'x' holds -9223372036854775808.*decode_timedelta=False"):
        fed(opened)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("0.01", 0.01),
        ("1e-3", 0.001),
        ("-1.5f", -1.5),
        ("3", 3),
        ("1s", 1),
        ("0b", 0),
        ("7UB", 7),
        ("2d", 2.0),
        (" 4 ", 4),
        ("", None),
        ("x", None),
        ("1 2", None),
        ("0x10", None),
    ],
)
def test_numbers_in_text(text, wanted):
    found = number(text)
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_text_that_is_declared_missing(tmp_path, zarr_format):
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=zarr_format)
    names = {"dimension_names": ["t"]} if zarr_format == 3 else {}
    array = group.create_array("x", shape=(4,), chunks=(2,), dtype="<U4", **names)
    array[:] = ["sea", "n/a", "", "ice"]
    array.attrs.update({"missing_value": "n/a", "_ARRAY_DIMENSIONS": ["t"]})
    variable = open_source(tmp_path / "s.zarr").variable("x")
    values, missing = variable.decode(variable.read())
    assert missing.tolist() == [False, True, False, False]
    assert values[~missing].tolist() == ["sea", "", "ice"]


@pytest.mark.parametrize("dtype", ["c8", [("a", "f4"), ("b", "i4")]])
def test_values_that_are_no_numbers_are_named(tmp_path, dtype):
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=2)
    array = group.create_array("x", shape=(4,), chunks=(2,), dtype=np.dtype(dtype))
    array.attrs["_ARRAY_DIMENSIONS"] = ["t"]
    for role in ({"inputs": "x"}, {"inputs": "y", "targets": "x"}):
        other = group.require_array("y", shape=(4,), chunks=(2,), dtype=np.dtype("f4"))
        other.attrs["_ARRAY_DIMENSIONS"] = ["t"]
        with pytest.raises((TypeError, ValueError), match="variable 'x'"):
            Examples(tmp_path / "s.zarr", **role, along="t")


def test_what_only_values_show_names_the_variable(tmp_path):
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=2)
    array = group.create_array("g", shape=(2,), chunks=(2,), dtype="S2", fill_value=b"")
    array[:] = [b"a", b"\xff"]
    array.attrs["_ARRAY_DIMENSIONS"] = ["t"]
    other = group.create_array("x", shape=(2,), chunks=(2,), dtype="f4")
    other.attrs["_ARRAY_DIMENSIONS"] = ["t"]
    with pytest.raises(DataError, match=r"'g' cannot be decoded: UnicodeDecodeError"):
        seen(Examples(tmp_path / "s.zarr", inputs="x", along="t", groups="g"))
