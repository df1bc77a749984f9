"""Examples a second of `TorchModel`, beside the same module in a loop of plain PyTorch.

    python -m benchmarks.torch_speed [--nets cnn speech] [--rounds 5] [--threads 1]

Contestants, with the same module, minibatches of one size, and stochastic gradient descent:

- `plain torch`: a loop of PyTorch in a process of its own, on tensors in memory;
- `model`: `TorchModel.loss_and_gradient` alone, on the same tensors;
- `1 replica`: Downpour with one replica in a worker process, from a Zarr store;
- `2 replicas`: Downpour with two replicas in two worker processes.

Each has `--threads` threads, and `2 replicas` as many for each replica. Rates are by the clock,
and by the processor seconds of the processes that compute, which other programs disturb less.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import psutil
import torch
import xarray as xr
from distributed import Client
from torch import nn

import dbdask
from benchmarks._clusters import cluster_of
from benchmarks._figures import Figures
from benchmarks._processes import alone
from benchmarks._ratios import Pair
from benchmarks._side_by_side import Contestant, Report, parser
from dbdask.torch import TorchModel
from dbdask.worker.blas_limit import blas_limit

RATE = 0.001
PLAIN, MODEL, ONE, TWO = "plain torch", "model", "1 replica", "2 replicas"
CLOCK, PROCESSOR = "examples/s", "examples/processor s"
PAIRS = (
    Pair(ONE, PLAIN, 0.9),
    Pair(TWO, ONE, 1.6),
    Pair(MODEL, PLAIN),
    *(Pair(*sides, figure=PROCESSOR) for sides in ((ONE, PLAIN), (TWO, ONE), (MODEL, PLAIN))),
)


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


def plain_speed(number: int, net: Net, epochs: int, threads: int) -> Figures:
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


def model_speed(number: int, net: Net, epochs: int, threads: int) -> Figures:
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


def timed(epoch: Callable[[], None], net: Net, epochs: int) -> Figures:
    """Return the speed of some epochs, after a first one that is not counted."""
    epoch()
    began, used = time.perf_counter(), time.process_time()
    for _ in range(epochs):
        epoch()
    count = epochs * net.rows
    clock, processor = time.perf_counter() - began, time.process_time() - used
    return {CLOCK: count / clock, PROCESSOR: count / processor}


def processor_seconds() -> float:
    """Return the processor seconds that this process has used."""
    times = psutil.Process().cpu_times()
    return times.user + times.system


def downpour_speed(net: Net, path: str, epochs: int, threads: int, replicas: int) -> Figures:
    """Return the speed of Downpour, in a second run on workers that have imported everything."""
    with cluster_of(replicas, threads=threads) as client:
        train(client, net, path, 1, replicas)
        used = sum(client.run(processor_seconds).values())
        history = train(client, net, path, epochs, replicas).history
        used = sum(client.run(processor_seconds).values()) - used
    seconds, seen = history["seconds"].values, history["examples"].values
    first = min(replicas, len(seen) - 2)  # every replica is at work
    clock = (seen[-1] - seen[first]) / (seconds[-1] - seconds[first])
    return {CLOCK: float(clock), PROCESSOR: float(seen[-1]) / used}


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


def contestants(net: Net, path: str, epochs: int, threads: int) -> list[Contestant]:
    """Return what is measured."""
    return [
        Contestant(PLAIN, partial(alone, plain_speed, net, epochs, threads)),
        Contestant(MODEL, partial(alone, model_speed, net, epochs, threads)),
        Contestant(ONE, partial(downpour_speed, net, path, epochs, threads, 1)),
        Contestant(TWO, partial(downpour_speed, net, path, epochs, threads, 2)),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each net."""
    found = parser(__doc__)
    found.add_argument("--nets", nargs="+", choices=NETS, default=["cnn", "speech"])
    found.add_argument("--epochs", type=int, default=3, help="that are timed, in each round")
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--rows", type=int, help="examples of an epoch; default: the net's own")
    found.add_argument("--device", default="cpu", help='of the modules, such as "cuda"')
    options = found.parse_args(arguments)
    report = Report("torch_speed", options, ("torch",))
    for name in options.nets:
        net = replace(NETS[name], rows=options.rows or NETS[name].rows, device=options.device)
        count = TorchModel(net.module(), "softmax").parameter_count
        title = f"{name}, {count:,} parameters, batch {net.batch}, {options.threads} threads"
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/store.zarr"
            make_store(net, path)
            entrants = contestants(net, path, options.epochs, options.threads)
            report.compare(title, entrants, PLAIN, PAIRS)
    report.end()


if __name__ == "__main__":
    main()
