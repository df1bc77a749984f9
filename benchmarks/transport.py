"""Bytes a second between a replica and a shard, by transport and size, against a memory copy.

    python -m benchmarks.transport [--sizes 1e4 2e5 2e6 2e7] [--rounds 5]

A shard of `size` float32 numbers lives on one worker, the caller on another. A round fetches the
parameters and pushes a gradient, which the shard takes for its parameters, some times over; every
transport has its turn in every round, and medians over rounds are shown. A memory copy reads and
writes as many bytes within one process.
"""

import time
from collections.abc import Sequence
from typing import Any

import dask
import numpy as np
from distributed import get_worker

from benchmarks._clusters import cluster_of
from benchmarks._figures import Results
from benchmarks._side_by_side import Report, parser
from dbdask.rpc.calls import ActorPlace
from dbdask.rpc.shared_memory import shared_vector
from dbdask.schedule.ledger import Ledger
from dbdask.worker.link import ServerHandle, ServerLink, ShardPlace
from dbdask.worker.routes import Calls, WorkerRoutes
from dbdask.worker.shard import ParameterShard
from dbdask.worker.shard_state import ShardState

SECONDS = 0.2  # of a round of one transport


class Take:
    """An update rule that moves as many bytes as a copy."""

    slots = ()

    def update(
        self, parameters: np.ndarray, gradient: np.ndarray, slots: dict[str, np.ndarray], step: int
    ) -> None:
        np.copyto(parameters, gradient)


def zeros(start: int, stop: int, optimizer: Take) -> ShardState:
    """Return a shard's first state."""
    return ShardState({"parameters": np.zeros(stop - start, np.float32)}, 0, Ledger())


def bytes_a_second(act: Any, nbytes: int) -> float:
    """Repeat an act that moves `nbytes` for a while."""
    act()
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS or times < 3:
        act()
        times += 1
    return times * nbytes / (time.perf_counter() - began)


def measure(worker: str, key: str, size: int, ways: list[str], rounds: int) -> dict[str, Any]:
    """On the caller's worker: measure each way in each round."""
    place = ActorPlace(worker, key)
    handle = ServerHandle("benchmark", 0, size, (ShardPlace(0, size, (place,)),))
    gradient, local = shared_vector(size), shared_vector(size)
    gradient[:], local[:] = 0, 0
    step = 0
    links = {}
    for way in ways:
        calls = Calls()
        with dask.config.set({"dbdask.transport": way}):
            routes = WorkerRoutes(get_worker(), calls)
            routes.transport(place, 0)
            links[way] = ServerLink(handle, routes, calls)
    rates: dict[str, Any] = {
        name: [] for name in ("copy", *(f"{w} {d}" for w in ways for d in "fp"))
    }

    for _ in range(rounds):
        rates["copy"].append(bytes_a_second(lambda: np.copyto(local, gradient), 4 * size))
        for way, link in links.items():

            def fetch(link: ServerLink = link) -> None:
                link.wait(link.start_fetch(local))

            def push(link: ServerLink = link) -> None:
                nonlocal step
                step += 1
                link.wait(link.start_push((0, 0, step), gradient, [0]))

            rates[f"{way} f"].append(bytes_a_second(fetch, 4 * size))
            rates[f"{way} p"].append(bytes_a_second(push, 4 * size))
    routes.end_generation(0)
    return rates


def measured(size: int, processes: bool, ways: list[str], rounds: int) -> dict[str, list[float]]:
    """Measure on a cluster of two workers."""
    with cluster_of(2, processes=processes) as client:
        shard, caller = sorted(client.scheduler_info(n_workers=-1)["workers"])
        actor = client.submit(
            ParameterShard, 0, size, Take(), 0, zeros, actor=True, workers=[shard], key="shard"
        )
        actor.result()
        arguments = (shard, "shard", size, ways, rounds)
        rates: dict[str, list[float]] = client.submit(
            measure, *arguments, workers=[caller], pure=False
        ).result()
        return rates


def results_of(size: int, rounds: int) -> Results:
    """Return GB/s of a memory copy and of each transport, by what is measured."""
    near = measured(size, False, ["in-process"], rounds)
    far = measured(size, True, ["same-host", "dask"], rounds)
    found = {"memory copy": far["copy"]}
    for rates, way in ((near, "in-process"), (far, "same-host"), (far, "dask")):
        for letter, act in (("f", "fetch"), ("p", "push")):
            found[f"{way}, {act}"] = rates[f"{way} {letter}"]
    return {name: [{"GB/s": rate / 1e9} for rate in rates] for name, rates in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each size."""
    found = parser(__doc__, chooses=False)
    found.add_argument("--sizes", type=float, nargs="+", default=[1e4, 2e5, 2e6, 2e7])
    options = found.parse_args(arguments)
    report = Report("transport", options)
    for size in map(int, options.sizes):
        title = f"{size:,} float32, {4 * size / 1e6:.2f} MB"
        report.add(title, results_of(size, options.rounds), "memory copy")


if __name__ == "__main__":
    main()
