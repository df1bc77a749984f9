"""Chunks and metadata that would take all memory, wait for ever, or run code: refused by name."""

import json
import os
import pickle
import shutil
import tracemalloc
import warnings

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec
from zarr.codecs import numcodecs as old_codecs

import dbdask
from dbdask.data import memory
from dbdask.data.decompression import Oversized, inflate
from dbdask.data.sources import open_source
from dbdask.errors import DataError

DECLARED = 2**13  # float32 values that a chunk is declared to hold
HELD = 2**20  # that it does hold
MOST_BYTES = 2 * 2**20  # of memory that refusing one may take: HELD takes 4 MiB

FORMAT_2 = [
    numcodecs.Zlib(),
    numcodecs.GZip(),
    numcodecs.BZ2(1),
    numcodecs.LZMA(preset=0),
    numcodecs.Zstd(),
    numcodecs.Blosc(),
    numcodecs.LZ4(),
]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Zarr calls these codecs unusual
    FORMAT_3 = [
        GzipCodec(),
        ZstdCodec(),
        BloscCodec(),
        old_codecs.Zlib(),
        old_codecs.GZip(),
        old_codecs.BZ2(level=1),
        old_codecs.LZMA(preset=0),
        old_codecs.Zstd(),
        old_codecs.LZ4(),
    ]


def named(codec):
    return type(codec).__name__


def write_array(path, values, *, zarr_format, compressor, chunk, sharded=False, **options):
    """Write a one-dimensional array as a store of one variable."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    if zarr_format == 3:
        options["dimension_names"] = ("t",)
    if sharded:
        options["shards"] = (len(values),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = group.create_array(
            "x",
            shape=values.shape,
            chunks=(chunk,),
            dtype=values.dtype,
            compressors=compressor,
            **options,
        )
        array[:] = values
    if zarr_format == 2:
        array.attrs["_ARRAY_DIMENSIONS"] = ["t"]
    return str(path)


def change(path, name, how):
    with open(f"{path}/{name}") as file:
        document = json.load(file)
    how(document)
    with open(f"{path}/{name}", "w") as file:
        json.dump(document, file)


def declare(path, zarr_format, size):
    """Let the metadata say that the array has one chunk of a size."""

    def two(document):
        document.update(shape=[size], chunks=[size])

    def three(document):
        document["shape"] = [size]
        document["chunk_grid"]["configuration"]["chunk_shape"] = [size]
        for codec in document["codecs"]:
            if codec["name"] == "sharding_indexed":
                codec["configuration"]["chunk_shape"] = [size]

    change(path, *(("x/.zarray", two) if zarr_format == 2 else ("x/zarr.json", three)))


def read_all(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_source(path).variable("x").read()


CASES = [
    *((2, codec, False) for codec in FORMAT_2),
    *((3, codec, sharded) for sharded in (False, True) for codec in FORMAT_3),
]
IDS = [f"{f}-{named(c)}{'-sharded' if s else ''}" for f, c, s in CASES]


@pytest.mark.parametrize(("zarr_format", "codec", "sharded"), CASES, ids=IDS)
def test_a_chunk_that_inflates_beyond_its_size_is_refused(tmp_path, zarr_format, codec, sharded):
    ones = np.ones(4 * HELD, np.uint8).view(np.float32)  # bytes that every codec packs in no time
    path = write_array(
        tmp_path / "bomb.zarr",
        ones,
        zarr_format=zarr_format,
        compressor=codec,
        chunk=HELD,
        sharded=sharded,
    )
    declare(path, zarr_format, DECLARED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        variable = open_source(path).variable("x")
        variable.open()
    tracemalloc.start()
    with pytest.raises(DataError, match=r"'x' of .*bomb.zarr: chunk 0 .* inflates to .* bytes"):
        variable.read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST_BYTES


@pytest.mark.parametrize(("zarr_format", "codec", "sharded"), CASES, ids=IDS)
def test_honest_chunks_are_read_as_before(tmp_path, zarr_format, codec, sharded):
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=1000).astype("f4"), np.zeros(1000, "i2"), np.arange(1000.0)):
        path = write_array(
            tmp_path / "s.zarr",
            values,
            zarr_format=zarr_format,
            compressor=codec,
            chunk=250,
            sharded=sharded,
        )
        np.testing.assert_array_equal(read_all(path), values)


@pytest.mark.parametrize("name", ["gzip", "bz2", "lzma"])
def test_streams_in_a_row_are_one(name):
    codec = {"gzip": numcodecs.GZip(), "bz2": numcodecs.BZ2(), "lzma": numcodecs.LZMA()}[name]
    stored = codec.encode(b"a" * 1000) + codec.encode(b"b" * 10)
    assert inflate(name, codec.get_config(), memoryview(stored), 1010) == b"a" * 1000 + b"b" * 10
    with pytest.raises(Oversized, match="more than 1,009 bytes"):
        inflate(name, codec.get_config(), memoryview(stored), 1009)
    with pytest.raises(ValueError, match="truncated"):
        inflate(name, codec.get_config(), memoryview(stored[:-9]), 5000)


def frame(blocks, single=None):
    """A Zstandard frame of blocks of one repeated byte; without its size unless it is given."""
    head = b"\x28\xb5\x2f\xfd"
    head += b"\x00\x58" if single is None else b"\xa0" + single.to_bytes(4, "little")
    body = b""
    for number, size in enumerate(blocks):
        is_last = number == len(blocks) - 1
        body += (is_last | 1 << 1 | size << 3).to_bytes(3, "little") + b"a"
    return head + body


@pytest.mark.parametrize("size", [None, 500])
def test_a_frame_of_zstandard_may_lack_its_size(size):
    stored = frame([200, 300], size)
    decoded = numcodecs.Zstd().decode(stored)
    assert decoded == b"a" * 500
    assert inflate("zstd", {}, memoryview(stored), 500) is None
    with pytest.raises(Oversized, match="500 bytes|more than 499 bytes"):
        inflate("zstd", {}, memoryview(stored), 499)


def test_blocks_of_zstandard_whose_size_is_not_stated_are_tried():
    rng = np.random.default_rng(0)
    text = rng.integers(0, 4, 3000).astype("u1").tobytes()
    known = bytes(numcodecs.Zstd().encode(text))
    # The same blocks in a frame that does not state how long they are.
    single, size = known[4] >> 5 & 1, (1, 2, 4, 8)[known[4] >> 6]
    assert single
    stored = b"\x28\xb5\x2f\xfd\x00\x58" + known[5 + size :]
    assert numcodecs.Zstd().decode(stored) == text
    assert inflate("zstd", {}, memoryview(stored), 3000) == text
    assert inflate("zstd", {}, memoryview(stored), 5000) is None
    with pytest.raises(Oversized, match="more than 2,999"):
        inflate("zstd", {}, memoryview(stored), 2999)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_texts_are_counted_before_they_are_made(tmp_path, zarr_format):
    data = xr.Dataset({"x": ("t", np.array(["a", "bb", "ccc"], dtype=object))})
    data.to_zarr(tmp_path / "s.zarr", zarr_format=zarr_format, consolidated=False)
    assert read_all(str(tmp_path / "s.zarr")).tolist() == ["a", "bb", "ccc"]
    chunk = tmp_path / "s.zarr" / "x" / ("0" if zarr_format == 2 else "c/0")
    stored = (2**28).to_bytes(4, "little")
    compressor = numcodecs.Blosc() if zarr_format == 2 else numcodecs.Zstd()
    chunk.write_bytes(compressor.encode(stored))
    with pytest.raises(DataError, match="inflates to 268,435,456 values"):
        read_all(str(tmp_path / "s.zarr"))


def test_a_file_larger_than_its_chunk_is_not_read(tmp_path):
    values = np.ones(100, np.float32)
    path = write_array(tmp_path / "s.zarr", values, zarr_format=2, compressor=None, chunk=100)
    os.truncate(f"{path}/x/0", 2**40)  # a terabyte of holes
    with pytest.raises(DataError, match=r"0 has 1,099,511,627,776 bytes, where at most"):
        read_all(path)
    os.truncate(f"{path}/x/.zarray", 2**40)
    with pytest.raises(ValueError, match=r"'x' of .* metadata.*1,099,511,627,776 bytes"):
        open_source(path).variable("x")


@pytest.mark.parametrize("key", ["x/0", "x/.zarray"])
@pytest.mark.parametrize("kind", ["a device", "a pipe"])
def test_what_is_no_file_is_not_read(tmp_path, key, kind):
    values = np.ones(100, np.float32)
    path = write_array(tmp_path / "s.zarr", values, zarr_format=2, compressor=None, chunk=100)
    os.remove(f"{path}/{key}")
    if kind == "a device":
        os.symlink("/dev/zero", f"{path}/{key}")
    else:
        os.mkfifo(f"{path}/{key}")
    with pytest.raises(ValueError, match=f"is no regular file, but {kind}"):
        read_all(path)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_chunk_beyond_the_memory_is_named_before_it_is_made(tmp_path, zarr_format, monkeypatch):
    values = np.ones(100, np.float32)
    path = write_array(
        tmp_path / "s.zarr", values, zarr_format=zarr_format, compressor=None, chunk=100
    )
    shutil.rmtree(f"{path}/x/c") if zarr_format == 3 else os.remove(f"{path}/x/0")
    declare(path, zarr_format, 10**11)
    monkeypatch.setattr(memory, "_of_machine", lambda: 2**34)
    variable = open_source(path).variable("x")
    with pytest.raises(DataError, match=r"'x' has chunks of.*takes 372.5 GiB.*there are 16.0 GiB"):
        variable.read()
    expected = r"'x' at \[0:10\].*a chunk of shape .* takes 400,000,000,000 bytes.*smaller chunks"
    with pytest.raises(DataError, match=expected):
        variable.read({"t": slice(0, 10)})


def test_a_worker_may_use_its_own_limit(process_client):
    limit = process_client.submit(memory.memory_limit).result()
    known = process_client.scheduler_info(n_workers=-1)["workers"]
    assert limit <= min(worker["memory_limit"] for worker in known.values())


def change_2(**members):
    return lambda document: document.update(members)


def change_chunks(shape):
    def how(document):
        document["chunk_grid"]["configuration"]["chunk_shape"] = shape

    return how


@pytest.mark.parametrize(
    ("zarr_format", "how", "words"),
    [
        (2, change_2(shape=[-5]), "non-negative"),
        (2, change_2(shape=[2**70], chunks=[2**69]), "more positions than can be"),
        (2, change_2(chunks=[0]), "chunks of length 0"),
        (2, change_2(chunks=[5, 5]), "same length"),
        (2, change_2(dtype="<f3"), "metadata that cannot be read"),
        (2, change_2(compressor={"id": "unheard_of"}), "unheard_of"),
        (3, change_2(shape=[-5]), "non-negative"),
        (3, change_2(shape=[2**70]), "more positions than can be"),
        (3, change_chunks([0]), "chunks of length 0"),
        (3, change_chunks([5, 5]), "metadata that cannot be read"),
        (3, change_2(data_type="float99"), "float99"),
    ],
)
def test_metadata_that_are_wrong_are_named_and_the_rest_is_read(tmp_path, zarr_format, how, words):
    ten = xr.Dataset({"x": ("t", np.ones(10)), "y": ("t", np.arange(10.0))})
    ten.to_zarr(tmp_path / "s.zarr", zarr_format=zarr_format, consolidated=False)
    change(tmp_path / "s.zarr", "x/.zarray" if zarr_format == 2 else "x/zarr.json", how)
    source = open_source(tmp_path / "s.zarr")
    assert source.variable("y").read().tolist() == list(range(10))
    with pytest.raises(ValueError, match=f"'x' of .*s.zarr.*{words}"):
        source.variable("x")


class Executed:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


PICKLE = {"id": "pickle", "protocol": 5}
ATTACKS = {
    "filter": {"filters": [PICKLE]},
    "after a filter": {"filters": [{"id": "delta", "dtype": "<f8"}, PICKLE]},
    "compressor": {"compressor": PICKLE},
    # What Zarr's own check lets pass: it looks at the first codec of objects only.
    "after texts": {"dtype": "|O", "fill_value": "", "filters": [{"id": "vlen-utf8"}, PICKLE]},
    "before texts": {
        "dtype": "|O",
        "fill_value": "",
        "compressor": PICKLE,
        "filters": [{"id": "vlen-utf8"}],
    },
}


@pytest.fixture
def attack(tmp_path, monkeypatch):
    """Write a store whose variable x runs code when it is read, and say whether it did."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True)
    marker = tmp_path / "executed"

    def write(members):
        data = xr.Dataset({"x": ("t", np.ones(10)), "y": ("t", np.ones(10))})
        data.to_zarr(tmp_path / "s.zarr", zarr_format=2, consolidated=False)
        change(tmp_path / "s.zarr", "x/.zarray", change_2(**{"compressor": None, **members}))
        (tmp_path / "s.zarr" / "x" / "0").write_bytes(pickle.dumps(Executed(str(marker))))
        return tmp_path / "s.zarr"

    yield write
    assert not marker.exists()


@pytest.mark.parametrize("where", ATTACKS)
def test_codecs_that_run_code_are_refused(attack, where):
    path = attack(ATTACKS[where])
    with pytest.raises(ValueError, match="'x' of .*pickle"):
        dbdask.Examples(path, inputs="y", targets="x", along="t")
    assert dbdask.Examples(path, inputs="y", along="t").check().examples == 10


@pytest.mark.parametrize("where", ["after texts", "before texts"])
def test_a_dataset_whose_store_runs_code_is_refused(attack, where):
    lazy = xr.open_zarr(attack(ATTACKS[where]), chunks=None, consolidated=False)
    assert dbdask.Examples(lazy, inputs="y", along="t").check().examples == 10
    with pytest.raises(ValueError, match="'x'.*'pickle', which runs code"):
        dbdask.Examples(lazy, inputs="y", targets="x", along="t", classes=["a"]).check()
