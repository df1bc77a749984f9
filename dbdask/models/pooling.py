"""L2 pooling: the root of the sum of squares over windows of an image."""

from dataclasses import dataclass

import numpy as np

from dbdask.arrays import Float32Array
from dbdask.json_types import JsonObject
from dbdask.models.drawing import Draw
from dbdask.models.images import (
    Pair,
    Windows,
    as_pair,
    check_image,
    examples_first,
    examples_last,
)
from dbdask.models.layers import Arrays, Shape
from dbdask.models.layout import Parameter

EPSILON = 1e-6
"""Added to the sum of squares, so that the slope at zero is zero and not 0 / 0."""


@dataclass(frozen=True)
class L2Pool:
    """The root of the sum of squares over windows, for each channel alone; no parameters.

    Output (row, column, channel) is `sqrt(sum(window ** 2) + 1e-6)`. Windows lie inside the image:
    rows or columns that remain at its end are unused.

    Parameters
    ----------
    size
        Rows and columns of a window: a number for both, or a pair.
    stride
        Distance of neighbouring windows, likewise; None: the size, so that they do not overlap.

    Notes
    -----
    Le et al. 2012, arXiv 1112.6209.

    Examples
    --------
    >>> L2Pool(5).output_shape((91, 91, 8)), L2Pool(5, stride=2).output_shape((91, 91, 8))
    ((18, 18, 8), (44, 44, 8))
    """

    size: Pair
    stride: Pair

    def __init__(self, size: int | Pair, *, stride: int | Pair | None = None) -> None:
        object.__setattr__(self, "size", as_pair("size", size))
        object.__setattr__(
            self, "stride", self.size if stride is None else as_pair("stride", stride)
        )

    @property
    def windows(self) -> Windows:
        """The windows."""
        return Windows(self.size, self.stride)

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return (rows, columns, channels) of the output.

        Raises
        ------
        ValueError
            The input is no image of (rows, columns, channels), or smaller than a window.
        """
        check_image("L2Pool", "size", self.size, input_shape)
        return (*self.windows.positions(input_shape), input_shape[2])

    def parameters(self, input_shape: Shape) -> tuple[Parameter, ...]:
        """Return no parameters."""
        return ()

    def initial(self, input_shape: Shape) -> dict[str, Draw]:
        """Return no initial numbers."""
        return {}

    def forward(
        self, parameters: Arrays, inputs: Float32Array
    ) -> tuple[Float32Array, tuple[Float32Array | None, ...]]:
        """Return the pooled images, and the arrays to keep.

        Inputs and outputs are float32 (examples, rows, columns, channels).
        """
        images = examples_last(inputs)
        windows = self.windows.view(images)
        outputs = np.einsum("rcijke,rcijke->rcke", windows, windows)
        outputs += images.dtype.type(EPSILON)
        np.sqrt(outputs, out=outputs)
        return examples_first(outputs), (images, outputs)

    def backward(
        self,
        parameters: Arrays,
        kept: tuple[Float32Array | None, ...],
        gradient: Float32Array,
        into: Arrays,
        is_first: bool,
    ) -> Float32Array | None:
        """Return the gradient at the inputs, or None; `gradient` is overwritten.

        Both are float32 (examples, rows, columns, channels).
        """
        images, outputs = kept
        assert images is not None and outputs is not None
        if is_first:
            return None
        slopes = examples_last(gradient)
        slopes /= outputs
        below = np.zeros_like(images)
        under = self.windows.view(below)
        for row, column in np.ndindex(self.size):
            under[:, :, row, column] += slopes
        below *= images
        return examples_first(below)

    def rows_needed(self, input_shape: Shape, first: int, last: int) -> Pair:
        """Return the range of the image's rows under the windows (see `Divisible`)."""
        return self.windows.rows_needed(first, last)

    def part(self, input_shape: Shape, first: int, last: int) -> "L2Pool":
        """Return this layer: on fewer rows of an image it has fewer rows (see `Divisible`)."""
        return self

    def description(self) -> JsonObject:
        """Return the layer's numbers as JSON."""
        return {"size": list(self.size), "stride": list(self.stride)}
