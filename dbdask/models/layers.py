"""Layers: each has parameters, outputs, and a gradient through it."""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.json_types import JsonObject
from dbdask.models.drawing import Constant, Draw, Uniform
from dbdask.models.layout import Parameter
from dbdask.models.losses import sigmoid

ACTIVATIONS = ("linear", "sigmoid", "tanh", "relu")

Shape = tuple[int, ...]
Arrays = Mapping[str, Float32Array]


@runtime_checkable
class Layer(Protocol):
    """The members that `dbdask.Network` needs of a layer; an object that has them is one.

    A layer is pickled with its network, and called from several threads at once: `forward` hands
    arrays to `backward` through `kept`, never through the layer. Examples are the first axis of
    arrays, whose dtype is that of the parameters (float32 in training).

    Optional: `activation`, a name; only a "linear" layer may be the last one of a "softmax" or
    "logistic" network. `description()` returns JSON that distinguishes this layer from others of
    its class; a checkpoint keeps it. `rows_needed` and `part` let a partitioned network cut the
    layer (see `dbdask.models.layers.Divisible`).

    Examples
    --------
    A layer that scales each of its inputs:

    >>> class Scale:
    ...     def output_shape(self, input_shape):
    ...         return input_shape
    ...     def parameters(self, input_shape):
    ...         return [("factor", input_shape)]
    ...     def initial(self, input_shape):
    ...         return {"factor": Constant(1.0)}
    ...     def forward(self, parameters, inputs):
    ...         return inputs * parameters["factor"], (inputs,)
    ...     def backward(self, parameters, kept, gradient, into, is_first):
    ...         (inputs,) = kept
    ...         into["factor"][...] = (gradient * inputs).sum(axis=0)
    ...         return gradient * parameters["factor"]
    >>> isinstance(Scale(), Layer)
    True
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of one example's output; raise ValueError if the input does not fit."""
        ...

    def parameters(self, input_shape: Shape) -> Sequence[object]:
        """Return the layer's parameters, any number of them, in the order of the flat vector.

        Each is a `dbdask.Parameter` or (name, shape) with optional dims and kind. The network
        puts the layer's own name before each name, and before the dims.
        """
        ...

    def initial(self, input_shape: Shape) -> Mapping[str, Draw]:
        """Return the initial numbers of each parameter, by name.

        They are a `dbdask.Constant`, `Uniform` or `Normal`, or any function (stream, start, stop)
        that returns elements `start` to `stop`, of shape (stop - start,). Each element depends
        only on the stream and its place. `stream` is a tuple of whole numbers that seeds this
        parameter and no other.
        """
        ...

    def forward(
        self, parameters: Arrays, inputs: Float32Array
    ) -> tuple[Float32Array, tuple[Float32Array | None, ...]]:
        """Return the outputs, and a tuple of the arrays that `backward` will need.

        Parameters
        ----------
        parameters
            Views of the flat vector by name, float32, in their shapes; not to be written to.
        inputs
            Float32 (examples, *input_shape); not to be written to.

        Returns
        -------
        outputs
            A new array, float32 (examples, *output_shape).
        kept
            Handed to `backward`. If it needs the outputs, they stand here themselves, no copy.
        """
        ...

    def backward(
        self,
        parameters: Arrays,
        kept: tuple[Float32Array | None, ...],
        gradient: Float32Array,
        into: Arrays,
        is_first: bool,
    ) -> Float32Array | None:
        """Fill the parameters' gradients, and return the gradient at the inputs.

        Parameters
        ----------
        parameters, kept
            As `forward` was given and returned them. The layer's own outputs may be overwritten,
            its inputs may not.
        gradient
            The loss's gradient at the outputs, float32 (examples, *output_shape); may be
            overwritten.
        into
            Takes the gradients of the parameters, summed over the examples: float32 arrays with
            arbitrary content, which must be overwritten in place, `into["weights"][...] = ...`.
        is_first
            Whether this is the first layer: then None may be returned.

        Returns
        -------
        A new array, float32 (examples, *input_shape), or None.
        """
        ...


@runtime_checkable
class Divisible(Protocol):
    """The members by which a layer can be cut over the parts of a partitioned network.

    The first axis of its output is cut, here called its rows: the units of `Dense`, the rows of an
    image. Its parameters must have the same first axis. A row may depend on a range of rows of the
    input only.
    """

    def rows_needed(self, input_shape: Shape, first: int, last: int) -> tuple[int, int]:
        """Return the range of the input's rows that rows `first` to `last` depend on.

        There is at least one row. `input_shape` is that of the whole layer.
        """
        ...

    def part(self, input_shape: Shape, first: int, last: int) -> Layer:
        """Return the layer that computes rows `first` to `last` from the rows that they need.

        It has these rows of the parameters. Its input begins with the first row that is needed.
        """
        ...


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
        as_whole("units", self.units)
        check_activation(self.activation)

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of one example's output."""
        return (int(self.units),)

    def parameters(self, input_shape: Shape) -> tuple[Parameter, ...]:
        """Return the layer's parameters: weights, output unit first, and the bias."""
        units = int(self.units)
        return (
            Parameter("weights", (units, math.prod(input_shape)), ("unit", "input")),
            Parameter("bias", (units,), ("unit",)),
        )

    def initial(self, input_shape: Shape) -> dict[str, Draw]:
        """Return the initial numbers: uniform weights, zero biases (see `weight_limit`)."""
        limit = weight_limit(self.activation, math.prod(input_shape), self.units)
        return {"weights": Uniform(limit), "bias": Constant(0.0)}

    def forward(
        self, parameters: Arrays, inputs: Float32Array
    ) -> tuple[Float32Array, tuple[Float32Array | None, ...]]:
        """Return the activations, float32 (examples, units), and the arrays that `backward` needs.

        `inputs` is float32 (examples, *input_shape).
        """
        outputs = as_rows(inputs) @ parameters["weights"].T
        outputs += parameters["bias"]
        if self.activation == "linear":
            return outputs, (inputs, None)
        activate(self.activation, outputs)
        return outputs, (inputs, outputs)

    def backward(
        self,
        parameters: Arrays,
        kept: tuple[Float32Array | None, ...],
        gradient: Float32Array,
        into: Arrays,
        is_first: bool,
    ) -> Float32Array | None:
        """Fill the gradients of weights and bias; return the gradient at the inputs, or None.

        The outputs and `gradient`, both float32 (examples, units), are overwritten.
        """
        inputs, outputs = kept
        assert inputs is not None
        if outputs is not None:
            multiply_by_slope(self.activation, outputs, gradient)
        np.dot(gradient.T, as_rows(inputs), out=into["weights"])
        np.sum(gradient, axis=0, out=into["bias"])
        if is_first:
            return None
        below = gradient @ parameters["weights"]
        return below if inputs.ndim == 2 else below.reshape(inputs.shape)

    def rows_needed(self, input_shape: Shape, first: int, last: int) -> tuple[int, int]:
        """Return all rows of the input (see `Divisible`)."""
        return 0, input_shape[0]

    def part(self, input_shape: Shape, first: int, last: int) -> "Dense":
        """Return the layer of units `first` to `last` (see `Divisible`)."""
        return Dense(last - first, self.activation)

    def description(self) -> JsonObject:
        """Return the layer's numbers as JSON."""
        return {"units": int(self.units), "activation": self.activation}


def as_whole(name: str, value: object) -> int:
    """Return a whole number of at least 1; raise TypeError or ValueError if it is not one."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    number = operator.index(value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def check_activation(activation: object) -> None:
    """Raise ValueError if there is no activation of this name."""
    if activation not in ACTIVATIONS:
        choices = ", ".join(repr(name) for name in ACTIVATIONS)
        raise ValueError(f"activation must be one of {choices}, got {activation!r}")


def weight_limit(activation: str, fan_in: int, fan_out: int) -> float:
    """Return the limit of uniformly drawn weights, for the inputs and outputs of a unit.

    He et al. 2015 for relu, else Glorot and Bengio 2010, with their factor 4 for the sigmoid,
    without which several sigmoid layers on each other hardly learn.
    """
    if activation == "relu":
        return math.sqrt(6 / fan_in)
    factor = 4 if activation == "sigmoid" else 1
    return factor * math.sqrt(6 / (fan_in + fan_out))


def as_rows(values: Float32Array) -> Float32Array:
    """Return a float32 array as (examples, elements), as a view if possible."""
    if values.ndim == 2:
        return values
    return values.reshape(len(values), math.prod(values.shape[1:]))


def activate(activation: str, values: Float32Array) -> None:
    """Overwrite float32 values, of any shape, with their activation."""
    if activation == "sigmoid":
        sigmoid(values)
    elif activation == "tanh":
        np.tanh(values, out=values)
    elif activation == "relu":
        np.maximum(values, 0, out=values)


def multiply_by_slope(activation: str, activations: Float32Array, gradient: Float32Array) -> None:
    """Multiply a gradient, in place, by the activation's slope; overwrite the activations.

    Both are float32 and have the same shape.
    """
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
