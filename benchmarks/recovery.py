"""SIGKILL of a worker in mid-training: how long until training goes on.

    python -m benchmarks.recovery [--rounds 20] [--workers 3] [--partitions 1 2]

Without partitions the worker holds a shard. With a checkpoint the run must go on to its end;
without one it must raise ShardLost. With partitions there is one gang, and it loses a member: one
that holds a shard, then one that holds none, which needs no checkpoint. What is timed is then the
next step that counts: the report of a gang that was formed after the kill.

After each round every surviving worker runs a task, and nothing of the run is left on the cluster.
The program fails if that takes more than 30 s, and ends a round that takes more than `--limit`.
"""

import argparse
import faulthandler
import math
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client, LocalCluster

import dbdask
from dbdask.run.gangs import Gangs
from dbdask.worker.context import contexts_on

ROWS = 20_000
BOUND = 30.0  # seconds from a kill


@dataclass(frozen=True)
class Case:
    """Who is killed, and what a run is given against it."""

    name: str
    partitions: int = 1
    holds: bool = True  # the victim holds a shard
    checkpoint: bool = True


def cases(partitions: int) -> list[Case]:
    """Return what is measured with so many partitions."""
    if partitions == 1:
        return [Case("recovered"), Case("ShardLost", checkpoint=False)]
    member = f"partitions={partitions}, a member"
    return [
        Case(f"{member} with a shard", partitions),
        Case(f"{member} without a shard", partitions, holds=False, checkpoint=False),
    ]


def make_store(path: str) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(ROWS, 64)).astype(np.float32)
    labels = (inputs @ rng.normal(size=(64, 10))).argmax(axis=1)
    data = xr.Dataset({"x": (("row", "feature"), inputs), "label": ("row", labels)})
    data.chunk({"row": 500}).to_zarr(path, consolidated=False)


class GangWatch:
    """Notes when a gang is first given work: by `time.monotonic`, by the gang's number."""

    def __init__(self) -> None:
        self.began: dict[int | None, float] = {}

    def __enter__(self) -> "GangWatch":
        self.before = next_attempt = Gangs.next_attempt

        def noted(gangs: Gangs, place: str) -> Any:
            self.began.setdefault(gangs.number_of(place), time.monotonic())
            return next_attempt(gangs, place)

        Gangs.next_attempt = noted  # type: ignore[method-assign]
        return self

    def __exit__(self, *exception: object) -> None:
        Gangs.next_attempt = self.before  # type: ignore[method-assign]


class Killer:
    """A callback that kills a random worker after some records, and times the rest.

    Parameters
    ----------
    client
        Of the cluster.
    seed
        Of the draws.
    case
        Says who is killed.
    gangs
        Notes the gangs of the run.
    """

    def __init__(self, client: Client, seed: int, case: Case, gangs: GangWatch) -> None:
        self.client, self.random = client, random.Random(seed)
        self.case, self.gangs = case, gangs
        self.records = self.random.randrange(4, 12)
        self.step = 0  # when it kills
        self.began = self.killed_at = self.recovered_at = 0.0  # by time.monotonic; 0: not yet

    def __call__(self, record: dbdask.Record) -> bool:
        self.records -= 1
        if self.records == 0:
            self.began, self.step = time.monotonic() - record.seconds, record.step
            self.kill()
        elif self.killed_at and not self.recovered_at and self.counts(record):
            self.recovered_at = self.began + record.seconds
        return bool(self.recovered_at) and time.monotonic() > self.recovered_at + 0.5

    def counts(self, record: dbdask.Record) -> bool:
        """Return whether a record shows that training goes on after the kill.

        The members that are left may still report steps that they made before it.
        """
        made_at = self.began + record.seconds
        begun = [at for at in self.gangs.began.values() if self.killed_at < at < made_at]
        is_new = bool(begun) or self.case.partitions == 1
        return is_new and record.step > self.step and bool(record.lost or not self.case.holds)

    def kill(self) -> None:
        """Kill a worker that has a portion to work on, and holds a shard or not."""
        victim = self.random.choice(self.victims())
        process = self.client.run(os.getpid, workers=[victim])[victim]
        os.kill(process, signal.SIGKILL)
        self.killed_at = time.monotonic()

    def victims(self) -> list[str]:
        """Return the workers of whom one is to be killed, sorted; there is at least one."""
        until = time.monotonic() + BOUND
        while time.monotonic() < until:
            if found := self.client.run_on_scheduler(with_work, holds=self.case.holds):
                return sorted(found)
            time.sleep(0.01)  # between two portions
        raise AssertionError("no worker has a portion to work on")


def with_work(dask_scheduler: Any, holds: bool) -> list[str]:
    """On the scheduler: return the workers with portions to work on that hold a shard, or none."""
    return [
        address
        for address, worker in dask_scheduler.workers.items()
        if bool(worker.actors) == holds
        and any(str(task.key).startswith("dbdask-portion") for task in worker.processing)
    ]


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


def one_round(seed: int, workers: int, store: str, case: Case, checkpoint: str | None) -> float:
    """Return the seconds from the kill until training goes on, or until ShardLost is raised."""
    model = dbdask.Network(
        input_shape=(64,), layers=[dbdask.Dense(128, "tanh"), dbdask.Dense(10)], loss="softmax"
    )
    examples = dbdask.Examples(store, inputs="x", targets="label", along="row")
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        GangWatch() as gangs,
    ):
        killer = Killer(client, seed, case, gangs)
        try:
            result = dbdask.downpour(
                model,
                examples,
                client=client,
                epochs=10_000,
                replicas=None if case.partitions == 1 else 1,
                partitions=case.partitions,
                shards=2 if case.partitions == 1 else case.partitions,
                shard_workers=None if case.holds else ["0"],
                checkpoint=checkpoint,
                snapshot_every="1s",
                callbacks=[killer],
                progress=False,
            )
        except dbdask.ShardLost:
            assert case.holds and checkpoint is None
            killer.recovered_at = time.monotonic()
        else:
            assert result.status.reason == "callback" and killer.recovered_at
            assert checkpoint is not None or not case.holds
        assert_clean(client)
        return killer.recovered_at - killer.killed_at


def measured(case: Case, options: argparse.Namespace, folder: Path) -> list[float]:
    """Return the seconds of each round."""
    found = []
    for seed in range(options.rounds):
        path = str(folder / f"{case.partitions}-{seed}.zarr") if case.checkpoint else None
        faulthandler.dump_traceback_later(options.limit, exit=True)
        workers = max(options.workers, case.partitions + 1)
        found.append(one_round(seed, workers, str(folder / "store.zarr"), case, path))
        faulthandler.cancel_dump_traceback_later()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each case; fail if a round of any has taken too long."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=3, help="more where the partitions need it")
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--limit",
        type=float,
        default=300.0,
        help="seconds of a round, the cluster's start included",
    )
    options = parser.parse_args(arguments)
    worst = -math.inf
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_store(str(folder / "store.zarr"))
        for case in (case for partitions in options.partitions for case in cases(partitions)):
            seconds = measured(case, options, folder)
            worst = max(worst, *seconds)
            print(
                f"{case.name}: {len(seconds)} of {options.rounds}, median "
                f"{statistics.median(seconds):.1f} s, worst {max(seconds):.1f} s",
                flush=True,
            )
    assert worst <= BOUND, f"{worst:.1f} s are more than {BOUND:g} s"


if __name__ == "__main__":
    main()
