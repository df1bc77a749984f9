"""The stages of a network: its layers with their shapes, names and places in the flat vector."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from dbdask.arrays import Float32Array
from dbdask.errors import ModelError
from dbdask.models.layers import Layer, Shape
from dbdask.models.layout import Parameter, as_parameter


class Piece(NamedTuple):
    """One parameter of a layer: its name there, and where it is in the flat vector."""

    name: str
    start: int
    stop: int
    shape: Shape


class Stage(NamedTuple):
    """One layer of a network: its name, the shapes of an example, and its parameters."""

    name: str
    layer: Layer
    input_shape: Shape
    output_shape: Shape
    pieces: tuple[Piece, ...]


def stages_of(layers: Sequence[Layer], shape: Shape) -> tuple[tuple[Stage, ...], list[Parameter]]:
    """Return the stages of a network, and all parameters with the layers' names before theirs."""
    stages: list[Stage] = []
    everything: list[Parameter] = []
    end = 0
    for position, layer in enumerate(layers):
        name, below = f"{type(layer).__name__.lower()}_{position}", shape
        try:
            shape = tuple(layer.output_shape(below))
            own = [as_parameter(item) for item in layer.parameters(below)]
            _check_initial(layer, below, own)
        except Exception as error:
            error.add_note(f"in {name}, whose input_shape is {below}")
            raise
        pieces = []
        for parameter in own:
            pieces.append(Piece(parameter.name, end, end + parameter.size, parameter.shape))
            end += parameter.size
        everything += [_prefixed(name, parameter) for parameter in own]
        stages.append(Stage(name, layer, below, shape, tuple(pieces)))
    return tuple(stages), everything


def _prefixed(layer: str, parameter: Parameter) -> Parameter:
    dims = tuple(f"{layer}_{dim}" for dim in parameter.dims)
    return replace(parameter, name=f"{layer}_{parameter.name}", dims=dims)


def _check_initial(layer: Layer, input_shape: Shape, parameters: list[Parameter]) -> None:
    given, wanted = set(layer.initial(input_shape)), {p.name for p in parameters}
    if given != wanted:
        raise ValueError(
            f"initial must name the parameters of the layer, {sorted(wanted)}, got {sorted(given)}"
        )


def of_shape(
    array: Float32Array | None, examples: int, shape: Shape, name: str, method: str
) -> Float32Array:
    """Return a float32 array that a layer made.

    Raises
    ------
    ModelError
        It has not the declared shape, (examples, *shape).
    """
    if array is None or array.shape != (examples, *shape):
        found = "None" if array is None else f"shape {array.shape}"
        what = "its outputs" if method == "forward" else "the gradient at its inputs"
        raise ModelError(
            f"{name}.{method} must return {what} in shape {(examples, *shape)}, got {found}"
        )
    return array


def as_own(outputs: Float32Array, others: Iterable[Float32Array | None]) -> Float32Array:
    """Return outputs, float32 (examples, outputs), in memory that the caller owns.

    They are copied if they are a view or one of the other arrays.
    """
    if outputs.flags.owndata and not any(outputs is array for array in others):
        return outputs
    return outputs.copy()


def checked_shape(shape: object) -> Shape:
    """Return the shape of an example; raise TypeError or ValueError if it is not one."""
    lengths = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if not all(hasattr(length, "__index__") for length in lengths):
        raise TypeError(f"input_shape must hold whole numbers, got {shape!r}")
    if min(lengths, default=1) < 1:
        raise ValueError(f"input_shape must have lengths of at least 1, got {shape!r}")
    return tuple(operator.index(length) for length in lengths)


def checked_layers(layers: object) -> tuple[Layer, ...]:
    """Return layers as a tuple; raise TypeError or ValueError if they are not layers, or none."""
    if not isinstance(layers, Iterable):
        raise TypeError(f"layers must be a list of layers, got {layers!r}")
    found: list[Layer] = []
    for layer in layers:
        if isinstance(layer, type) or not isinstance(layer, Layer):
            raise TypeError(
                f"layers must hold layers such as dbdask.Dense, got {layer!r}: an object with "
                "output_shape, parameters, initial, forward and backward is one"
            )
        found.append(layer)
    if not found:
        raise ValueError("layers must hold at least one layer, got none")
    return tuple(found)
