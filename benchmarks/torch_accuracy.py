"""Held-out accuracy of a small residual net with batch norm: in plain PyTorch, and in dbdask.

    python -m benchmarks.torch_accuracy [--seeds 3] [--epochs 5] [--rows 60000] [--digits]

Fashion-MNIST, or scikit-learn's digits where it cannot be had. Every contestant has the same
module with the same first values, as many epochs, minibatches of one size, and Adam with a rate
that falls in half a cosine:

- `plain`: a loop of PyTorch in a process of its own, on tensors in memory;
- `one`: Downpour with one replica, from a Zarr store;
- `two`: Downpour with two replicas in two worker processes.

All have their turn with each seed, which decides the first values and the order of the examples.
The program shows the accuracies, and how many points dbdask is above plain PyTorch with the same
seed. At the end it says whether the mean over the seeds is at most one point below.
"""

import argparse
import itertools
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import xarray as xr
from torch import nn

import dbdask
from benchmarks._clusters import cluster_of
from benchmarks._labelled import arrays_in, fashion_mnist, keep_arrays, scaled_digits
from benchmarks._processes import together
from benchmarks._side_by_side import Contestant, Figures, Report, Results, interleaved
from dbdask.torch import TorchModel
from pipelines.schedules import Falling

RATE = 0.003  # at first, of Adam
THREADS = 2  # of all processes of a contestant together
PLAIN = "plain"
POINTS = 1.0
"""Of accuracy, in percent, that dbdask may be below plain PyTorch."""


@dataclass(frozen=True)
class Task:
    """Where the images are, and how to train on them."""

    name: str
    folder: Path
    rows: int
    batch: int
    epochs: int
    first_rate: float

    def examples(self, part: str) -> dbdask.Examples:
        """Return the examples of "train" or "held_out", of which dbdask reads the stores."""
        path = self.folder / f"{part}.zarr"
        return dbdask.Examples(path, inputs="image", targets="label", along="row")

    @property
    def rate(self) -> Falling:
        """Return the rate of a step, which falls until the last one."""
        return Falling(self.first_rate, self.epochs * math.ceil(self.rows / self.batch))


class Block(nn.Module):
    """Two convolutions with batch norm, added to their input (He et al. 2016, Figure 2).

    Where they change its shape, (examples, below, ...) to (examples, channels, ...), a convolution
    of one pixel does so too.
    """

    def __init__(self, below: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(below, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or below != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(below, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the block makes of images, (examples, channels, rows, columns)."""
        return nn.functional.relu(self.convolutions(images) + self.shortcut(images))


def residual_net(seed: int) -> nn.Module:
    """Return a net of three residual blocks for images of 28 by 28 and 10 classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)),
        nn.Conv2d(1, 16, 3, 2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16, 16),
        Block(16, 32, 2),
        Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def task_in(folder: Path, options: argparse.Namespace) -> Task:
    """Put the images into a folder, as arrays and as Zarr stores."""
    parts, name = None if options.digits else fashion_mnist(), "Fashion-MNIST"
    if parts is None:
        parts, name = scaled_digits(), "digits scaled to 28 x 28"
    rows = min(options.rows, len(parts["train"][0]))
    for part, (inputs, labels) in parts.items():
        count = rows if part == "train" else len(inputs)
        images = inputs[:count].reshape(-1, 28, 28)
        keep_arrays(folder, part, images, labels[:count])
        data = xr.Dataset(
            {"image": (("row", "y", "x"), images), "label": ("row", labels[:count].astype("i4"))}
        )
        data.chunk(row=1024).to_zarr(folder / f"{part}.zarr", consolidated=False)
    return Task(name, folder, rows, options.batch, options.epochs, options.rate)


def _plain(number: int, task: Task, seed: int) -> float:
    """Train as a person writes it; return the held-out accuracy."""
    torch.set_num_threads(THREADS)
    inputs, labels = map(torch.from_numpy, arrays_in(task.folder, "train"))
    module = residual_net(seed)
    rule = torch.optim.Adam(module.parameters(), lr=1.0)  # times what the schedule says
    schedule = torch.optim.lr_scheduler.LambdaLR(rule, task.rate)
    for _ in range(task.epochs):
        for rows in torch.randperm(len(inputs)).split(task.batch):
            rule.zero_grad()
            nn.functional.cross_entropy(module(inputs[rows]), labels[rows]).backward()
            rule.step()
            schedule.step()
    return _accuracy(module.eval(), task)


def _accuracy(module: nn.Module, task: Task) -> float:
    inputs, labels = map(torch.from_numpy, arrays_in(task.folder, "held_out"))
    with torch.no_grad():
        found = torch.cat([module(some).argmax(dim=1) for some in inputs.split(1000)])
    return float((found == labels).double().mean())


def plain(task: Task, seed: int) -> float:
    """Return the held-out accuracy of a plain loop of PyTorch, in a process of its own."""
    found: float = together(_plain, 1, task, seed)[0]
    return found


def in_dbdask(replicas: int, task: Task, seed: int) -> float:
    """Return the held-out accuracy of Downpour, on a new cluster with a process a replica."""
    with cluster_of(replicas, threads=THREADS // replicas) as client:
        result = dbdask.downpour(
            TorchModel(residual_net(seed), "softmax"),
            task.examples("train"),
            client=client,
            optimizer=dbdask.adam(task.rate),
            batch_size=task.batch,
            epochs=task.epochs,
            replicas=replicas,
            seed=seed,
            progress=False,
        )
        return result.evaluate(task.examples("held_out"))["accuracy"]


def contestant(name: str, train: Callable[[int], float]) -> Contestant:
    """Return a contestant; each of its turns has another seed."""
    seeds = itertools.count()

    def measure() -> Figures:
        return {"accuracy": train(next(seeds))}

    return Contestant(name, measure)


def with_points(results: Results) -> Results:
    """Return the results with the points of each accuracy above the plain one of its seed.

    Examples
    --------
    >>> found = with_points({"plain": [{"accuracy": 0.90}], "one": [{"accuracy": 0.91}]})
    >>> round(found["one"][0]["points"], 6)
    1.0
    """
    base = [figures["accuracy"] for figures in results[PLAIN]]
    return {
        name: [
            {**figures, "points": 100 * (figures["accuracy"] - accuracy)}
            for figures, accuracy in zip(rounds, base, strict=True)
        ]
        for name, rounds in results.items()
    }


def verdicts(results: Results) -> dict[str, str]:
    """Return for each way of dbdask, in words, whether it is within one point of plain PyTorch."""
    found = {}
    for name, rounds in results.items():
        if name != PLAIN:
            mean = statistics.mean(figures["points"] for figures in rounds)
            within = "within" if mean >= -POINTS else "NOT within"
            found[name] = f"{mean:+.2f} points: {within} {POINTS:g} point of plain PyTorch"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of the accuracies, and whether dbdask is within one point."""
    found = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    found.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    found.add_argument("--epochs", type=int, default=5)
    found.add_argument("--batch", type=int, default=128, help="examples of a minibatch")
    found.add_argument("--rate", type=float, default=RATE, help="of Adam, from which it falls")
    found.add_argument("--rows", type=int, default=60_000, help="examples to train on, at most")
    found.add_argument("--digits", action="store_true", help="scikit-learn's digits in any case")
    found.add_argument("--json", type=Path, help="write every figure there")
    options = found.parse_args(arguments)
    report = Report("torch_accuracy", options, ("torch",))
    with tempfile.TemporaryDirectory() as folder:
        task = task_in(Path(folder), options)
        ways = {
            PLAIN: partial(plain, task),
            "one": partial(in_dbdask, 1, task),
            "two": partial(in_dbdask, 2, task),
        }
        results, failed = interleaved([contestant(*way) for way in ways.items()], options.seeds)
    if PLAIN in results:
        results = with_points(results)
        report.kept["verdicts"] = verdicts(results)
    title = f"{task.name}, {task.rows:,} examples, {task.epochs} epochs, held-out accuracy"
    report.add(title, results, failed=failed)
    for name, verdict in report.kept.get("verdicts", {}).items():
        print(f"{name}: {verdict}")
    report.end()


if __name__ == "__main__":
    main()
