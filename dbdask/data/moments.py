"""The scaling of examples: moments that one pass measures, and the recipe that uses them."""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dbdask.data.feature_sets import FeatureSet
from dbdask.data.measures import MeasureMoments, read_as_training
from dbdask.data.missing import zeros_remedy
from dbdask.data.recipe import Recipe
from dbdask.data.sources import Variable
from dbdask.data.standardization import Moments, Scaling, merge, rounding_of
from dbdask.data.sweeps import sweep
from dbdask.errors import DataError
from dbdask.metrics.magnitudes import LOST_SHARE, percent

if TYPE_CHECKING:
    from distributed import Client

Place = tuple[str, int]
"""A role, "inputs" or "targets", and the place of a variable in it."""


def scalings_of(
    recipe: Recipe,
    variables: Iterable[str] | None,
    targets: bool | None,
    per: str,
    client: "Client | None",
) -> Recipe:
    """Return the recipe with scaled inputs, and with targets scaled for the squared loss.

    Of the inputs, those that `variables` names are scaled, and the others are as they were. Only
    the squared loss uses the scaling of the targets. Before the loss is known, targets that are
    whole numbers may be labels or values, and are measured as values.

    Raises
    ------
    ValueError, TypeError
        `variables` is no list of names of inputs; or `targets` is True, and there are no targets
        or they are labels.
    DataError
        A variable has no value that is not missing, or values too far apart; or, with
        `missing="error"`, an example uses a missing value.
    """
    if targets:
        recipe = replace(_as_values(recipe), scales_targets=True)
    inputs: list[Place] = [("inputs", n) for n in _chosen(recipe, variables)]
    measured: list[Place] = []
    if recipe.targets is not None and _measures_targets(recipe.targets, targets):
        measured = [("targets", n) for n in range(len(recipe.targets.variables))]
    found = _measured(recipe, [*inputs, *measured], per, client)
    of_inputs = dict(zip([n for _, n in inputs], found[: len(inputs)], strict=True))
    scaled = replace(
        recipe, inputs=_with_scalings(recipe.inputs, of_inputs), scales_targets=bool(targets)
    )
    if recipe.targets is None:
        return scaled
    return replace(
        scaled, targets=recipe.targets.scaled(found[len(inputs) :] if measured else None)
    )


def lacks_means(recipe: Recipe) -> list[int]:
    """Return the places of the inputs whose mean stands for missing values, and is not known."""
    inputs = recipe.inputs
    masked = [n for n, name in enumerate(inputs.names) if recipe.missing.of(name) == "mask"]
    return [n for n in masked if inputs.scaling(n) is None and inputs.category(n) is None]


def measured_means(recipe: Recipe, client: "Client | None" = None) -> Recipe:
    """Return the recipe that knows every mean that it needs, and does not scale by it.

    `client` runs the pass; None: the current client, else this process.
    """
    places = lacks_means(recipe)
    means = _measured(recipe, [("inputs", n) for n in places], "variable", client, applied=False)
    return replace(
        recipe, inputs=_with_scalings(recipe.inputs, dict(zip(places, means, strict=True)))
    )


def _with_scalings(features: FeatureSet, scalings: dict[int, Scaling]) -> FeatureSet:
    """Return the feature set with other scalings at some places."""
    return features.scaled(
        [scalings.get(n, features.scaling(n)) for n in range(len(features.variables))]
    )


def _chosen(recipe: Recipe, variables: Iterable[str] | None) -> list[int]:
    """Return the places of the inputs that are scaled; None stands for all."""
    names = recipe.inputs.names
    numbers = [n for n in range(len(names)) if recipe.inputs.category(n) is None]
    if variables is None:
        return numbers
    if isinstance(variables, str) or not isinstance(variables, Iterable):
        raise TypeError(f"variables must be a list of names of inputs, got {variables!r}")
    wanted = list(variables)
    if not wanted:
        raise ValueError("variables must name at least one input, got none; None scales all")
    for name in wanted:
        if name not in names:
            targets = recipe.targets.names if recipe.targets is not None else ()
            remedy = "; targets=True scales targets" if name in targets else ""
            raise ValueError(
                f"variables: {name!r} is not one of the inputs {', '.join(names)}{remedy}"
            )
    for number in set(range(len(names))) - set(numbers):
        if names[number] in wanted:
            raise ValueError(f"variables: {names[number]!r} is a category, which is not scaled")
    return [number for number in numbers if names[number] in wanted]


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


def _measures_targets(targets: FeatureSet, wanted: bool | None) -> bool:
    if wanted is False:
        return False
    return all(variable.value_dtype.kind in "iufb" for variable in targets.variables)


def _measured(
    recipe: Recipe, places: list[Place], per: str, client: "Client | None", applied: bool = True
) -> list[Scaling]:
    """Return the scaling of the variables at some places, found in one pass."""
    if not places:
        return []
    measure = MeasureMoments(tuple(places), per, recipe.selection.mask)
    variables = [(role, recipe.features(role).variables[n]) for role, n in places]
    found: list[list[Moments]] = [[] for _ in variables]
    for found_here in sweep(_bare(recipe, frozenset(v.key for _, v in variables)), measure, client):
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
    pairs = zip(variables, merged, strict=True)
    if any(m.missing and recipe.missing.of(v.name) == "error" for (_, v), m in pairs):
        _refuse_missing(recipe, client)
    _warn_of_rounding(
        [
            (role, variable, moments)
            for (role, variable), moments in zip(variables, merged, strict=True)
            if applied and (role == "inputs" or recipe.scales_targets)
        ]
    )
    return [
        Scaling.of(moments, applied, rounding_of(variable.value_dtype))
        for (_, variable), moments in zip(variables, merged, strict=True)
    ]


def _warn_of_rounding(measured: list[tuple[str, Variable, Moments]]) -> None:
    """Warn of values that float64, in which the mean is subtracted, cannot tell apart."""
    for role, variable, moments in measured:
        if moments.lost_share > LOST_SHARE:
            warnings.warn(
                f"{role}: float64, in which standardize() subtracts the mean, cannot tell the "
                f"values of {variable.name!r} apart: rounding loses {percent(moments.lost_share)} "
                "% of their spread; subtract an offset first, as in array - array[0]",
                UserWarning,
                stacklevel=5,
            )


def _refuse_missing(recipe: Recipe, client: "Client | None") -> None:
    """Raise DataError, as training does, if an example uses a missing value.

    Windows, cuts and groups decide that, so everything is read once more. The targets are read
    as values, because the loss, which decides whether they are labels, is not known yet.
    """
    for _ in sweep(replace(recipe, classes=None), read_as_training, client):
        pass


def _bare(recipe: Recipe, needed: frozenset[str]) -> Recipe:
    """Return the examples without windows and mask, to read each selected position once.

    `needed` are the keys of the variables that are read.
    """
    return replace(
        recipe,
        inputs=replace(recipe.inputs, windows=()),
        groups=None,
        needed=needed,
        selection=replace(recipe.selection, mask=None),
    )
