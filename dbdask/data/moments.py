"""Moments of examples: one pass, and the recipe that scales by what it found."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dbdask.data.bundles import Bundle
from dbdask.data.measures import MeasureMoments
from dbdask.data.recipe import Recipe
from dbdask.data.standardization import Moments, Scaling, merge
from dbdask.data.sweeps import sweep
from dbdask.data.windows import NO_WINDOW
from dbdask.errors import DataError

if TYPE_CHECKING:
    from dbdask.data.examples import Examples


def scalings_of(examples: "Examples", targets: bool | None, per: str, client: Any) -> Recipe:
    """Return the recipe with inputs, and targets where wanted, scaled."""
    recipe = examples.recipe
    scaled = replace(recipe, inputs=_scaled(examples, "inputs", per, client))
    if recipe.targets is None or not _scales_targets(recipe, targets):
        return scaled
    return replace(scaled, targets=_scaled(examples, "targets", per, client))


def measured_means(examples: "Examples") -> Recipe:
    """Return the recipe that knows every input's mean, unscaled."""
    return replace(
        examples.recipe, inputs=_scaled(examples, "inputs", "variable", None, applied=False)
    )


def _scales_targets(recipe: Recipe, wanted: bool | None) -> bool:
    assert recipe.targets is not None
    if recipe.classes is not None:
        if wanted:
            raise ValueError(
                f"targets=True: the targets {', '.join(recipe.targets.names)} are labels, which "
                "cannot be scaled"
            )
        return False
    floating = all(v.value_dtype.kind == "f" for v in recipe.targets.variables)
    return floating if wanted is None else wanted


def _scaled(examples: "Examples", role: str, per: str, client: Any, applied: bool = True) -> Bundle:
    recipe = examples.recipe
    bundle = recipe.inputs if role == "inputs" else recipe.targets
    assert bundle is not None
    found: list[list[Moments]] = [[] for _ in bundle.variables]
    for moments in sweep(
        _bare(examples, role), MeasureMoments(role, per, recipe.selection.mask), client
    ):
        for mine, one in zip(found, moments, strict=True):
            if one is not None:
                mine.append(one)
    merged = [merge(mine) for mine in found]
    for variable, moments in zip(bundle.variables, merged, strict=True):
        if (moments.count == 0).any():
            raise DataError(
                f"{role}: variable {variable.name!r} has no value that is not missing; leave it out"
            )
    return bundle.scaled([Scaling.of(moments, applied) for moments in merged])


def _bare(examples: "Examples", role: str) -> "Examples":
    """Return the examples without windows and mask: every selected position is read once."""
    recipe = examples.recipe
    bare = replace(
        recipe,
        inputs=replace(recipe.inputs, window=NO_WINDOW),
        window=NO_WINDOW,
        edges="repeat",
        groups=None,
        missing="drop",
        selection=replace(recipe.selection, mask=None),
    )
    return examples._of(examples.source, bare)
