"""Peak memory of each worker while a store that is far larger than the workers trains.

    python -m benchmarks.memory [--gibibytes 5] [--limit 512MiB]

The store is random float32 in 64 MiB chunks, which no codec makes smaller. Two worker processes
of `--limit` train a small network for one epoch with spilling switched off. The peak is what the
kernel notes for the worker's process (VmHWM), the interpreter and its libraries included; the
peak before training is printed beside it.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import dask
import numpy as np
import zarr
from distributed import Client, LocalCluster

import dbdask

ROWS, FEATURES = 16_384, 1024  # of a chunk: 64 MiB of float32


def make_store(path: Path, chunks: int) -> None:
    """Write the store chunk by chunk."""
    group = zarr.open_group(path, mode="w")
    inputs = group.create_array(
        "x",
        shape=(chunks * ROWS, FEATURES),
        chunks=(ROWS, FEATURES),
        dtype="float32",
        dimension_names=["row", "feature"],
    )
    labels = group.create_array(
        "label",
        shape=(chunks * ROWS,),
        chunks=(ROWS,),
        dtype="int16",
        dimension_names=["row"],
    )
    rng = np.random.default_rng(0)
    for chunk in range(chunks):
        rows = slice(chunk * ROWS, (chunk + 1) * ROWS)
        inputs[rows] = rng.random((ROWS, FEATURES), dtype=np.float32)
        labels[rows] = rng.integers(0, 10, ROWS, dtype=np.int16)


def peak_mib() -> float:
    """Peak resident memory of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("this system's /proc/self/status has no VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gibibytes", type=float, default=5.0)
    parser.add_argument("--limit", default="512MiB")
    parser.add_argument(
        "--folder", type=Path, help="where the store goes; default: a temporary folder"
    )
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    chunks = round(options.gibibytes * 16)
    spilling_off = {
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
    }
    try:
        make_store(folder / "store.zarr", chunks)
        with (
            dask.config.set(spilling_off),
            LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                memory_limit=options.limit,
                dashboard_address=":0",
            ) as cluster,
            Client(cluster) as client,
        ):
            before = client.run(peak_mib)
            examples = dbdask.Examples(
                folder / "store.zarr", inputs="x", targets="label", along="row"
            )
            model = dbdask.Network(
                input_shape=(FEATURES,),
                layers=[dbdask.Dense(64, "relu"), dbdask.Dense(10)],
                loss="softmax",
            )
            began = time.perf_counter()
            result = dbdask.downpour(model, examples, client=client, progress=False)
            seconds = time.perf_counter() - began
            after = client.run(peak_mib)
        trained = int(result.history["examples"].values[-1])
        assert trained == chunks * ROWS, f"{trained} of {chunks * ROWS} examples"
        took = f"{trained:,} examples in {seconds:.0f} s"
        print(f"{chunks / 16:g} GiB, {took}, limit {options.limit}")
        for worker in after:
            start = before.get(worker)
            print(
                f"  {worker}: peak {after[worker]:.0f} MiB"
                + (f" ({start:.0f} MiB before training)" if start else " (a restarted worker)")
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
