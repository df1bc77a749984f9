"""The feed: the same minibatches by every route, in an order that is only theirs."""

import threading
import time

import numpy as np
import pytest
import xarray as xr
import zarr

from dbdask.data.block_provider import BlockProvider, gather_blocks
from dbdask.data.examples import Examples
from dbdask.errors import DataError

ROWS, BATCH = 600, 32


def _data():
    rng = np.random.default_rng(5)
    return xr.Dataset(
        {
            "x": (("n", "p"), rng.integers(0, 256, (ROWS, 6)).astype(np.uint8)),
            "wind": ("n", rng.normal(size=ROWS).round(2)),
            "number": ("n", np.arange(ROWS, dtype=np.float32)),
            "label": ("n", np.arange(ROWS) * 10 // ROWS),
        }
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("feed") / "data.zarr"
    packed = {"dtype": "int16", "scale_factor": 0.01, "_FillValue": -32768, "chunks": (50,)}
    encoding = {"x": {"chunks": (50, 6)}, "wind": packed, "number": {"chunks": (50,)}}
    _data().to_zarr(path, consolidated=False, encoding=encoding)
    return path


def _examples(data, **more):
    given = {"inputs": ["x", "wind"], "targets": "label", "along": "n", "window": {"n": 3}}
    return Examples(data, **(given | more))


def _batches(examples, seed=0, epoch=0, portion_rows=4 * BATCH, **more):
    portions = examples.cut(portion_rows, BATCH).portions(seed, epoch)
    with examples.reader(**more) as reader:
        return [b for p in portions for b in reader.minibatches(p, BATCH)]


def _same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.inputs, b.inputs)
        np.testing.assert_array_equal(a.targets, b.targets)


def _routes(store):
    lazy = xr.open_zarr(store, chunks=None, consolidated=False)
    yield lazy
    yield xr.open_zarr(store, consolidated=False)
    yield lazy.load()


def test_four_routes_give_the_same_bits(store):
    wanted = _batches(_examples(store).standardize())
    for data in _routes(store):
        _same(_batches(_examples(data).standardize()), wanted)


def test_an_epoch_holds_every_row_once(store):
    examples = _examples(store, inputs="number", window=None)
    for epoch in range(2):
        rows = np.concatenate([b.inputs for b in _batches(examples, epoch=epoch)])
        np.testing.assert_array_equal(np.sort(rows), np.arange(ROWS))


def test_sorted_labels_are_mixed(store):
    for batch in _batches(_examples(store))[:-1]:
        assert len(set(batch.targets.tolist())) >= 6


def test_order_needs_no_cache_and_no_thread(store):
    wanted = _batches(_examples(store))
    _same(_batches(_examples(store), cache_bytes=0, prefetch=False), wanted)


def test_a_portion_resumes_at_a_step(store):
    examples = _examples(store)
    portion = examples.cut(8 * BATCH, BATCH).portions(0, 0)[0]
    with examples.reader() as reader:
        whole = list(reader.minibatches(portion, BATCH))
        _same(list(reader.minibatches(portion, BATCH, first_step=5)), whole[5:])
    assert [batch.step for batch in whole] == list(range(8))


def test_prefetched_blocks_are_not_read_again(store, monkeypatch):
    from dbdask.data import feed

    read, threads = [], []
    original = feed.read_block

    def counted(recipe, number, ledger, brought=None):
        read.append(number)
        threads.append(threading.current_thread().name)
        return original(recipe, number, ledger, brought)

    monkeypatch.setattr(feed, "read_block", counted)
    examples = _examples(store)
    portion = examples.cut(BATCH, BATCH).contiguous()[3]
    with examples.reader() as reader:
        reader.prefetch(portion)
        list(reader.minibatches(portion, BATCH))
    assert sorted(read) == sorted(portion.blocks)
    assert threads[0].startswith("dbdask-prefetch")


def test_nothing_is_prefetched_that_does_not_fit(store):
    examples = _examples(store)
    portion = examples.cut(BATCH, BATCH).contiguous()[0]
    with examples.reader(cache_bytes=10) as reader:
        reader.prefetch(portion)
        assert reader._ahead is None
        assert len(list(reader.minibatches(portion, BATCH))) == 1


def test_the_cache_keeps_its_budget(store):
    examples = _examples(store)
    portions = examples.cut(BATCH, BATCH).contiguous()
    with examples.reader(cache_bytes=2500, prefetch=False) as reader:
        for portion in portions:
            list(reader.minibatches(portion, BATCH))
            held = sum(block.nbytes for block in reader._cache.values())
            assert held == reader._held <= 2500


def test_blocks_brought_to_a_task_feed_the_same(store, threads_client):
    wanted = _batches(_examples(store))
    for data in list(_routes(store))[1:]:
        examples = _examples(data)
        provider = BlockProvider(examples.recipe, threads_client)
        fed = []
        with examples.worker_side().reader() as reader:
            for portion in examples.cut(4 * BATCH, BATCH).portions(0, 0):
                blocks = gather_blocks([f.result() for f in provider.futures(portion)])
                fed += list(reader.minibatches(portion, BATCH, blocks=blocks))
                provider.release(portion)
        _same(fed, wanted)


@pytest.mark.parametrize("zarr_format, shards", [(2, None), (3, None), (3, (100, 6))])
def test_formats_and_shards_feed_the_same_rows(tmp_path, zarr_format, shards):
    path = tmp_path / "data.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    values = _data().x.values
    kwargs = {"dimension_names": ["n", "p"]} if zarr_format == 3 else {}
    array = group.create_array(
        "x", shape=values.shape, chunks=(50, 6), shards=shards, dtype="uint8", **kwargs
    )
    array[:] = values
    if zarr_format == 2:
        array.attrs["_ARRAY_DIMENSIONS"] = ["n", "p"]
    examples = Examples(path, inputs="x", along="n")
    assert examples.grid.lengths[0][0] == (100 if shards else 50)
    portions = examples.cut(BATCH, BATCH).contiguous()
    with examples.reader() as reader:
        fed = np.concatenate([b.inputs for p in portions for b in reader.minibatches(p, BATCH)])
    np.testing.assert_array_equal(fed, values)


def test_a_truncated_chunk_is_named(tmp_path):
    path = tmp_path / "data.zarr"
    _data()[["x"]].to_zarr(path, consolidated=False, encoding={"x": {"chunks": (200, 6)}})
    chunk = path / "x" / "c" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    examples = Examples(path, inputs="x", along="n")
    with pytest.raises(DataError, match=r"'x' at \[200:400, 0:6\].*cannot be read"):
        _batches(examples)


def test_dropped_rows_leave_full_minibatches(store):
    data = _data()
    gappy = data.assign(number=data.number.where(data.number % 7 != 0))
    examples = Examples(gappy, inputs="number", along="n", missing="drop")
    batches = _batches(examples, portion_rows=ROWS // BATCH * BATCH)
    rows = np.concatenate([b.inputs for b in batches])
    assert sorted(rows.tolist()) == [n for n in range(ROWS) if n % 7]
    assert all(len(b.inputs) == BATCH for b in batches[:15])


def test_reader_says_what_it_cannot_open(tmp_path):
    path = tmp_path / "data.zarr"
    _data()[["x"]].to_zarr(path, consolidated=False)
    examples = Examples(path, inputs="x", along="n")
    (tmp_path / "data.zarr").rename(tmp_path / "moved.zarr")
    with examples.reader() as reader, pytest.raises((OSError, ValueError), match="data.zarr"):
        reader.open()


def test_threads_share_a_reader(store):
    examples = _examples(store)
    portions = examples.cut(4 * BATCH, BATCH).portions(0, 0)
    wanted = [list(examples.reader().minibatches(p, BATCH)) for p in portions]
    found = {}
    with examples.reader() as reader:

        def work(number):
            found[number] = list(reader.minibatches(portions[number], BATCH))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(portions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, batches in enumerate(wanted):
        _same(found[number], batches)


@pytest.mark.parametrize("inputs, window", [("pixels", None), ("energy", {"n": 11})])
def test_feeding_is_faster_than_a_small_network(inputs, window):
    rng = np.random.default_rng(0)
    data = xr.Dataset(
        {
            "pixels": (("n", "p"), rng.integers(0, 256, (20_000, 784)).astype(np.uint8)),
            "energy": (("n", "mel"), rng.normal(size=(20_000, 40)).astype(np.float32)),
        }
    )
    examples = Examples(data, inputs=inputs, along="n", window=window)
    portions = examples.cut(2048, 128).portions(0, 0)
    with examples.reader() as reader:
        assert any(20_000 / _seconds(reader, portions) > 100_000 for _ in range(3))


def _seconds(reader, portions):
    began = time.process_time()  # of all threads; others on the machine do not count
    for portion in portions:
        for _ in reader.minibatches(portion, 128):
            pass
    return time.process_time() - began


def test_a_chunk_that_is_missing_throughout_gives_no_example_of_unlike_inputs():
    gone = np.where(np.arange(8) < 4, np.nan, 1.0)
    data = xr.Dataset({"x": (("n", "f"), np.ones((8, 3))), "z": ("n", gone)}).chunk(n=4)
    examples = Examples(data, inputs=["x", "z"], along="n", missing="drop")
    with examples.reader(prefetch=False) as reader:
        first, second = reader.block(0), reader.block(1)
    assert first.minibatch.inputs.shape == (0, 4) and not first.valid.any()
    assert second.minibatch.inputs.shape == (4, 4) and second.valid.all()
