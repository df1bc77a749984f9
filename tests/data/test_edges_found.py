"""What was found by trying unusual inputs of the kinds that scientists have."""

import numpy as np
import pytest
import xarray as xr
import zarr
from differential.observing import read_blocks

from dbdask import DataError, Dense, Examples, Network, load
from dbdask.result import History, Result, Status

ROWS = 24
T = np.arange(ROWS)


def knowing(data, labels):
    """Return examples of labels, and a result that predicts each one from a one-hot input."""
    shown = data.label.values.tolist()
    codes = [labels.index(one) if one in labels else 0 for one in shown]
    data = data.assign(x=(("t", "c"), np.eye(len(labels), dtype="f4")[codes]))
    examples = Examples(
        data, inputs="x", targets="label", along="t", classes=labels, missing="drop"
    )
    model = Network(input_shape=(len(labels),), layers=[Dense(len(labels))], loss="softmax")
    vector = np.zeros(model.parameter_count, np.float32)
    vector[: len(labels) ** 2] = np.eye(len(labels)).ravel()
    return data, Result(model, examples, vector, History(), Status("epochs", ""))


def labelled(label):
    return xr.Dataset({"x": ("t", np.zeros(ROWS, "f4")), "label": ("t", label)})


def classes_of(data):
    return Examples(data, inputs="x", targets="label", along="t").find_classes()


@pytest.mark.parametrize("kind", [object, np.dtypes.StringDType()], ids=str)
def test_zeros_at_the_end_of_text_are_part_of_a_label(tmp_path, kind):
    label = np.array(["a", "a\0", "b", "a\0b", "\0"], kind)[T % 5]
    data = labelled(label)
    data, result = knowing(data, classes_of(data))
    result.save(tmp_path / "result")
    for one in (result, load(tmp_path / "result")):
        predicted = one.predict(data).compute()
        assert predicted.values.tolist() == label.tolist()
        predicted.to_zarr(tmp_path / "predicted", mode="w", zarr_format=3, consolidated=False)
        assert (
            xr.open_zarr(tmp_path / "predicted", consolidated=False).label.values.tolist()
            == label.tolist()
        )
        assert one.predict_proba(data)["class"].values.tolist() == classes_of(data)


def test_zeros_at_the_end_of_text_beside_gaps():
    data = labelled(np.array(["a", "a\0"], object)[T % 2])
    data, result = knowing(data, ["a", "a\0"])
    predicted = result.predict(data.assign(x=data.x.where(data.t != 3)))
    assert predicted.values.tolist() == ["" if n == 3 else ["a", "a\0"][n % 2] for n in T]


def test_labels_in_long_doubles():
    data = labelled((T % 5).astype(np.longdouble) / 2)
    labels = classes_of(data)
    assert labels == [0, 0.5, 1, 1.5, 2]
    data, result = knowing(data, labels)
    assert result.predict(data).values.tolist() == data.label.values.tolist()
    with pytest.raises(ValueError, match="classes must hold numbers or text, got .*0.1"):
        Examples(data, inputs="x", targets="label", along="t", classes=[np.longdouble(1) / 10])


def stored(path, values, attrs, zarr_format):
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    names = {"dimension_names": ["t"]} if zarr_format == 3 else {}
    array = group.create_array(
        "x", shape=values.shape, chunks=(5,), dtype=values.dtype, fill_value=None, **names
    )
    array[:] = values
    array.attrs.update(attrs | ({} if names else {"_ARRAY_DIMENSIONS": ["t"]}))
    return str(path)


def fed(data):
    """Return the inputs at each position; NaN where there is no example."""
    read = read_blocks(Examples(data, inputs="x", along="t", missing="drop"))
    found = np.full(len(read.valid), np.nan, np.float32)
    found[read.valid] = read.inputs
    return found


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "attrs", [{"scale_factor": 0.5}, {"add_offset": 273.15}, {"scale_factor": "2", "add_offset": 1}]
)
def test_flags_that_a_store_declares_to_be_scaled(tmp_path, attrs, zarr_format):
    path = stored(tmp_path / "s", T % 3 == 0, attrs, zarr_format)
    scale, offset = float(attrs.get("scale_factor", 1)), attrs.get("add_offset", 0)
    np.testing.assert_array_equal(fed(path), ((T % 3 == 0) * scale + offset).astype("f4"))
    if "2" not in attrs.values():  # xarray knows no numbers in text
        np.testing.assert_array_equal(fed(xr.open_zarr(path, consolidated=False)), fed(path))


def test_scaled_flags_that_are_missing_or_wrongly_scaled(tmp_path):
    path = stored(tmp_path / "s", T % 2 == 0, {"scale_factor": 0.5, "_FillValue": 0}, 2)
    np.testing.assert_array_equal(fed(path), np.where(T % 2 == 0, np.float32(0.5), np.nan))
    path = stored(tmp_path / "s", T % 2 == 0, {"scale_factor": 0}, 2)
    with pytest.raises(ValueError, match="'x' declares scale_factor=0, which must be a finite"):
        Examples(path, inputs="x", along="t")


def test_missing_values_in_nested_lists(tmp_path):
    path = stored(tmp_path / "s", T, {"missing_value": [[1, 2], [3, [4]]]}, 2)
    np.testing.assert_array_equal(fed(path), np.where((T > 0) & (T < 5), np.nan, T))


def test_groups_of_objects_without_a_hash_are_named():
    lists = np.empty(ROWS, object)
    lists[:] = [[n // 4] for n in T]
    data = xr.Dataset({"x": ("t", T * 1.0), "g": ("t", lists)})
    examples = Examples(data, inputs="x", along="t", groups="g", window={"t": (-1, 0)})
    with pytest.raises(DataError, match=r"groups: 'g' holds objects .*unhashable.*astype\(str\)"):
        read_blocks(examples)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("blocks", [ROWS, 5])
@pytest.mark.parametrize(
    "values",
    [np.int64(2**60) + T, np.uint64(2**63) + T.astype("u8"), np.longdouble(2) ** 63 + T / 8],
    ids=["int64", "uint64", "longdouble"],
)
def test_values_that_float64_cannot_tell_apart_are_named_when_they_are_scaled(values, blocks):
    data = xr.Dataset({"x": ("t", values), "y": ("t", T * 1.0)}).chunk(t=blocks)
    said = "float64, in which standardize.*values of 'x' apart: rounding loses .*% of their spread"
    with pytest.warns(UserWarning, match=f"inputs: {said}"):
        Examples(data, inputs="x", along="t").standardize()
    backwards = Examples(data, inputs="y", targets="x", along="t")
    with pytest.warns(UserWarning, match=f"targets: {said}"):
        backwards.standardize(targets=True)
    if values.dtype.kind in "iu":
        backwards.standardize()  # whole numbers may be labels, which are not scaled
    Examples(data.assign(x=data.x - data.x[0]), inputs="x", along="t").standardize()


@pytest.mark.filterwarnings("error")
def test_nanoseconds_of_an_hour_are_scaled_without_a_warning():
    data = xr.Dataset({"x": ("t", np.int64(1.7e18) + T * 10**11)})
    Examples(data, inputs="x", along="t").standardize()


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("labels", [["", "b"], ["", "missing", "missing 2"]], ids=str)
def test_a_gap_among_texts_stays_no_label_when_it_is_written(tmp_path, labels):
    data = labelled(np.array(labels)[T % len(labels)])
    data, result = knowing(data, labels)
    predicted = result.predict(data.assign(x=data.x.where(data.t != 4)))
    wanted = np.where(T == 4, predicted.attrs["missing_label"], data.label).tolist()
    assert wanted[4] not in labels
    for zarr_format in (2, 3):
        path = tmp_path / str(zarr_format)
        predicted.to_zarr(path, zarr_format=zarr_format, consolidated=False)
        assert xr.open_zarr(path, consolidated=False).label.values.tolist() == wanted
    predicted.to_netcdf(tmp_path / "predicted.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "predicted.nc", engine="h5netcdf") as written:
        assert written.label.values.tolist() == wanted


@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_a_doubtful_fill_that_does_not_occur_harms_nothing(tmp_path, dtype):
    path = stored(tmp_path / "s", (T + 1).astype(dtype), {"missing_value": "0"}, 2)
    np.testing.assert_array_equal(fed(path), T + 1)
    path = stored(tmp_path / "s", T.astype(dtype), {"missing_value": "0"}, 2)
    with pytest.raises(DataError, match="'x' holds 0.*, which may be its declared fill '0"):
        fed(path)


@pytest.mark.parametrize("names", [("5", 5), (5, "5")])
def test_names_that_are_the_same_as_text_are_refused(names):
    data = xr.Dataset(dict.fromkeys(names, ("t", T * 1.0)))
    with pytest.raises(ValueError, match="data: two variables .* are the same as text; rename"):
        Examples(data, inputs="5", along="t")
    data = xr.Dataset({str(n): ((name,), T * 1.0) for n, name in enumerate(names)})
    with pytest.raises(ValueError, match="data: two dimensions .* are the same as text; rename"):
        Examples(data, inputs="0", along="5")


@pytest.mark.filterwarnings("ignore:Duplicate dimension names")
def test_a_dimension_that_a_variable_has_twice_is_named():
    data = xr.Dataset({"x": ("t", T * 1.0), "covariance": (("c", "c"), np.eye(3))})
    assert fed(data).tolist() == T.tolist()
    with pytest.raises(
        ValueError, match=r"inputs: .*'covariance' has a dimension twice: \('c', 'c"
    ):
        Examples(data, inputs=["x", "covariance"], along="t")


def test_a_position_in_an_array_without_dimensions():
    examples = Examples(xr.Dataset({"x": ("t", T * 1.0)}), inputs="x", along="t")
    assert examples.isel(t=np.array(3)).batch(1)[0].tolist() == [3.0]
    with pytest.raises(ValueError, match="isel: positions along 't' must ascend"):
        examples.isel(t=np.array(True))


@pytest.mark.parametrize(
    "flags", [[2**64 - 1, 2**64 - 2, 1], np.array([2**64 - 1, 2**64 - 2, 1], "u8")], ids=["l", "a"]
)
def test_flags_beside_each_other_beyond_float64_are_two(flags):
    data = labelled(np.array(flags, "u8")[T % 3])
    data.label.attrs["flag_values"] = flags
    examples = Examples(data, inputs="x", targets="label", along="t")
    assert examples.output_classes == [2**64 - 1, 2**64 - 2, 1]
    assert read_blocks(examples.for_loss("softmax", 3)).targets.tolist() == (T % 3).tolist()


def test_a_flag_that_is_infinite_is_a_class_that_never_occurs():
    data = labelled(T % 2)
    data.label.attrs["flag_values"] = [np.inf, 0, 1]
    examples = Examples(data, inputs="x", targets="label", along="t").for_loss("softmax", 3)
    assert read_blocks(examples).targets.tolist() == (T % 2 + 1).tolist()


def test_classes_in_a_table_are_named():
    with pytest.raises(ValueError, match=r"classes must hold numbers or text, got array\(\[0, 1"):
        Examples(
            labelled(T % 2), inputs="x", targets="label", along="t", classes=np.array([[0, 1]])
        )


def test_attributes_whose_names_are_no_text_are_saved_by_their_text(tmp_path):
    label = xr.Variable("t", T % 2, {("a", 1): "b", 5: "c", "units": "1"})
    data, result = knowing(labelled(label.values).assign(label=label), [0, 1])
    result.save(tmp_path / "result")
    assert load(tmp_path / "result").predict(data).values.tolist() == (T % 2).tolist()
