"""Chunks that are not in their store: fill by the format, gone, or counted and told."""

import os
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import LocalStore, MemoryStore, WrapperStore

import dbdask
from dbdask.data.fills import fill_warnings
from dbdask.data.sources import open_source
from dbdask.errors import DataError
from dbdask.schedule.left_out import Fills, LeftOut

ROWS, CHUNK = 200, 20
KINDS = ["2", "3", "3-sharded", "3-object"]


def dataset():
    rng = np.random.default_rng(0)
    x = rng.integers(1, 200, size=(ROWS, 3)).astype("u1")
    return xr.Dataset({"x": (("t", "f"), x), "y": ("t", x.sum(1).astype("f4"))})


class Kept:
    """A store of the dataset of which chunks can be taken away."""

    def __init__(self, kind, path):
        self.path = path
        options = {"consolidated": False, "zarr_format": int(kind[0])}
        if kind == "3-sharded":
            options["encoding"] = {"x": {"chunks": (CHUNK // 4, 3), "shards": (CHUNK, 3)}}
        self.given = MemoryStore() if kind == "3-object" else str(path)
        dataset().chunk(t=CHUNK).to_zarr(self.given, **options)
        self.chunk = "x/{}.0" if kind == "2" else "x/c/{}/0"
        self.document = "x/.zarray" if kind == "2" else "x/zarr.json"

    def remove(self, key):
        if isinstance(self.given, MemoryStore):
            del self.given._store_dict[key]
        else:
            os.remove(self.path / key)

    def remove_chunks(self, *numbers):
        for number in numbers:
            self.remove(self.chunk.format(number))

    def examples(self, **options):
        return dbdask.Examples(self.given, inputs="x", along="t", **options)


@pytest.fixture(params=KINDS)
def kept(request, tmp_path):
    return Kept(request.param, tmp_path / "d.zarr")


def read(variable, number):
    return variable.read({"t": slice(CHUNK * number, CHUNK * (number + 1))})


def test_a_chunk_that_was_never_there_is_the_fill_value(kept):
    kept.remove_chunks(3)
    variable = open_source(kept.given).variable("x")
    expected = dataset()["x"].values.copy()
    expected[3 * CHUNK : 4 * CHUNK] = 0
    for _ in range(2):
        np.testing.assert_array_equal(variable.read(), expected)
        np.testing.assert_array_equal(read(variable, 3), 0)
    assert variable.origin.fills(variable.index()) == {3}


@pytest.mark.parametrize("box", [slice(0, 20), slice(3, 11), slice(0, 200)])
def test_a_chunk_that_was_there_is_gone(kept, box):
    variable = open_source(kept.given).variable("x")
    variable.read({"t": box})
    kept.remove_chunks(0)
    for _ in range(2):  # and stays gone
        with pytest.raises(DataError, match=r"'x' of .*: chunk .*0.0 was there .* is gone; the"):
            variable.read({"t": box})


def test_another_chunk_tells_that_data_are_being_deleted(kept):
    variable = open_source(kept.given).variable("x")
    read(variable, 0)
    kept.remove_chunks(*range(10))
    with pytest.raises(DataError, match=r"chunk .*5.0 is not there, and chunk .*0.0, read before"):
        read(variable, 5)


def test_an_array_that_is_gone_has_no_fill(kept):
    variable = open_source(kept.given).variable("x")
    variable.open()
    kept.remove_chunks(5)
    kept.remove(kept.document)
    with pytest.raises(DataError, match=r"chunk .*5.0 is not there, and the array is gone"):
        read(variable, 5)


def test_a_deleted_store_ends_a_pass_with_its_name(tmp_path):
    kept = Kept("3", tmp_path / "d.zarr")
    examples = kept.examples(targets="y")
    with examples.reader(cache_bytes=0, prefetch=False) as reader:
        reader.block(0)
        shutil.rmtree(tmp_path / "d.zarr")
        with pytest.raises(DataError, match=r"'[xy]' of .*d.zarr: chunk .* gone"):
            reader.block(1)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_xarray_reads_is_watched_too(tmp_path, zarr_format):
    data = xr.Dataset({"x": ("t", np.array(list("abcdefgh"), dtype=object))})
    path = tmp_path / "d.zarr"
    encoding = {"x": {"chunks": (2,)}}
    data.to_zarr(path, zarr_format=zarr_format, consolidated=False, encoding=encoding)
    lazy = xr.open_zarr(path, chunks=None, consolidated=False)
    variable = open_source(lazy.isel(t=slice(None, None, -1))).variable("x")
    assert variable.origin.route == "lazy"
    assert variable.read({"t": slice(0, 2)}).tolist() == ["h", "g"]
    os.remove(path / "x" / ("3" if zarr_format == 2 else "c/3"))
    with pytest.raises(DataError, match=r"'x' of .*d.zarr: chunk .*3 was there"):
        variable.read({"t": slice(0, 2)})


def test_chunks_are_asked_for_once(tmp_path):
    """No more requests than before, but for chunks that are not there."""
    asked = []

    class Asked(WrapperStore):
        async def get(self, key, prototype, byte_range=None):
            asked.append(key)
            return await self._store.get(key, prototype, byte_range)

        async def exists(self, key):
            asked.append(f"exists {key}")
            return await self._store.exists(key)

    dataset().chunk(t=CHUNK).to_zarr(tmp_path / "d.zarr", consolidated=False)
    os.remove(tmp_path / "d.zarr" / "x" / "c" / "3" / "0")
    variable = open_source(Asked(LocalStore(tmp_path / "d.zarr"))).variable("x")
    variable.open()
    for number, expected in [
        (2, ["x/c/2/0"]),
        (3, ["x/c/3/0", "exists x/zarr.json", "exists x/c/2/0"]),
    ]:
        asked.clear()
        read(variable, number)
        assert asked == expected


def test_a_check_counts_chunks_that_are_not_there(kept):
    examples = kept.examples(targets="y")
    assert examples.check().filled_chunks == {}
    kept.remove_chunks(1, 2, 7)
    with pytest.warns(UserWarning, match=r"variable 'x': 3 of 10 chunks \(30.0 %\) are not in"):
        report = kept.examples(targets="y", window={"t": 5}).check()
    assert report.filled_chunks == {"x": 3} and report.examples == ROWS


def test_a_part_counts_its_own_chunks(kept):
    kept.remove_chunks(1, 7)
    examples = kept.examples().isel(t=slice(100, None))
    with pytest.warns(UserWarning, match=r"1 of 10 chunks"):
        assert examples.check().filled_chunks == {"x": 1}


@pytest.mark.parametrize(
    "kept",
    ["2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "2")],
    indirect=True,
)
def test_a_run_says_it_once(kept, threads_client):
    kept.remove_chunks(1, 2, 7)
    examples = kept.examples(targets="y").standardize(client=threads_client)
    model = dbdask.Network(input_shape=3, layers=[dbdask.Dense(1)], loss="squared")
    options = {"client": threads_client, "progress": False}
    for algorithm, more in (
        (dbdask.downpour, {"epochs": 2}),
        (dbdask.sandblaster, {"iterations": 2}),
    ):
        with pytest.warns(UserWarning, match="3 of 10 chunks") as told:
            algorithm(model, examples, **options, **more)
        assert sum("chunks" in str(warning.message) for warning in told) == 1


def test_few_fills_are_not_worth_a_word():
    assert fill_warnings({"x": Fills(300, {1, 2, 3})}) == []
    assert len(fill_warnings({"x": Fills(300, {1, 2, 3, 4}), "y": Fills(1, {0})})) == 2


def test_fills_of_blocks_that_come_again_count_once():
    found = LeftOut()
    for chunks in ({1, 2}, {2, 3}, {1, 2}):
        found.add(LeftOut(fills={"x": Fills(10, chunks)}))
    assert found.fills == {"x": Fills(10, {1, 2, 3})}


def test_an_array_that_holds_nothing_is_its_fill_value(tmp_path):
    group = zarr.open_group(tmp_path / "d.zarr", mode="w")
    for name, dtype in (("x", "f4"), ("y", "i8")):
        group.create_array(
            name, shape=(10,), chunks=(5,), dtype=dtype, fill_value=4, dimension_names=("t",)
        )
    examples = dbdask.Examples(tmp_path / "d.zarr", inputs="x", targets="y", along="t")
    with pytest.warns(UserWarning, match=r"variable '[xy]': 2 of 2 chunks \(100.0 %\)"):
        report = examples.check()
    assert report.filled_chunks == {"x": 2, "y": 2} and report.class_counts == {4: 10}
