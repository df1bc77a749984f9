"""A pass over four workers, one of them five times slower: how far from perfect balance.

    python -m benchmarks.load_balance [--portions 200] [--seconds 0.05] [--passes 6]

A portion takes a stated time. The slow worker's process is stopped and continued from outside, 80
of every 100 ms, while the passes go on. Perfect balance is all work over the sum of the speeds
(3.2 workers). The first pass, in which nothing is known of the speeds, is quoted by itself.
"""

import argparse
import os
import signal
import statistics
import tempfile
import threading
import time

import numpy as np
import xarray as xr
from distributed import Client, LocalCluster

import dbdask
from dbdask.algorithms import gradient_pass

ROWS_OF_A_PORTION = 8
SPEEDS = 3.2
BOUND = 1.25  # times perfect balance


class Sleeping:
    """A model whose minibatch takes a stated time, in slices that a stopped process prolongs."""

    loss = "squared"

    def __init__(self, seconds: float) -> None:
        self.layout = dbdask.Layout((dbdask.Parameter("w", (8,), ("w",)),))
        self.seconds = seconds

    def initial_parameters(self, seed: int, start: int, stop: int) -> np.ndarray:
        return np.ones(stop - start, np.float32)

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        left = self.seconds * len(inputs) / ROWS_OF_A_PORTION
        while left > 0:
            began = time.perf_counter()
            time.sleep(min(0.001, left))
            left -= min(time.perf_counter() - began, 0.002)  # while stopped it makes no progress
        np.multiply(parameters, np.float32(len(inputs)), out=gradient)
        return 0.5 * len(inputs) * float(parameters @ parameters)

    def predict(self, parameters, inputs):
        return np.zeros((len(inputs), 1), np.float32)


class DutyCycle:
    """Stops a process for a share of every 100 ms."""

    def __init__(self, process: int, share: float) -> None:
        self.process, self.share = process, share
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "DutyCycle":
        self.thread.start()
        return self

    def _run(self) -> None:
        while not self.is_over.is_set():
            os.kill(self.process, signal.SIGSTOP)
            time.sleep(0.1 * self.share)
            os.kill(self.process, signal.SIGCONT)
            time.sleep(0.1 * (1 - self.share))

    def __exit__(self, *exception: object) -> None:
        self.is_over.set()
        self.thread.join()


def passes(client: Client, path: str, seconds: float, portion_size: int, count: int) -> list[float]:
    """Seconds of each of so many passes, commands left out."""
    found: list[float] = []
    seen = 0.0

    def note(record: dbdask.Record) -> bool:
        nonlocal seen
        found.append(record.seconds_evaluating - seen)
        seen = record.seconds_evaluating
        return len(found) >= count

    dbdask.sandblaster(
        Sleeping(seconds),
        dbdask.Examples(path, inputs="x", targets="y", along="row"),
        client=client,
        iterations=count,
        tolerance=0.0,
        portion_size=portion_size,
        shard_workers=addresses(client)[0],
        shards=1,
        callbacks=[note],
        progress=False,
    )
    return found


def addresses(client: Client) -> list[str]:
    """The workers in order: the first holds the shard, the last is slowed."""
    return sorted(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.workers)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--portions", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--passes", type=int, default=6)
    options = parser.parse_args()
    rows = options.portions * ROWS_OF_A_PORTION
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        path = f"{folder}/store.zarr"
        data = xr.Dataset({"x": (("row", "one"), np.zeros((rows, 1), np.float32))})
        data["y"] = ("row", np.zeros(rows, np.float32))
        encoding = {"x": {"chunks": (400, 1)}, "y": {"chunks": (400,)}}
        data.to_zarr(path, consolidated=False, encoding=encoding)
        slow = addresses(client)[-1]
        process = client.run(os.getpid, workers=[slow])[slow]
        perfect = options.portions * options.seconds / SPEEDS
        print(f"{options.portions} portions of {options.seconds:g} s: perfect {perfect:.2f} s")
        choose_backup = gradient_pass.choose_backup
        for name, size, backups in [
            ("as it is", ROWS_OF_A_PORTION, True),
            ("without backups", ROWS_OF_A_PORTION, False),
            ("portions of 1/N", rows // 4, True),
            ("1/N, without backups", rows // 4, False),
        ]:
            gradient_pass.choose_backup = choose_backup if backups else lambda *_, **__: None
            with DutyCycle(process, 0.8):
                times = passes(client, path, options.seconds, size, options.passes)
            later = statistics.median(times[1:])
            print(
                f"  {name:22} first pass {times[0] / perfect:.2f}, later median "
                f"{later / perfect:.2f}, worst {max(times[1:]) / perfect:.2f} times perfect",
                flush=True,
            )
            if name == "as it is":
                assert max(times[0], later) <= BOUND * perfect, f"more than {BOUND} times perfect"
        gradient_pass.choose_backup = choose_backup


if __name__ == "__main__":
    main()
