"""The locally connected layer: at every position of an image, filters of its own."""

import math
from dataclasses import dataclass

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.json_types import JsonObject
from dbdask.models.drawing import Constant, Draw, Uniform
from dbdask.models.images import (
    Pair,
    Windows,
    as_pair,
    blocks,
    check_image,
    examples_first,
    examples_last,
)
from dbdask.models.layers import (
    Arrays,
    Shape,
    activate,
    as_whole,
    check_activation,
    multiply_by_slope,
    weight_limit,
)
from dbdask.models.layout import Parameter


@dataclass(frozen=True)
class LocallyConnected:
    """Filters over patches of an image; unlike a convolution, every position has its own.

    Output (row, column, map) is `activation(weights[row, column, map] * patch + bias[row, column,
    map])`, where the patch begins at (row * stride, column * stride) and has all channels, and the
    product is summed over the patch. Patches lie inside the image: an n x n image has
    `(n - patch) // stride + 1` positions a side, and rows or columns that then remain are unused.

    Parameters
    ----------
    maps
        Filters at each position: the channels of the output.
    patch
        Rows and columns of a patch: a number for both, or a pair.
    stride
        Distance of neighbouring patches, likewise.
    activation
        "linear", "sigmoid", "tanh" or "relu".

    Notes
    -----
    Dean et al. 2012, section 5: "locally-connected filters", 10 x 10 patches and 8 to 36 maps.
    Weights are drawn as those of `Dense`, where a unit's inputs are the elements of its patch.

    Examples
    --------
    >>> LocallyConnected(8, 10).output_shape((100, 100, 3))
    (91, 91, 8)
    """

    maps: int
    patch: Pair
    stride: Pair
    activation: str

    def __init__(
        self,
        maps: int,
        patch: int | Pair,
        *,
        stride: int | Pair = 1,
        activation: str = "linear",
    ) -> None:
        check_activation(activation)
        object.__setattr__(self, "maps", as_whole("maps", maps))
        object.__setattr__(self, "patch", as_pair("patch", patch))
        object.__setattr__(self, "stride", as_pair("stride", stride))
        object.__setattr__(self, "activation", activation)

    @property
    def windows(self) -> Windows:
        """The patches."""
        return Windows(self.patch, self.stride)

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return (rows, columns, maps) of the output.

        Raises
        ------
        ValueError
            The input is no image of (rows, columns, channels), or smaller than a patch.
        """
        check_image("LocallyConnected", "patch", self.patch, input_shape)
        return (*self.windows.positions(input_shape), self.maps)

    def parameters(self, input_shape: Shape) -> tuple[Parameter, ...]:
        """Return the layer's parameters: weights and bias, the rows of the output first."""
        rows, columns, maps = self.output_shape(input_shape)
        position = ("row", "column", "map")
        return (
            Parameter(
                "weights",
                (rows, columns, maps, *self.patch, input_shape[2]),
                (*position, "patch_row", "patch_column", "channel"),
            ),
            Parameter("bias", (rows, columns, maps), position),
        )

    def initial(self, input_shape: Shape) -> dict[str, Draw]:
        """Return the initial numbers: uniform weights, zero biases, as those of `Dense`."""
        area = math.prod(self.patch)
        limit = weight_limit(self.activation, area * input_shape[2], area * self.maps)
        return {"weights": Uniform(limit), "bias": Constant(0.0)}

    def forward(
        self, parameters: Arrays, inputs: Float32Array
    ) -> tuple[Float32Array, tuple[Float32Array | None, ...]]:
        """Return the activations, float32 (examples, rows, columns, maps), and the arrays to keep.

        `inputs` is float32 (examples, rows, columns, channels).
        """
        images = examples_last(inputs)
        patches = self.windows.view(images)
        weights = _by_map(parameters["weights"])
        outputs = np.empty((*weights.shape[:3], len(inputs)), images.dtype)
        for rows, columns in blocks(patches.shape[:2], patches[0, 0].size):
            block = _as_matrices(patches[rows, columns])
            np.matmul(weights[rows, columns], block, out=outputs[rows, columns])
        outputs += parameters["bias"][..., np.newaxis]
        activate(self.activation, outputs)
        return examples_first(outputs), (images, None if self.activation == "linear" else outputs)

    def backward(
        self,
        parameters: Arrays,
        kept: tuple[Float32Array | None, ...],
        gradient: Float32Array,
        into: Arrays,
        is_first: bool,
    ) -> Float32Array | None:
        """Fill the gradients of weights and bias; return the gradient at the inputs, or None.

        The outputs and `gradient`, float32 (examples, rows, columns, maps), are overwritten. The
        result is float32 (examples, rows, columns, channels).
        """
        images, outputs = kept
        assert images is not None
        slopes = examples_last(gradient)
        if outputs is not None:
            multiply_by_slope(self.activation, outputs, slopes)
        np.sum(slopes, axis=-1, out=into["bias"])
        weights, weights_into = _by_map(parameters["weights"]), _by_map(into["weights"])
        patches = self.windows.view(images)
        below = None if is_first else np.zeros_like(images)
        below_patches = None if below is None else self.windows.view(below)
        for rows, columns in blocks(patches.shape[:2], patches[0, 0].size):
            block, at = _as_matrices(patches[rows, columns]), slopes[rows, columns]
            np.matmul(at, block.swapaxes(-1, -2), out=weights_into[rows, columns])
            if below_patches is not None:
                np.matmul(weights[rows, columns].swapaxes(-1, -2), at, out=block)
                shares = block.reshape(patches[rows, columns].shape)
                self.windows.add(shares, below_patches[rows, columns])
        return None if below is None else examples_first(below)

    def rows_needed(self, input_shape: Shape, first: int, last: int) -> Pair:
        """Return the range of the image's rows under the windows (see `Divisible`)."""
        return self.windows.rows_needed(first, last)

    def part(self, input_shape: Shape, first: int, last: int) -> "LocallyConnected":
        """Return this layer: on fewer rows of an image it has fewer rows (see `Divisible`)."""
        return self

    def description(self) -> JsonObject:
        """Return the layer's numbers as JSON."""
        return {
            "maps": self.maps,
            "patch": list(self.patch),
            "stride": list(self.stride),
            "activation": self.activation,
        }


def _by_map(weights: Float32Array) -> Float32Array:
    """Return weights as (rows, columns, maps, elements of a patch), a view."""
    return weights.reshape(*weights.shape[:3], math.prod(weights.shape[3:]))


def _as_matrices(patches: Float32Array) -> Float32Array:
    """Return a copy of patches as (rows, columns, elements of a patch, examples)."""
    shape = patches.shape
    return patches.copy().reshape(*shape[:2], math.prod(shape[2:5]), shape[5])
