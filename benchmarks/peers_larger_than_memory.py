"""Data larger than memory: dbdask on small workers, beside xbatcher and a loop of PyTorch.

    python -m benchmarks.peers_larger_than_memory [--gibibytes 8] [--limit 1GiB] [--rounds 5]

The store is random float32 in chunks of 64 MiB, which no codec makes smaller. A net of 1024-64-10
trains with minibatches of 128 and Adagrad, so that reading counts for much. On two cores:

- `dbdask`: Downpour, two worker processes of one thread and of `--limit` memory each;
- `minibatches, torch`: a plain loop of PyTorch in one process, fed by `Examples.minibatches`;
- `xbatcher, chunks, torch`: the same loop; a batch of xbatcher is a chunk, which the loop permutes
  and cuts into minibatches;
- `xbatcher, chunks, loader, torch`: the same; a process of PyTorch's DataLoader reads the chunks;
- `xbatcher, minibatches, torch`: a batch of xbatcher is a minibatch; it runs for `--seconds`.

All but the last train one whole epoch. The peers have two threads, and no limit of memory; their
peak of memory, and the largest of dbdask's workers', stand beside. A machine with more memory than
the store keeps its files in the page cache, for all alike.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np

import dbdask
from benchmarks._clusters import cluster_of
from benchmarks._figures import Figures
from benchmarks._nets import RATE, Net, examples_of
from benchmarks._processes import together
from benchmarks._ratios import Pair
from benchmarks._side_by_side import Contestant, Report, parser
from benchmarks.memory import FEATURES, ROWS, make_store, peak_mib
from benchmarks.peers_feed import by_xbatcher, minibatches_of_chunk

NET = Net(FEATURES, (64,), 10, 128, 0, "relu")
Minibatches = Iterator[tuple[np.ndarray, np.ndarray]]
OURS, FED = "dbdask", "minibatches, torch"
XBATCHER = (
    "xbatcher, chunks, torch",
    "xbatcher, chunks, loader, torch",
    "xbatcher, minibatches, torch",
)
PAIRS = (Pair(OURS, XBATCHER, 3.0), Pair(OURS, XBATCHER[2]), Pair(OURS, FED), Pair(FED, XBATCHER))


def by_examples(path: str) -> Minibatches:
    """Yield the minibatches of dbdask's feed."""
    for found in examples_of(path).minibatches(NET.batch):
        assert found.targets is not None
        yield found.inputs, found.targets


def by_loader(path: str) -> Minibatches:
    """Yield minibatches of chunks that a process of PyTorch's DataLoader reads."""
    import torch

    loader = torch.utils.data.DataLoader(
        Chunks(path),
        batch_size=None,
        shuffle=True,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    rng = np.random.default_rng(0)
    for inputs, labels in loader:
        yield from minibatches_of_chunk(inputs.numpy(), labels.numpy(), NET.batch, rng)


class Chunks:
    """The chunks of a store by their number, as xbatcher reads them."""

    def __init__(self, path: str) -> None:
        import xarray as xr
        import xbatcher

        data = xr.open_zarr(path, chunks=None, consolidated=False)
        self.batches = xbatcher.BatchGenerator(data, input_dims={"row": ROWS}, preload_batch=True)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Any:
        import torch

        found = self.batches[number]
        return torch.from_numpy(found["x"].values), torch.from_numpy(found["label"].values)


def _trained(number: int, feed: Callable[[], Minibatches], seconds: float, threads: int) -> Figures:
    """Train a module in a plain loop, for so long at most; return the figures."""
    import torch

    torch.set_num_threads(threads)
    module = NET.module()
    rule = torch.optim.Adagrad(module.parameters(), lr=RATE, fused=True)
    count, began = 0, time.perf_counter()
    for inputs, labels in feed():
        rule.zero_grad()
        targets = torch.from_numpy(labels).long()
        torch.nn.functional.cross_entropy(module(torch.from_numpy(inputs)), targets).backward()
        rule.step()
        count += len(inputs)
        if time.perf_counter() - began > seconds:
            break
    passed = time.perf_counter() - began
    return {"examples/s": count / passed, "seconds": passed, "peak MiB": peak_mib()}


def by_torch(feed: Callable[[], Minibatches], seconds: float, threads: int = 2) -> Figures:
    """Return the figures of a plain loop in a process of its own."""
    found: Figures = together(_trained, 1, feed, seconds, threads)[0]
    return found


def by_dbdask(path: str, limit: str) -> Figures:
    """Return the figures of one epoch on two workers of so much memory; nothing may spill."""
    spilling_off = {
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
    }
    with dask.config.set(spilling_off), cluster_of(2, memory_limit=limit) as client:
        began = time.perf_counter()
        result = dbdask.downpour(
            NET.network(),
            examples_of(path),
            client=client,
            optimizer=dbdask.adagrad(RATE),
            batch_size=NET.batch,
            progress=False,
        )
        passed = time.perf_counter() - began
        peak = max(client.run(peak_mib).values())
    count = int(result.history["examples"].values[-1])
    return {"examples/s": count / passed, "seconds": passed, "peak MiB": peak}


def contestants(path: str, options: argparse.Namespace) -> list[Contestant]:
    """Return what is measured."""
    torch, both = ("torch",), ("torch", "xbatcher")
    chunks = partial(by_xbatcher, path, ROWS, NET.batch)
    small = partial(by_xbatcher, path, NET.batch, NET.batch)
    whole = float("inf")
    return [
        Contestant(OURS, partial(by_dbdask, path, options.limit)),
        Contestant(FED, partial(by_torch, partial(by_examples, path), whole), torch),
        Contestant(XBATCHER[0], partial(by_torch, chunks, whole), both),
        Contestant(XBATCHER[1], partial(by_torch, partial(by_loader, path), whole, 1), both),
        Contestant(XBATCHER[2], partial(by_torch, small, options.seconds), both),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table."""
    found = parser(__doc__)
    found.add_argument("--gibibytes", type=float, default=8.0)
    found.add_argument("--limit", default="1GiB", help="of the memory of each of dbdask's workers")
    found.add_argument("--seconds", type=float, default=20.0, help="of `xbatcher, minibatches`")
    found.add_argument("--folder", type=Path, help="where the store goes; default: a temporary one")
    options = found.parse_args(arguments)
    report = Report("peers_larger_than_memory", options, ("torch", "xbatcher"))
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    chunks = max(1, round(options.gibibytes * 16))
    try:
        make_store(folder / "store.zarr", chunks)
        title = (
            f"{chunks / 16:g} GiB, {chunks * ROWS:,} examples of {FEATURES} float32, "
            f"workers of {options.limit}"
        )
        entrants = contestants(str(folder / "store.zarr"), options)
        report.compare(title, entrants, XBATCHER[0], PAIRS)
    finally:
        shutil.rmtree(folder)
    report.end()


if __name__ == "__main__":
    main()
