"""Examples a second at `n_fetch = n_push = 1`: Downpour with two replicas, and what bounds it.

    python -m benchmarks.throughput [--net paper|small] [--rounds 5] [--epochs 5]

Contestants, with the same net, minibatches and update rule:

- `numpy`: gradients and updates in one process with two BLAS threads, on minibatches in memory;
- `limit`: two such processes of one thread, which share nothing: they only compute and update;
- `downpour`: two worker processes of one thread, by each transport that is asked for;
- `threads`: two workers in one process.

All have their turn in every round. Medians over rounds, ratios of a round to its own `limit`.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import dask
import numpy as np
import xarray as xr
from distributed import Client, LocalCluster
from threadpoolctl import threadpool_limits

import dbdask

NETS = {
    "paper": (440, [2560] * 4, 8192, 256, 24 * 256),
    "small": (784, [256], 10, 128, 60_000),
}


def make_network(name: str) -> dbdask.Network:
    inputs, hidden, outputs, _, _ = NETS[name]
    layers = [dbdask.Dense(units, "sigmoid") for units in hidden]
    return dbdask.Network(
        input_shape=(inputs,), layers=[*layers, dbdask.Dense(outputs)], loss="softmax"
    )


def make_store(name: str, path: str) -> None:
    inputs, _, outputs, _, rows = NETS[name]
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, size=(rows, inputs), dtype=np.uint8)
    labels = rng.integers(0, outputs, size=rows, dtype=np.int16)
    data = xr.Dataset({"x": (("row", "feature"), values), "label": ("row", labels)})
    data.chunk({"row": 1024}).to_zarr(path, consolidated=False)


def downpour_rate(client: Client, name: str, path: str, epochs: int) -> float:
    """Examples a second between the first report of each replica and the end."""
    examples = dbdask.Examples(path, inputs="x", targets="label", along="row")
    result = dbdask.downpour(
        make_network(name),
        examples,
        client=client,
        optimizer=dbdask.adagrad(0.001),
        batch_size=NETS[name][3],
        epochs=epochs,
        progress=False,
    )
    seconds, seen = result.history["seconds"].values, result.history["examples"].values
    first = min(2, len(seen) - 1)  # both replicas are at work
    return float((seen[-1] - seen[first]) / (seconds[-1] - seconds[first]))


def numpy_rate(name: str, steps: int, threads: int = 2) -> float:
    """Examples a second of gradients and updates in this process."""
    inputs, _, outputs, batch, _ = NETS[name]
    model = make_network(name)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, size=(batch, inputs)).astype(np.float32)
    labels = rng.integers(0, outputs, size=batch)
    parameters = model.initial_parameters(0, 0, model.parameter_count)
    gradient = np.empty_like(parameters)
    optimizer, slots = dbdask.adagrad(0.001), {"accumulator": np.zeros_like(parameters)}
    with threadpool_limits(threads):
        began = time.perf_counter()
        for step in range(steps):
            model.loss_and_gradient(parameters, values, labels, weights=None, gradient=gradient)
            gradient /= batch
            optimizer.update(parameters, gradient, slots, step)
        return steps * batch / (time.perf_counter() - began)


def limit_rate(name: str, steps: int) -> float:
    """Examples a second of two processes that only compute and update, each by itself."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(numpy_rate, [(name, 2, 1)] * 2, chunksize=1)  # imports and first touches
        return sum(pool.starmap(numpy_rate, [(name, steps, 1)] * 2, chunksize=1))


def cluster_rate(name: str, path: str, epochs: int, way: str, processes: bool) -> float:
    """Examples a second of Downpour on a cluster of its own."""
    with (
        dask.config.set({"dbdask.transport": way}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=processes, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        return downpour_rate(client, name, path, epochs)


def contestants(
    name: str, path: str, epochs: int, ways: list[str]
) -> dict[str, Callable[[], float]]:
    """Return what is measured, by name."""
    steps = max(6, epochs * NETS[name][4] // NETS[name][3] // 2)
    measured: dict[str, Callable[[], float]] = {
        "numpy": lambda: numpy_rate(name, steps),
        "limit": lambda: limit_rate(name, steps),
        "threads": lambda: cluster_rate(name, path, epochs, "auto", False),
    }
    for way in ways:
        measured[f"downpour, {way}"] = partial(cluster_rate, name, path, epochs, way, True)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--net", choices=sorted(NETS), default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="default: 5, 2 of the paper's net")
    parser.add_argument("--ways", nargs="*", default=["auto", "dask"])
    parser.add_argument("--json", help="write the rates there")
    options = parser.parse_args()
    epochs = options.epochs or (2 if options.net == "paper" else 5)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/store.zarr"
        make_store(options.net, path)
        for _ in range(options.rounds):
            for name, measure in contestants(options.net, path, epochs, options.ways).items():
                rates.setdefault(name, []).append(measure())
                print(f"{name}: {rates[name][-1]:,.0f}", flush=True)
    count = make_network(options.net).parameter_count
    print(
        f"{options.net} net, {count:,} parameters, batch {NETS[options.net][3]}, examples a "
        f"second; load {os.getloadavg()[0]:.1f}"
    )
    for name, values in rates.items():
        shown = ", ".join(f"{value:,.0f}" for value in values)
        ratio = statistics.median(v / of for v, of in zip(values, rates["limit"], strict=True))
        print(f"  {name:15} median {statistics.median(values):10,.0f}  {ratio:5.2f}   ({shown})")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rates, file, indent=1)


if __name__ == "__main__":
    main()
