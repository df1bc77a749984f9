"""Examples per second of the NumPy network, side by side with the same net written by hand.

    python -m benchmarks.network_speed --threads 2

The two take turns, so that a machine's mood meets both; medians are printed. The peer is what a
careful person writes without reusing any buffer: the same products, out of place elsewhere.
"""

import argparse
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from threadpoolctl import threadpool_limits

from dbdask.models.layers import Dense
from dbdask.models.network import Network

NETS = {"784-256-10": ((784, 256, 10), 128, 200), "paper": ((440, *[2560] * 4, 8192), 256, 5)}


def made(widths: tuple[int, ...]) -> Network:
    """Return a sigmoid network with a softmax of these widths."""
    layers = [*(Dense(units, "sigmoid") for units in widths[1:-1]), Dense(widths[-1])]
    return Network(input_shape=(widths[0],), layers=layers, loss="softmax")


def by_hand(
    layers: list[tuple[np.ndarray, np.ndarray]], inputs: np.ndarray, labels: np.ndarray
) -> tuple[float, list[np.ndarray]]:
    """Return the summed loss, and the gradients of weights and biases from last to first."""
    rows, activations = np.arange(len(labels)), [inputs]
    for weights, bias in layers[:-1]:
        activations.append(1 / (1 + np.exp(-(activations[-1] @ weights.T + bias))))
    outputs = activations[-1] @ layers[-1][0].T + layers[-1][1]
    outputs -= outputs.max(axis=1, keepdims=True)
    exponentials = np.exp(outputs)
    sums = exponentials.sum(axis=1, keepdims=True)
    loss = float((np.log(sums[:, 0]) - outputs[rows, labels]).sum())
    upstream = exponentials / sums
    upstream[rows, labels] -= 1
    gradients = []
    for position in range(len(layers) - 1, -1, -1):
        below = activations[position]
        gradients += [upstream.sum(axis=0), upstream.T @ below]
        if position:
            upstream = (upstream @ layers[position][0]) * below * (1 - below)
    return loss, gradients


def seconds(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(widths: tuple[int, ...], batch: int, rounds: int) -> tuple[float, float]:
    """Return the examples per second of the network and of the peer, medians of the rounds."""
    network, rng = made(widths), np.random.default_rng(0)
    parameters = network.initial_parameters(0, 0, network.parameter_count)
    gradient = np.empty_like(parameters)
    inputs = rng.normal(size=(batch, widths[0])).astype(np.float32)
    labels = rng.integers(0, widths[-1], batch)
    views = list(network.layout.views(parameters).values())
    layers = [(views[2 * i], views[2 * i + 1]) for i, _ in enumerate(pairwise(widths))]

    def ours() -> float:
        return network.loss_and_gradient(parameters, inputs, labels, gradient=gradient)

    def theirs() -> float:
        return by_hand(layers, inputs, labels)[0]

    assert np.isclose(ours(), theirs(), rtol=1e-5)
    taken = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return tuple(batch / np.median(taken, axis=0))


def main(arguments: list[str] | None = None) -> None:
    """Print one line for each net."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    options = parser.parse_args(arguments)
    with threadpool_limits(options.threads):
        for name in options.nets:
            ours, theirs = compare(*NETS[name])
            print(f"{name}: {ours:,.0f} examples/s, by hand {theirs:,.0f} ({ours / theirs:.2f}x)")


if __name__ == "__main__":
    main()
