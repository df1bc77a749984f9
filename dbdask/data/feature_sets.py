"""Feature sets: the variables that together make an example's inputs, or its targets."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dbdask.arrays import BoolArray, Float32Array, Float64Array
from dbdask.data.categories import Category
from dbdask.data.sources import Variable
from dbdask.data.standardization import FLOAT32_MAX, Scaling, as_float32
from dbdask.data.windows import NO_WINDOW, Window, hull


@dataclass(frozen=True)
class FeatureSet:
    """Variables, their dimension orders, and how their values are put together.

    Variables of one shape are stacked on a last axis. Of unlike shapes, or if one of several is
    one-hot, each is flattened and they are joined.

    Parameters
    ----------
    variables, along
        The variables, and the sample dimensions.
    windows
        Each variable's window over the sample dimensions; empty: none has one.
    scalings
        Each variable's scaling; None: not scaled.
    categories
        How each variable that is a label is shown; empty: none is one.
    orders
        The order of each variable's own dimensions in an example; None: as the variable has them,
        or as the first variable of the same dimensions has them.
    """

    variables: tuple[Variable, ...]
    along: tuple[str, ...]
    windows: tuple[Window, ...] = ()
    scalings: tuple[Scaling | None, ...] | None = None
    categories: tuple[Category | None, ...] = ()
    orders: tuple[tuple[str, ...], ...] | None = None

    @cached_property
    def feature_dims(self) -> tuple[tuple[str, ...], ...]:
        """The dimensions of each variable but the sample dimensions, in an example's order."""
        if self.orders is not None:
            return self.orders
        found: list[tuple[str, ...]] = []
        for variable in self.variables:
            dims = tuple(dim for dim in variable.dims if dim not in self.along)
            alike = next((other for other in found if set(other) == set(dims)), dims)
            found.append(alike)
        return tuple(found)

    def window(self, number: int) -> Window:
        """Return the window of a variable."""
        return self.windows[number] if self.windows else NO_WINDOW

    def category(self, number: int) -> Category | None:
        """Return how a variable that is a label is shown; None if it is a number."""
        return self.categories[number] if self.categories else None

    @cached_property
    def reach(self) -> Window:
        """The smallest window that holds those of all variables."""
        return hull(self.windows, self.along)

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each variable's part of one example."""
        return tuple(self._shape(number) for number in range(len(self.variables)))

    def _shape(self, number: int) -> tuple[int, ...]:
        variable, category = self.variables[number], self.category(number)
        own = tuple(variable.sizes[dim] for dim in self.feature_dims[number])
        shown = () if category is None else category.shape
        return self.window(number).shape + own + shown

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        if len(self.shapes) == 1:
            return self.shapes[0]
        if self._stacks:
            return (*self.shapes[0], len(self.shapes))
        return (sum(math.prod(shape) for shape in self.shapes),)

    @cached_property
    def _stacks(self) -> bool:
        """Whether several variables are stacked; one-hot vectors never are."""
        one_hot = any(one is not None and one.how == "one-hot" for one in self.categories)
        return len(set(self.shapes)) == 1 and not one_hot

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables."""
        return tuple(variable.name for variable in self.variables)

    def ordered(self, argument: str, orders: Sequence[Sequence[str]]) -> "FeatureSet":
        """Return the feature set with its variables' own dimensions in the order a model knows.

        Raises
        ------
        ValueError
            Number or dimensions of the variables are not those of the training examples.
        """
        if len(orders) != len(self.variables):
            raise ValueError(
                f"{argument} has {len(self.variables)} variables ({', '.join(self.names)}), the "
                f"training examples have {len(orders)}; give the same {argument}"
            )
        for name, own, wanted in zip(self.names, self.feature_dims, orders, strict=True):
            if set(own) != set(wanted):
                raise ValueError(
                    f"{argument}: variable {name!r} has, beside the sample dimensions, "
                    f"{_listed(own)}, the training examples have {_listed(wanted)}; rename its "
                    "dimensions"
                )
        return replace(self, orders=tuple(tuple(order) for order in orders))

    def scaling(self, number: int) -> Scaling | None:
        """Return the scaling of a variable; None if it is not scaled, and its mean not known."""
        return None if self.scalings is None else self.scalings[number]

    def is_scaled(self, number: int) -> bool:
        """Return whether the values of a variable are scaled."""
        scaling = self.scaling(number)
        return scaling is not None and scaling.applied

    def scaled(self, scalings: Sequence[Scaling | None] | None) -> "FeatureSet":
        """Return the feature set with other scalings."""
        known = scalings is not None and any(scaling is not None for scaling in scalings)
        return replace(self, scalings=tuple(scalings) if scalings is not None and known else None)

    @property
    def flat_scaling(self) -> tuple[Float64Array, Float64Array] | None:
        """Mean and deviation of each element of an example, float64 of `shape`; None: unscaled."""
        known = [scaling for scaling in self.scalings or () if scaling is not None]
        if len(known) < len(self.variables) or not all(scaling.applied for scaling in known):
            return None
        means = [self._spread(n, s.mean) for n, s in enumerate(known)]
        deviations = [self._spread(n, s.deviation) for n, s in enumerate(known)]
        if len(means) == 1:
            return means[0][0], deviations[0][0]
        return self._together(means)[0], self._together(deviations)[0]

    def _spread(self, number: int, numbers: Sequence[float]) -> Float64Array:
        shape = self.shapes[number]
        features = shape[len(self.window(number).shape) :]
        flat = np.broadcast_to(np.array(numbers), math.prod(features)).reshape(features)
        return np.broadcast_to(flat, (1, *shape))

    def mapped(self, change: Callable[[Variable], Variable]) -> "FeatureSet":
        """Return the feature set with every variable changed."""
        return replace(self, variables=tuple(change(variable) for variable in self.variables))

    def spread(self, values: np.ndarray, dims: Sequence[str]) -> np.ndarray:
        """Return values over some of the dimensions of all variables, as elements of examples.

        `values` has the shape (examples, *lengths of dims) and any dtype; the result has the shape
        (examples, *shape) and that dtype.
        """
        parts = []
        for own, shape in zip(self.feature_dims, self.shapes, strict=True):
            order = [1 + dims.index(dim) for dim in own if dim in dims]
            lengths = [n if dim in dims else 1 for dim, n in zip(own, shape, strict=True)]
            part = values.transpose(0, *order).reshape(-1, *lengths)
            parts.append(np.broadcast_to(part, (len(values), *shape)))
        return np.ascontiguousarray(parts[0]) if len(parts) == 1 else self._together(parts)

    def assemble(
        self, stored: Sequence[np.ndarray], masked: bool = False
    ) -> tuple[Float32Array, BoolArray | None]:
        """Turn gathered stored values into one float32 array of examples.

        Parameters
        ----------
        stored
            Per variable, (examples, window positions, features); may be overwritten. Labels are
            places in the labels of their category.
        masked
            Whether missing values may be among them: they become the variable's mean.

        Returns
        -------
        array
            float32, (examples, *shape).
        mask
            Which elements are missing: bool, of the same shape; None if none is.
        """
        parts = [self._values(number, values, masked) for number, values in enumerate(stored)]
        if len(parts) == 1:
            return parts[0]
        gaps = [gap for _, gap in parts]
        values = self._together([value for value, _ in parts])
        if all(gap is None for gap in gaps):
            return values, None
        full = [np.zeros(v.shape, bool) if gap is None else gap for v, gap in parts]
        return values, self._together(full)

    def _together(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        if self._stacks:
            return np.stack(parts, axis=-1)
        flat = [part.reshape(len(part), math.prod(part.shape[1:])) for part in parts]
        return np.concatenate(flat, axis=1)

    def _values(
        self, number: int, stored: np.ndarray, masked: bool
    ) -> tuple[Float32Array, BoolArray | None]:
        category = self.category(number)
        if category is not None:
            return category.shown(stored).reshape(len(stored), *self.shapes[number]), None
        values, missing = self.variables[number].decode(stored)
        if values.dtype.kind == "O":  # none at all, or numbers that no dtype of NumPy's holds
            values = np.where(missing, np.nan, values) if missing is not None else values
            values = values.astype(np.float64)
        scaling = self.scaling(number)
        shape = (len(stored), *self.shapes[number])
        if not masked or missing is None:
            return _rounded(values, scaling).reshape(shape), None
        values = _rounded(np.where(missing, values.dtype.type(0), values), scaling)
        values = np.where(missing, scaling.fill if scaling is not None else 0, values)
        return values.astype(np.float32, copy=False).reshape(shape), missing.reshape(shape)

    def limit(self, number: int) -> Float64Array:
        """Return the largest magnitude that scales into float32: float64, () or (features,)."""
        scaling = self.scaling(number)
        return np.array(FLOAT32_MAX) if scaling is None else scaling.limit


def _rounded(values: np.ndarray, scaling: Scaling | None) -> Float32Array:
    """Return numbers as float32, of the same shape: scaled before they are rounded."""
    if scaling is None:
        return as_float32(values)
    return scaling.apply(values, fresh=values.flags.writeable)


def _listed(dims: Sequence[str]) -> str:
    return ", ".join(map(repr, dims)) or "no dimension"


def check_numbers(argument: str, variable: Variable) -> None:
    """Raise TypeError if a variable's values are not real numbers."""
    if variable.value_dtype.kind not in "iufb":
        raise TypeError(
            f"{argument}: variable {variable.name!r} has dtype {variable.shown_dtype}; give "
            f"numbers: {_how_to_make_numbers(variable)}"
        )


_SINCE = "((array.load() - array.values.flat[0]) / np.timedelta64(1, 's'))"


def _how_to_make_numbers(variable: Variable) -> str:
    kind = variable.value_dtype.kind
    if kind == "O" and variable.stored_dtype.kind in "iuf":
        return f"those of the store, as in the data opened with decode_times=False, or {_SINCE}"
    if kind == "O":
        return (
            "array.astype(float), or the data loaded into memory; if they are cftime dates, open "
            f"the data with decode_times=False, or give {_SINCE}"
        )
    if kind in "mM":
        return "the time since a date, as ((array - date) / np.timedelta64(1, 's'))"
    return f"dates and text must be turned into numbers first; cftime dates as {_SINCE}"


def check_sizes(argument: str, variable: Variable, sizes: Mapping[str, int]) -> None:
    """Raise ValueError if a variable has another length than `sizes`, or length 0."""
    for dim, size in variable.sizes.items():
        if dim in sizes and size != sizes[dim]:
            raise ValueError(
                f"{argument}: variable {variable.name!r} has length {size} along {dim!r}, the "
                f"other variables have {sizes[dim]}; align them first"
            )
        if size == 0:
            raise ValueError(
                f"{argument}: variable {variable.name!r} has length 0 along {dim!r}; "
                "every dimension must hold something"
            )
