"""Missing values: a block that was read is checked by the rule that `missing=` names."""

import numpy as np

from dbdask.arrays import BoolArray, Float64Array
from dbdask.data.categories import missing_places
from dbdask.data.gathering import Block, BlockGroup
from dbdask.data.labels import MISSING, UNKNOWN
from dbdask.data.recipe import Recipe
from dbdask.data.sources import Variable
from dbdask.data.standardization import FLOAT32_MAX
from dbdask.errors import DataError

SLAB_VALUES = 1 << 20
"""Values that are decoded at a time, so that temporaries stay small."""

SLAB_ROWS = 1 << 16
"""Rows whose windows are checked at a time."""

_MISSING_RULE = (
    'is missing (NaN, or its _FillValue); give missing="drop" to leave such examples out, '
    'missing="mask" to {masked}, either for all variables or for one, as '
    'missing={{{name!r}: "drop"}}, or cut with .where'
)
_MASKED = {
    "inputs": "put the variable's mean in its place",
    "targets": "give it no weight",
    "weights": "give such examples no weight",
}
_INFINITE_RULE = (
    "is infinite, or too large for float32; correct it in the store, or cut it out with .where"
)
_ZEROS = (
    "zeros of it are shown as missing, too, as xarray shows those of a Zarr v2 array whose "
    "fill_value is 0; if zeros are values, give the path of the store as data, or open it with "
    "use_zarr_fill_value_as_mask=False, or, where xarray heeds only that, with "
    "mask_and_scale={{{name!r}: False}}"
)
_NEGATIVE_RULE = "is negative; weights must be 0 or more"
_INFINITE_WEIGHT_RULE = (
    "is infinite, or too large for float32; weights must be finite, and 0 or more"
)


class MissingValueCheck:
    """Checks the values that a block's examples use, and no others.

    Parameters
    ----------
    recipe
        The recipe.
    block
        The block with all its parts; its `valid`, `cut`, `missing`, `gaps` and `bad_place` are set.
    labels
        The labels as stored, to be shown in a message; None if the examples have no classes.
    """

    def __init__(self, recipe: Recipe, block: Block, labels: np.ndarray | None) -> None:
        self.recipe, self.block, self.labels = recipe, block, labels
        self._alone = BlockGroup(recipe, [block])

    def apply(self) -> None:
        """Raise DataError, mark rows as left out, or note that the block has gaps.

        Raises
        ------
        DataError
            A value that an example uses is infinite, is a label of no class, is a negative weight,
            or is missing where `missing="error"`: names variable and place.
        """
        self.block.cut = self._cut_windows()
        bad = np.zeros(self._alone.rows, bool)
        for number, (role, variable) in enumerate(self.recipe.roles):
            missing, broken = self._inspect(number, role, variable)
            for rule, wrong in broken.items():
                self._refuse(number, wrong, rule)
            rows = None if missing is None else self._rows_using(number, missing)
            if missing is None or rows is None or not rows.any():
                continue
            wanted = self.recipe.missing.of(variable.name)
            if wanted == "error":
                self._refuse(number, missing, _missing_rule(role, variable))
            elif wanted == "drop":
                self._note_place(number, missing)
                bad |= rows
            else:
                self.block.gaps = True
        self.block.missing = int(bad.sum())
        left_out = bad if self.block.cut is None else bad | self.block.cut
        self.block.valid = None if not left_out.any() else ~left_out

    def _note_place(self, number: int, missing: BoolArray) -> None:
        if self.block.bad_place:
            return
        remedy = zeros_remedy(self.recipe.roles[number][1])
        self.block.bad_place = self._name_first(number, missing)[0] + remedy

    def _cut_windows(self) -> BoolArray | None:
        """Return for each row whether its window leaves its group; None if no row is dropped."""
        recipe = self.recipe
        if recipe.groups is None or not recipe.edges.drops(recipe.groups.dims):
            return None
        axis = recipe.along.index(recipe.groups.dims[0])
        first, last = recipe.window.reach(recipe.along[axis])
        if first == last == 0:
            return None
        here = self._alone.locate(np.arange(self._alone.rows)).centres[axis]
        return _any((here.positions + first < here.low) | (here.positions + last >= here.high))

    def _inspect(
        self, number: int, role: str, variable: Variable
    ) -> tuple[BoolArray | None, dict[str, BoolArray]]:
        """Return which positions are missing, and for each broken rule which positions break it."""
        values = self.block.parts[number].values
        if role == "targets" and self.recipe.classes is not None:
            missing, unknown = (values == MISSING).any(axis=1), (values == UNKNOWN).any(axis=1)
            rule = f"is not {self.recipe.classes.rule()}; give the labels with classes="
            return _any(missing), {rule: unknown} if unknown.any() else {}
        if self.recipe.category(number) is not None:
            return _any(missing_places(values)), {}
        if not variable.may_be_missing and role != "weights":
            return None, {}
        missing, large, negative = _scan(
            variable, values, self._limit(number, role), check_sign=role == "weights"
        )
        rules = {_INFINITE_RULE: large}
        if role == "weights":
            rules = {_INFINITE_WEIGHT_RULE: large, _NEGATIVE_RULE: negative}
        return _any(missing), {rule: wrong for rule, wrong in rules.items() if wrong.any()}

    def _limit(self, number: int, role: str) -> Float64Array:
        """Return the magnitude up to which a variable's values can be shown to a model."""
        recipe = self.recipe
        if role == "inputs":
            return recipe.inputs.limit(number)
        if role == "targets" and recipe.targets is not None:
            return recipe.targets.limit(number - len(recipe.inputs.variables))
        return np.array(FLOAT32_MAX)

    def _rows_using(self, number: int, flags: BoolArray) -> BoolArray:
        """Return for each row whether it is not cut and uses a flagged position: (rows,)."""
        alone = self._alone
        using = np.zeros(alone.rows, bool)
        for start in range(0, alone.rows, SLAB_ROWS):
            rows = np.arange(start, min(start + SLAB_ROWS, alone.rows))
            using[rows] = flags[alone.index(number, alone.locate(rows))].any(axis=1)
        return using if self.block.cut is None else using & ~self.block.cut

    def _refuse(self, number: int, flags: BoolArray, rule: str) -> None:
        """Raise DataError if a row uses a flagged position; it names the first."""
        place, label = self._name_first(number, flags)
        if place:
            raise DataError(f"{place}{label} {rule}")

    def _name_first(self, number: int, flags: BoolArray) -> tuple[str, str]:
        """Return the first flagged position in use, in words, and the label that stands there.

        Both are empty if no row uses a flagged position.
        """
        rows = np.flatnonzero(self._rows_using(number, flags))
        if not len(rows):
            return "", ""
        used = self._alone.index(number, self._alone.locate(rows[:1]))[0]
        position = int(used[flags[used]][0])
        role, variable = self.recipe.roles[number]
        shown = ""
        if role == "targets" and self.labels is not None:
            shown = f" is {self.labels[position].ravel()[:1].tolist()[0]!r}, which"
        return f"{role}: variable {variable.name!r} at {self._place(number, position)}", shown

    def _place(self, number: int, position: int) -> str:
        part = self.block.parts[number]
        lengths = tuple(part.lengths.values())
        inside = np.unravel_index(position, lengths) if lengths else ()
        words = []
        for dim, step in zip(part.lengths, inside, strict=True):
            at = (part.starts[dim] + int(step)) % self.recipe.sizes[dim]
            words.append(f"{dim}={at}{self._coordinate(dim, at)}")
        return ", ".join(words) or "its only value"

    def _coordinate(self, dim: str, at: int) -> str:
        """Return the coordinate's value in brackets; empty if this process cannot read it."""
        variable = self.recipe.coordinates.get(dim)
        if variable is None:
            return ""
        try:
            return f" ({variable.coordinate({dim: slice(at, at + 1)})[0]})"
        except (RuntimeError, OSError, DataError):
            return ""


def _missing_rule(role: str, variable: Variable) -> str:
    rule = _MISSING_RULE.format(name=variable.name, masked=_MASKED[role])
    return rule + zeros_remedy(variable)


def zeros_remedy(variable: Variable) -> str:
    """Return the remedy for zeros of a Zarr v2 store that xarray shows as missing; else empty.

    A Dataset means what it shows, but a user seldom means zeros to be missing.
    """
    return f" ({_ZEROS.format(name=variable.name)})" if variable.masks_zeros else ""


def missing_group(groups: Variable, position: int) -> DataError:
    """Return the error for a position whose group is missing."""
    return DataError(
        f"groups: {groups.name!r} is missing at {groups.dims[0]}={position}; every position needs "
        f"a group{zeros_remedy(groups)}"
    )


def _scan(
    variable: Variable, values: np.ndarray, limit: Float64Array, *, check_sign: bool
) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Decode in slabs; return which positions have a missing, a large and a negative value.

    Parameters
    ----------
    values
        As stored: (positions, features).
    limit
        The largest magnitude that is allowed: one number, or one a feature.
    check_sign
        Whether negative values are looked for.
    """
    missing, large, negative = np.zeros((3, len(values)), bool)
    step = max(1, SLAB_VALUES // max(values.shape[1], 1))
    for start in range(0, len(values), step):
        slab = slice(start, start + step)
        decoded, gap = variable.decode(values[slab])
        if gap is not None:
            missing[slab] = gap.any(axis=1)
        beyond = _too_large(decoded, limit) if decoded.dtype.kind == "f" else None
        if beyond is not None:
            large[slab] = beyond.any(axis=1)
        if check_sign:
            below = decoded < 0 if gap is None else (decoded < 0) & ~gap
            negative[slab] = below.any(axis=1)
    return missing, large, negative


def _too_large(values: np.ndarray, limit: Float64Array) -> BoolArray | None:
    """Return which values float32 cannot hold once they are scaled; None if it holds all."""
    bound = limit.min()
    if -bound <= values.min() and values.max() <= bound:  # False if there is a NaN
        return None
    with np.errstate(invalid="ignore"):
        large: BoolArray = np.abs(values) > limit
        return large


def _any(flags: BoolArray) -> BoolArray | None:
    return flags if flags.any() else None
