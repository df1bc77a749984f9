"""A Dataset means what it shows, whatever its encodings say and however it was opened."""

import itertools
import pickle

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from seeing import as_float, seen

from dbdask.data.examples import Examples
from dbdask.data.routes import Lazy, Stored
from dbdask.data.sources import open_source

DAYS, CELLS = 30, 4
TIME = pd.date_range("2000-01-01", periods=DAYS)


def write(path, zarr_format):
    """Write a store with every kind of declared fill and packing; zeros are everywhere in it."""
    random = np.random.default_rng(3)
    shape, dims = (DAYS, CELLS), ("time", "cell")
    gaps = random.random(shape) < 0.1
    data = xr.Dataset(
        {
            "packed": (dims, np.where(gaps, np.nan, random.integers(0, 50, shape) / 10)),
            "count": (dims, random.integers(0, 9, shape).astype("i4")),
            "pixel": (dims, random.integers(0, 9, shape).astype("u1")),
            "plain": (dims, np.where(gaps, np.nan, random.integers(0, 9, shape)).astype("f4")),
            "flag": (dims, random.random(shape) < 0.5),
        },
        coords={"time": TIME, "cell": np.arange(CELLS) * 10},
    )
    encoding = {
        "packed": {"dtype": "i2", "scale_factor": 0.1, "add_offset": 2.0, "_FillValue": -999},
        "count": {"_FillValue": 0},
        "pixel": {"_FillValue": 7},
        "plain": {"_FillValue": 3.0},
    }
    for name in data:
        encoding.setdefault(name, {})["chunks"] = (13, 4)
    data.to_zarr(path, zarr_format=zarr_format, encoding=encoding, consolidated=False)
    return path


def decoded_later(path, **options):
    raw = xr.open_zarr(path, mask_and_scale=False, **options)
    return xr.decode_cf(raw)


OPENINGS = {
    "lazy": lambda path: xr.open_zarr(path, chunks=None, consolidated=False),
    "dask": lambda path: xr.open_zarr(path, consolidated=False),
    "loaded": lambda path: xr.open_zarr(path, consolidated=False).load(),
    "raw": lambda path: xr.open_zarr(path, chunks=None, consolidated=False, mask_and_scale=False),
    "decoded later": lambda path: decoded_later(path, chunks=None, consolidated=False),
}

OPERATIONS = {
    "as opened": lambda data: data,
    "reindexed": lambda data: data.reindex(time=pd.date_range("2000-01-05", periods=40)),
    "shifted": lambda data: data.shift(time=3),
    "rolled": lambda data: data.roll(time=5),
    "concatenated": lambda data: xr.concat([data, data.isel(time=slice(0, 9))], "time"),
    "merged": lambda data: xr.merge(
        [data.isel(time=slice(0, 12)), data.isel(time=slice(15, 30))],
        join="outer",
        compat="no_conflicts",
    ),
    "masked": lambda data: data.where(data.cell > 10),
    "filled": lambda data: data.fillna(1),
    "sorted": lambda data: data.sortby("time", ascending=False),
    "sliced twice": lambda data: data.isel(time=slice(3, 29)).isel(time=slice(2, 20)),
    "stepped": lambda data: data.isel(time=slice(None, None, 2)),
    "reversed": lambda data: data.isel(time=slice(None, None, -1)),
    "picked": lambda data: data.isel(time=[9, 3, 3]),
    "one cell": lambda data: data.isel(cell=2).expand_dims(cell=[5], axis=1),
    "transposed": lambda data: data.transpose("cell", "time"),
    "renamed": lambda data: data.rename(cell="place").rename(place="cell"),
    "stacked": lambda data: (
        data.stack(row=("time", "cell"))
        .reset_index("row", drop=True)
        .rename(row="time")
        .expand_dims(cell=[1], axis=1)
    ),
    "multiplied": lambda data: data * 2,
    "rebuilt": lambda data: xr.Dataset(
        {name: (data[name].dims, data[name].values, {}, data[name].encoding) for name in data},
        data.coords,
    ),
    "pickled": lambda data: pickle.loads(pickle.dumps(data)),
    "other attributes": lambda data: data.assign(
        {name: data[name].assign_attrs(_FillValue=1, scale_factor=3.0) for name in data}
    ),
}


@pytest.mark.filterwarnings("ignore:.*left out as missing")
@pytest.mark.parametrize(
    ("opening", "zarr_format"),
    [
        ("lazy", 2),
        pytest.param("raw", 2, marks=pytest.mark.slow),
        pytest.param("dask", 3, marks=pytest.mark.slow),
        pytest.param("lazy", 3, marks=pytest.mark.slow),
        pytest.param("dask", 2, marks=pytest.mark.slow),
        pytest.param("loaded", 2, marks=pytest.mark.slow),
        pytest.param("raw", 3, marks=pytest.mark.slow),
        pytest.param("decoded later", 2, marks=pytest.mark.slow),
    ],
)
def test_what_is_shown_is_what_a_model_sees(tmp_path, zarr_format, opening):
    path = write(tmp_path / "data.zarr", zarr_format)
    for name, operation in OPERATIONS.items():
        data = operation(OPENINGS[opening](path))
        # What is looked at is held in memory from then on: the oracle looks at another one.
        again = operation(OPENINGS[opening](path)).load()
        for variable in data.data_vars:
            if data[variable].dtype == object and data[variable].chunks is not None:
                continue  # only values tell what it is, and dask has not computed them
            wanted = as_float(again[variable])
            order = [data[variable].dims.index(dim) for dim in ("time", "cell")]
            wanted = wanted.transpose(order)
            described = {"inputs": variable, "along": ("time", "cell"), "missing": "drop"}
            if np.isnan(wanted).all():
                continue
            inputs, _ = seen(Examples(data, **described))
            said = f"{name}, {variable}"
            np.testing.assert_array_equal(inputs, wanted.astype(np.float32), err_msg=said)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_stores_are_read_directly_where_that_is_proven(tmp_path, zarr_format):
    path = write(tmp_path / "data.zarr", zarr_format)
    proven = ["as opened", "sliced twice", "renamed", "pickled", "other attributes"]
    for name in proven:
        data = OPERATIONS[name](OPENINGS["lazy"](path))
        for variable in ("packed", "pixel", "plain"):
            found = open_source(data).variable(variable)
            assert isinstance(found.origin, Stored), (name, variable)
            assert found.dtype == {"packed": "i2", "pixel": "u1", "plain": "f4"}[variable]
    for name in ("stepped", "reversed", "picked", "transposed"):
        found = open_source(OPERATIONS[name](OPENINGS["lazy"](path))).variable("packed")
        assert isinstance(found.origin, Lazy), name


class Doubled(xr.core.indexing.ExplicitlyIndexedNDArrayMixin):
    """A wrapper that xarray does not know, between a variable and its store."""

    def __init__(self, array):
        self.array = array

    @property
    def dtype(self):
        return self.array.dtype

    def __getitem__(self, key):
        return type(self)(self.array[key])

    def get_duck_array(self):
        return 2 * self.array.get_duck_array()


def test_a_wrapper_that_is_not_known_proves_nothing(tmp_path):
    path = write(tmp_path / "data.zarr", 3)
    data = OPENINGS["lazy"](path)
    inner = data.variables["plain"]._data.array.array
    for make in (Doubled, type("LazilyIndexedArray", (Doubled,), {})):
        data["plain"] = data.plain.dims, xr.core.indexing.MemoryCachedArray(make(inner))
        assert isinstance(open_source(data).variable("plain").origin, Lazy)
        inputs, _ = seen(Examples(data, inputs="plain", along="time", missing="drop"))
        wanted = 2 * OPENINGS["lazy"](path).plain.values
        whole = ~np.isnan(wanted).any(axis=1)
        np.testing.assert_array_equal(inputs[whole], wanted[whole])


@pytest.mark.parametrize(
    "encoding",
    [
        {"chunks": (3, 2), "preferred_chunks": {"time": 3, "cell": 2}},
        {"chunks": (3,), "preferred_chunks": {"time": 3}},
        {"chunks": (0, 4)},
        {"chunks": (None, 4)},
        {"chunks": ((1, 2), (4,))},
        {"chunks": (10**9, 10**9), "shards": None},
        {"preferred_chunks": {"lat": 3}},
        {"dtype": "nonsense", "scale_factor": "x", "_FillValue": object(), "source": 3},
        {"dtype": np.dtype("i1"), "_FillValue": 0, "_Unsigned": "true", "units": "days since 2000"},
    ],
)
@pytest.mark.parametrize("chunks", [None, {"time": 5}])
def test_no_encoding_is_believed(encoding, chunks):
    values = np.random.default_rng(4).normal(size=(DAYS, CELLS))
    data = xr.Dataset({"x": (("time", "cell"), values)})
    data = data if chunks is None else data.chunk(chunks)
    data.x.encoding = encoding
    inputs, _ = seen(Examples(data, inputs="x", along="time", window={"time": 3}))
    padded = np.pad(values, ((1, 1), (0, 0)), mode="edge").astype(np.float32)
    wanted = np.stack([padded[i : i + DAYS] for i in range(3)], axis=1)
    np.testing.assert_array_equal(inputs, wanted)


def changed_in_place(path):
    data = xr.open_zarr(path, chunks=None, consolidated=False)
    data["plain"][3:5] = 77.0
    return data


@pytest.mark.parametrize(
    "make",
    [
        changed_in_place,
        lambda path: xr.decode_cf(
            xr.open_zarr(path, consolidated=False, mask_and_scale=False).load()
        ),
    ],
)
def test_arrays_in_memory_behind_wrappers_do_not_travel(tmp_path, make):
    path = write(tmp_path / "data.zarr", 3)
    data, again = make(path), make(path).load()
    for name in ("plain", "packed"):
        described = Examples(data, inputs=name, along=("time", "cell"), missing="mask")
        wanted = as_float(again[name]).astype(np.float32)
        found = seen(described)[0]
        there = ~np.isnan(wanted)
        np.testing.assert_array_equal(found[there], wanted[there])
    variable = open_source(data).variable("plain")
    assert variable.route == "memory" and variable.needs_blocks
    assert len(pickle.dumps(variable.worker_side())) < 1000


def test_the_source_of_a_dataset_is_not_opened_again(tmp_path, monkeypatch):
    path = write(tmp_path / "data.zarr", 2)
    data = xr.open_zarr(path, consolidated=False).load()
    assert data.encoding["source"]
    monkeypatch.setattr(zarr, "open_group", lambda *given, **options: pytest.fail("opened"))
    assert open_source(data).variable("count").decode(data["count"].values)[1] is not None


@pytest.mark.filterwarnings("ignore:.*left out as missing")
@pytest.mark.parametrize("chunks", [None, {}])
@pytest.mark.parametrize("how", ["concat", "merge", "append"])
def test_files_packed_otherwise_are_put_together(tmp_path, how, chunks):
    # pydata/xarray#5739, #4282, #8135 and #7691: the first one's packing stays as an encoding.
    opened = []
    for number, (scale, offset) in enumerate([(0.01, 270.0), (0.002, 300.0)]):
        values = offset + scale * np.arange(-100, 100)
        values[7] = np.nan
        encoding = {
            "t2m": {
                "dtype": "i2",
                "scale_factor": scale,
                "add_offset": offset,
                "_FillValue": -32767,
            }
        }
        data = xr.Dataset({"t2m": ("time", values)}, {"time": np.arange(200) + 200 * number})
        data.to_zarr(tmp_path / f"{number}.zarr", encoding=encoding, consolidated=False)
        path = tmp_path / f"{number}.zarr"
        opened.append(xr.open_zarr(path, chunks=chunks, consolidated=False))
    if how == "concat":
        data = xr.concat(opened, "time", data_vars="all")
    elif how == "merge":
        data = xr.merge(opened, join="outer", compat="no_conflicts")
    else:
        data = opened[0].reindex(time=np.arange(400)).fillna(opened[1].reindex(time=np.arange(400)))
    data.t2m.encoding = opened[0].t2m.encoding
    inputs, _ = seen(Examples(data, inputs="t2m", along="time", missing="drop"))
    np.testing.assert_array_equal(inputs, data.t2m.values.astype(np.float32))
    assert np.isnan(inputs).nonzero()[0].tolist() == [7, 207]


def test_unpacked_by_hand_with_the_attributes_kept(tmp_path):
    path = write(tmp_path / "data.zarr", 3)
    raw = xr.open_zarr(path, consolidated=False, mask_and_scale=False)
    by_hand = raw.packed * raw.packed.attrs["scale_factor"] + raw.packed.attrs["add_offset"]
    data = raw.assign(packed=by_hand.assign_attrs(raw.packed.attrs))
    inputs, _ = seen(Examples(data, inputs="packed", along="time"))
    np.testing.assert_array_equal(inputs, by_hand.values.astype(np.float32))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "u8", "i1", "?"])
def test_values_keep_the_dtype_that_holds_them(tmp_path, dtype):
    values = np.array([0, 1, 1, 0], dtype)
    data = xr.Dataset({"x": ("t", values)})
    data.to_zarr(tmp_path / "x.zarr", consolidated=False)
    opened = [xr.open_zarr(tmp_path / "x.zarr", consolidated=False, chunks=c) for c in (None, {})]
    for given in (tmp_path / "x.zarr", data, *opened):
        variable = open_source(given).variable("x")
        found, missing = variable.decode(variable.read())
        assert found.dtype == variable.value_dtype == values.dtype and missing is None
        assert found.tolist() == values.tolist()


def test_big_endian_values_are_read_as_they_are(tmp_path):
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=2)
    for (kind, fill), name in zip(
        itertools.product([">i2", ">f4", ">f8", ">u8"], [5, None]), "abcdefgh", strict=True
    ):
        array = group.create_array(name, shape=(4,), chunks=(2,), dtype=kind, fill_value=fill)
        array[:] = [1, 5, 300, 4]
        array.attrs["_ARRAY_DIMENSIONS"] = ["t"]
    lazy = xr.open_zarr(tmp_path / "s.zarr", chunks=None, consolidated=False)
    for name in "abcdefgh":
        wanted = as_float(lazy[name])
        for given in (tmp_path / "s.zarr", lazy, lazy.load()):
            described = Examples(given, inputs=name, along="t", missing="drop")
            np.testing.assert_array_equal(seen(described)[0], wanted.astype(np.float32))
