"""Windows: which neighbours an example sees along its sample dimensions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dbdask.arrays import Int64Array


@dataclass(frozen=True)
class Window:
    """First and last offset, inclusive, per windowed dimension in the order of `along`.

    Examples
    --------
    >>> window = Window((("time", -5, 0),))
    >>> window.shape, window.reach("time"), window.reach("lat")
    ((6,), (-5, 0), (0, 0))
    """

    spans: tuple[tuple[str, int, int], ...] = ()

    @property
    def dims(self) -> tuple[str, ...]:
        """The windowed dimensions."""
        return tuple(dim for dim, _, _ in self.spans)

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of the window per windowed dimension."""
        return tuple(last - first + 1 for _, first, last in self.spans)

    @property
    def size(self) -> int:
        """Positions in the window."""
        return math.prod(self.shape)

    def reach(self, dim: str) -> tuple[int, int]:
        """Return the first and last offset along a dimension; (0, 0) if it has no window."""
        return next(((first, last) for name, first, last in self.spans if name == dim), (0, 0))

    def offsets(self, dim: str) -> Int64Array:
        """Return the offset along `dim` of every position of the flattened window: (size,)."""
        axis = self.dims.index(dim)
        first, last = self.reach(dim)
        shape = [1] * len(self.spans)
        shape[axis] = -1
        steps = np.arange(first, last + 1).reshape(shape)
        return np.broadcast_to(steps, self.shape).reshape(-1)

    def to_json(self) -> dict[str, list[int]]:
        """Return the offsets as plain data."""
        return {dim: [first, last] for dim, first, last in self.spans}


NO_WINDOW = Window()


def as_window(
    window: Mapping[str, int | Sequence[int]] | None,
    along: Sequence[str],
    sizes: Mapping[str, int],
) -> Window:
    """Check what a user gave as `window=`.

    Raises
    ------
    ValueError
        For a dimension that is not in `along`, an even or empty width, offsets out of order, or a
        window wider than its dimension.

    Examples
    --------
    >>> as_window({"frame": 11}, ("frame",), {"frame": 100}).spans
    (('frame', -5, 5),)
    """
    if window is None:
        return NO_WINDOW
    if not isinstance(window, Mapping):
        raise TypeError(
            f'window must be a mapping such as {{"{along[0]}": 11}}, got {type(window).__name__}'
        )
    for dim in window:
        if dim not in along:
            raise ValueError(
                f"window: dimension {dim!r} is not in along={tuple(along)}; a window goes over "
                "sample dimensions only"
            )
    spans = [(dim, *_offsets(dim, window[dim])) for dim in along if dim in window]
    for dim, first, last in spans:
        if last - first + 1 > sizes[dim]:
            raise ValueError(
                f"window: {last - first + 1} positions along {dim!r} are more than its "
                f"{sizes[dim]}; give a narrower window"
            )
        if max(-first, last) >= sizes[dim]:
            raise ValueError(
                f"window[{dim!r}] is {(first, last)}, but {dim!r} has {sizes[dim]} positions: no "
                "example has such neighbours; give offsets that are nearer"
            )
    return Window(tuple(spans))


def _offsets(dim: str, given: Any) -> tuple[int, int]:
    if _is_whole(given):
        if given < 1 or given % 2 == 0:
            raise ValueError(
                f"window[{dim!r}] must be odd and at least 1, got {given}; give (first, last) "
                "offsets for a window that is not centred"
            )
        return -(int(given) // 2), int(given) // 2
    pair = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if len(pair) != 2 or not all(_is_whole(offset) for offset in pair):
        raise TypeError(
            f"window[{dim!r}] must be an odd width or a pair (first, last) of offsets, "
            f"got {given!r}"
        )
    if pair[0] > pair[1]:
        raise ValueError(f"window[{dim!r}] must be (first, last) with first <= last, got {pair}")
    return int(pair[0]), int(pair[1])


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
