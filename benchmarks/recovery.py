"""SIGKILL of a worker that holds a shard, in mid-training: how long until training goes on.

    python -m benchmarks.recovery [--rounds 20] [--workers 3]

With a checkpoint the run must go on to its end; without one it must raise ShardLost. After each
round every surviving worker runs a task, and nothing of the run is left on the cluster.
"""

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr
from distributed import Client, LocalCluster

import dbdask
from dbdask.worker.context import contexts_on

ROWS = 20_000


def make_store(path: str) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(ROWS, 64)).astype(np.float32)
    labels = (inputs @ rng.normal(size=(64, 10))).argmax(axis=1)
    data = xr.Dataset({"x": (("row", "feature"), inputs), "label": ("row", labels)})
    data.chunk({"row": 500}).to_zarr(path, consolidated=False)


class Killer:
    """A callback that kills a random holder of a shard after some records, and times the rest."""

    def __init__(self, client: Client, seed: int) -> None:
        self.client, self.random = client, random.Random(seed)
        self.records = self.random.randrange(4, 12)
        self.killed_at = self.recovered_at = 0.0

    def __call__(self, record: dbdask.Record) -> bool:
        self.records -= 1
        if self.records == 0:
            self.kill()
        if self.killed_at and record.lost and not self.recovered_at:
            self.recovered_at = time.perf_counter()
        return bool(self.recovered_at and time.perf_counter() > self.recovered_at + 0.5)

    def kill(self) -> None:
        holders = self.client.run_on_scheduler(
            lambda dask_scheduler: [a for a, w in dask_scheduler.workers.items() if w.actors]
        )
        victim = self.random.choice(sorted(holders))
        process = self.client.run(os.getpid, workers=[victim])[victim]
        os.kill(process, signal.SIGKILL)
        self.killed_at = time.perf_counter()


def assert_clean(client: Client) -> None:
    """Every worker runs a task; no task, actor or context of the run is left."""
    addresses = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.workers))
    futures = [client.submit(abs, n, workers=[a], pure=False) for n, a in enumerate(addresses)]
    assert [f.result(timeout=15) for f in futures] == list(range(len(addresses)))
    del futures
    time.sleep(0.2)
    left = client.run_on_scheduler(
        lambda dask_scheduler: (
            len(dask_scheduler.tasks) + sum(len(w.actors) for w in dask_scheduler.workers.values())
        )
    )
    assert not left, f"{left} tasks or actors are left"
    assert not any(client.run(contexts_on).values())


def one_round(seed: int, workers: int, store: str, checkpoint: str | None) -> float:
    """Seconds from the kill to the first record after the recovery, or to ShardLost."""
    model = dbdask.Network(
        input_shape=(64,), layers=[dbdask.Dense(128, "tanh"), dbdask.Dense(10)], loss="softmax"
    )
    examples = dbdask.Examples(store, inputs="x", targets="label", along="row")
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        killer = Killer(client, seed)
        try:
            result = dbdask.downpour(
                model,
                examples,
                client=client,
                epochs=10_000,
                shards=2,
                checkpoint=checkpoint,
                snapshot_every="1s",
                callbacks=[killer],
                progress=False,
            )
        except dbdask.ShardLost:
            assert checkpoint is None
            killer.recovered_at = time.perf_counter()
        else:
            assert checkpoint is not None and result.status.reason == "callback"
        assert_clean(client)
        return killer.recovered_at - killer.killed_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_store(str(folder / "store.zarr"))
        for what in ("recovered", "ShardLost"):
            seconds = []
            for seed in range(options.rounds):
                path = str(folder / f"run-{seed}.zarr") if what == "recovered" else None
                seconds.append(one_round(seed, options.workers, str(folder / "store.zarr"), path))
            print(
                f"{what}: {len(seconds)} of {options.rounds}, median "
                f"{statistics.median(seconds):.1f} s, worst {max(seconds):.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
