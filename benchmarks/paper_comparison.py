"""The paper's comparison in small, on synthesised speech: four methods, accuracy over time.

    python -m benchmarks.paper_comparison [--minutes 20] [--seconds 60] [--folder comparison]

SGD on one replica, Downpour with a fixed rate, Downpour with Adagrad, Sandblaster L-BFGS, each for
so many seconds from the same warm start of one epoch, on 1 and on 2 workers. Rates are the best of
three, each tried for a fourth of the time. Writes a picture, and prints the time to one accuracy:
the highest that all four reach on 2 workers.
"""

import argparse
import contextlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster
from matplotlib.figure import Figure

import dbdask
from benchmarks.speech_accuracy import corpus_in
from pipelines.speech import frames, network

Curve = tuple[np.ndarray, np.ndarray]  # seconds, held-out accuracy
RATES = {"sgd": (0.1, 0.3, 1.0), "adagrad": (0.01, 0.03, 0.1)}


def curve_of(result: dbdask.Result) -> Curve:
    history = result.history
    accuracy = history["validation_accuracy"].values
    known = np.isfinite(accuracy)
    return history["seconds"].values[known], accuracy[known]


def for_seconds(seconds: float) -> Callable[[Any], bool]:
    """A callback that stops a run when its time is over."""
    until = time.monotonic() + seconds
    return lambda record: time.monotonic() >= until


def run(client: Client, setting: dict[str, Any], method: str, rate: float, seconds: float) -> Curve:
    common = {
        "client": client,
        "parameters": setting["start"],
        "validation": setting["held_out"],
        "progress": False,
        "callbacks": [for_seconds(seconds)],
    }
    if method == "Sandblaster L-BFGS":
        result = dbdask.sandblaster(
            setting["model"],
            setting["train"],
            iterations=10_000,
            tolerance=0.0,
            l2=1e-6,
            validate_every="2s",
            **common,
        )
        return curve_of(result)
    result = dbdask.downpour(
        setting["model"],
        setting["train"],
        optimizer=dbdask.adagrad(rate) if "Adagrad" in method else dbdask.sgd(rate),
        epochs=10_000,
        replicas=1 if "one replica" in method else None,
        validate_every="2s",
        **common,
    )
    return curve_of(result)


METHODS = {
    "SGD, one replica": "sgd",
    "Downpour, fixed rate": "sgd",
    "Downpour, Adagrad": "adagrad",
    "Sandblaster L-BFGS": None,
}


def best_rate(client: Client, setting: dict[str, Any], method: str, seconds: float) -> float:
    family = METHODS[method]
    if family is None:
        return 0.0
    ends = {rate: run(client, setting, method, rate, seconds)[1].max() for rate in RATES[family]}
    return max(ends, key=ends.__getitem__)


def time_to(curve: Curve, accuracy: float) -> float:
    seconds, found = curve
    reached = np.flatnonzero(found >= accuracy)
    return float(seconds[reached[0]]) if reached.size else float("nan")


def draw(curves: dict[tuple[str, int], Curve], path: Path) -> None:
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = dict(zip((1, 2), figure.subplots(1, 2, sharey=True), strict=True))
    for (method, workers), (seconds, accuracy) in curves.items():
        axes[workers].plot(seconds, 100 * accuracy, "o-", ms=3, label=method)
    for workers, panel in axes.items():
        panel.set(title=f"{workers} worker{'s' * (workers > 1)}", xlabel="seconds of training")
        panel.grid(alpha=0.3)
    axes[1].set_ylabel("held-out frame accuracy, %")
    axes[2].legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--layers", default="2x256")
    parser.add_argument("--folder", type=Path, default=Path("comparison"))
    options = parser.parse_args()
    curves: dict[tuple[str, int], Curve] = {}
    rates: dict[str, float] = {}
    setting: dict[str, Any] = {}
    for workers in (2, 1):
        with contextlib.ExitStack() as stack:
            cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
            client = stack.enter_context(Client(stack.enter_context(cluster)))
            if not setting:
                corpus = corpus_in(client, options.folder, options.minutes)
                train = frames(corpus.train).standardize(client=client)
                model = network(options.layers, train.input_shape, len(corpus.phonemes))
                setting = {"train": train, "held_out": frames(corpus.held_out), "model": model}
                setting["start"] = dbdask.downpour(
                    model,
                    train,
                    client=client,
                    replicas=1,
                    optimizer=dbdask.adagrad(0.02),
                    progress=False,
                )
                print(f"{len(train):,} frames, {model.parameter_count:,} parameters", flush=True)
            for method in METHODS:
                if method not in rates:
                    rates[method] = best_rate(client, setting, method, options.seconds / 4)
                curve = run(client, setting, method, rates[method], options.seconds)
                curves[method, workers] = curve
                print(
                    f"{workers} workers, {method} (rate {rates[method]:g}): "
                    f"{curve[1].max():.4f} at best in {curve[0][-1]:.0f} s",
                    flush=True,
                )
    common = min(curves[method, 2][1].max() for method in METHODS)
    print(f"seconds to an accuracy of {common:.4f}:")
    for method, workers in itertools.product(METHODS, (1, 2)):
        print(f"  {method:22} {workers} workers: {time_to(curves[method, workers], common):6.1f}")
    path = options.folder / "comparison.png"
    draw(curves, path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
