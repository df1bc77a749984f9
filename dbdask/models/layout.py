"""Named arrays as views of one flat vector, and the cut of that vector into shards."""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from dbdask.arrays import FloatArray
from dbdask.json_types import JsonObject
from dbdask.schedule.stored_chunks import stored_chunk

Kind = Literal["trained", "buffer"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One named array of a model: its shape, a name for each dimension, and its kind.

    A number as the shape is the length of the one dimension.
    """

    name: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    kind: Kind = "trained"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _as_shape(self.shape))
        if not isinstance(self.name, str) or "/" in self.name or not self.name:
            raise ValueError(f"a parameter's name must be non-empty without '/', got {self.name!r}")
        is_one = isinstance(self.dims, str) and len(self.shape) == 1
        dims = (self.dims,) if is_one else tuple(str(dim) for dim in self.dims)
        object.__setattr__(self, "dims", dims)
        if len(self.dims) != len(self.shape):
            raise ValueError(
                f"parameter {self.name!r} has {len(self.shape)} dimensions, but dims {self.dims}"
            )
        if min(self.shape, default=1) < 1:
            raise ValueError(
                f"parameter {self.name!r} must have lengths of at least 1, got shape {self.shape}"
            )
        if self.kind not in ("trained", "buffer"):
            raise ValueError(f"kind must be 'trained' or 'buffer', got {self.kind!r}")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The order of a model's parameters in one flat vector.

    Examples
    --------
    >>> weights = Parameter("weights", (2, 3), ("output", "input"))
    >>> layout = Layout((weights, Parameter("bias", (2,), ("output",))))
    >>> layout.size, layout.offsets
    (8, (0, 6))
    """

    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", tuple(self.parameters))
        names = [parameter.name for parameter in self.parameters]
        if not names:
            raise ValueError("a layout needs at least one parameter, got none")
        if len(set(names)) < len(names):
            raise ValueError(f"parameter names must be unique, got {names}")

    @property
    def size(self) -> int:
        """Elements of the flat vector."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The first element of each parameter."""
        return tuple(accumulate((p.size for p in self.parameters[:-1]), initial=0))

    @property
    def trained(self) -> tuple[tuple[int, int], ...]:
        """Ranges of the flat vector that an update may change: all but buffers.

        Examples
        --------
        >>> mean = Parameter("mean", (3,), ("input",), "buffer")
        >>> Layout((Parameter("bias", (2,), ("output",)), mean)).trained
        ((0, 2),)
        """
        ranges: list[tuple[int, int]] = []
        for parameter, start in zip(self.parameters, self.offsets, strict=True):
            stop = start + parameter.size
            if parameter.kind == "trained" and ranges and ranges[-1][1] == start:
                ranges[-1] = ranges[-1][0], stop
            elif parameter.kind == "trained":
                ranges.append((start, stop))
        return tuple(ranges)

    def views(self, vector: FloatArray) -> dict[str, FloatArray]:
        """Return each parameter, in its shape, as a view of a vector, float (size,).

        Raises
        ------
        ValueError
            The vector has another shape.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"the vector must have shape ({self.size},), got {vector.shape}")
        return {
            p.name: vector[offset : offset + p.size].reshape(p.shape)
            for p, offset in zip(self.parameters, self.offsets, strict=True)
        }

    def table(self) -> list[JsonObject]:
        """Return the layout as JSON, which a checkpoint keeps."""
        return [
            {
                "name": p.name,
                "shape": list(p.shape),
                "dims": list(p.dims),
                "kind": p.kind,
                "offset": offset,
            }
            for p, offset in zip(self.parameters, self.offsets, strict=True)
        ]

    @classmethod
    def from_table(cls, table: list[JsonObject]) -> "Layout":
        """Rebuild a layout from `table()`."""
        return cls(
            tuple(
                Parameter(row["name"], tuple(row["shape"]), tuple(row["dims"]), row["kind"])
                for row in table
            )
        )


def as_layout(value: object) -> Layout:
    """Return a `Layout` from one, or from an iterable of parameters.

    An item may be a `Parameter`, an object with `name`, `shape` and `dims`, or a tuple
    (name, shape, dims) with an optional kind.

    Raises
    ------
    TypeError, ValueError
        An item is no parameter, or a name, a shape or dims are not allowed.
    """
    if isinstance(value, Layout):
        return value
    if not isinstance(value, Iterable):
        raise TypeError(
            f"layout must be a dbdask.Layout or a sequence of parameters, got {value!r}"
        )
    return Layout(tuple(as_parameter(item) for item in value))


def as_parameter(item: object) -> Parameter:
    """Return a `Parameter` from one, from an object like it, or from a tuple.

    The tuple is (name, shape), (name, shape, dims) or (name, shape, dims, kind).

    Raises
    ------
    TypeError, ValueError
        The item is no parameter, or its name, shape, dims or kind are not allowed.
    """
    if isinstance(item, Parameter):
        return item
    if hasattr(item, "name") and hasattr(item, "shape"):
        dims = getattr(item, "dims", None) or _default_dims(item.name, item.shape)
        return Parameter(item.name, item.shape, dims, getattr(item, "kind", "trained"))
    if not isinstance(item, Iterable) or isinstance(item, str) or not 2 <= len(tuple(item)) <= 4:
        raise TypeError(
            "an item of layout must be a dbdask.Parameter, or a tuple (name, shape, dims), "
            f"got {item!r}"
        )
    name, shape, *rest = item
    dims = rest[0] if rest else _default_dims(name, shape)
    return Parameter(name, shape, dims, rest[1] if len(rest) > 1 else "trained")


def _default_dims(name: str, shape: object) -> tuple[str, ...]:
    return tuple(f"{name}_{axis}" for axis in range(len(_as_shape(shape))))


def _as_shape(shape: object) -> tuple[int, ...]:
    lengths = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    try:
        return tuple(operator.index(length) for length in lengths)
    except TypeError as error:
        raise TypeError(f"a parameter's shape must hold whole numbers, got {shape!r}") from error


def check_dims(layout: Layout) -> None:
    """Raise ValueError if the parameters cannot be the variables of one `xarray.Dataset`.

    Then a dimension has two lengths, or the name of a parameter without dimensions.

    Examples
    --------
    >>> first, second = Parameter("w", (8,), ("in",)), Parameter("v", (3,), ("in",))
    >>> check_dims(Layout((first, second)))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: model.layout gives dimension 'in' the length 8 in 'w' and 3 in 'v': ...
    """
    known: dict[str, tuple[int, str]] = {}
    scalars = {parameter.name for parameter in layout.parameters if not parameter.dims}
    for parameter in layout.parameters:
        for dim in scalars.intersection(parameter.dims):
            raise ValueError(
                f"model.layout has dimension {dim!r}, of {parameter.name!r}, and a parameter "
                f"{dim!r} without dimensions: give one of them another name"
            )
        for dim, length in zip(parameter.dims, parameter.shape, strict=True):
            first, owner = known.setdefault(dim, (length, parameter.name))
            if first != length:
                raise ValueError(
                    f"model.layout gives dimension {dim!r} the length {first} in {owner!r} and "
                    f"{length} in {parameter.name!r}: dimensions of one name have one length; "
                    "give each its own name"
                )


def cut(size: int, count: int) -> tuple[tuple[int, int], ...]:
    """Return (start, stop) of contiguous slices of one length; the last may be shorter.

    Each slice is whole chunks of a regular Zarr array (see `stored_chunk`). There are at most
    `size` slices.

    Raises
    ------
    ValueError
        `size` or `count` is below 1.

    Examples
    --------
    >>> cut(10, 4)
    ((0, 3), (3, 6), (6, 9), (9, 10))
    """
    if size < 1 or count < 1:
        raise ValueError(f"size and count must be at least 1, got {size} and {count}")
    length = -(-size // count)
    chunk = stored_chunk(length)
    length = -(-length // chunk) * chunk
    return tuple((start, min(start + length, size)) for start in range(0, size, length))


def cut_within(ranges: Sequence[tuple[int, int]], count: int) -> tuple[tuple[int, int], ...]:
    """Return (start, stop) of slices that never cross the end of a range.

    Parameters
    ----------
    ranges
        Contiguous ranges, one after the other.
    count
        How many slices, unless there are more ranges: each has at least one, and longer ones more.

    Examples
    --------
    >>> cut_within([(0, 6), (6, 9)], 3), cut_within([(0, 6), (6, 9)], 1)
    (((0, 3), (3, 6), (6, 9)), ((0, 6), (6, 9)))
    """
    shares = [1] * len(ranges)
    for _ in range(count - len(ranges)):
        lengths = [(stop - start) / n for (start, stop), n in zip(ranges, shares, strict=True)]
        shares[lengths.index(max(lengths))] += 1
    return tuple(
        (start + first, start + last)
        for (start, stop), share in zip(ranges, shares, strict=True)
        for first, last in cut(stop - start, share)
    )
