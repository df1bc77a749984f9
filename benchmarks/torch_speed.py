"""Examples a second of `TorchModel`, beside the same module in a loop of plain PyTorch.

    python -m benchmarks.torch_speed [--net cnn|speech-small|speech] [--rounds 5] [--threads 1]

Contestants, with the same module, minibatches of one size, and stochastic gradient descent:

- `plain`: a loop of PyTorch in a process of its own, on tensors in memory;
- `model`: `TorchModel.loss_and_gradient` alone, on the same tensors;
- `one`: Downpour with one replica in a worker process, from a Zarr store;
- `two`: Downpour with two replicas in two worker processes.

All have their turn in every round. Each has `--threads` threads, and `two` as many for each
replica. Medians over rounds are printed, and medians of the ratios of a round: by the clock, and by
the processor seconds of the processes that compute, which other programs disturb less.
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
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import psutil
import torch
import xarray as xr
from distributed import Client, LocalCluster
from torch import nn

import dbdask
from dbdask.torch import TorchModel
from dbdask.worker.blas_limit import blas_limit

RATE = 0.001


class Speed(NamedTuple):
    """Examples a second, by the clock and by the processor seconds that were used."""

    clock: float
    processor: float


@dataclass(frozen=True)
class Net:
    """A module, and the data that it is trained on."""

    shape: tuple[int, ...]
    classes: int
    batch: int
    rows: int
    widths: tuple[int, ...] = ()
    device: str = "cpu"

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
    "cnn": Net((28, 28), 10, 128, 6_400),
    "speech-small": Net((440,), 1024, 256, 10_240, (512,) * 4),
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


def plain_speed(net: Net, epochs: int, threads: int) -> Speed:
    """Return the speed of the loop that a person writes."""
    torch.set_num_threads(threads)
    module = net.module().to(net.device)
    inputs, labels = (torch.from_numpy(array).to(net.device) for array in arrays(net))
    rule = torch.optim.SGD(module.parameters(), lr=RATE)

    def epoch() -> None:
        for rows in torch.randperm(net.rows).split(net.batch):
            rule.zero_grad()
            nn.functional.cross_entropy(module(inputs[rows]), labels[rows]).backward()
            rule.step()
        if net.device != "cpu":
            torch.cuda.synchronize(net.device)

    return timed(epoch, net, epochs)


def model_speed(net: Net, epochs: int, threads: int) -> Speed:
    """Return the speed of the model alone, with the update in the same process."""
    model = TorchModel(net.module(), "softmax", device=net.device)
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


def timed(epoch: Callable[[], None], net: Net, epochs: int) -> Speed:
    """Return the speed of some epochs, after a first one that is not counted."""
    epoch()
    began, used = time.perf_counter(), time.process_time()
    for _ in range(epochs):
        epoch()
    count = epochs * net.rows
    return Speed(count / (time.perf_counter() - began), count / (time.process_time() - used))


def alone(function: Callable[[Net, int, int], Speed], *given: object) -> Speed:
    """Return the result of a function in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *given).result()


def processor_seconds() -> float:
    """Return the processor seconds that this process has used."""
    times = psutil.Process().cpu_times()
    return times.user + times.system


def downpour_speed(net: Net, path: str, epochs: int, threads: int, replicas: int) -> Speed:
    """Return the speed of Downpour, in a second run on workers that have imported everything."""
    with (
        LocalCluster(
            n_workers=replicas, threads_per_worker=threads, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        train(client, net, path, 1, replicas)
        used = sum(client.run(processor_seconds).values())
        history = train(client, net, path, epochs, replicas).history
        used = sum(client.run(processor_seconds).values()) - used
    seconds, seen = history["seconds"].values, history["examples"].values
    first = min(replicas, len(seen) - 2)  # every replica is at work
    clock = (seen[-1] - seen[first]) / (seconds[-1] - seconds[first])
    return Speed(float(clock), float(seen[-1]) / used)


def train(client: Client, net: Net, path: str, epochs: int, replicas: int) -> dbdask.Result:
    """Train the net in Downpour."""
    return dbdask.downpour(
        TorchModel(net.module(), "softmax", device=net.device),
        dbdask.Examples(path, inputs="x", targets="label", along="row"),
        client=client,
        optimizer=dbdask.sgd(RATE),
        batch_size=net.batch,
        epochs=epochs,
        replicas=replicas,
        progress=False,
    )


def measure(net: Net, rounds: int, epochs: int, threads: int) -> dict[str, list[Speed]]:
    """Return the speeds of every contestant, one a round."""
    speeds: dict[str, list[Speed]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/store.zarr"
        make_store(net, path)
        contestants: dict[str, Callable[[], Speed]] = {
            "plain": partial(alone, plain_speed, net, epochs, threads),
            "model": partial(alone, model_speed, net, epochs, threads),
            "one": partial(downpour_speed, net, path, epochs, threads, 1),
            "two": partial(downpour_speed, net, path, epochs, threads, 2),
        }
        for _ in range(rounds):
            for contestant, speed in contestants.items():
                speeds.setdefault(contestant, []).append(speed())
                print(f"{contestant}: {speeds[contestant][-1].clock:,.0f}", flush=True)
    return speeds


def ratio(over: list[float], under: list[float]) -> float:
    """Return the median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def main(arguments: list[str] | None = None) -> None:
    """Print the speeds and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=NETS, default="cnn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3, help="that are timed, in each round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, help="examples of an epoch; default: the net's own")
    parser.add_argument("--device", default="cpu", help='of the modules, such as "cuda"')
    parser.add_argument("--json", help="write the speeds there")
    options = parser.parse_args(arguments)
    net = NETS[options.net]
    net = replace(net, rows=options.rows or net.rows, device=options.device)
    speeds = measure(net, options.rounds, options.epochs, options.threads)
    count = TorchModel(net.module(), "softmax").parameter_count
    print(
        f"{options.net}, {count:,} parameters, batch {net.batch}, "
        f"{options.threads} threads, examples a second; load {os.getloadavg()[0]:.1f}"
    )
    for name, values in speeds.items():
        clock, processor = (statistics.median(values) for values in zip(*values, strict=True))
        print(f"  {name:6} {clock:9,.0f} by the clock, {processor:9,.0f} by processor seconds")
    for name, base in (("model", "plain"), ("one", "plain"), ("two", "one")):
        over, under = (list(zip(*speeds[key], strict=True)) for key in (name, base))
        clock, processor = (ratio(*pair) for pair in zip(over, under, strict=True))
        print(f"  {name} / {base}: {clock:.2f} by the clock, {processor:.2f} by processor seconds")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(speeds, file, indent=1)


if __name__ == "__main__":
    main()
