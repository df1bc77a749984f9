"""Seconds to a held-out accuracy: dbdask beside what one would take instead, on two cores.

    python -m benchmarks.peers_accuracy [--tasks images speech] [--rounds 5] [--minutes 15]

The tasks are Fashion-MNIST (784-128-10, rectified) and synthesised speech (440-256-256-phonemes,
sigmoids). All but L-BFGS train with Adam at one rate and minibatches of 128:

- `dbdask, downpour`: two replicas in two processes, a push for every minibatch;
- `dbdask, local steps`: the replicas step with Adam, and push the displacement of 32 steps;
- `dbdask, sandblaster`: L-BFGS, scored every 10 iterations;
- `ddp`: DistributedDataParallel on gloo, two processes, each with minibatches of 128;
- `torch`: a plain loop of PyTorch in one process with two threads;
- `scikit-learn`: `MLPClassifier.partial_fit`, with as many BLAS threads as it likes;
- `dask-ml`: `Incremental` around the same, block after block.

Each round has another seed. The clock starts when training is asked for, on a cluster whose
workers have imported dbdask, and with the examples of the peers in memory. It stops when the
program knows a held-out accuracy of `--target`: all but L-BFGS score after each epoch. "never" is
a run whose epochs ended before.
"""

import argparse
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import dbdask
from benchmarks._clusters import cluster_of
from benchmarks._figures import Figures
from benchmarks._labelled import DIGITS, Task, images, speech
from benchmarks._ratios import Pair
from benchmarks._side_by_side import Contestant, Report, parser
from benchmarks._to_accuracy import dask_ml, figures, pytorch, scikit_learn

TARGETS = {"images": 0.87, "speech": 0.70}
RATE = 0.001  # of Adam, in all contestants
STEPS = 32  # of a replica between two pushes, with local steps
ITERATIONS = 400
OURS = ("dbdask, downpour", "dbdask, local steps", "dbdask, sandblaster")
PEERS = ("ddp, 2 processes", "torch, 2 threads", "scikit-learn", "dask-ml")
PAIRS = (
    Pair(OURS, PEERS, 1.0, less_is_better=True),
    *(Pair(OURS, peer, less_is_better=True) for peer in PEERS),
)


class Reached:
    """A callback that stops a run when its validation reaches an accuracy."""

    def __init__(self, target: float, rows: int) -> None:
        self.target, self.rows = target, rows
        self.best = self.passes = 0.0
        self.seconds = math.inf
        self.began = time.perf_counter()

    def __call__(self, record: dbdask.Record) -> bool:
        if math.isnan(record.validation_accuracy):
            return False
        self.best = max(self.best, record.validation_accuracy)
        self.passes = record.examples / self.rows
        if not math.isnan(record.evaluations):
            self.passes = record.evaluations
        if self.best < self.target:
            return False
        self.seconds = time.perf_counter() - self.began
        return True

    @property
    def figures(self) -> Figures:
        """Return the figures of the comparison."""
        return figures(self.seconds, self.best, self.passes)


def ours(task: Task, target: float, train: Callable[..., Any]) -> Figures:
    """Return the figures of a run on a new cluster of two processes."""
    with cluster_of(2) as client:
        client.run(import_module, "dbdask.worker.replica")
        client.run(import_module, "dbdask.worker.batch_replica")
        reached = Reached(target, len(task.train))
        train(
            task.network(),
            task.train,
            client=client,
            validation=task.held_out,
            callbacks=[reached],
            progress=False,
        )
    return reached.figures


def contestants(task: Task, target: float, most: int) -> list[Contestant]:
    """Return what is measured; each of the turns of a contestant has another seed."""
    downpour = partial(dbdask.downpour, batch_size=task.net.batch, epochs=most)
    adam = dbdask.adam(RATE)
    methods = {
        OURS[0]: partial(downpour, optimizer=adam),
        OURS[1]: partial(
            downpour,
            optimizer=dbdask.nesterov(0.7, momentum=0.9),
            local_optimizer=adam,
            n_fetch=STEPS,
            n_push=STEPS,
        ),
        OURS[2]: partial(
            dbdask.sandblaster, iterations=ITERATIONS, l2=1e-6, tolerance=0.0, validate_every=10
        ),
    }
    peers: dict[str, tuple[Callable[..., Figures], str]] = {
        PEERS[0]: (partial(pytorch, 2), "torch"),
        PEERS[1]: (partial(pytorch, 1), "torch"),
        PEERS[2]: (scikit_learn, "sklearn"),
        PEERS[3]: (dask_ml, "dask_ml"),
    }

    def of(name: str, turn: Callable[[int], Figures], needs: tuple[str, ...] = ()) -> Contestant:
        seeds = itertools.count()
        return Contestant(name, lambda: turn(next(seeds)), needs)

    def with_seed(method: Callable[..., Any], seed: int) -> Figures:
        return ours(task, target, partial(method, seed=seed))

    def peer(function: Callable[..., Figures], seed: int) -> Figures:
        return function(task.folder, task.net, RATE, seed, target, most)

    return [
        *(of(name, partial(with_seed, method)) for name, method in methods.items()),
        *(of(name, partial(peer, call), (needs,)) for name, (call, needs) in peers.items()),
    ]


def task_of(name: str, folder: Path, options: argparse.Namespace) -> Task:
    """Make a task's examples."""
    if name == "images":
        return images(folder, digits=options.digits)
    with cluster_of(2) as client:
        return speech(client, folder, options.minutes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each task."""
    found = parser(__doc__)
    found.add_argument("--tasks", nargs="+", choices=TARGETS, default=list(TARGETS))
    found.add_argument("--target", type=float, help="default: 0.87 of images, 0.70 of speech")
    found.add_argument("--epochs", type=int, default=20, help="after which a run gives up")
    found.add_argument("--minutes", type=float, default=15.0, help="of speech to synthesise")
    found.add_argument("--digits", action="store_true", help=DIGITS)
    options = found.parse_args(arguments)
    report = Report("peers_accuracy", options, ("torch", "scikit-learn", "dask-ml"))
    for name in options.tasks:
        target = options.target or TARGETS[name]
        with tempfile.TemporaryDirectory() as folder:
            task = task_of(name, Path(folder), options)
            title = f"{task.name}, {len(task.train):,} examples, seconds to {target:.0%}"
            report.compare(title, contestants(task, target, options.epochs), OURS[0], PAIRS)
    report.end()


if __name__ == "__main__":
    main()
