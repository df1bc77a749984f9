"""Blocks of dask arrays: lengths as promised, sources that are there, errors that name a place."""

import errno
import pickle
import shutil

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from seeing import seen

import dbdask
from dbdask.data.dask_blocks import MOST_DOCUMENTS, BlockCheck, source_arrays
from dbdask.data.sources import open_source
from dbdask.errors import DataError

ROWS = 24


def of(array, **options):
    data = xr.Dataset({"x": ("t", array), "y": ("t", np.arange(array.shape[0]) % 2)})
    return dbdask.Examples(data, inputs="x", targets="y", along="t", **options)


def model():
    return dbdask.Network(input_shape=(), layers=[dbdask.Dense(2)], loss="softmax")


def passes(examples, client):
    """Return every way in which blocks are computed: here, in a pass, in training."""
    return [
        lambda: seen(examples),
        lambda: examples.check(client=client),
        lambda: examples.standardize(client=client),
        lambda: dbdask.downpour(model(), examples, epochs=1, client=client, progress=False),
    ]


@pytest.mark.parametrize("chunk", [3, 9])
def test_blocks_that_are_shorter_than_promised_are_named(chunk, threads_client):
    liar = da.map_blocks(lambda block: block[:-1], da.arange(9, chunks=3), dtype="i8")
    for act in passes(of(liar.rechunk(chunk)), threads_client):
        said = r"'x' at \[\d:\d\]: Dask has computed values of shape \(\d,\), the chunks of the da"
        with pytest.raises(DataError, match=said):
            act()


def test_an_error_of_a_block_is_told_with_its_place():
    def fail(block, block_info=None):
        if block_info and block_info[0]["chunk-location"] == (1,):
            raise ZeroDivisionError("no mean")
        return block

    failing = da.map_blocks(fail, da.arange(9, chunks=3), dtype="i8", meta=np.zeros(0, "i8"))
    with pytest.raises(DataError, match=r"'x' at \[3:6\] cannot .* ZeroDivisionError: no mean"):
        seen(of(failing))
    assert len(seen(of(failing).isel(t=slice(6, None)))[0]) == 9


@pytest.mark.parametrize("route", ["lazy", "dask", "dask, filled"])
def test_a_fill_that_the_scaled_dtype_cannot_hold_is_named(tmp_path, route):
    group = zarr.open_group(tmp_path / "d.zarr", mode="w", zarr_format=2)
    array = group.create_array("x", data=np.arange(8, dtype="i2"), chunks=(4,), fill_value=None)
    array.attrs.update(_ARRAY_DIMENSIONS=["t"], scale_factor=10, _FillValue=3)
    chunks = None if route == "lazy" else {}
    data = xr.open_zarr(tmp_path / "d.zarr", consolidated=False, chunks=chunks)
    data = data.fillna(0) if "filled" in route else data
    said = r"inputs: variable 'x' cannot be decoded: .*NaN to integer; correct its attributes, or"
    with pytest.raises(ValueError, match=said):
        dbdask.Examples(data, inputs="x", along="t", missing="drop")
    raw = xr.open_zarr(tmp_path / "d.zarr", mask_and_scale=False, consolidated=False)
    assert len(dbdask.Examples(raw, inputs="x", along="t")) == 8


def stored(path, zarr_format=3):
    x = xr.DataArray(np.arange(1, ROWS + 1), dims="t").chunk(t=6)
    xr.Dataset({"x": x, "y": x % 2}).to_zarr(path, zarr_format=zarr_format, consolidated=False)
    return xr.open_zarr(path, consolidated=False)


CHANGES = {
    "as opened": lambda data: data,
    "computed with": lambda data: (data + 1).isel(t=slice(1, None)),
    "joined": lambda data: xr.concat([data, data], "t"),
}


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("change", CHANGES)
def test_a_store_that_is_gone_is_not_read_as_zeros(tmp_path, zarr_format, change):
    data = CHANGES[change](stored(tmp_path / "d.zarr", zarr_format))
    examples = dbdask.Examples(data, inputs="x", along="t")
    with examples.reader(cache_bytes=0, prefetch=False) as reader:
        reader.block(0)
        shutil.rmtree(tmp_path / "d.zarr")
        assert not data.isel(t=slice(8, None)).x.compute().values.max() > 1  # as Zarr reads it
        with pytest.raises(
            DataError, match=r"'x' of .*d.zarr/x: the array is gone, as seen from .* data were"
        ):
            reader.block(2)


@pytest.mark.parametrize("way", range(4))
def test_a_store_that_was_deleted_before_a_pass_ends_it(tmp_path, way, threads_client):
    data = stored(tmp_path / "d.zarr")
    examples = dbdask.Examples(data, inputs="x", targets="y", along="t")
    act = passes(examples, threads_client)[way]
    shutil.rmtree(tmp_path / "d.zarr")
    with pytest.raises(DataError, match=r"'[xy]' of .*d.zarr/[xy]: the array is gone"):
        act()


def test_a_store_that_is_deleted_in_training_ends_it(tmp_path, threads_client):
    examples = dbdask.Examples(stored(tmp_path / "d.zarr"), inputs="x", targets="y", along="t")

    def delete(record):
        shutil.rmtree(tmp_path / "d.zarr", ignore_errors=True)

    with pytest.raises(DataError, match="the array is gone, as seen from .* data were deleted"):
        dbdask.downpour(
            model(),
            examples,
            batch_size=2,
            epochs=200,
            callbacks=[delete],
            client=threads_client,
            progress=False,
        )


def test_values_that_are_in_memory_need_no_store(tmp_path, threads_client):
    data = stored(tmp_path / "d.zarr").persist()
    shutil.rmtree(tmp_path / "d.zarr")
    examples = dbdask.Examples(data, inputs="x", targets="y", along="t")
    assert examples.check(client=threads_client).examples == ROWS


def test_a_file_system_that_fails_is_not_a_deletion(tmp_path, monkeypatch):
    examples = dbdask.Examples(stored(tmp_path / "d.zarr"), inputs="x", along="t")
    check = examples.recipe.inputs.variables[0].origin.check
    assert len(check.documents) == 1

    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("dbdask.data.dask_blocks.os.stat", stale)
    check.apply(np.zeros(6), (slice(0, 6),))


def test_a_store_without_documents_of_its_arrays_is_read(tmp_path):
    stored(tmp_path / "d.zarr", zarr_format=2)
    zarr.consolidate_metadata(tmp_path / "d.zarr", zarr_format=2)
    for name in ("x", "y"):
        (tmp_path / "d.zarr" / name / ".zarray").unlink()
    data = xr.open_zarr(tmp_path / "d.zarr", consolidated=True)
    examples = dbdask.Examples(data, inputs="x", along="t")
    assert seen(examples)[0].tolist() == list(range(1, ROWS + 1))


def test_the_boxes_of_a_pass_look_for_nearly_all_documents():
    check = BlockCheck("x", tuple(f"/data/{n}/x/zarr.json" for n in range(500)))
    boxes = [check.for_box((slice(n, n + 10), slice(0, 5))) for n in range(0, 5000, 10)]
    assert {len(one.documents) for one in boxes} == {MOST_DOCUMENTS}
    assert len({path for one in boxes for path in one.documents}) > 450
    assert len(pickle.dumps(boxes[0])) < 1000


def test_the_sources_of_a_dask_array_are_found(tmp_path):
    data = stored(tmp_path / "d.zarr")
    both = (data.x * 2 + data.y).rolling(t=3).mean()
    assert sorted(array.path for array in source_arrays(both.data)) == ["x", "y"]
    direct = da.from_zarr(str(tmp_path / "d.zarr"), component="x")
    assert [array.path for array in source_arrays(direct)] == ["x"]
    assert list(source_arrays(da.ones(3))) == []
    origin = open_source(data).variable("x").origin
    assert origin.check.documents == (str(tmp_path / "d.zarr/x/zarr.json"),)
