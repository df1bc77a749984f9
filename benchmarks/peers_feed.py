"""Rows a second from Zarr to minibatches: dbdask's feed beside xbatcher and zarr itself.

    python -m benchmarks.peers_feed [--rows 200000] [--chunk 20000] [--batch 128] [--rounds 5]

A store of float32 rows in chunks of many rows, and one of shards of as many rows whose inner chunks
have an eighth. Nothing is trained: what is timed is to see every minibatch of an epoch once.

- `zarr`: the limit: a loop that decodes chunk after chunk, and makes no minibatches;
- `dbdask`: `Examples.minibatches`, which shuffles chunks from all over the store together;
- `xbatcher, chunks`: a batch of `BatchGenerator` is a chunk of a lazily opened Dataset; the loop
  permutes it, and cuts it into minibatches: its best setting;
- `xbatcher, minibatches`: a batch is a minibatch, as its documentation shows it; every one decodes
  its chunk. It runs for `--seconds`.

`zarrs` in a name stands for zarr's codec pipeline of that name, where it is installed. Every turn
is a process of its own, with whatever threads the tools use.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import xarray as xr
import zarr

import dbdask
from benchmarks._figures import Figures
from benchmarks._processes import together
from benchmarks._ratios import Pair
from benchmarks._side_by_side import Contestant, Report, parser

FEATURES = 440
BASE, OURS = "zarr", "dbdask"
XBATCHER = ("xbatcher, chunks", "xbatcher, minibatches")
Minibatches = Iterator[tuple[np.ndarray, np.ndarray]]


def write(path: str, rows: int, chunk: int, sharded: bool) -> None:
    """Write the store, chunk by chunk."""
    inner = chunk // 8 if sharded else chunk
    group = zarr.open_group(path, mode="w")
    shards = {"shards": (chunk, FEATURES)} if sharded else {}
    inputs = group.create_array(
        "x",
        shape=(rows, FEATURES),
        chunks=(inner, FEATURES),
        dtype="float32",
        dimension_names=["row", "feature"],
        **shards,
    )
    labels = group.create_array(
        "label", shape=(rows,), chunks=(chunk,), dtype="int16", dimension_names=["row"]
    )
    rng = np.random.default_rng(0)
    for start in range(0, rows, chunk):
        stop = min(rows, start + chunk)
        inputs[start:stop] = rng.normal(size=(stop - start, FEATURES)).astype(np.float32)
        labels[start:stop] = rng.integers(0, 10, stop - start, dtype=np.int16)


def minibatches_of_chunk(
    inputs: np.ndarray, labels: np.ndarray, batch: int, rng: np.random.Generator
) -> Minibatches:
    """Permute a chunk, and cut it."""
    order = rng.permutation(len(inputs))
    for start in range(0, len(inputs), batch):
        rows = order[start : start + batch]
        yield inputs[rows], labels[rows]


def by_xbatcher(path: str, rows: int, batch: int) -> Minibatches:
    """Yield minibatches of xbatcher's batches of so many rows."""
    import xbatcher

    data = xr.open_zarr(path, chunks=None, consolidated=False)
    generator = xbatcher.BatchGenerator(data, input_dims={"row": rows}, preload_batch=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(generator))
    for number in order:
        found = generator[int(number)]
        yield from minibatches_of_chunk(found["x"].values, found["label"].values, batch, rng)


def by_zarr(path: str, chunk: int) -> Minibatches:
    """Yield chunk after chunk."""
    group = zarr.open_group(path, mode="r")
    for start in range(0, group["x"].shape[0], chunk):
        yield group["x"][start : start + chunk], group["label"][start : start + chunk]


def by_dbdask(path: str, batch: int) -> Minibatches:
    """Yield the minibatches of dbdask's feed."""
    examples = dbdask.Examples(path, inputs="x", targets="label", along="row")
    for found in examples.minibatches(batch):
        assert found.targets is not None
        yield found.inputs, found.targets


def rows_a_second(found: Minibatches, seconds: float) -> float:
    """Return the rate of minibatches that are looked at, for so long at most."""
    count, began = 0, time.perf_counter()
    for inputs, labels in found:
        assert len(inputs) == len(labels)
        count += len(inputs)
        if time.perf_counter() - began > seconds:
            break
    return count / (time.perf_counter() - began)


def use(codecs: str) -> None:
    """Choose zarr's codec pipeline in this process."""
    if codecs == "zarrs":
        import zarrs  # noqa: F401

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})


def measured(number: int, codecs: str, call: Callable[[], Minibatches], seconds: float) -> Figures:
    """Return the rate of a feed."""
    use(codecs)
    return {"rows/s": rows_a_second(call(), seconds)}


def contestants(path: str, chunk: int, batch: int, seconds: float) -> list[Contestant]:
    """Return what is measured, with each of the codec pipelines."""
    feeds: dict[str, tuple[Callable[[], Minibatches], float, tuple[str, ...]]] = {
        BASE: (partial(by_zarr, path, chunk), math.inf, ()),
        OURS: (partial(by_dbdask, path, batch), math.inf, ()),
        XBATCHER[0]: (partial(by_xbatcher, path, chunk, batch), math.inf, ("xbatcher",)),
        XBATCHER[1]: (partial(by_xbatcher, path, batch, batch), seconds, ("xbatcher",)),
    }

    def turn(codecs: str, feed: Callable[[], Minibatches], most: float) -> Figures:
        found: Figures = together(measured, 1, codecs, feed, most)[0]
        return found

    found = [
        Contestant(name, partial(turn, "", feed, most), needs)
        for name, (feed, most, needs) in feeds.items()
    ]
    return found + [
        Contestant(with_zarrs(name), partial(turn, "zarrs", feed, most), ("zarrs", *needs))
        for name, (feed, most, needs) in feeds.items()
    ]


def with_zarrs(name: str) -> str:
    """Return what a feed with zarrs' codecs is called."""
    return f"{name}, zarrs"


def pairs() -> list[Pair]:
    """Return the ratios below the table, each with the same codecs on both sides."""
    plain = [Pair(OURS, BASE), Pair(OURS, XBATCHER)]
    zarrs = [
        Pair(with_zarrs(OURS), with_zarrs(BASE)),
        Pair(with_zarrs(OURS), tuple(map(with_zarrs, XBATCHER))),
    ]
    return plain + zarrs


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each kind of store."""
    found = parser(__doc__)
    found.add_argument("--rows", type=int, default=200_000)
    found.add_argument("--chunk", type=int, default=20_000, help="rows of a chunk, or of a shard")
    found.add_argument("--batch", type=int, default=128)
    found.add_argument("--seconds", type=float, default=5.0, help="of `xbatcher, minibatches`")
    found.add_argument(
        "--stores", nargs="+", choices=("chunks", "shards"), default=("chunks", "shards")
    )
    options = found.parse_args(arguments)
    report = Report("peers_feed", options, ("xbatcher", "zarrs"))
    for store in options.stores:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/store.zarr"
            write(path, options.rows, options.chunk, sharded=store == "shards")
            title = (
                f"{options.rows:,} x {FEATURES} float32 in {store} of {options.chunk:,} rows, "
                f"minibatches of {options.batch}"
            )
            entrants = contestants(path, options.chunk, options.batch, options.seconds)
            report.compare(title, entrants, BASE, pairs())
    report.end()


if __name__ == "__main__":
    main()
