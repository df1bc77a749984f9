"""Examples a second: Downpour with two replicas, against the same net in one NumPy process.

    python -m benchmarks.throughput [--net paper|small] [--rounds 3]

The peer computes gradients and SGD steps in one process with two threads, on the same
minibatches in memory. Medians over rounds, alternating.
"""

import argparse
import statistics
import tempfile
import time

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


def numpy_rate(name: str, steps: int) -> float:
    """Examples a second of gradients and SGD steps in this process."""
    inputs, _, outputs, batch, _ = NETS[name]
    model = make_network(name)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, size=(batch, inputs)).astype(np.float32)
    labels = rng.integers(0, outputs, size=batch)
    parameters = model.initial_parameters(0, 0, model.parameter_count)
    gradient = np.empty_like(parameters)
    optimizer, slots = dbdask.adagrad(0.001), {"accumulator": np.zeros_like(parameters)}
    with threadpool_limits(2):
        began = time.perf_counter()
        for step in range(steps):
            model.loss_and_gradient(parameters, values, labels, weights=None, gradient=gradient)
            gradient /= batch
            optimizer.update(parameters, gradient, slots, step)
        return steps * batch / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--net", choices=sorted(NETS), default="small")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    epochs, steps = (2, 12) if options.net == "paper" else (5, 2000)
    rates: dict[str, list[float]] = {"numpy": [], "downpour": []}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/store.zarr"
        make_store(options.net, path)
        for _ in range(options.rounds):
            rates["numpy"].append(numpy_rate(options.net, steps))
            with (
                LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
                Client(cluster) as client,
            ):
                rates["downpour"].append(downpour_rate(client, options.net, path, epochs))
    count = make_network(options.net).parameter_count
    print(
        f"{options.net} net, {count:,} parameters, batch {NETS[options.net][3]}, examples a second"
    )
    for name, values in rates.items():
        shown = ", ".join(f"{value:,.0f}" for value in values)
        print(f"  {name:9} median {statistics.median(values):10,.0f}   ({shown})")
    ratios = [d / n for d, n in zip(rates["downpour"], rates["numpy"], strict=True)]
    print(f"  downpour / numpy: median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
