"""Layers: each knows its parameters, its output, and the gradient through it."""

import math
from dataclasses import dataclass

import numpy as np

from dbdask.numbers.layout import Parameter
from dbdask.numbers.losses import sigmoid

ACTIVATIONS = ("linear", "sigmoid", "tanh", "relu")


@dataclass(frozen=True)
class Dense:
    """A fully connected layer: `activation(inputs @ weights.T + bias)`; it flattens its input.

    Parameters
    ----------
    units
        Outputs of the layer.
    activation
        "linear", "sigmoid", "tanh" or "relu".
    """

    units: int
    activation: str = "linear"

    def __post_init__(self) -> None:
        if isinstance(self.units, bool) or not hasattr(self.units, "__index__"):
            raise TypeError(f"units must be a whole number, got {self.units!r}")
        if self.units < 1:
            raise ValueError(f"units must be at least 1, got {self.units}")
        if self.activation not in ACTIVATIONS:
            choices = ", ".join(repr(name) for name in ACTIVATIONS)
            raise ValueError(f"activation must be one of {choices}, got {self.activation!r}")

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one example's output."""
        return (int(self.units),)

    def parameters(self, name: str, input_shape: tuple[int, ...]) -> tuple[Parameter, ...]:
        """Return the layer's parameters: weights, output unit first, and the bias."""
        fan_in = math.prod(input_shape)
        units = int(self.units)
        return (
            Parameter(f"{name}_weights", (units, fan_in), (f"{name}_unit", f"{name}_input")),
            Parameter(f"{name}_bias", (units,), (f"{name}_unit",)),
        )

    def scale(self, input_shape: tuple[int, ...]) -> float:
        """Return the half width of the uniform initial weights.

        He et al. 2015 for relu, else Glorot and Bengio 2010, with their factor 4 for the sigmoid,
        without which several sigmoid layers on each other hardly learn.
        """
        fan_in = math.prod(input_shape)
        if self.activation == "relu":
            return math.sqrt(6 / fan_in)
        factor = 4 if self.activation == "sigmoid" else 1
        return factor * math.sqrt(6 / (fan_in + self.units))

    def forward(self, weights: np.ndarray, bias: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Return the activations, (examples, units)."""
        outputs = inputs @ weights.T
        outputs += bias
        activate(self.activation, outputs)
        return outputs


def activate(activation: str, values: np.ndarray) -> None:
    """Overwrite values with their activation."""
    if activation == "sigmoid":
        sigmoid(values)
    elif activation == "tanh":
        np.tanh(values, out=values)
    elif activation == "relu":
        np.maximum(values, 0, out=values)


def multiply_by_slope(activation: str, activations: np.ndarray, gradient: np.ndarray) -> None:
    """Multiply a gradient, in place, by the activation's slope; the activations are used up."""
    if activation == "sigmoid":
        gradient *= activations
        np.subtract(1, activations, out=activations)
        gradient *= activations
    elif activation == "tanh":
        np.square(activations, out=activations)
        np.subtract(1, activations, out=activations)
        gradient *= activations
    elif activation == "relu":
        gradient *= activations > 0
