"""The training loops that stand beside dbdask, each in processes of its own: examples a second.

All train the same net on the same examples with minibatches of the same size and Adagrad. The
examples of the loops are float32 arrays in memory, permuted anew in every epoch.
"""

import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import dbdask
from benchmarks._nets import NETS, RATE, Net, minibatches
from benchmarks._processes import examples_a_second, examples_a_second_in_step, together


def numpy_step(net: Net, seed: int, fixed: bool) -> Callable[[], int]:
    """Return a step of dbdask's own arithmetic, without dbdask's shards.

    `fixed` trains on one minibatch again and again.
    """
    model, optimizer = net.network(), dbdask.adagrad(RATE)
    parameters = model.initial_parameters(0, 0, model.parameter_count)
    gradient = np.empty_like(parameters)
    slots = {"accumulator": np.zeros_like(parameters)}
    steps = 0
    values, labels = net.values()
    if fixed:
        values, labels = values[: net.batch], labels[: net.batch]
    source = minibatches(values.astype(np.float32), labels, net.batch, seed)
    batch = next(source)

    def step() -> int:
        nonlocal steps
        inputs, targets = batch if fixed else next(source)
        model.loss_and_gradient(parameters, inputs, targets, weights=None, gradient=gradient)
        np.multiply(gradient, np.float32(1 / len(inputs)), out=gradient)
        optimizer.update(parameters, gradient, slots, steps)
        steps += 1
        return len(inputs)

    return step


def _numpy_rate(number: int, name: str, threads: int, seconds: float, fixed: bool) -> float:
    with threadpool_limits(threads):
        return examples_a_second(numpy_step(NETS[name], number, fixed), seconds)


def numpy_rate(name: str, threads: int, seconds: float) -> float:
    """Return the rate of one process."""
    return float(sum(together(_numpy_rate, 1, name, threads, seconds, False)))


def limit_rate(name: str, seconds: float) -> float:
    """Return the rate of two processes of one thread that only compute and update."""
    return float(sum(together(_numpy_rate, 2, name, 1, seconds, True)))


def torch_step(net: Net, seed: int, wrap: Callable[[Any], Any]) -> Callable[[], int]:
    """Return a step of the loop that a person writes; `wrap` makes a module distributed."""
    import torch

    torch.manual_seed(0)
    module = wrap(net.module())
    rule = torch.optim.Adagrad(module.parameters(), lr=RATE, fused=True)
    values, labels = net.values()
    inputs = torch.from_numpy(values.astype(np.float32))
    targets = torch.from_numpy(labels.astype(np.int64))
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Any:
        while True:
            for rows in torch.randperm(net.rows, generator=generator).split(net.batch):
                if len(rows) == net.batch:
                    yield inputs[rows], targets[rows]

    source = batches()

    def step() -> int:
        some, classes = next(source)
        rule.zero_grad()
        torch.nn.functional.cross_entropy(module(some), classes).backward()
        rule.step()
        return len(some)

    return step


def _torch_rate(number: int, name: str, threads: int, seconds: float) -> float:
    import torch

    torch.set_num_threads(threads)
    return examples_a_second(torch_step(NETS[name], number, lambda module: module), seconds)


def torch_rate(name: str, threads: int, seconds: float) -> float:
    """Return the rate of one process."""
    return float(sum(together(_torch_rate, 1, name, threads, seconds)))


def _ddp_rate(number: int, name: str, seconds: float, folder: str) -> float:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2
    )
    try:
        wrap = torch.nn.parallel.DistributedDataParallel
        step = torch_step(NETS[name], number, lambda m: wrap(m, gradient_as_bucket_view=True))
        return examples_a_second_in_step(step, seconds, _said_by_the_first)
    finally:
        distributed.destroy_process_group()


def _said_by_the_first(number: int) -> int:
    """Return the number that the first process has."""
    import torch

    said = torch.tensor([number])
    torch.distributed.broadcast(said, 0)
    return int(said)


def ddp_rate(name: str, seconds: float) -> float:
    """Return the rate of DistributedDataParallel on gloo, in two processes of one thread.

    Each process has minibatches of its own, of the full size.
    """
    folder = tempfile.mkdtemp()
    try:
        return float(sum(together(_ddp_rate, 2, name, seconds, folder)))
    finally:
        shutil.rmtree(folder)
