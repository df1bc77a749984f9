"""Seconds of a whole call of `downpour` and `sandblaster`, beside `MLPClassifier.fit`.

    python -m benchmarks.peers_whole_call [--rounds 5] [--epochs 3] [--iterations 60]

Fashion-MNIST, 784-128-10, rectified. Adam with minibatches of 128 for some epochs, and L-BFGS for
some iterations, neither with a penalty. dbdask runs on two workers of one thread, which are
processes or threads of one process; scikit-learn has as many BLAS threads as it likes. What is
timed is the call alone: the cluster is there, and a shorter call was made before. "first call" is
the seconds of that shorter call, of one epoch or of two iterations, with all that a new cluster
imports.
"""

import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dbdask
from benchmarks._clusters import cluster_of
from benchmarks._figures import Figures
from benchmarks._labelled import DIGITS, Task, arrays_in, images
from benchmarks._nets import Net
from benchmarks._processes import together
from benchmarks._ratios import Pair
from benchmarks._side_by_side import Contestant, Report, parser

RATE = 0.001
OURS = ("dbdask, processes", "dbdask, threads")
THEIRS = ("scikit-learn, float32", "scikit-learn, float64")
WANTED = {"adam": 1.3, "lbfgs": 1.2}  # times the seconds of scikit-learn, at most


def fitted(
    number: int, folder: Path, net: Net, dtype: str, settings: dict[str, Any], seed: int
) -> Figures:
    """Return the figures of scikit-learn."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(
        net.hidden, alpha=0.0, tol=0.0, random_state=seed, batch_size=net.batch, **settings
    )
    inputs, labels = arrays_in(folder, "train")
    inputs = inputs.astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged: the number of passes is given
        began = time.perf_counter()
        model.fit(inputs, labels)
        seconds = time.perf_counter() - began
    accuracy = float(model.score(*arrays_in(folder, "held_out")))
    return {"seconds": seconds, "accuracy": accuracy, "iterations": float(model.n_iter_)}


def called(
    task: Task, processes: bool, seed: int, first: Callable[..., Any], call: Callable[..., Any]
) -> Figures:
    """Return the figures of dbdask."""
    with cluster_of(2, processes=processes) as client:
        seconds = []
        for train in (first, call):
            began = time.perf_counter()
            result = train(task.network(), task.train, client=client, progress=False, seed=seed)
            seconds.append(time.perf_counter() - began)
    last = result.history.isel(record=-1)
    iterations = float(last["iteration"]) if "iteration" in last else float(last["epoch"]) + 1
    accuracy = result.evaluate(task.held_out)["accuracy"]
    return {
        "seconds": seconds[1],
        "accuracy": accuracy,
        "iterations": iterations,
        "first call": seconds[0],
    }


def contestants(
    task: Task, first: Callable[..., Any], call: Callable[..., Any], settings: dict[str, Any]
) -> list[Contestant]:
    """Return what is measured; each of the turns of a contestant has another seed."""

    def of(name: str, turn: Callable[[int], Figures], needs: tuple[str, ...] = ()) -> Contestant:
        seeds = itertools.count()
        return Contestant(name, lambda: turn(next(seeds)), needs)

    def ours(processes: bool, seed: int) -> Figures:
        return called(task, processes, seed, first, call)

    def theirs(dtype: str, seed: int) -> Figures:
        found: Figures = together(fitted, 1, task.folder, task.net, dtype, settings, seed)[0]
        return found

    return [
        of(OURS[0], partial(ours, True)),
        of(OURS[1], partial(ours, False)),
        of(THEIRS[0], partial(theirs, "float32"), ("sklearn",)),
        of(THEIRS[1], partial(theirs, "float64"), ("sklearn",)),
    ]


def pairs(method: str) -> list[Pair]:
    """Return the ratios of seconds that a method is judged by."""
    return [Pair(ours, THEIRS[0], WANTED[method], less_is_better=True) for ours in OURS]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of Adam and one of L-BFGS."""
    found = parser(__doc__)
    found.add_argument("--methods", nargs="+", choices=("adam", "lbfgs"), default=("adam", "lbfgs"))
    found.add_argument("--epochs", type=int, default=3)
    found.add_argument("--iterations", type=int, default=60)
    found.add_argument("--digits", action="store_true", help=DIGITS)
    options = found.parse_args(arguments)
    report = Report("peers_whole_call", options, ("scikit-learn",))
    with tempfile.TemporaryDirectory() as folder:
        task = images(Path(folder), digits=options.digits)
        what = f"{task.name}, {len(task.train):,} examples, 784-128-10"
        if "adam" in options.methods:
            downpour = partial(
                dbdask.downpour, optimizer=dbdask.adam(RATE), batch_size=task.net.batch
            )
            calls = partial(downpour, epochs=1), partial(downpour, epochs=options.epochs)
            settings = {
                "learning_rate_init": RATE,
                "max_iter": options.epochs,
                "n_iter_no_change": options.epochs,
            }
            title = f"{what}, Adam, {options.epochs} epochs"
            report.compare(title, contestants(task, *calls, settings), THEIRS[0], pairs("adam"))
        if "lbfgs" in options.methods:
            sandblaster = partial(dbdask.sandblaster, tolerance=0.0)
            calls = (
                partial(sandblaster, iterations=2),
                partial(sandblaster, iterations=options.iterations),
            )
            settings = {"solver": "lbfgs", "max_iter": options.iterations}
            title = f"{what}, L-BFGS, {options.iterations} iterations"
            report.compare(title, contestants(task, *calls, settings), THEIRS[0], pairs("lbfgs"))
    report.end()


if __name__ == "__main__":
    main()
