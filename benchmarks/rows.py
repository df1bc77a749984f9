"""Time and peak memory of what is done with a store before a value of it is used.

    python -m benchmarks.rows [--rows 1e6 1e8 1e10] [--chunk 1e6]

The store has two float32 variables in one dimension, of which only the metadata are written: a
chunk that is not there reads as zeros. Each act runs in a process of its own: `Examples`, `split`
by chunks, one block read by what travels to a worker, and `load` of a small model that was trained
on as many rows. The memory is what the process needs above the import of dbdask.
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import dbdask
from benchmarks.memory import peak_mib
from dbdask.metrics.history import History
from dbdask.result import Result

ACTS = ("Examples", "split", "block", "load")


def make_store(path: Path, rows: int, chunk: int) -> None:
    """Write the metadata of a store in Zarr's format 2."""
    path.mkdir()
    (path / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
    for name in ("x", "y"):
        array = {
            "zarr_format": 2,
            "shape": [rows],
            "chunks": [chunk],
            "dtype": "<f4",
            "compressor": None,
            "filters": None,
            "fill_value": 0,
            "order": "C",
        }
        (path / name).mkdir()
        (path / name / ".zarray").write_text(json.dumps(array))
        (path / name / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": ["t"]}))


def examples_of(folder: Path) -> dbdask.Examples:
    """Open the store."""
    return dbdask.Examples(folder / "store.zarr", inputs="x", targets="y", along="t")


def prepare(folder: Path) -> None:
    """Write what a worker is sent, and a model that was trained on the store."""
    examples = examples_of(folder)
    train, _ = examples.split(0.9, seed=0)
    (folder / "worker.pickle").write_bytes(pickle.dumps(train.worker_side()))
    model = dbdask.Network(input_shape=(), layers=[dbdask.Dense(1)], loss="squared")
    parameters = np.zeros(model.parameter_count, np.float32)
    status = dbdask.Status("epochs", "all epochs are done")
    Result(model, train, parameters, History(), status).save(folder / "model.zarr")


def read_block(folder: Path) -> None:
    """Read one block as a worker does."""
    examples = pickle.loads((folder / "worker.pickle").read_bytes())
    portion = examples.cut(128_000, 128).portions(0, 0)[0]
    with examples.reader(prefetch=False) as reader:
        reader.block(portion.blocks[0])


def act_of(name: str, folder: Path) -> Callable[[], object]:
    """Return what is measured; what it begins from is made before."""
    if name == "split":
        examples = examples_of(folder)
        return lambda: examples.split(0.9, seed=0)
    acts: dict[str, Callable[[], object]] = {
        "Examples": lambda: examples_of(folder),
        "block": lambda: read_block(folder),
        "load": lambda: dbdask.load(folder / "model.zarr"),
    }
    return acts[name]


def measure(name: str, folder: Path) -> None:
    """Do one thing, and print seconds and MiB above the import."""
    imported = peak_mib()
    act = act_of(name, folder)
    began = time.perf_counter()
    act()
    print(json.dumps([time.perf_counter() - began, peak_mib() - imported]))


def in_its_own_process(name: str, folder: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.rows", "--measure", name, "--folder", str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, mib = json.loads(found.stdout)
    return seconds, mib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 1e7, 1e8, 1e9, 1e10])
    parser.add_argument("--chunk", type=float, default=1e6)
    parser.add_argument("--measure", choices=ACTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.folder)
        return
    print(f"chunks of {options.chunk:,.0f} rows; MiB are above the import of dbdask")
    for rows in map(int, options.rows):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_store(folder / "store.zarr", rows, int(options.chunk))
            prepare(folder)
            for act in ACTS:
                seconds, mib = in_its_own_process(act, folder)
                print(f"{rows:>14,} rows  {act:<9} {seconds:7.3f} s  {mib:7.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
