"""Sources: four routes to the same stored values, and what is refused."""

import functools
import http.server
import pickle
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

from dbdask.data.routes import Piece, assemble
from dbdask.data.sources import open_source
from dbdask.errors import DataError

DAYS = 40
PACKED = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 10.0, "_FillValue": -32768}


def grid():
    """Return a small gridded Dataset with every kind of variable."""
    random = np.random.default_rng(7)
    temperature = 30 * random.random((DAYS, 6))
    temperature[random.random((DAYS, 6)) < 0.1] = np.nan
    time = np.datetime64("2000-01-01", "ns") + np.arange(DAYS) * np.timedelta64(1, "D")
    return xr.Dataset(
        {
            "temperature": (("time", "lat"), temperature),
            "label": ("time", np.arange(DAYS) % 10),
            "picture": (("time", "lat"), random.integers(0, 256, (DAYS, 6)).astype("uint8")),
            "quality": ("time", (np.arange(DAYS) % 4).astype("int16")),
            "word": ("time", np.array(["ab", "c", "", "def"] * (DAYS // 4), dtype=object)),
            "wet": ("time", np.arange(DAYS) % 3 == 0),
            "speed": ("time", random.random(DAYS).astype("float32")),
        },
        coords={"time": time, "lat": np.linspace(-60, 60, 6)},
    )


def write(path, zarr_format, sharded=False):
    by_time = {"chunks": (10,)}
    encoding = {
        "temperature": {**PACKED, "chunks": (10, 6)},
        "label": dict(by_time),
        "picture": {"chunks": (10, 6)},
        "quality": dict(by_time),
        "speed": dict(by_time),
    }
    if zarr_format == 2:
        encoding["label"]["_FillValue"] = 0
        encoding["picture"]["_FillValue"] = 0
    else:
        encoding["quality"]["_FillValue"] = 3
    if sharded:
        encoding["temperature"]["shards"] = (20, 6)
    grid().to_zarr(path, zarr_format=zarr_format, encoding=encoding, consolidated=False)
    return str(path)


def routes(path):
    """Return the source that each route gives, and the route's own word for itself."""
    looked_at = xr.open_zarr(path, chunks=None, consolidated=False)
    for name in ("temperature", "label", "picture", "quality", "speed"):
        looked_at[name].mean()
    given = {
        "store": path,
        "lazy": xr.open_zarr(path, chunks=None, consolidated=False),
        "dask": xr.open_zarr(path, consolidated=False),
        "memory": xr.open_zarr(path, consolidated=False).load(),
        "looked at": looked_at,
    }
    return {name: open_source(data) for name, data in given.items()}


def decoded(variable):
    """Return a variable's values, with None where they are missing."""
    values, missing = variable.decode(variable.read())
    return values if missing is None else np.where(missing, None, values)


def shown(variable):
    """Return the values that xarray shows, with None where they are missing."""
    values = variable.values.astype(object) if variable.dtype.kind == "T" else variable.values
    return np.where(pd.isnull(values), None, values)


@pytest.mark.parametrize(
    ("zarr_format", "sharded"),
    [(2, False), pytest.param(3, False, marks=pytest.mark.slow), (3, True)],
)
def test_four_routes_agree_to_the_bit(tmp_path, zarr_format, sharded):
    path = write(tmp_path / "grid.zarr", zarr_format, sharded)
    sources = routes(path)
    assert [source.route for source in sources.values()] == [
        "store",
        "lazy",
        "dask",
        "memory",
        "memory",
    ]
    for name in grid().variables:
        read = {route: source.variable(name) for route, source in sources.items()}
        wanted = shown(xr.open_zarr(path, chunks=None, consolidated=False)[name])
        for route, variable in read.items():
            if route != "store" or zarr_format != 2 or name not in ("label", "picture"):
                assert decoded(variable).tolist() == wanted.tolist(), (name, route)
            assert variable.lengths == read["store"].lengths, (name, route)
            assert variable.itemsize == read["store"].itemsize or name == "time", (name, route)


def test_packed_values_are_those_of_xarray(tmp_path):
    path = write(tmp_path / "grid.zarr", 3)
    lazy = xr.open_zarr(path, chunks=None, consolidated=False)
    wanted = xr.open_zarr(path, consolidated=False)["temperature"].values
    for source in (open_source(path), open_source(lazy)):
        variable = source.variable("temperature")
        assert variable.dtype == np.int16 and variable.itemsize == 2
        values, missing = variable.decode(variable.read())
        assert values.dtype == wanted.dtype == variable.value_dtype
        assert values.tobytes() == wanted.tobytes()
        assert np.array_equal(missing, np.isnan(grid()["temperature"].values))


def test_zero_is_a_class_and_a_black_pixel_of_a_path_in_format_2(tmp_path):
    source = open_source(write(tmp_path / "grid.zarr", 2))
    for name in ("label", "picture"):
        variable = source.variable(name)
        values, missing = variable.decode(variable.read())
        assert missing is None
        assert values.dtype == grid()[name].dtype == variable.value_dtype
        assert np.array_equal(values, grid()[name].values)


def test_declared_fill_of_integers_is_missing(tmp_path):
    for route, source in routes(write(tmp_path / "grid.zarr", 3)).items():
        variable = source.variable("quality")
        values, missing = variable.decode(variable.read())
        assert values.dtype == (np.int16 if route == "store" else np.float32)
        assert np.array_equal(missing, grid()["quality"].values == 3)


def test_fill_value_without_attribute_is_a_value(tmp_path):
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=2)
    array = group.create_array("label", shape=(6,), chunks=(3,), dtype="int32", fill_value=0)
    array.attrs["_ARRAY_DIMENSIONS"] = ["row"]
    array[3:] = [1, 2, 0]
    variable = open_source(tmp_path / "s.zarr").variable("label")
    values, missing = variable.decode(variable.read())
    assert values.tolist() == [0, 0, 0, 1, 2, 0] and missing is None


@pytest.mark.parametrize("zarr_fill", [0, 9, 2, None])
def test_declared_fill_is_missing_in_format_2_too(tmp_path, zarr_fill):
    path = tmp_path / "s.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    array = group.create_array(
        "label", shape=(6,), chunks=(3,), dtype="int32", fill_value=zarr_fill
    )
    array.attrs.update({"_ARRAY_DIMENSIONS": ["row"], "_FillValue": 9})
    array[:] = [0, 1, 9, 0, 2, 9]
    variable = open_source(path).variable("label")
    assert decoded(variable).tolist() == [0, 1, None, 0, None if zarr_fill == 2 else 2, None]
    assert variable.value_dtype == np.int32
    for data in (
        xr.open_zarr(path, chunks=None, consolidated=False),
        xr.open_zarr(path, consolidated=False),
        xr.open_zarr(path, consolidated=False).load(),
        xr.open_zarr(path, consolidated=False, mask_and_scale=False).load(),
    ):
        variable = open_source(data).variable("label")
        assert decoded(variable).tolist() == shown(data["label"]).tolist()


def test_coordinates_keep_their_precision_and_dates(tmp_path):
    for route, source in routes(write(tmp_path / "grid.zarr", 3)).items():
        assert set(source.coords) == {"time", "lat"}, route
        for name in ("time", "lat"):
            labels = source.variable(name).coordinate({name: slice(2, 5)})
            assert np.array_equal(labels, grid()[name].values[2:5]), route


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_text_and_booleans(tmp_path, zarr_format):
    source = open_source(write(tmp_path / "grid.zarr", zarr_format))
    word, wet = source.variable("word"), source.variable("wet")
    assert decoded(word).tolist() == grid()["word"].values.tolist()
    assert decoded(wet).tolist() == grid()["wet"].values.tolist()
    assert wet.value_dtype == np.dtype(bool)


def test_relative_path_survives_a_change_of_directory(tmp_path, monkeypatch):
    write(tmp_path / "grid.zarr", 3)
    monkeypatch.chdir(tmp_path)
    variable = open_source("grid.zarr").variable("speed")
    monkeypatch.chdir("/")
    travelled = pickle.loads(pickle.dumps(variable.worker_side()))
    assert np.array_equal(travelled.read(), grid()["speed"].values)


@pytest.fixture
def served(tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_urls(tmp_path, served, zarr_format):
    path = write(tmp_path / "grid.zarr", zarr_format)
    for url in (f"{served}/grid.zarr", f"file://{path}"):
        variable = open_source(url).variable("speed")
        travelled = pickle.loads(pickle.dumps(variable.worker_side()))
        assert np.array_equal(travelled.read(), grid()["speed"].values)
    with pytest.raises(ValueError, match="is not a Zarr store"):
        open_source(f"{served}/absent.zarr")


def test_stores_in_memory_are_found_by_threads_and_never_travel(process_client):
    def refused(packed):
        with pytest.raises(RuntimeError, match="threads of its own process only"):
            pickle.loads(packed).open()
        return True

    store = zarr.storage.MemoryStore()
    xr.Dataset({"x": ("row", np.arange(50_000.0))}).to_zarr(store, consolidated=False)
    for data in (store, xr.open_zarr(store, chunks=None, consolidated=False)):
        source = open_source(data)
        packed = pickle.dumps(source.variable("x").worker_side())
        assert len(packed) < 2000
        assert pickle.loads(packed).read({"row": slice(7, 9)}).tolist() == [7, 8]
    assert process_client.submit(refused, packed, pure=False).result()


def test_memory_url():
    xr.Dataset({"x": ("row", np.arange(5.0))}).to_zarr("memory://sources.zarr", consolidated=False)
    assert open_source("memory://sources.zarr").variable("x").read().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "cut",
    [
        lambda data: data.isel(time=slice(15, 33)),
        lambda data: data.isel(time=slice(15, 33)).isel(time=slice(2, 9)),
        lambda data: data.isel(time=slice(None, None, 3)),
        lambda data: data.isel(time=[7, 3, 30]),
        lambda data: data.isel(lat=2),
        lambda data: data.transpose("lat", "time"),
        lambda data: data.rename(time="day"),
    ],
)
def test_lazy_datasets_may_be_cut(tmp_path, cut):
    path = write(tmp_path / "grid.zarr", 2)
    lazy = cut(xr.open_zarr(path, chunks=None, consolidated=False))
    loaded = open_source(cut(xr.open_zarr(path, chunks=None, consolidated=False)).load())
    for name in ("temperature", "label"):
        variable = open_source(lazy).variable(name)
        assert variable.route == "lazy"
        travelled = pickle.loads(pickle.dumps(variable.worker_side()))
        expected = loaded.variable(name)
        values = travelled.decode(travelled.read())[0]
        assert np.array_equal(values, expected.decode(expected.read())[0], equal_nan=True)
        assert values.dtype == expected.value_dtype
        assert travelled.lengths == expected.lengths


def test_what_travels_is_small(tmp_path):
    data = xr.Dataset({"x": (("row", "column"), np.zeros((200_000, 2)))})
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=3)
    names = ("row", "column")
    group.create_array("x", shape=(200_000, 2), chunks=(2, 2), dtype="f4", dimension_names=names)
    lazy = xr.open_zarr(tmp_path / "s.zarr", chunks=None, consolidated=False)
    for given in (tmp_path / "s.zarr", lazy, data, data.chunk(row=100_000)):
        variable = open_source(given).variable("x")
        assert sum(variable.lengths["row"]) == 200_000
        assert len(pickle.dumps(variable.worker_side())) < 3000
        assert len(pickle.dumps(open_source(given).worker_side())) < 4000


def test_dataarray_as_variable():
    source = open_source(xr.Dataset({"x": (("time", "lat"), np.zeros((4, 3)))}))
    weights = source.variable(xr.DataArray([1.0, 2.0, 3.0], dims="lat", name="x"))
    assert weights.key != source.variable("x").key
    assert weights.worker_side().read().tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"length 2 along 'lat'.*has 3"):
        source.variable(xr.DataArray([1.0, 2.0], dims="lat"))


def test_threads_read_together(tmp_path):
    path = write(tmp_path / "grid.zarr", 3)
    variable = pickle.loads(pickle.dumps(open_source(path).variable("speed")))
    starts = list(range(0, 40, 10)) * 10
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda at: variable.read({"time": slice(at, at + 10)}), starts))
    for at, values in zip(starts, found, strict=True):
        assert np.array_equal(values, grid()["speed"].values[at : at + 10])


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("order", ["C", "F"])
def test_whole_chunks_equal_zarr_itself(tmp_path, zarr_format, order):
    if zarr_format == 2:
        more = {"order": order, "dtype": ">i2"}
    else:
        swap = zarr.codecs.TransposeCodec(order=(1, 0))
        more = {"filters": [swap] if order == "F" else None, "dtype": "int16"}
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=zarr_format)
    names = {"dimension_names": ("row", "column")} if zarr_format == 3 else {}
    array = group.create_array("x", shape=(10, 7), chunks=(4, 3), fill_value=5, **names, **more)
    array.attrs["_ARRAY_DIMENSIONS"] = ["row", "column"]
    array[:8] = np.arange(56).reshape(8, 7)
    variable = open_source(tmp_path / "s.zarr").variable("x")
    for row in (0, 4, 8):
        for column in (0, 3, 6):
            box = {"row": slice(row, row + 4), "column": slice(column, column + 3)}
            found = variable.read(box)
            assert found.dtype == np.int16
            assert np.array_equal(found, array[row : row + 4, column : column + 3])


def test_whole_chunk_is_held_once_beside_what_is_stored(tmp_path):
    chunk = 8 * 2**20
    values = np.random.default_rng(1).integers(0, 256, 2 * chunk, dtype=np.uint8)
    data = xr.Dataset({"x": ("row", values)})
    data.to_zarr(tmp_path / "s.zarr", encoding={"x": {"chunks": (chunk,)}}, consolidated=False)
    variable = open_source(tmp_path / "s.zarr").variable("x")
    variable.read({"row": slice(0, 10)})
    tracemalloc.start()
    found = variable.read({"row": slice(chunk, 2 * chunk)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, values[chunk:])
    assert peak < 2.2 * chunk


def test_damaged_chunk_is_named(tmp_path):
    path = write(tmp_path / "grid.zarr", 3)
    variable = open_source(path).variable("speed")
    chunk = tmp_path / "grid.zarr" / "speed" / "c" / "1"
    chunk.write_bytes(chunk.read_bytes()[:5])
    assert variable.read({"time": slice(0, 10)}).shape == (10,)
    with pytest.raises(DataError, match=r"'speed' at \[10:20\] of .*grid.zarr"):
        variable.read({"time": slice(10, 20)})


def test_pieces_make_the_box():
    values = np.arange(24).reshape(6, 4)
    left, right = Piece("x", (0, 0), values[:4]), Piece("x", (3, 0), values[3:])
    index = (slice(2, 5), slice(1, 3))
    assert np.array_equal(assemble([left, right], index), values[2:5, 1:3])
    inside = assemble([left, right], (slice(1, 3), slice(0, 4)))
    assert np.shares_memory(inside, values)
    with pytest.raises(RuntimeError, match="2 of 6 values were not handed over"):
        assemble([left], index)


def test_errors_at_the_door(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such path.*absent.zarr"):
        open_source(tmp_path / "absent.zarr")
    with pytest.raises(ValueError, match="is not a Zarr store"):
        open_source(tmp_path)
    (tmp_path / "file.nc").write_bytes(b"CDF")
    with pytest.raises(ValueError, match="is a file, not a Zarr store"):
        open_source(tmp_path / "file.nc")
    with pytest.raises(TypeError, match="got int"):
        open_source(3)
    with pytest.raises(TypeError, match=r"to_dataset\(name="):
        open_source(xr.DataArray([1.0]))
    with pytest.raises(ValueError, match="cannot open the URL"):
        open_source("nowhere://x.zarr")
    path = write(tmp_path / "grid.zarr", 3)
    with pytest.raises(ValueError, match="one Zarr array, not a group"):
        open_source(path + "/speed")
    with pytest.raises(ValueError, match=r"no variable 'sped' in .* it has: label, lat"):
        open_source(path).variable("sped")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_dimension_names_are_needed(tmp_path, zarr_format):
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=zarr_format)
    group.create_array("x", shape=(4,), dtype="f4")
    with pytest.raises(ValueError, match=r"dimension names \(found: x\).*_ARRAY_DIMENSIONS"):
        open_source(tmp_path / "s.zarr")
    names = {"dimension_names": ("row",)} if zarr_format == 3 else {}
    group.create_array("y", shape=(4,), dtype="f4", **names)
    group["y"].attrs["_ARRAY_DIMENSIONS"] = ["row"]
    with pytest.raises(ValueError, match=r"'x' of .* has no dimension names"):
        open_source(tmp_path / "s.zarr").variable("x")


def test_lengths_that_differ(tmp_path):
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=3)
    group.create_array("x", shape=(4,), dtype="f4", dimension_names=("row",))
    group.create_array("y", shape=(5,), dtype="f4", dimension_names=("row",))
    with pytest.raises(ValueError, match=r"dimension 'row' has length \d and, in variable"):
        open_source(tmp_path / "s.zarr")


def test_a_source_is_a_dataset_too(tmp_path):
    path = write(tmp_path / "grid.zarr", 3)
    for source in routes(path).values():
        assert source.to_dataset()["speed"].equals(grid()["speed"])


def test_sources_do_without_dask():
    program = "import sys, dbdask.data.sources; print('dask' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.strip() == "False", ran.stderr
