"""Downpour by hand on Ray: actors that hold the parameters, and two actors that train.

Arrays travel through Ray's shared-memory store. A worker pushes the gradient of every minibatch,
and the answer carries the new parameters, as in dbdask with `n_fetch = n_push = 1`.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
from threadpoolctl import threadpool_limits

import dbdask
from benchmarks._nets import NETS, RATE, minibatches
from benchmarks._processes import FIRST_STEPS


class Server:
    """A part of the parameters, and its state of Adagrad."""

    def __init__(self, name: str, start: int, stop: int) -> None:
        self.parameters = NETS[name].network().initial_parameters(0, start, stop)
        self.optimizer = dbdask.adagrad(RATE)
        self.slots = {"accumulator": np.zeros_like(self.parameters)}
        self.steps = 0

    def fetch(self) -> np.ndarray:
        return self.parameters

    def push(self, gradient: np.ndarray) -> np.ndarray:
        self.optimizer.update(self.parameters, gradient, self.slots, self.steps)
        self.steps += 1
        return self.parameters


class Worker:
    """Trains on minibatches of its own."""

    def __init__(self, name: str, seed: int, servers: list, bounds: list[int]) -> None:
        self.net, self.servers, self.bounds = NETS[name], servers, bounds
        self.model = self.net.network()
        self.gradient = np.empty(self.model.parameter_count, np.float32)
        values, labels = self.net.values()
        self.source = minibatches(values.astype(np.float32), labels, self.net.batch, seed)
        with threadpool_limits(1):
            self.parameters = self._gathered([server.fetch.remote() for server in servers])
            for _ in range(FIRST_STEPS):
                self.step()

    def _gathered(self, answers: list) -> np.ndarray:
        import ray

        parts = ray.get(answers)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def step(self) -> int:
        inputs, labels = next(self.source)
        self.model.loss_and_gradient(
            self.parameters, inputs, labels, weights=None, gradient=self.gradient
        )
        np.multiply(self.gradient, np.float32(1 / len(inputs)), out=self.gradient)
        answers = [
            server.push.remote(self.gradient[start:stop])
            for server, (start, stop) in zip(self.servers, pairwise(self.bounds), strict=True)
        ]
        self.parameters = self._gathered(answers)
        return len(inputs)

    def is_ready(self) -> bool:
        return True

    def rate(self, seconds: float) -> float:
        """Train until the time is over; return the examples a second."""
        with threadpool_limits(1):
            count, steps, began = 0, 0, time.perf_counter()
            while (passed := time.perf_counter() - began) < seconds or steps < 2:
                count += self.step()
                steps += 1
        return count / passed


@contextmanager
def _ray_of_two_cores() -> Iterator[None]:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def ray_rate(name: str, servers: int, seconds: float) -> float:
    """Return the rate of two workers of one thread with so many parameter servers."""
    import ray

    size = NETS[name].network().parameter_count
    bounds = [size * part // servers for part in range(servers + 1)]
    with _ray_of_two_cores():
        holders = [
            ray.remote(num_cpus=0)(Server).remote(name, start, stop)
            for start, stop in pairwise(bounds)
        ]
        workers = [
            ray.remote(num_cpus=1)(Worker).remote(name, seed, holders, bounds) for seed in range(2)
        ]
        ray.get([worker.is_ready.remote() for worker in workers])
        return float(sum(ray.get([worker.rate.remote(seconds) for worker in workers])))
