"""The NumPy network: layers over views of one flat vector."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from dbdask.arrays import Float32Array, FloatArray
from dbdask.errors import ModelError
from dbdask.json_types import JsonObject
from dbdask.models.contrast import LocalContrastNorm
from dbdask.models.layers import Arrays, Dense, Layer, Shape, as_rows
from dbdask.models.layout import Layout
from dbdask.models.locally_connected import LocallyConnected
from dbdask.models.losses import LOSSES, probabilities
from dbdask.models.pooling import L2Pool
from dbdask.models.stages import Stage, as_own, checked_layers, checked_shape, of_shape, stages_of

LAYERS: dict[str, type] = {
    "Dense": Dense,
    "LocallyConnected": LocallyConnected,
    "L2Pool": L2Pool,
    "LocalContrastNorm": LocalContrastNorm,
}
"""The layers of this library, by the names under which saved models know them."""


@dataclass(frozen=True)
class Network:
    """A feed-forward network that keeps the `dbdask.Model` contract.

    Parameters
    ----------
    input_shape
        Shape of one example's input; a number is the length of its one dimension.
    layers
        Layers, first to last: `Dense`, `LocallyConnected`, `L2Pool`, `LocalContrastNorm`, or
        objects of your own that keep `dbdask.Layer`.
    loss
        "softmax" (labels), "logistic" (one-vs-all: labels, or 0/1 for each output), or
        "squared" (half the squared error, summed over outputs).

    Examples
    --------
    >>> network = Network(input_shape=(440,), layers=[Dense(2560, "sigmoid")] * 4 + [Dense(8192)],
    ...                   loss="softmax")
    >>> network.parameter_count
    41777152

    A network of images:

    >>> layers = [LocallyConnected(8, 7), L2Pool(2), LocalContrastNorm(5), Dense(10)]
    >>> Network(input_shape=(28, 28, 1), layers=layers, loss="logistic").parameter_count
    203290
    """

    input_shape: Shape = field(kw_only=True)
    layers: Sequence[Layer] = field(kw_only=True)
    loss: str = field(kw_only=True)
    _layout: Layout = field(init=False, repr=False, compare=False)
    _stages: tuple[Stage, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", checked_shape(self.input_shape))
        object.__setattr__(self, "layers", checked_layers(self.layers))
        if not isinstance(self.loss, str) or self.loss not in LOSSES:
            choices = ", ".join(repr(name) for name in LOSSES)
            raise ValueError(f"loss must be one of {choices}, got {self.loss!r}")
        activation = getattr(self.layers[-1], "activation", "linear")
        if self.loss != "squared" and activation != "linear":
            raise ValueError(
                f"the last layer of a {self.loss!r} network must be linear (the loss applies its "
                f"own activation), got {activation!r}"
            )
        stages, parameters = stages_of(self.layers, self.input_shape)
        object.__setattr__(self, "_stages", stages)
        object.__setattr__(self, "_layout", Layout(tuple(parameters)))

    @property
    def layout(self) -> Layout:
        """The parameters in their order in the flat vector."""
        return self._layout

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Each layer with its name, the shapes of an example, and its place in the vector."""
        return self._stages

    @property
    def parameter_count(self) -> int:
        """Number of parameters, biases included."""
        return self.layout.size

    @property
    def output_shape(self) -> Shape:
        """Shape of one example's output."""
        return self._stages[-1].output_shape

    def initial_parameters(self, seed: int, start: int, stop: int) -> Float32Array:
        """Return elements `start` to `stop` of the initial flat vector: float32, (stop - start,).

        Every parameter has its own stream of random numbers, and each element depends only on that
        stream and on its position. So the values are the same for any number of shards.

        Raises
        ------
        ModelError
            `initial` of a layer returned another shape.
        """
        values = np.zeros(stop - start, np.float32)
        index = 0
        for stage in self._stages:
            draws = stage.layer.initial(stage.input_shape)
            for piece in stage.pieces:
                first, last = max(start, piece.start), min(stop, piece.stop)
                if first < last:
                    drawn = draws[piece.name](
                        (seed, index), first - piece.start, last - piece.start
                    )
                    if np.shape(drawn) != (last - first,):
                        raise ModelError(
                            f"{stage.name}: initial of {piece.name!r} must return shape "
                            f"({last - first},), got {np.shape(drawn)}"
                        )
                    values[first - start : last - start] = drawn
                index += 1
        return values

    def loss_and_gradient(
        self,
        parameters: Float32Array,
        inputs: Float32Array,
        targets: np.ndarray,
        *,
        weights: Float32Array | None = None,
        seed: int = 0,
        gradient: Float32Array,
    ) -> float:
        """Return the weighted sum of losses, and overwrite `gradient`, float32 (n,).

        Shapes and dtypes are those of `dbdask.Model`.
        """
        views, into = self._views(parameters), self._views(gradient)
        outputs, kept = self._forward(views, self.checked_inputs(inputs, parameters.dtype))
        loss, upstream = self._loss(outputs, targets, weights)
        for position in range(len(self._stages) - 1, -1, -1):
            stage = self._stages[position]
            below = stage.layer.backward(
                views[position], kept.pop(), upstream, into[position], position == 0
            )
            if position:
                upstream = of_shape(below, len(inputs), stage.input_shape, stage.name, "backward")
        return loss

    def loss_only(
        self,
        parameters: Float32Array,
        inputs: Float32Array,
        targets: np.ndarray,
        *,
        weights: Float32Array | None = None,
        seed: int = 0,
    ) -> float:
        """Return the weighted sum of losses, without a gradient.

        Shapes and dtypes are those of `dbdask.Model`.
        """
        views = self._views(parameters)
        outputs, _ = self._forward(views, self.checked_inputs(inputs, parameters.dtype))
        return self._loss(outputs, targets, weights)[0]

    def predict(self, parameters: Float32Array, inputs: Float32Array) -> FloatArray:
        """Return float (examples, outputs): probabilities for softmax and logistic, else values."""
        views = self._views(parameters)
        outputs, _ = self._forward(views, self.checked_inputs(inputs, parameters.dtype))
        return probabilities(self.loss, as_rows(outputs))

    def _loss(
        self, outputs: Float32Array, targets: np.ndarray, weights: Float32Array | None
    ) -> tuple[float, Float32Array]:
        """Return the loss, and its gradient at the outputs, which overwrites them."""
        rows = as_rows(outputs)
        loss = LOSSES[self.loss](rows, np.asarray(targets), weights)
        return loss, rows.reshape(outputs.shape)

    def _forward(
        self, views: list[Arrays], inputs: Float32Array
    ) -> tuple[Float32Array, list[tuple[Float32Array | None, ...]]]:
        """Return outputs that may be overwritten, and the arrays that each layer keeps."""
        below = outputs = inputs
        everything = []
        for stage, parameters in zip(self._stages, views, strict=True):
            below = outputs
            made, kept = stage.layer.forward(parameters, below)
            outputs = of_shape(made, len(inputs), stage.output_shape, stage.name, "forward")
            everything.append(kept)
        return as_own(outputs, (below, *everything[-1])), everything

    def _views(self, vector: Float32Array) -> list[Arrays]:
        """Return each layer's parameters by name, as views of a flat vector."""
        if vector.shape != (self._layout.size,):
            raise ValueError(
                f"the vector must have shape ({self._layout.size},), got {vector.shape}"
            )
        return [
            MappingProxyType(
                {
                    name: vector[start:stop].reshape(shape)
                    for name, start, stop, shape in stage.pieces
                }
            )
            for stage in self._stages
        ]

    def checked_inputs(self, inputs: np.ndarray, dtype: np.dtype) -> Float32Array:
        """Return inputs as contiguous numbers of a dtype; raise ValueError for another shape."""
        inputs = np.asarray(inputs)
        if inputs.shape[1:] != self.input_shape:
            raise ValueError(
                f"inputs must have shape (examples, {', '.join(map(str, self.input_shape))}), "
                f"got {inputs.shape}"
            )
        return np.ascontiguousarray(inputs, dtype)

    def description(self) -> JsonObject:
        """Return the network as JSON; of a user's layer, its name and its description."""
        rows = [_row(layer) for layer in self.layers]
        return {
            "network": "own layers" if any("own" in row for row in rows) else "dense",
            "input_shape": list(self.input_shape),
            "layers": rows,
            "loss": self.loss,
        }

    @classmethod
    def from_description(cls, description: JsonObject) -> "Network":
        """Rebuild a network from `description()`.

        Raises
        ------
        ValueError
            A layer is not from this library.
        """
        names = {row["layer"] for row in description["layers"]}
        if description["network"] != "dense" or not names <= set(LAYERS):
            raise ValueError(
                f"description must be of a 'dense' network of layers of this library, got "
                f"{description['network']!r} of {sorted(names)}: written by a newer dbdask?"
            )
        layers = [
            LAYERS[row["layer"]](**{name: row[name] for name in row if name != "layer"})
            for row in description["layers"]
        ]
        return cls(
            input_shape=tuple(description["input_shape"]), layers=layers, loss=description["loss"]
        )


def _row(layer: object) -> JsonObject:
    """Return the description of a layer; one of a user's class is marked as "own"."""
    describe = getattr(layer, "description", None)
    described = describe() if callable(describe) else {}
    name = type(layer).__qualname__
    if type(layer) in LAYERS.values():
        return {"layer": name, **described}
    return {"layer": name, "own": described}


def flops_of(model: object, examples: int) -> int | None:
    """Return the floating-point operations in the large products of a minibatch's gradient.

    They are those of `Dense` layers. A `LocallyConnected` layer makes a small product for each
    position, for which several threads are no use. None for a model that may do something else.
    """
    if not isinstance(model, Network) or not {*map(type, model.layers)} <= {*LAYERS.values()}:
        return None
    of_dense = (stage for stage in model.stages if type(stage.layer) is Dense)
    count = sum(piece.stop - piece.start for stage in of_dense for piece in stage.pieces)
    return 6 * count * examples  # two for each of three products


def what_is_own(description: object) -> str:
    """Return the parts of a model that its description cannot rebuild, in words; "" if none."""
    if not isinstance(description, dict) or "network" not in description:
        return "a model of yours"
    names = sorted({row["layer"] for row in description["layers"] if "own" in row})
    return f"layers of yours ({', '.join(names)})" if names else ""
