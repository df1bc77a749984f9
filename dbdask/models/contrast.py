"""Local contrast normalisation: subtract the mean around a position, divide by the deviation."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dbdask.arrays import Float32Array, Float64Array
from dbdask.json_types import JsonObject
from dbdask.models.drawing import Draw
from dbdask.models.images import Pair, as_pair, check_image, examples_first, examples_last
from dbdask.models.layers import Arrays, Shape
from dbdask.models.layout import Parameter

LEAST_DEVIATION = 0.01
"""The least divisor: a patch of one value stays zero, and noise is not made large."""


@dataclass(frozen=True)
class LocalContrastNorm:
    """Subtract the local mean over all channels, and divide by the local deviation.

    With weights `G` around each position, which add up to 1 over the window and all channels::

        v[r, c, k] = x[r, c, k] - sum(G[i, j] * x[r + i, c + j, m]  over i, j, m)
        y[r, c, k] = v[r, c, k] / max(0.01, sqrt(sum(G[i, j] * v[r + i, c + j, m]**2)))

    The shape stays. `G` is Gaussian, with a deviation of a quarter of the window. At the edge of an
    image the weights inside the image add up to 1. There are no parameters.

    Parameters
    ----------
    size
        Rows and columns of the window, odd: a number for both, or a pair.

    Notes
    -----
    Jarrett et al. 2009, section 2; with the constant divisor 0.01 of Le et al. 2012, arXiv
    1112.6209.

    Examples
    --------
    >>> LocalContrastNorm(5).output_shape((18, 18, 8))
    (18, 18, 8)
    """

    size: Pair

    def __init__(self, size: int | Pair) -> None:
        pair = as_pair("size", size)
        if not all(length % 2 for length in pair):
            raise ValueError(f"size must be odd, so that a window has a centre, got {size!r}")
        object.__setattr__(self, "size", pair)

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the input.

        Raises
        ------
        ValueError
            The input is no image of (rows, columns, channels), or smaller than the window; or a
            window of one element and channel, whose output would always be zero.
        """
        check_image("LocalContrastNorm", "size", self.size, input_shape)
        if math.prod(self.size) * input_shape[2] == 1:
            raise ValueError(
                "size of LocalContrastNorm must be at least 3 for an image of one channel, got 1: "
                "every element would be its own mean"
            )
        return tuple(input_shape)

    def parameters(self, input_shape: Shape) -> tuple[Parameter, ...]:
        """Return no parameters."""
        return ()

    def initial(self, input_shape: Shape) -> dict[str, Draw]:
        """Return no initial numbers."""
        return {}

    def forward(
        self, parameters: Arrays, inputs: Float32Array
    ) -> tuple[Float32Array, tuple[Float32Array | None, ...]]:
        """Return the normalised images, and the arrays to keep.

        Inputs and outputs are float32 (examples, rows, columns, channels).
        """
        return self._of_rows(inputs.shape[1]).forward(parameters, inputs)

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
        rows = self._of_rows(gradient.shape[1])
        return rows.backward(parameters, kept, gradient, into, is_first)

    def _of_rows(self, rows: int) -> "ContrastRows":
        return ContrastRows(self.size, rows, 0, rows)

    def rows_needed(self, input_shape: Shape, first: int, last: int) -> Pair:
        """Return the range of rows that the means and deviations need (see `Divisible`)."""
        return ContrastRows(self.size, input_shape[0], first, last).inputs

    def part(self, input_shape: Shape, first: int, last: int) -> "ContrastRows":
        """Return the layer of rows `first` to `last` (see `Divisible`)."""
        return ContrastRows(self.size, input_shape[0], first, last)

    def description(self) -> JsonObject:
        """Return the layer's numbers as JSON."""
        return {"size": list(self.size)}


@dataclass(frozen=True)
class ContrastRows:
    """Rows `first` to `last` of the output of a `LocalContrastNorm`, as a layer.

    Its inputs are only the rows of the image that these depend on, `self.inputs`: each deviation
    needs centred values around it, and each of those a mean around it.

    Parameters
    ----------
    size
        Rows and columns of the window.
    rows
        Rows of the whole image.
    first, last
        Rows of the output.
    """

    size: Pair
    rows: int
    first: int
    last: int

    @property
    def outputs(self) -> Pair:
        """The rows of the output."""
        return self.first, self.last

    @property
    def centred(self) -> Pair:
        """The rows whose centred values are needed."""
        return self._widened(*self.outputs)

    @property
    def inputs(self) -> Pair:
        """The rows of the image that are needed."""
        return self._widened(*self.centred)

    def _widened(self, first: int, last: int) -> Pair:
        half = self.size[0] // 2
        return max(0, first - half), min(self.rows, last + half)

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of these rows of the output."""
        return (self.last - self.first, *input_shape[1:])

    def parameters(self, input_shape: Shape) -> tuple[Parameter, ...]:
        """Return no parameters."""
        return ()

    def initial(self, input_shape: Shape) -> dict[str, Draw]:
        """Return no initial numbers."""
        return {}

    def forward(
        self, parameters: Arrays, inputs: Float32Array
    ) -> tuple[Float32Array, tuple[Float32Array | None, ...]]:
        """Return rows `first` to `last` of the normalised images, and the arrays to keep.

        Inputs and outputs are float32 (examples, rows, columns, channels).
        """
        images = examples_last(inputs)
        to_centred, to_outputs, along_columns = self._filters(images)
        means = _filtered(to_centred, along_columns, images.mean(axis=2))
        centred = images[self._inside(self.centred, self.inputs)] - means[:, :, np.newaxis]
        squares = np.einsum("rcke,rcke->rce", centred, centred)
        squares /= images.shape[2]
        deviations = np.sqrt(_filtered(to_outputs, along_columns, squares))
        divisors = np.maximum(deviations, LEAST_DEVIATION)
        outputs = centred[self._inside(self.outputs, self.centred)].copy()
        outputs /= divisors[:, :, np.newaxis]
        return examples_first(outputs), (images, centred, deviations)

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
        images, centred, deviations = kept
        assert images is not None and centred is not None and deviations is not None
        if is_first:
            return None
        to_centred, to_outputs, along_columns = self._filters(images)
        channels = images.shape[2]
        own = self._inside(self.outputs, self.centred)
        slopes = examples_last(gradient)
        divisors = np.maximum(deviations, LEAST_DEVIATION)
        of_squares = np.einsum("rcke,rcke->rce", slopes, centred[own])
        of_squares *= deviations > LEAST_DEVIATION
        of_squares /= -(divisors**3) * channels
        slopes /= divisors[:, :, np.newaxis]
        spread = _filtered(to_outputs.T, along_columns.T, of_squares)
        at_centred = centred * spread[:, :, np.newaxis]
        at_centred[own] += slopes
        of_means = at_centred.sum(axis=2)
        of_means /= -channels
        at_means = _filtered(to_centred.T, along_columns.T, of_means)
        below = np.empty_like(images)
        below[...] = at_means[:, :, np.newaxis]
        below[self._inside(self.centred, self.inputs)] += at_centred
        return examples_first(below)

    def _filters(self, images: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Return the filters from inputs' to centred rows, from these to outputs', of columns."""
        along_rows = gaussian_filter(self.rows, self.size[0])
        along_columns = gaussian_filter(images.shape[1], self.size[1])
        to_centred = along_rows[slice(*self.centred), slice(*self.inputs)]
        to_outputs = along_rows[slice(*self.outputs), slice(*self.centred)]
        return (
            to_centred.astype(images.dtype),
            to_outputs.astype(images.dtype),
            along_columns.astype(images.dtype),
        )

    def _inside(self, part: Pair, rows: Pair) -> slice:
        """Return the place of a range of rows in a larger one."""
        return slice(part[0] - rows[0], part[1] - rows[0])


@lru_cache(maxsize=64)
def gaussian_filter(length: int, size: int) -> Float64Array:
    """Return the weights around each of `length` places, (length, length), float64.

    Row i has a Gaussian around i, `size` wide with a deviation of `size / 4`, cut at the ends; it
    adds up to 1.

    Examples
    --------
    >>> gaussian_filter(4, 3).round(2).tolist()[:2]
    [[0.71, 0.29, 0.0, 0.0], [0.23, 0.55, 0.23, 0.0]]
    """
    places = np.arange(length)
    distances = np.abs(places[:, np.newaxis] - places)
    weights: Float64Array = np.exp(-0.5 * (distances / (size / 4)) ** 2)
    weights[distances > size // 2] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    weights.flags.writeable = False
    return weights


def _filtered(
    along_rows: Float32Array, along_columns: Float32Array, values: Float32Array
) -> Float32Array:
    """Return (rows, columns, examples) filtered along rows and columns by matrices."""
    rows, *others = values.shape
    by_row = along_rows @ values.reshape(rows, math.prod(others))
    filtered: Float32Array = along_columns @ by_row.reshape(len(by_row), *others)
    return filtered
