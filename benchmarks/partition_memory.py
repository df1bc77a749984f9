"""A network that fits no worker: peak memory while it trains in two parts, is saved and predicts.

    python -m benchmarks.partition_memory [--limit 2GiB] [--share 1.4] [--json F]

Training takes 16 bytes a parameter: the shard's parameter and Adagrad's accumulator, the replica's
parameter and gradient, float32 each. The network is as wide as makes that `--share` times
`--limit`, the memory limit of each of two worker processes, beyond which they are ended. It trains
with a checkpoint, is saved, loaded, and predicts on the workers. A peak is what the kernel notes
for a process (VmHWM) between the start and the end of a phase, the interpreter and its libraries
included; memory that two processes map counts in both.
"""

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import dask
import numpy as np
import xarray as xr
from dask.utils import parse_bytes
from distributed import Client

import dbdask
from benchmarks._clusters import cluster_of
from benchmarks.memory import peak_mib

FEATURES, OUTPUTS, BATCH, STEPS = 1024, 10, 32, 16
BYTES = 16  # of training, for each parameter

T = TypeVar("T")


class Peaks(NamedTuple):
    """The most memory of each process in one phase, in MiB."""

    phase: str
    client: float
    workers: list[float]


def forget_peak() -> None:
    """Let the kernel note the peak of this process anew."""
    Path("/proc/self/clear_refs").write_text("5")


def during(client: Client, phase: str, work: Callable[[], T]) -> tuple[T, Peaks]:
    """Return what work returns, and the peaks meanwhile."""
    forget_peak()
    client.run(forget_peak)
    done = work()
    peaks = Peaks(phase, peak_mib(), sorted(client.run(peak_mib).values()))
    workers = ", ".join(f"{peak:,.0f}" for peak in peaks.workers)
    print(f"{phase:>10}: client {peaks.client:,.0f} MiB, workers {workers} MiB", flush=True)
    return done, peaks


def network_of(parameters: float) -> dbdask.Network:
    """Return a network of about so many parameters, two hidden layers of one width."""
    once = FEATURES + OUTPUTS + 2
    width = round((math.sqrt(once**2 + 4 * parameters) - once) / 2)
    layers = [dbdask.Dense(width, "relu"), dbdask.Dense(width, "relu"), dbdask.Dense(OUTPUTS)]
    return dbdask.Network(input_shape=(FEATURES,), layers=layers, loss="softmax")


def write_examples(path: str) -> None:
    """Write random numbers with labels that depend on them."""
    rng = np.random.default_rng(0)
    values = rng.random((STEPS * BATCH, FEATURES), dtype=np.float32)
    labels = (values[:, 0] * OUTPUTS).astype(np.int16)
    data = xr.Dataset({"x": (("row", "feature"), values), "label": ("row", labels)})
    data.chunk({"row": 4 * BATCH}).to_zarr(path, consolidated=False)


def measure(client: Client, network: dbdask.Network, folder: str) -> list[Peaks]:
    """Train, save, load and predict, each with its peaks."""
    store, run, model = f"{folder}/store.zarr", f"{folder}/run.zarr", f"{folder}/model.zarr"
    write_examples(store)
    examples = dbdask.Examples(store, inputs="x", targets="label", along="row")
    peaks = []

    def phase(name: str, work: Callable[[], T]) -> T:
        done, found = during(client, name, work)
        peaks.append(found)
        return done

    phase("before", lambda: None)
    result = phase(
        "training",
        lambda: dbdask.downpour(
            network,
            examples,
            client=client,
            optimizer=dbdask.adagrad(0.0001),
            batch_size=BATCH,
            partitions=2,
            checkpoint=run,
            progress=False,
        ),
    )
    assert int(result.history["examples"].values[-1]) == STEPS * BATCH
    phase("saving", lambda: result.save(model))
    loaded = phase("loading", lambda: dbdask.load(model))
    predicted = phase("predicting", lambda: client.compute(loaded.predict(store)).result())
    assert predicted.sizes["row"] == STEPS * BATCH
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--limit", default="2GiB", help="memory limit of each of two workers")
    parser.add_argument("--share", type=float, default=1.4, help="training state per limit")
    parser.add_argument("--folder", type=Path, help="for the files; default: a temporary folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    limit = parse_bytes(options.limit)
    network = network_of(options.share * limit / BYTES)
    state = BYTES * network.parameter_count
    print(
        f"{network.parameter_count:,} parameters, training state {state / 2**20:,.0f} MiB, "
        f"{state / limit:.2f} of the limit of a worker, {limit / 2**20:,.0f} MiB",
        flush=True,
    )
    settings: dict[str, Any] = {
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
    }
    folder = tempfile.mkdtemp(dir=options.folder)
    try:
        with dask.config.set(settings), cluster_of(memory_limit=options.limit) as client:
            peaks = measure(client, network, folder)
    finally:
        shutil.rmtree(folder)
    if options.json:
        found = {"parameters": network.parameter_count, "limit_bytes": limit}
        options.json.write_text(json.dumps(found | {"peaks": [one._asdict() for one in peaks]}))


if __name__ == "__main__":
    main()
