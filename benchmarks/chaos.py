"""Random workers killed for minutes: does training end where it ends undisturbed, and exactly?

    python -m benchmarks.chaos [--transport auto] [--partitions 1] [--epochs 34] [--pace 0.1]

Four workers, a snapshot every 2 s; every 5 to 10 s (10 to 20 s with partitions) the process of a
random worker is killed, and its nanny starts another one. The model is a softmax regression on
labels that no model can predict, run to its plateau, and beside it counts how often each example
was applied, once for each of two shards. It runs undisturbed five times (without the pause `--pace`
of each minibatch, which changes no number), then disturbed with a checkpoint, then disturbed with
`shard_copies=2`. Each line of the result is checked: the program fails where one does not hold, and
ends a run that takes more than 15 minutes.

`--transport` is `dbdask.transport` of every process. With "in-process" a replica calls the shards
of its own worker directly, and the others over Dask's connections.

With `--partitions 2` the model is the same regression as a network that is cut over gangs of two
workers; each part counts for itself.
"""

import argparse
import faulthandler
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from itertools import pairwise

import dask
import numpy as np
import xarray as xr
from distributed import Client, LocalCluster

import dbdask
from benchmarks._chaos_models import (
    CountingRows,
    CountingSoftmax,
    Reversing,
    Sleep,
    missing_updates,
)
from dbdask.rpc.transport import WAYS

ROWS, FEATURES, CLASSES, BATCH, WORKERS = 20_000, 32, 10, 100, 4
RATE = 0.5
SNAPSHOT_SECONDS = 2.0
CONFIG = {
    # LocalCluster closes the nanny of a worker that is away 15 s after it was lost, though it may
    # have come back and been killed again.
    "distributed.deploy.lost-worker-timeout": "1h",
    # Every start of a worker is a new interpreter, which takes long on a busy machine.
    "dbdask.arrival": "40s",
}
LONGEST_WAIT = 30.0
LEAST_SECONDS = 180.0
HANGS = 900.0  # seconds of a run
EPOCHS = {1: 34, 2: 17}  # by partitions: four replicas, or two
# Seconds between kills. Every second kill hits a gang, which must make a step before the next:
# three recoveries in a row without one end a run.
PAUSES = {1: (5.0, 10.0), 2: (10.0, 20.0)}


def model_of(partitions: int, pace: float) -> dbdask.Model:
    """Return the regression with its counts; each minibatch takes so many seconds more."""
    if partitions == 1:
        return CountingSoftmax(FEATURES, CLASSES, ROWS, RATE, Sleep(pace))
    layers = [CountingRows(2, ROWS, RATE), dbdask.Dense(CLASSES), Reversing(Sleep(pace))]
    return dbdask.Network(input_shape=(FEATURES + 1,), layers=layers, loss="softmax")


def make_store(path: str) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    noise = rng.gumbel(size=(ROWS, CLASSES))
    labels = (inputs @ rng.normal(size=(FEATURES, CLASSES)) / 3 + noise).argmax(axis=1)
    rows = np.arange(ROWS, dtype=np.float32)[:, None]
    data = xr.Dataset(
        {
            "x": (("row", "feature"), np.concatenate([inputs, rows], axis=1)),
            "label": ("row", labels.astype(np.int32)),
        }
    )
    data.chunk({"row": 400}).to_zarr(path, consolidated=False)


class Killer(threading.Thread):
    """Kills random workers until it is told to end; a callback takes the time.

    Parameters
    ----------
    client
        The Dask client.
    seed
        Decides when and whom.
    pauses
        The least and the most seconds from one kill to the next.
    """

    def __init__(self, client: Client, seed: int, pauses: tuple[float, float]) -> None:
        super().__init__(daemon=True)
        self.client, self.random, self.pauses = client, random.Random(seed), pauses
        self.over = threading.Event()
        self.kills: list[tuple[float, bool]] = []  # when, and whether it held a shard
        self.seen: list[tuple[float, int]] = []  # when a record came, and shards lost by then
        self.marks: list[float] = []  # when the algorithm was called, and when it returned

    def run(self) -> None:
        while not self.over.wait(self.random.uniform(*self.pauses)):
            try:
                self.kill()
            except Exception as error:  # the worker that was chosen is gone already
                print(f"no kill: {error!r}", flush=True)

    def kill(self) -> None:
        workers = self.client.run_on_scheduler(
            lambda dask_scheduler: {a: bool(w.actors) for a, w in dask_scheduler.workers.items()}
        )
        victim = self.random.choice(sorted(workers))
        process = self.client.run(os.getpid, workers=[victim])[victim]
        os.kill(process, signal.SIGKILL)
        self.kills.append((time.monotonic(), workers[victim]))

    def __call__(self, record: dbdask.Record) -> None:
        self.seen.append((time.monotonic(), record.lost))

    @property
    def recoveries(self) -> list[float]:
        """Seconds from a kill that cost a shard to the first record after the recovery.

        Of several kills between two records the first counts, and none that was counted before.
        """
        found, counted = [], 0.0
        for (_, before), (when, lost) in pairwise(self.seen):
            killed = [at for at, held in self.kills if held and counted < at < when]
            if lost > before and killed:
                found.append(when - killed[0])
                counted = killed[-1]
        return found

    def mark(self) -> None:
        """The algorithm is called now, or has returned."""
        self.marks.append(time.monotonic())

    @property
    def longest_wait(self) -> float:
        """The longest time without a record, from the call on to the return."""
        return max(b - a for a, b in pairwise(sorted(self.marks + [at for at, _ in self.seen])))


def train(client: Client, store: str, options: argparse.Namespace, pace: float, **more):
    examples = dbdask.Examples(store, inputs="x", targets="label", along="row")
    faulthandler.dump_traceback_later(HANGS, exit=True)
    result = dbdask.downpour(
        model_of(options.partitions, pace),
        examples,
        client=client,
        optimizer=dbdask.sgd(RATE),
        batch_size=BATCH,
        epochs=options.epochs,
        partitions=options.partitions,
        shards=2,
        progress=False,
        **more,
    )
    faulthandler.cancel_dump_traceback_later()
    for killer in more.get("callbacks", ()):
        killer.mark()
    assert result.status.reason == "epochs", result.status
    return result, result.evaluate(examples)["loss"]


def disturbed(store: str, options: argparse.Namespace, what: str, **more) -> float:
    """Train while workers are killed; returns the final loss."""
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        killer = Killer(client, options.seed, PAUSES[options.partitions])
        killer.start()
        began = time.monotonic()
        killer.mark()
        result, loss = train(client, store, options, options.pace, callbacks=[killer], **more)
        seconds = time.monotonic() - began
        killer.over.set()
        killer.join(30)
        report(what, result, loss, killer, seconds, options)
    return loss


def report(
    what: str,
    result: dbdask.Result,
    loss: float,
    killer: Killer,
    seconds: float,
    options: argparse.Namespace,
) -> None:
    last = result.history.isel(record=-1)
    rolled_back = int(last["rolled_back"])
    missing = missing_updates(result, options.epochs, BATCH)
    recoveries = killer.recoveries or [float("nan")]
    speed = options.epochs * ROWS / BATCH / seconds
    print(
        f"{what}: {seconds:.0f} s, loss {loss:.5f}, {len(killer.kills)} kills, "
        f"{sum(held for _, held in killer.kills)} of them of a worker with a shard, "
        f"{int(last['lost'])} shards lost, {len(killer.recoveries)} recoveries of "
        f"{statistics.median(recoveries):.1f} s (median) and {max(recoveries):.1f} s (worst), "
        f"longest time without a record {killer.longest_wait:.1f} s, {rolled_back} updates rolled "
        f"back ({rolled_back / speed:.1f} s of training), {missing} missing from the counts",
        flush=True,
    )
    assert missing == rolled_back, "the history does not say what was lost"
    assert killer.longest_wait < LONGEST_WAIT
    assert seconds >= LEAST_SECONDS, f"only {seconds:.0f} s: give more --epochs"
    assert rolled_back <= len(killer.kills) * SNAPSHOT_SECONDS * speed
    if "shard_copies" in last:
        assert rolled_back == 0, "an acknowledged update was lost"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--transport", choices=("auto", *WAYS), default="auto")
    parser.add_argument("--partitions", type=int, choices=EPOCHS, default=1)
    parser.add_argument("--epochs", type=int, help="default: 34, or 17 with partitions")
    parser.add_argument("--pace", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.epochs = options.epochs or EPOCHS[options.partitions]
    dask.config.set(CONFIG | {"dbdask.transport": options.transport})
    print(f"transport {options.transport}, partitions {options.partitions}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store.zarr"
        make_store(store)
        with (
            LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as local,
            Client(local) as client,
        ):
            losses = [train(client, store, options, 0.0)[1] for _ in range(5)]
        middle, spread = statistics.median(losses), max(losses) - min(losses)
        allowed = max(0.02 * middle, 3 * spread)
        print(
            f"undisturbed, five times: loss {middle:.5f} (median), spread {spread:.5f}", flush=True
        )
        against = {
            "with a checkpoint": {
                "checkpoint": f"{folder}/run.zarr",
                "snapshot_every": SNAPSHOT_SECONDS,
            },
            "with shard_copies=2": {"shard_copies": 2},
        }
        for what, more in against.items():
            loss = disturbed(store, options, what, **more)
            print(f"{what}: loss off by {abs(loss - middle):.5f}, allowed {allowed:.5f}")
            assert abs(loss - middle) <= allowed


if __name__ == "__main__":
    main()
