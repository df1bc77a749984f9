"""The scaling of examples: moments that one pass measures, and the recipe that uses them."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dbdask.data.measures import MeasureMoments, read_as_training
from dbdask.data.missing import zeros_remedy
from dbdask.data.recipe import Recipe
from dbdask.data.standardization import Moments, Scaling, merge, rounding_of
from dbdask.data.sweeps import sweep
from dbdask.errors import DataError

if TYPE_CHECKING:
    from distributed import Client


def scalings_of(recipe: Recipe, targets: bool | None, per: str, client: "Client | None") -> Recipe:
    """Return the recipe with scaled inputs, and with targets scaled for the squared loss.

    Only the squared loss uses the scaling of the targets. Before the loss is known, targets that
    are whole numbers may be labels or values, and are measured as values.

    Raises
    ------
    ValueError
        `targets` is True, and there are no targets or they are labels.
    DataError
        A variable has no value that is not missing, or values too far apart; or, with
        `missing="error"`, an example uses a missing value.
    """
    if targets:
        recipe = _as_values(recipe)
    measured = _measures_targets(recipe, targets)
    roles = ("inputs", "targets") if measured else ("inputs",)
    scalings = _measured(recipe, roles, per, client)
    count = len(recipe.inputs.variables)
    scaled = replace(
        recipe, inputs=recipe.inputs.scaled(scalings[:count]), scales_targets=bool(targets)
    )
    if recipe.targets is None:
        return scaled
    return replace(scaled, targets=recipe.targets.scaled(scalings[count:] if measured else None))


def measured_means(recipe: Recipe) -> Recipe:
    """Return the recipe that knows the mean of every input, and does not scale by it."""
    means = _measured(recipe, ("inputs",), "variable", None, applied=False)
    return replace(recipe, inputs=recipe.inputs.scaled(means))


def _as_values(recipe: Recipe) -> Recipe:
    """Return the recipe with targets as values; raise ValueError if they can only be labels."""
    if recipe.targets is None:
        raise ValueError("targets=True needs targets to scale, the examples have none")
    if recipe.classes is not None and recipe.classes.labels is not None:
        raise ValueError(
            f"targets=True: the targets {', '.join(recipe.targets.names)} are labels, which "
            "cannot be scaled"
        )
    return replace(recipe, classes=None)


def _measures_targets(recipe: Recipe, wanted: bool | None) -> bool:
    if recipe.targets is None or wanted is False:
        return False
    return all(variable.value_dtype.kind in "iufb" for variable in recipe.targets.variables)


def _measured(
    recipe: Recipe, roles: tuple[str, ...], per: str, client: "Client | None", applied: bool = True
) -> list[Scaling]:
    """Return the scaling of every variable of the roles, found in one pass."""
    measure = MeasureMoments(roles, per, recipe.selection.mask)
    variables = [
        (role, v) for role, features in measure.feature_sets(recipe) for v in features.variables
    ]
    found: list[list[Moments]] = [[] for _ in variables]
    for found_here in sweep(_bare(recipe), measure, client):
        for mine, one in zip(found, found_here, strict=True):
            if one is not None:
                mine.append(one)
    merged = [merge(mine) for mine in found]
    for (role, variable), moments in zip(variables, merged, strict=True):
        if (moments.count == 0).any():
            raise DataError(
                f"{role}: variable {variable.name!r} has no value that is not missing; leave it out"
                f"{zeros_remedy(variable)}"
            )
        if not np.isfinite(moments.squares).all():
            raise DataError(
                f"{role}: variable {variable.name!r} has values too far apart to have a deviation; "
                "correct them, or cut them out with .where"
            )
    if recipe.missing == "error" and any(moments.missing for moments in merged):
        _refuse_missing(recipe, client)
    return [
        Scaling.of(moments, applied, rounding_of(variable.value_dtype))
        for (_, variable), moments in zip(variables, merged, strict=True)
    ]


def _refuse_missing(recipe: Recipe, client: "Client | None") -> None:
    """Raise DataError, as training does, if an example uses a missing value.

    Windows, cuts and groups decide that, so everything is read once more. The targets are read
    as values, because the loss, which decides whether they are labels, is not known yet.
    """
    for _ in sweep(replace(recipe, classes=None), read_as_training, client):
        pass


def _bare(recipe: Recipe) -> Recipe:
    """Return the examples without windows and mask: every selected position is read once."""
    return replace(
        recipe,
        inputs=replace(recipe.inputs, windows=()),
        groups=None,
        missing="drop",
        selection=replace(recipe.selection, mask=None),
    )
