"""One part of a cut network: its share of the loss and the gradient, as a generator.

The part computes its rows of each layer. Where a layer needs rows of the layer below that other
parts have, the part yields an `Exchange`. On the way back it sends the gradient at these rows to
the parts that own them, which add up what they get.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from dbdask.arrays import Float32Array, FloatArray
from dbdask.models.boundary import Boundary
from dbdask.models.cut import Crossing, Cut, PartStage, Rows, check_cut, crossings, part_stages
from dbdask.models.cut_losses import cut_loss, cut_softmax
from dbdask.models.cut_table import part_ranges
from dbdask.models.exchange import Exchanging
from dbdask.models.layers import Arrays, as_rows
from dbdask.models.losses import sigmoid
from dbdask.models.network import Network
from dbdask.models.stages import Piece, as_own, of_shape

Kept = tuple[Float32Array | None, ...]


@dataclass(frozen=True)
class Part:
    """One part of a network.

    Its methods are generators that yield an `Exchange` wherever they need other parts, and return
    their value; all parts of a network must be driven at the same time, with the same examples.

    Parameters
    ----------
    network
        The whole network.
    cut
        Which rows of its layers each part computes.
    index
        Which part this is.

    Raises
    ------
    ValueError
        The cut is not one of this network, or has no such part.
    """

    network: Network
    cut: Cut
    index: int
    shares: tuple[PartStage, ...] = field(init=False, repr=False, compare=False)
    range: Rows = field(init=False, repr=False, compare=False)
    """The elements of the cut vector that are this part's parameters."""
    pieces: tuple[tuple[Piece, ...], ...] = field(init=False, repr=False, compare=False)
    """The part's parameters of each layer, by their place in the part's vector."""
    _boundaries: tuple[Boundary, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_cut(self.network, self.cut)
        if not 0 <= self.index < self.cut.parts:
            raise ValueError(f"index must be 0 to {self.cut.parts - 1}, got {self.index}")
        stages = self.network.stages
        shares = part_stages(self.network, self.cut, self.index)
        object.__setattr__(self, "shares", shares)
        object.__setattr__(self, "range", part_ranges(self.network, self.cut)[self.index])
        object.__setattr__(self, "pieces", self._cut_pieces())
        found = crossings(self.network, self.cut)
        boundaries = tuple(self._boundary(layer, found) for layer in range(1, len(stages)))
        object.__setattr__(self, "_boundaries", boundaries)

    def _cut_pieces(self) -> tuple[tuple[Piece, ...], ...]:
        """Return the part's parameters of each layer, by their place in the part's vector."""
        everything: list[tuple[Piece, ...]] = []
        end = 0
        for stage, share in zip(self.network.stages, self.shares, strict=True):
            pieces: list[Piece] = []
            for piece in stage.pieces if share.layer is not None else ():
                is_whole = share.output_shape == stage.output_shape
                shape = piece.shape if is_whole else (share.output_shape[0], *piece.shape[1:])
                pieces.append(Piece(piece.name, end, end + math.prod(shape), shape))
                end += math.prod(shape)
            everything.append(tuple(pieces))
        return tuple(everything)

    def _boundary(self, layer: int, found: tuple[Crossing, ...]) -> Boundary:
        """Return the part's side of the boundary below a layer, from all crossings of the cut."""
        return Boundary(
            layer,
            self.shares[layer - 1].rows,
            self.shares[layer].needed,
            tuple(c for c in found if c.layer == layer and c.sender == self.index),
            tuple(c for c in found if c.layer == layer and c.receiver == self.index),
        )

    @property
    def size(self) -> int:
        """Number of parameters of the part."""
        return self.range[1] - self.range[0]

    def loss_and_gradient(
        self,
        parameters: Float32Array,
        inputs: Float32Array,
        targets: np.ndarray,
        *,
        weights: Float32Array | None = None,
        seed: int = 0,
        gradient: Float32Array,
    ) -> Exchanging[float]:
        """Return the part's share of the weighted sum of losses; overwrite `gradient`.

        The shares of all parts add up to the loss of the whole network.

        Parameters
        ----------
        parameters, gradient
            The part's range of the cut vector, float32 (size,).
        inputs, targets, weights, seed
            As the whole network takes them (see `dbdask.Model`).
        """
        views, into = self._views(parameters), self._views(gradient)
        outputs, kept = yield from self._forward(views, inputs, parameters.dtype)
        loss = yield from self._loss(outputs, targets, weights)
        upstream = outputs.reshape(len(outputs), *self.shares[-1].output_shape)
        for position in range(len(self.shares) - 1, -1, -1):
            below = self._through(position, views[position], kept.pop(), upstream, into[position])
            if position:
                assert below is not None
                upstream = yield from self._boundaries[position - 1].backward(below)
        return loss

    def _through(
        self, position: int, parameters: Arrays, kept: Kept, upstream: Float32Array, into: Arrays
    ) -> Float32Array | None:
        """Fill a layer's gradients; return that at the rows that the part needed, or None."""
        share, name = self.shares[position], self.network.stages[position].name
        if share.layer is None:
            return np.empty((len(upstream), *share.input_shape), upstream.dtype)
        below = share.layer.backward(parameters, kept, upstream, into, position == 0)
        if position == 0:
            return None
        return of_shape(below, len(upstream), share.input_shape, name, "backward")

    def loss_only(
        self,
        parameters: Float32Array,
        inputs: Float32Array,
        targets: np.ndarray,
        *,
        weights: Float32Array | None = None,
        seed: int = 0,
    ) -> Exchanging[float]:
        """Return the part's share of the loss, without a gradient.

        Shapes and dtypes are those of `loss_and_gradient`.
        """
        outputs, _ = yield from self._forward(self._views(parameters), inputs, parameters.dtype)
        return (yield from self._loss(outputs, targets, weights))

    def predict(self, parameters: Float32Array, inputs: Float32Array) -> Exchanging[FloatArray]:
        """Return the part's columns of the predictions, float (examples, columns)."""
        outputs, _ = yield from self._forward(self._views(parameters), inputs, parameters.dtype)
        if self.network.loss == "softmax" and outputs.shape[1]:
            yield from cut_softmax(outputs, self._peers)
        elif self.network.loss == "logistic":
            sigmoid(outputs)
        return outputs

    @property
    def columns(self) -> Rows:
        """Which of the network's outputs, flattened, the part computes."""
        width = math.prod(self.shares[-1].output_shape[1:])
        first, last = self.shares[-1].rows
        return first * width, last * width

    @property
    def _peers(self) -> list[int]:
        """The other parts that have outputs."""
        last = pairwise(self.cut.edges[-1])
        return [
            part for part, (start, stop) in enumerate(last) if start < stop and part != self.index
        ]

    def _loss(
        self, outputs: Float32Array, targets: np.ndarray, weights: Float32Array | None
    ) -> Exchanging[float]:
        """Return the share of the loss, and overwrite outputs, (examples, columns)."""
        if not outputs.shape[1]:
            return 0.0
        size = math.prod(self.network.output_shape)
        return (
            yield from cut_loss(
                self.network.loss, outputs, self.columns, size, targets, weights, self._peers
            )
        )

    def _views(self, vector: Float32Array) -> list[Arrays]:
        """Return each layer's parameters by name, as views of the part's vector."""
        if vector.shape != (self.size,):
            raise ValueError(
                f"the vector of part {self.index} must have shape ({self.size},), got "
                f"{vector.shape}"
            )
        return [
            MappingProxyType({p.name: vector[p.start : p.stop].reshape(p.shape) for p in pieces})
            for pieces in self.pieces
        ]

    def _forward(
        self, views: list[Arrays], inputs: np.ndarray, dtype: np.dtype
    ) -> Exchanging[tuple[Float32Array, list[Kept]]]:
        """Return outputs, (examples, columns), that may be overwritten, and what layers keep."""
        own = self.network.checked_inputs(inputs, dtype)
        everything: list[Kept] = []
        for position, (share, parameters) in enumerate(zip(self.shares, views, strict=True)):
            if position:
                given = yield from self._boundaries[position - 1].forward(own)
            else:
                given = own[:, slice(*share.needed)]
            own, kept = self._apply(position, parameters, given)
            everything.append(kept)
        return as_rows(as_own(own, (given, *kept))), everything

    def _apply(
        self, position: int, parameters: Arrays, given: Float32Array
    ) -> tuple[Float32Array, Kept]:
        """Return the part's rows of a layer's output, and what the layer keeps."""
        share, name = self.shares[position], self.network.stages[position].name
        if share.layer is None:
            return np.empty((len(given), *share.output_shape), given.dtype), ()
        made, kept = share.layer.forward(parameters, given)
        return of_shape(made, len(given), share.output_shape, name, "forward"), kept
