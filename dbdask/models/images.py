"""Images in layers: their checks, the windows over them, and the order in memory.

An image is (rows, columns, channels). Layers of images work on arrays whose examples are the last
axis, (rows, columns, channels, examples): a window's columns and channels are then one contiguous
run for all examples, and rows of an image are one contiguous block. Layers hand each other
transposed views of such arrays, so a chain of them copies nothing.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dbdask.arrays import Float32Array
from dbdask.models.layers import Shape, as_whole

Pair = tuple[int, int]

BLOCK = 2**17  # floats of windows that are copied at once: half a MiB stays in a core's cache


class Windows(NamedTuple):
    """Rectangles of an image: their size and their distance, as (rows, columns)."""

    size: Pair
    stride: Pair

    def positions(self, input_shape: Shape) -> Pair:
        """Return how many windows lie in an image below each other, and beside each other."""
        rows, columns = (
            (length - size) // stride + 1
            for length, size, stride in zip(input_shape, self.size, self.stride, strict=False)
        )
        return rows, columns

    def rows_needed(self, first: int, last: int) -> Pair:
        """Return the range of the image's rows that rows `first` to `last` of windows cover.

        Examples
        --------
        >>> Windows((5, 5), (2, 2)).rows_needed(3, 6)
        (6, 15)
        """
        if first == last:
            return 0, 0
        return first * self.stride[0], (last - 1) * self.stride[0] + self.size[0]

    def view(self, images: Float32Array) -> Float32Array:
        """Return the windows, float32 (rows, columns, *size, channels, examples), without a copy.

        `images` are float32 (rows, columns, channels, examples); elements in several windows occur
        several times in the view.
        """
        by_row, by_column, *others = images.strides
        return as_strided(
            images,
            (*self.positions(images.shape), *self.size, *images.shape[2:]),
            (by_row * self.stride[0], by_column * self.stride[1], by_row, by_column, *others),
        )

    def add(self, values: Float32Array, windows: Float32Array) -> None:
        """Add values to windows, a view of images, in which windows may overlap.

        Both are float32 (rows, columns, *size, channels, examples). Windows that are `size /
        stride` apart do not overlap, so the sum is taken over few large sets of them.
        """
        rows_apart, columns_apart = (
            -(-size // stride) for size, stride in zip(self.size, self.stride, strict=True)
        )
        for row in range(min(rows_apart, len(windows))):
            for column in range(min(columns_apart, windows.shape[1])):
                disjoint = slice(row, None, rows_apart), slice(column, None, columns_apart)
                windows[disjoint] += values[disjoint]


def blocks(positions: Pair, size: int) -> Iterator[tuple[slice, slice]]:
    """Return slices of rows and columns that cut positions into blocks of about BLOCK floats.

    `size` is the number of floats at one position.
    """
    rows, columns = positions
    size = max(1, size)  # it is 0 if there are no examples
    columns_at_once = min(columns, max(1, BLOCK // size))
    rows_at_once = max(1, BLOCK // (size * columns)) if columns_at_once == columns else 1
    for row in range(0, rows, rows_at_once):
        for column in range(0, columns, columns_at_once):
            yield slice(row, row + rows_at_once), slice(column, column + columns_at_once)


def examples_last(images: Float32Array) -> Float32Array:
    """Return images with the examples last, contiguous.

    The shape changes from float32 (examples, rows, columns, channels) to (rows, columns, channels,
    examples). It is a view if the array comes from `examples_first`.
    """
    return np.ascontiguousarray(images.transpose(1, 2, 3, 0))


def examples_first(images: Float32Array) -> Float32Array:
    """Return a view with the examples first.

    The shape changes from float32 (rows, columns, channels, examples) to (examples, rows, columns,
    channels).
    """
    return images.transpose(3, 0, 1, 2)


def as_pair(name: str, value: object) -> Pair:
    """Return a number of rows and of columns from a pair, or from one number for both.

    Raises
    ------
    TypeError, ValueError
        `value` is no whole number of at least 1, and no pair of these.
    """
    given = tuple(value) if isinstance(value, Iterable) else (value, value)
    if len(given) != 2:
        raise TypeError(
            f"{name} must be a whole number or a pair (rows, columns) of them, got {value!r}"
        )
    return as_whole(name, given[0]), as_whole(name, given[1])


def check_image(layer: str, name: str, size: Pair, input_shape: Shape) -> None:
    """Raise ValueError if a layer's input is no image, or is smaller than the layer's `size`.

    `layer` is the layer's class and `name` its argument, for the message.
    """
    if len(input_shape) != 3:
        remedy = ""
        if len(input_shape) == 2:
            remedy = f": an image of one channel has input_shape {(*input_shape, 1)}"
        raise ValueError(
            f"{layer} needs images of (rows, columns, channels), got input_shape "
            f"{tuple(input_shape)}{remedy}"
        )
    rows, columns = input_shape[:2]
    if size[0] > rows or size[1] > columns:
        raise ValueError(
            f"{name} of {layer} must be at most the image, {rows} x {columns}, got "
            f"{size[0]} x {size[1]}"
        )
