"""The paper's image network of 1.7 billion parameters: one step of Downpour on one machine.

    python -m benchmarks.paper_image_network [--parts 4] [--batch 2] [--steps 1] [--json F]

How the paper's words (section 5) lead to 1,695,645,044 parameters is in `docs/benchmarks.md`. A
vector of them takes 6.3 GiB in float32. One replica in parts, with plain SGD, holds three: the
shards' parameters, and the replica's parameters and gradient. The program counts the layers, trains
for `--steps` minibatches with a checkpoint, and prints the seconds and the peak of each process
(VmHWM) and of the machine's memory in use. It needs about 21 GiB of memory and 14 GiB on disk.
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import dask
import numpy as np
import xarray as xr

import dbdask
from benchmarks._clusters import cluster_of
from benchmarks.memory import peak_mib

SIDE, COLOURS, CATEGORIES, PATCH = 100, 3, 21_000, 10
MAPS, STRIDES = (8, 36, 36), (1, 1, 2)


def network() -> dbdask.Network:
    """Return the network of the table in `docs/benchmarks.md`."""
    layers: list[dbdask.Layer] = []
    for maps, stride in zip(MAPS, STRIDES, strict=True):
        layers.append(dbdask.LocallyConnected(maps, PATCH))
        layers += [dbdask.L2Pool(3, stride=stride), dbdask.LocalContrastNorm(3)]
    layers.append(dbdask.Dense(CATEGORIES))
    return dbdask.Network(input_shape=(SIDE, SIDE, COLOURS), layers=layers, loss="logistic")


class InUse:
    """The most memory of the machine that was in use, beyond that at the beginning, in MiB."""

    def __init__(self) -> None:
        self.most, self._before, self._ended = 0.0, self._now(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @staticmethod
    def _now() -> float:
        known = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(known[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
        return (total - available) / 1024

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self.most = max(self.most, self._now() - self._before)

    def end(self) -> float:
        """Stop watching, and return the peak."""
        self._ended.set()
        self._thread.join()
        return self.most


def write_examples(path: str, rows: int) -> None:
    """Write random pictures and categories."""
    rng = np.random.default_rng(0)
    pictures = rng.random((rows, SIDE, SIDE, COLOURS), dtype=np.float32)
    labels = rng.integers(0, CATEGORIES, rows)
    data = xr.Dataset(
        {"picture": (("row", "y", "x", "colour"), pictures), "label": ("row", labels)}
    )
    data.to_zarr(path, consolidated=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for the files; default: a temporary folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = network()
    for stage in model.stages:
        count = sum(piece.stop - piece.start for piece in stage.pieces)
        print(f"{stage.name:>22} {stage.output_shape!s:>15} {count:>15,}")
    print(f"{'in all':>38} {model.parameter_count:>15,}", flush=True)
    folder = tempfile.mkdtemp(dir=options.folder)
    patient = {"dbdask.placement": "600s", "dbdask.portion-end": "600s", "dbdask.store": "600s"}
    try:
        write_examples(f"{folder}/store.zarr", options.batch * options.steps)
        examples = dbdask.Examples(
            f"{folder}/store.zarr", inputs="picture", targets="label", along="row"
        )
        with dask.config.set(patient), cluster_of(options.parts, memory_limit="0") as client:
            in_use, began = InUse(), time.perf_counter()
            result = dbdask.downpour(
                model,
                examples,
                client=client,
                optimizer=dbdask.sgd(0.01),
                batch_size=options.batch,
                partitions=options.parts,
                checkpoint=f"{folder}/run.zarr",
                progress=False,
            )
            seconds, most = time.perf_counter() - began, in_use.end()
            peaks = sorted(client.run(peak_mib).values())
        history = result.history
        steps, loss = int(history["step"].values[-1]), float(history["loss"].values[-1])
        print(f"{steps} steps of {options.batch} pictures, loss {loss:.2f}, {seconds:.0f} s in all")
        print(f"workers' peaks {', '.join(f'{peak:,.0f}' for peak in peaks)} MiB")
        print(
            f"client's peak {peak_mib():,.0f} MiB; the machine's memory in use {most:,.0f} MiB more"
        )
    finally:
        shutil.rmtree(folder)
    if options.json:
        found = {
            "parameters": model.parameter_count,
            "seconds": seconds,
            "loss": loss,
            "steps": steps,
            "workers_mib": peaks,
            "client_mib": peak_mib(),
            "in_use_mib": most,
        }
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
