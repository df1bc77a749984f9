"""Examples a second of `TorchModel`, beside the same module in a loop of plain PyTorch.

    python -m benchmarks.torch_speed [--net cnn|speech-small|speech] [--rounds 5] [--threads 1]

Contestants, with the same module, minibatches of one size, and stochastic gradient descent:

- `plain`: a loop of PyTorch in a process of its own, on tensors in memory;
- `model`: `TorchModel.loss_and_gradient` alone, on the same tensors;
- `one`: Downpour with one replica in a worker process, from a Zarr store;
- `two`: Downpour with two replicas in two worker processes.

All have their turn in every round. Each has `--threads` threads, and `two` as many for each
replica. Medians over rounds are printed, and medians of the ratios of a round.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import xarray as xr
from distributed import Client, LocalCluster
from torch import nn

import dbdask
from dbdask.torch import TorchModel
from dbdask.worker.blas_limit import blas_limit

RATE = 0.001


@dataclass(frozen=True)
class Net:
    """A module, and the data that it is trained on."""

    shape: tuple[int, ...]
    classes: int
    batch: int
    rows: int
    widths: tuple[int, ...] = ()

    def module(self) -> nn.Module:
        """Return the module: dense with these widths, or a small convolutional one."""
        torch.manual_seed(0)
        if not self.widths:
            return convolutional(self.classes)
        layers: list[nn.Module] = []
        below = self.shape[0]
        for width in self.widths:
            layers += [nn.Linear(below, width), nn.Sigmoid()]
            below = width
        return nn.Sequential(*layers, nn.Linear(below, self.classes))


NETS = {
    "cnn": Net((28, 28), 10, 128, 12_800),
    "speech-small": Net((440,), 1024, 256, 25_600, (512,) * 4),
    "speech": Net((440,), 8192, 256, 24 * 256, (2560,) * 4),
}


def convolutional(classes: int) -> nn.Module:
    """Return a small network for images of 28 by 28, with 105,866 parameters for 10 classes."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def arrays(net: Net) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 inputs, and labels."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(net.rows, *net.shape)).astype(np.float32)
    return inputs, rng.integers(0, net.classes, net.rows)


def make_store(net: Net, path: str) -> None:
    inputs, labels = arrays(net)
    dims = ("row", *(f"axis_{n}" for n in range(len(net.shape))))
    data = xr.Dataset({"x": (dims, inputs), "label": ("row", labels)})
    data.chunk({"row": 1024}).to_zarr(path, consolidated=False)


def plain_rate(name: str, epochs: int, threads: int) -> float:
    """Examples a second of the loop that a person writes."""
    net = NETS[name]
    torch.set_num_threads(threads)
    module = net.module()
    inputs, labels = (torch.from_numpy(array) for array in arrays(net))
    rule = torch.optim.SGD(module.parameters(), lr=RATE)

    def epoch() -> None:
        for rows in torch.randperm(net.rows).split(net.batch):
            rule.zero_grad()
            nn.functional.cross_entropy(module(inputs[rows]), labels[rows]).backward()
            rule.step()

    return timed(epoch, net, epochs)


def model_rate(name: str, epochs: int, threads: int) -> float:
    """Examples a second of the model alone, with the update in the same process."""
    net = NETS[name]
    model = TorchModel(net.module(), "softmax")
    inputs, labels = arrays(net)
    parameters = model.starting_parameters()
    gradient, rng = np.empty_like(parameters), np.random.default_rng(0)

    def epoch() -> None:
        order = rng.permutation(net.rows)
        for start in range(0, net.rows, net.batch):
            rows = order[start : start + net.batch]
            model.loss_and_gradient(parameters, inputs[rows], labels[rows], gradient=gradient)
            gradient[:] *= np.float32(RATE / len(rows))
            np.subtract(parameters, gradient, out=parameters)

    with blas_limit.at_most(threads):
        return timed(epoch, net, epochs)


def timed(epoch: Callable[[], None], net: Net, epochs: int) -> float:
    """Return examples a second of some epochs, after a first one that is not counted."""
    epoch()
    began = time.perf_counter()
    for _ in range(epochs):
        epoch()
    return epochs * net.rows / (time.perf_counter() - began)


def alone(function: Callable[[str, int, int], float], *given: object) -> float:
    """Return the result of a function in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *given).result()


def downpour_rate(name: str, path: str, epochs: int, threads: int, replicas: int) -> float:
    """Examples a second of Downpour between the first reports and the end."""
    net = NETS[name]
    with (
        LocalCluster(
            n_workers=replicas, threads_per_worker=threads, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        result = dbdask.downpour(
            TorchModel(net.module(), "softmax"),
            dbdask.Examples(path, inputs="x", targets="label", along="row"),
            client=client,
            optimizer=dbdask.sgd(RATE),
            batch_size=net.batch,
            epochs=epochs + 1,
            replicas=replicas,
            progress=False,
        )
    seconds, seen = result.history["seconds"].values, result.history["examples"].values
    first = min(replicas, len(seen) - 2)  # every replica is at work
    return float((seen[-1] - seen[first]) / (seconds[-1] - seconds[first]))


def measure(name: str, rounds: int, epochs: int, threads: int) -> dict[str, list[float]]:
    """Return the rates of every contestant, one a round."""
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/store.zarr"
        make_store(NETS[name], path)
        contestants: dict[str, Callable[[], float]] = {
            "plain": partial(alone, plain_rate, name, epochs, threads),
            "model": partial(alone, model_rate, name, epochs, threads),
            "one": partial(downpour_rate, name, path, epochs, threads, 1),
            "two": partial(downpour_rate, name, path, epochs, threads, 2),
        }
        for _ in range(rounds):
            for contestant, rate in contestants.items():
                rates.setdefault(contestant, []).append(rate())
    return rates


def main(arguments: list[str] | None = None) -> None:
    """Print the rates and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=NETS, default="cnn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4, help="that are timed, in each round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the rates there")
    options = parser.parse_args(arguments)
    rates = measure(options.net, options.rounds, options.epochs, options.threads)
    count = TorchModel(NETS[options.net].module(), "softmax").parameter_count
    print(
        f"{options.net}, {count:,} parameters, batch {NETS[options.net].batch}, "
        f"{options.threads} threads, examples a second; load {os.getloadavg()[0]:.1f}"
    )
    for name, values in rates.items():
        shown = ", ".join(f"{value:,.0f}" for value in values)
        print(f"  {name:6} median {statistics.median(values):9,.0f}   ({shown})")
    for name, base in (("model", "plain"), ("one", "plain"), ("two", "one")):
        ratio = statistics.median(a / b for a, b in zip(rates[name], rates[base], strict=True))
        print(f"  {name} / {base}: {ratio:.2f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rates, file, indent=1)


if __name__ == "__main__":
    main()
