"""Circles: reading boxes that cross the seam of a dimension whose edges wrap.

A box counts on beyond both ends of such a dimension: of 360 longitudes, the slice from -5 to 2
has the positions 355 to 359, then 0 and 1.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np


def arcs(cut: slice, size: int) -> list[slice]:
    """Return the slices of the store that hold the positions of a slice, which may cross the seam.

    The whole dimension is one slice, which is read once.

    Examples
    --------
    >>> arcs(slice(-5, 2), 360)
    [slice(355, 360, None), slice(0, 2, None)]
    >>> arcs(slice(-5, 365), 360)
    [slice(0, 360, None)]
    """
    if cut.start >= 0 and cut.stop <= size:
        return [cut]
    length = cut.stop - cut.start
    if length >= size:
        return [slice(0, size)]
    start = cut.start % size
    if start + length <= size:
        return [slice(start, start + length)]
    return [slice(start, size), slice(0, start + length - size)]


def stored_boxes(box: Mapping[str, slice], sizes: Mapping[str, int]) -> Iterator[dict[str, slice]]:
    """Yield the boxes of the store that hold a box, which may cross seams."""
    runs = [arcs(cut, sizes[dim]) for dim, cut in box.items()]
    for chosen in itertools.product(*runs):
        yield dict(zip(box, chosen, strict=True))


def read_box(
    read: Callable[[dict[str, slice]], np.ndarray],
    box: Mapping[str, slice],
    dims: Sequence[str],
    sizes: Mapping[str, int],
) -> np.ndarray:
    """Return the values of a box that may cross seams, in its order, in the dtype of `read`.

    Parameters
    ----------
    read
        Reads a box of the store; its values have an axis for each of `dims`.
    box
        A slice for some of the dimensions.
    dims, sizes
        The dimensions of the values in their order, and the length of each.
    """
    return _read(read, dict(box), list(box), dims, sizes)


def _read(
    read: Callable[[dict[str, slice]], np.ndarray],
    box: dict[str, slice],
    left: list[str],
    dims: Sequence[str],
    sizes: Mapping[str, int],
) -> np.ndarray:
    """Read a box whose dimensions in `left` may still cross their seams."""
    if not left:
        return read(box)
    (dim, *rest), axis = left, dims.index(left[0])
    cut = box[dim]
    runs = arcs(cut, sizes[dim])
    parts = [_read(read, {**box, dim: run}, rest, dims, sizes) for run in runs]
    if len(parts) > 1:
        return np.concatenate(parts, axis=axis)
    if cut.stop - cut.start < sizes[dim] or cut == runs[0]:
        return parts[0]
    return parts[0].take(np.arange(cut.start, cut.stop) % sizes[dim], axis=axis)
