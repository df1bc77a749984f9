"""The peers of the comparison of accuracy: epochs until a held-out accuracy is reached.

Each trains in processes of its own, on arrays in memory, with Adam, and scores the held-out
examples after every epoch. The clock starts when the arrays are loaded and the first epoch begins,
and runs on while it scores.
"""

import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._figures import Figures
from benchmarks._labelled import arrays_in
from benchmarks._nets import Net
from benchmarks._processes import alone, together, wait_for_the_others


def until(
    target: float, most: int, epoch: Callable[[], None], accuracy: Callable[[], float]
) -> Figures:
    """Train epochs until the accuracy is reached; return seconds, the best accuracy, epochs."""
    best, began = 0.0, time.perf_counter()
    for number in range(1, most + 1):
        epoch()
        best = max(best, accuracy())
        if best >= target:
            return figures(time.perf_counter() - began, best, number)
    return figures(math.inf, best, most)


def figures(seconds: float, best: float, passes: float) -> Figures:
    """Return the figures of this comparison."""
    return {"seconds": seconds, "best accuracy": best, "passes": float(passes)}


def _estimator(net: Net, rate: float, seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(
        net.hidden,
        activation={"sigmoid": "logistic", "relu": "relu"}[net.activation],
        alpha=0.0,
        batch_size=net.batch,
        learning_rate_init=rate,
        random_state=seed,
    )


def _scikit_learn(
    number: int, folder: Path, net: Net, rate: float, seed: int, target: float, most: int
) -> Figures:
    model = _estimator(net, rate, seed)
    (inputs, labels), held_out = arrays_in(folder, "train"), arrays_in(folder, "held_out")

    def epoch() -> None:
        model.partial_fit(inputs, labels, classes=np.arange(net.outputs))

    return until(target, most, epoch, lambda: float(model.score(*held_out)))


def _dask_ml(
    number: int, folder: Path, net: Net, rate: float, seed: int, target: float, most: int
) -> Figures:
    import dask.array as da
    from dask_ml.wrappers import Incremental
    from distributed import Client, LocalCluster

    model = Incremental(_estimator(net, rate, seed), shuffle_blocks=True, random_state=seed)
    (inputs, labels), held_out = arrays_in(folder, "train"), arrays_in(folder, "held_out")
    rows = 64 * net.batch  # of a block, which scikit-learn shuffles
    blocks = da.from_array(inputs, chunks=(rows, -1)), da.from_array(labels, chunks=rows)
    with (
        warnings.catch_warnings(),
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster),
    ):
        warnings.simplefilter("ignore")  # the graph holds the arrays, in this same process

        def epoch() -> None:
            model.partial_fit(*blocks, classes=np.arange(net.outputs))

        return until(target, most, epoch, lambda: float(model.estimator_.score(*held_out)))


def scikit_learn(*given: Any) -> Figures:
    """Return the figures of `MLPClassifier.partial_fit`."""
    found: Figures = alone(_scikit_learn, *given)
    return found


def dask_ml(*given: Any) -> Figures:
    """Return the figures of `Incremental` around `MLPClassifier`, on threads of one process."""
    found: Figures = alone(_dask_ml, *given)
    return found


def _torch(
    number: int,
    meeting: str,
    processes: int,
    folder: Path,
    net: Net,
    rate: float,
    seed: int,
    target: float,
    most: int,
) -> Figures:
    import torch
    from torch import distributed

    torch.manual_seed(seed)
    torch.set_num_threads(2 // processes)
    module = net.module()
    if processes > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}/meeting", rank=number, world_size=processes
        )
        module = torch.nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
    rule = torch.optim.Adam(module.parameters(), lr=rate, fused=True)
    parts = [tuple(map(torch.from_numpy, arrays_in(folder, p))) for p in ("train", "held_out")]
    (inputs, labels), (held_out, classes) = parts
    generator = torch.Generator().manual_seed(seed)

    def epoch() -> None:
        order = torch.randperm(len(inputs), generator=generator)
        order = order[: len(order) // processes * processes]
        for rows in order[number::processes].split(net.batch):
            rule.zero_grad()
            torch.nn.functional.cross_entropy(module(inputs[rows]), labels[rows]).backward()
            rule.step()

    def accuracy() -> float:
        """The first process scores, and the others hear of it."""
        share = torch.zeros(1)
        if number == 0:
            with torch.no_grad():
                outputs = getattr(module, "module", module)(held_out)
            share[0] = (outputs.argmax(dim=1) == classes).float().mean()
        if processes > 1:
            distributed.broadcast(share, 0)
        return float(share)

    wait_for_the_others()
    try:
        return until(target, most, epoch, accuracy)
    finally:
        if processes > 1:
            distributed.destroy_process_group()


def pytorch(processes: int, *given: Any) -> Figures:
    """Return the figures of a plain loop, or of DistributedDataParallel in two processes."""
    meeting = tempfile.mkdtemp()
    try:
        found: Figures = together(_torch, processes, meeting, processes, *given)[0]
        return found
    finally:
        shutil.rmtree(meeting)
