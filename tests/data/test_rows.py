"""Nothing costs a number a row: stores of which only the metadata are there."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
import xarray as xr

import dbdask
from dbdask.data import memory
from dbdask.errors import DataError


def metadata_only(path, rows, chunk):
    """A v2 store whose chunks were never written: every value is its fill."""
    path.mkdir()
    (path / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
    for name, dtype in (("x", "<f4"), ("y", "<f4"), ("g", "<i4")):
        array = {
            "zarr_format": 2,
            "shape": [rows],
            "chunks": [chunk],
            "dtype": dtype,
            "compressor": None,
            "filters": None,
            "fill_value": 0,
            "order": "C",
        }
        (path / name).mkdir()
        (path / name / ".zarray").write_text(json.dumps(array))
        (path / name / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": ["t"]}))
    return str(path)


@pytest.fixture
def peak():
    """The most bytes that Python and NumPy held at once since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_what_is_said_of_ten_billion_rows_is_small(tmp_path, peak):
    store = metadata_only(tmp_path / "big.zarr", 10**10, 10**6)
    examples = dbdask.Examples(
        store, inputs="x", targets="y", along="t", window={"t": (-3, -1)}, edges="drop"
    )
    assert len(examples) == 10**10 - 3
    parts = [*examples.split(0.9, seed=0), *examples.split(0.2, 0.3)]
    parts.append(examples.isel(t=slice(17, 10**10 - 5)))
    bare = dbdask.Examples(store, inputs="x", along="t").isel(t=slice(5, None, 7))
    assert len(bare) == (10**10 - 5 + 6) // 7 and len(bare.isel(t=slice(3, 10**9))) == 10**9 - 3
    for part in [*parts, bare]:
        portions = part.cut(128_000, 128).portions(0, 0)
        assert sum(portion.rows for portion in portions[:3]) > 0
        assert len(pickle.dumps(part.worker_side())) < 50_000
    assert sum(map(len, parts[:2])) < 10**10
    assert peak() < 20 * 2**20


def test_a_worker_holds_one_block_and_nothing_of_the_other_rows(tmp_path, peak):
    store = metadata_only(tmp_path / "big.zarr", 10**10, 10**5)
    examples = dbdask.Examples(store, inputs="x", targets="y", along="t", window={"t": 3})
    examples = examples.split(0.9, seed=0)[0].for_loss("squared", 1)
    travelled = pickle.loads(pickle.dumps(examples.worker_side()))
    (portion,) = travelled.cut(1280, 128).portions(0, 0)[77:78]
    with travelled.reader(prefetch=False) as reader:
        assert reader.block(portion.blocks[0]).valid.sum() == 10**5
    assert peak() < 30 * 10**5 * 8


def test_a_saved_model_knows_nothing_of_the_rows_it_was_trained_on(tmp_path, peak):
    store = metadata_only(tmp_path / "big.zarr", 10**11, 10**8)
    examples = dbdask.Examples(store, inputs="x", targets="y", along="t", window={"t": 5})
    described = json.loads(json.dumps(examples.split(0.7, seed=1)[0].description()))
    again = dbdask.Examples.from_description(described)
    assert again.input_shape == (5,) and len(json.dumps(described)) < 5000
    assert peak() < 10 * 2**20


def test_too_many_blocks_are_named_with_the_remedy(tmp_path):
    store = metadata_only(tmp_path / "fine.zarr", 10**8, 1)
    with pytest.raises(ValueError, match=r"variable 'x' has 100,000,000 chunks along 't'.*rechunk"):
        dbdask.Examples(store, inputs="x", targets="y", along="t")


@pytest.mark.parametrize("act", ["batch", "standardize", "groups"])
def test_a_chunk_beyond_memory_is_named_with_the_remedy(tmp_path, act):
    store = metadata_only(tmp_path / "coarse.zarr", 10**13, 10**13)
    groups = "g" if act == "groups" else None
    examples = dbdask.Examples(store, inputs="x", targets="y", along="t", groups=groups)
    assert len(examples) == 10**13 and len(examples.cut(128, 128).portions(0, 0)) > 10**10
    with pytest.raises(DataError, match=r"chunks of up to \(t: 10,000,000,000,000\).* rechunk"):
        if act == "batch":
            next(examples.reader(prefetch=False).minibatches(examples.cut(8, 8).contiguous()[0], 8))
        elif act == "standardize":
            examples.standardize()
        else:
            examples.split(0.5, seed=0)


def test_memory_that_runs_out_while_a_chunk_is_read_is_no_damaged_chunk(tmp_path, monkeypatch):
    data = xr.Dataset({"x": ("t", np.arange(8.0))})
    data.to_zarr(tmp_path / "x.zarr", zarr_format=2)
    monkeypatch.setattr("dbdask.data.routes.read_array", lambda *given: bytearray(2**62))
    examples = dbdask.Examples(str(tmp_path / "x.zarr"), inputs="x", along="t")
    with pytest.raises(DataError, match=r"'x' has chunks of up to \(t: 8\).*rechunk the store"):
        examples.reader(prefetch=False).block(0)


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP_LIMIT", tmp_path / "memory.max")
    for text, limited in (("max", False), ("1048576", True), (None, False)):
        (tmp_path / "memory.max").unlink(missing_ok=True)
        if text is not None:
            (tmp_path / "memory.max").write_text(text)
        memory._of_container.cache_clear()
        assert (memory.memory_limit() == 2**20) == limited
    memory._of_container.cache_clear()


OUTCOMES = [
    (4, None, None, [0, 6, 7, 9, 10, 11, 12, 13, 17, 21, 22, 23, 25, 26, 27],
     [1, 2, 3, 8, 14, 15, 20, 24, 29]),
    (1, None, None, [0, 1, 5, 7, 8, 9, 10, 11, 13, 15, 20, 23, 25, 26, 28],
     [2, 6, 16, 17, 18, 19, 22, 24, 29]),
    (30, None, slice(3, 28), [3, 4, 5, 6, 13, 14, 15, 16, 17, 18, 25, 26, 27],
     [7, 8, 9, 12, 21, 22, 23]),
    (7, "g", None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 21, 22, 23, 24, 28, 29],
     [10, 11, 12, 13, 14, 15, 16, 17, 25, 26, 27]),
    ((3, 9, 18), "g", slice(2, 29), [2, 3, 4, 5, 6, 7, 8, 9, 21, 22, 23, 24, 28],
     [10, 11, 12, 13, 14, 15, 16, 17, 25, 26, 27]),
    (7, "g", [0, 1, 2, 3, 6, 7, 8, 9, 10, 13, 14, 15, 20, 21, 22, 23, 24, 29],
     [0, 1, 2, 3, 6, 7, 8, 9, 10], [20, 21, 22, 23, 24]),
]  # fmt: skip


@pytest.mark.parametrize("chunk, groups, cut, first, second", OUTCOMES)
def test_a_seed_draws_the_parts_that_it_always_drew(chunk, groups, cut, first, second):
    names = np.repeat(np.arange(9), [5, 1, 4, 2, 6, 3, 4, 3, 2])
    data = xr.Dataset({"x": ("t", np.arange(30.0)), "g": ("t", names)}).chunk(t=chunk)
    examples = dbdask.Examples(data, inputs="x", along="t", groups=groups)
    examples = examples if cut is None else examples.isel(t=cut)
    parts = examples.split(0.5, 0.3, seed=4)
    found = [part.recipe.selection.along("t").positions().tolist() for part in parts]
    assert found == [first, second]
