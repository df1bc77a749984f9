"""Windows: which neighbours an example sees along its sample dimensions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from dbdask.arrays import Int64Array

WindowGiven = Mapping[str, int | Sequence[int]]
"""The window of a variable, as a user gives it: a width or a pair of offsets a dimension."""


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
        """Return the offset along `dim` of every position of the flat window: int64 (size,)."""
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


def hull(windows: Sequence[Window], along: Sequence[str]) -> Window:
    """Return the smallest window that holds several; its dimensions are in the order of `along`.

    Examples
    --------
    >>> hull([Window((("time", -5, 0),)), Window((("time", 1, 1),))], ["time", "lat"]).spans
    (('time', -5, 1),)
    """
    spans = []
    for dim in along:
        reaches = [window.reach(dim) for window in windows if dim in window.dims]
        if reaches:
            firsts, lasts = zip(*reaches, strict=True)
            spans.append((dim, min(firsts), max(lasts)))
    return Window(tuple(spans))


def as_window(
    window: WindowGiven | None,
    along: Sequence[str],
    sizes: Mapping[str, int],
    argument: str = "window",
) -> Window:
    """Check what a user gave as `window=`, or as the window of one input.

    `sizes` are of the dimensions along which a window may not be longer than the data.

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
            f'{argument} must be a mapping such as {{"{along[0]}": 11}}, '
            f"got {type(window).__name__}"
        )
    for dim in window:
        if dim not in along:
            raise ValueError(
                f"{argument}: dimension {dim!r} is not in along={tuple(along)}; a window goes over "
                "sample dimensions only"
            )
    spans = [
        (dim, *_offsets(f"{argument}[{dim!r}]", window[dim])) for dim in along if dim in window
    ]
    for dim, first, last in spans:
        if dim not in sizes:
            continue
        if last - first + 1 > sizes[dim]:
            raise ValueError(
                f"{argument}: {last - first + 1} positions along {dim!r} are more than its "
                f"{sizes[dim]}; give a narrower window"
            )
        if max(-first, last) >= sizes[dim]:
            raise ValueError(
                f"{argument}[{dim!r}] is {(first, last)}, but {dim!r} has {sizes[dim]} positions: "
                "no example has such neighbours; give offsets that are nearer"
            )
    return Window(tuple(spans))


def _offsets(argument: str, given: Any) -> tuple[int, int]:
    if _is_whole(given):
        if given < 1 or given % 2 == 0:
            raise ValueError(
                f"{argument} must be odd and at least 1, got {given}; give (first, last) "
                "offsets for a window that is not centred"
            )
        return -(int(given) // 2), int(given) // 2
    pair = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if len(pair) != 2 or not all(_is_whole(offset) for offset in pair):
        raise TypeError(
            f"{argument} must be an odd width or a pair (first, last) of offsets, got {given!r}"
        )
    if pair[0] > pair[1]:
        raise ValueError(f"{argument} must be (first, last) with first <= last, got {pair}")
    return int(pair[0]), int(pair[1])


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def windows_by_name(
    inputs: object, window: WindowGiven | None
) -> Mapping[str, WindowGiven | None] | None:
    """Return the window of each input if inputs is a mapping; else None.

    Raises
    ------
    ValueError
        `window` is given, too.
    """
    if not isinstance(inputs, Mapping) or isinstance(inputs, xr.Dataset):
        return None
    if window is not None:
        raise ValueError(
            f"window must be None if inputs gives each variable a window, got {window!r}; leave it "
            "out, or give inputs as a list"
        )
    return inputs


def windows_of(
    names: Sequence[str],
    by_name: Mapping[str, WindowGiven | None] | None,
    in_order: Sequence[WindowGiven | None],
    along: Sequence[str],
    sizes: Mapping[str, int],
) -> tuple[Window, ...]:
    """Return the window of each of some variables: that of its name, else that of its place.

    Raises
    ------
    ValueError, TypeError
        As `as_window` does.
    """
    if by_name is None:
        return tuple(as_window(window, along, sizes) for window in in_order)
    return tuple(as_window(by_name[n], along, sizes, f"inputs[{n!r}]") for n in names)
