"""The NumPy network: layers over views of one flat vector."""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dbdask.numbers.layers import Dense, multiply_by_slope
from dbdask.numbers.layout import Layout, Parameter
from dbdask.numbers.losses import LOSSES, probabilities

BLOCK = 65_536  # initial numbers are drawn in blocks of this many, so that any cut has the same


@dataclass(frozen=True)
class Network:
    """A feed-forward network that keeps the `dbdask.Model` contract.

    Parameters
    ----------
    input_shape
        Shape of one example's input; a number is the length of its one dimension.
    layers
        `Dense` layers, first to last.
    loss
        "softmax" (labels), "logistic" (one-vs-all: labels, or 0/1 for each output), or
        "squared" (half the squared error, summed over outputs).

    Examples
    --------
    >>> network = Network(input_shape=(440,), layers=[Dense(2560, "sigmoid")] * 4 + [Dense(8192)],
    ...                   loss="softmax")
    >>> network.parameter_count
    41777152
    """

    input_shape: tuple[int, ...] = field(kw_only=True)
    layers: Sequence[Dense] = field(kw_only=True)
    loss: str = field(kw_only=True)
    _layout: Layout = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", _checked_shape(self.input_shape))
        object.__setattr__(self, "layers", _checked_layers(self.layers))
        if not isinstance(self.loss, str) or self.loss not in LOSSES:
            choices = ", ".join(repr(name) for name in LOSSES)
            raise ValueError(f"loss must be one of {choices}, got {self.loss!r}")
        if self.loss != "squared" and self.layers[-1].activation != "linear":
            raise ValueError(
                f"the last layer of a {self.loss!r} network must be linear (the loss applies its "
                f"own activation), got {self.layers[-1].activation!r}"
            )
        object.__setattr__(self, "_layout", Layout(tuple(self._parameters())))

    def _parameters(self) -> list[Parameter]:
        found: list[Parameter] = []
        for position, (layer, shape) in enumerate(zip(self.layers, self._shapes(), strict=False)):
            found += layer.parameters(f"dense_{position}", shape)
        return found

    def _shapes(self) -> list[tuple[int, ...]]:
        """The input shape of each layer, and the network's output shape."""
        shapes = [self.input_shape]
        for layer in self.layers:
            shapes.append(layer.output_shape(shapes[-1]))
        return shapes

    @property
    def layout(self) -> Layout:
        """The parameters in their order in the flat vector."""
        return self._layout

    @property
    def parameter_count(self) -> int:
        """Number of parameters, biases included."""
        return self.layout.size

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one example's output."""
        return self._shapes()[-1]

    def initial_parameters(self, seed: int, start: int, stop: int) -> np.ndarray:
        """Return a slice of the initial vector: uniform weights, zero biases.

        Every block of 65,536 numbers of a parameter has its own stream, so any cut of the vector
        gets the same numbers.
        """
        values = np.zeros(stop - start, np.float32)
        layout = self.layout
        for index, (parameter, offset) in enumerate(
            zip(layout.parameters, layout.offsets, strict=True)
        ):
            first, last = max(start, offset), min(stop, offset + parameter.size)
            if first < last and index % 2 == 0:
                scale = self.layers[index // 2].scale(self._shapes()[index // 2])
                numbers = _uniform(seed, index, first - offset, last - offset)
                values[first - start : last - start] = (2 * numbers - 1) * np.float32(scale)
        return values

    def loss_and_gradient(
        self,
        parameters: np.ndarray,
        inputs: np.ndarray,
        targets: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        seed: int = 0,
        gradient: np.ndarray,
    ) -> float:
        """Return the weighted sum of losses, and overwrite `gradient` (see `dbdask.Model`)."""
        views = list(self.layout.views(parameters).values())
        into = list(self.layout.views(gradient).values())
        activations = self._forward(views, self._flat(inputs, parameters.dtype))
        upstream = activations.pop()
        loss = self._output_gradient(upstream, np.asarray(targets), weights)
        for position in range(len(self.layers) - 1, -1, -1):
            below = activations[position]
            np.dot(upstream.T, below, out=into[2 * position])
            np.sum(upstream, axis=0, out=into[2 * position + 1])
            if position:
                upstream = upstream @ views[2 * position]
                multiply_by_slope(self.layers[position - 1].activation, below, upstream)
        return loss

    def _output_gradient(
        self, outputs: np.ndarray, targets: np.ndarray, weights: np.ndarray | None
    ) -> float:
        """Overwrite the last layer's activations with the gradient before its activation."""
        activation = self.layers[-1].activation
        kept = outputs.copy() if activation != "linear" else outputs
        loss = LOSSES[self.loss](outputs, targets, weights)
        multiply_by_slope(activation, kept, outputs)
        return loss

    def predict(self, parameters: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Return (examples, outputs): probabilities for softmax and logistic, else values."""
        views = list(self.layout.views(parameters).values())
        outputs = self._forward(views, self._flat(inputs, parameters.dtype))[-1]
        return probabilities(self.loss, outputs)

    def _forward(self, views: list[np.ndarray], inputs: np.ndarray) -> list[np.ndarray]:
        """The inputs and the activations of every layer."""
        activations = [inputs]
        for position, layer in enumerate(self.layers):
            weights, bias = views[2 * position : 2 * position + 2]
            activations.append(layer.forward(weights, bias, activations[-1]))
        return activations

    def _flat(self, inputs: np.ndarray, dtype: np.dtype) -> np.ndarray:
        inputs = np.asarray(inputs)
        if inputs.shape[1:] != self.input_shape:
            raise ValueError(
                f"inputs must have shape (examples, {', '.join(map(str, self.input_shape))}), "
                f"got {inputs.shape}"
            )
        flat = inputs.reshape(len(inputs), math.prod(self.input_shape))
        return np.ascontiguousarray(flat, dtype)

    def description(self) -> dict[str, Any]:
        """Return the network as JSON."""
        return {
            "network": "dense",
            "input_shape": list(self.input_shape),
            "layers": [
                {"layer": "Dense", "units": int(layer.units), "activation": layer.activation}
                for layer in self.layers
            ],
            "loss": self.loss,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "Network":
        """Rebuild a network from `description()`."""
        names = {row["layer"] for row in description["layers"]}
        if description["network"] != "dense" or names != {"Dense"}:
            raise ValueError(
                f"description must be of a 'dense' network of Dense layers, got "
                f"{description['network']!r} of {sorted(names)}: written by a newer dbdask?"
            )
        layers = [Dense(row["units"], row["activation"]) for row in description["layers"]]
        return cls(
            input_shape=tuple(description["input_shape"]), layers=layers, loss=description["loss"]
        )


def _checked_shape(shape: Any) -> tuple[int, ...]:
    lengths = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if not all(hasattr(length, "__index__") for length in lengths):
        raise TypeError(f"input_shape must hold whole numbers, got {shape!r}")
    if min(lengths, default=1) < 1:
        raise ValueError(f"input_shape must have lengths of at least 1, got {shape!r}")
    return tuple(operator.index(length) for length in lengths)


def _checked_layers(layers: Any) -> tuple[Dense, ...]:
    if not isinstance(layers, Iterable):
        raise TypeError(f"layers must be a list of layers, got {layers!r}")
    layers = tuple(layers)
    if not layers:
        raise ValueError("layers must hold at least one layer, got none")
    for layer in layers:
        if not isinstance(layer, Dense):
            raise TypeError(f"layers must hold layers such as dbdask.Dense, got {layer!r}")
    return layers


def _uniform(seed: int, parameter: int, start: int, stop: int) -> np.ndarray:
    """Elements `start` to `stop` of a parameter's stream of uniform numbers in [0, 1)."""
    values = np.empty(stop - start, np.float32)
    for block in range(start // BLOCK, math.ceil(stop / BLOCK)):
        numbers = np.random.default_rng((seed, parameter, block)).random(BLOCK, np.float32)
        first, last = max(start, block * BLOCK), min(stop, (block + 1) * BLOCK)
        values[first - start : last - start] = numbers[first - block * BLOCK : last - block * BLOCK]
    return values
