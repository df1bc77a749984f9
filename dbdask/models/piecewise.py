"""A network whose parameters are read piece by piece, because they do not fit in this process.

A layer is computed some rows of its output at a time, with these rows of its parameters alone (see
`Divisible`). So a pass over some examples reads every parameter once, and holds few of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from dbdask.arrays import Float32Array, FloatArray
from dbdask.models.layers import Divisible, Layer, Shape, as_rows
from dbdask.models.layout import Layout
from dbdask.models.losses import LOSSES, probabilities
from dbdask.models.network import Network
from dbdask.models.stages import Stage, of_shape

PIECE_BYTES = 2**27
"""Bytes of parameters that are held at a time, about."""

ACTIVATION_BYTES = 2**28
"""Bytes of the activations that examples may take together."""

Read = Callable[[int, int], Float32Array]
"""Returns elements start to stop of the flat vector, float32 (stop - start,)."""


@dataclass
class PiecewiseNetwork:
    """A network that predicts and scores as `network` does, without a vector of parameters.

    Its methods have the signatures of `dbdask.Model`, and take no notice of `parameters`.

    Parameters
    ----------
    network
        The whole network.
    read
        Reads parameters.
    most
        Bytes of parameters to hold at a time. A layer that is not `Divisible` is held whole.
    """

    network: Network
    read: Read
    most: int = field(default_factory=lambda: PIECE_BYTES)
    _scored: tuple[Float32Array, Float32Array] | None = field(default=None, init=False, repr=False)

    @property
    def loss(self) -> str:
        """The name of the network's loss."""
        return self.network.loss

    @property
    def layout(self) -> Layout:
        """The parameters of the network in their order in the flat vector."""
        return self.network.layout

    @property
    def examples_at_once(self) -> int:
        """How many examples to give at a time: the more, the less often a parameter is read."""
        stages = self.network.stages
        widest = max(math.prod(s.input_shape) + math.prod(s.output_shape) for s in stages)
        return max(1, ACTIVATION_BYTES // (4 * widest))

    def predict(self, parameters: object, inputs: Float32Array) -> FloatArray:
        """Return float32 (examples, outputs), as the network does."""
        known, self._scored = self._scored, None
        outputs = known[1] if known and known[0] is inputs else self._outputs(inputs)
        return probabilities(self.loss, outputs)

    def loss_only(
        self,
        parameters: object,
        inputs: Float32Array,
        targets: np.ndarray,
        *,
        weights: Float32Array | None = None,
        seed: int = 0,
    ) -> float:
        """Return the weighted sum of losses, as the network does.

        If the next call is `predict` of the same inputs, it reads no parameter again.
        """
        outputs = self._outputs(inputs)
        self._scored = inputs, outputs.copy()
        return LOSSES[self.loss](outputs, np.asarray(targets), weights)

    def _outputs(self, inputs: Float32Array) -> Float32Array:
        """Return the outputs before the loss's activation, float32 (examples, outputs)."""
        outputs = self.network.checked_inputs(inputs, np.dtype(np.float32))
        for stage in self.network.stages:
            outputs = self._through(stage, outputs)
        return as_rows(outputs)

    def _through(self, stage: Stage, below: Float32Array) -> Float32Array:
        """Return the outputs of a layer, float32 (examples, *output shape)."""
        outputs = np.empty((len(below), *stage.output_shape), np.float32)
        for first, last in pairwise(_cuts(stage, self.most)):
            layer, low, high = _part(stage, first, last)
            made, _ = layer.forward(self._parameters(stage, first, last), below[:, low:high])
            shape = (last - first, *stage.output_shape[1:])
            outputs[:, first:last] = of_shape(made, len(below), shape, stage.name, "forward")
        return outputs

    def _parameters(self, stage: Stage, first: int, last: int) -> MappingProxyType[str, FloatArray]:
        """Read the parameters of rows `first` to `last` of a layer."""
        found = {}
        for name, start, stop, shape in stage.pieces:
            rows = stage.output_shape[0]
            if (first, last) != (0, rows):
                width, shape = (stop - start) // rows, (last - first, *shape[1:])
                start, stop = start + first * width, start + last * width
            found[name] = self.read(start, stop).reshape(shape)
        return MappingProxyType(found)


def _cuts(stage: Stage, most: int) -> list[int]:
    """Return the rows at which a layer is cut, so that a piece has about `most` bytes at most.

    Examples
    --------
    >>> from dbdask.models.layers import Dense
    >>> wide = Network(input_shape=(99,), layers=[Dense(10)], loss="squared").stages[0]
    >>> _cuts(wide, 2000), _cuts(wide, 10_000)
    ([0, 5, 10], [0, 10])
    """
    rows = stage.output_shape[0]
    nbytes = 4 * sum(stop - start for _, start, stop, _ in stage.pieces)
    if not isinstance(stage.layer, Divisible):
        return [0, rows]
    count = min(rows, max(1, math.ceil(nbytes / most)))
    return [rows * number // count for number in range(count + 1)]


def _part(stage: Stage, first: int, last: int) -> tuple[Layer, int, int]:
    """Return the layer of some rows of the output, and the rows of the input that it needs."""
    shape: Shape = stage.input_shape
    if (first, last) == (0, stage.output_shape[0]):
        return stage.layer, 0, shape[0]
    assert isinstance(stage.layer, Divisible)
    return stage.layer.part(shape, first, last), *stage.layer.rows_needed(shape, first, last)
