"""Targets for a loss: labels, values or scaled values."""

import math
from dataclasses import replace

from dbdask.data.feature_sets import FeatureSet, check_numbers
from dbdask.data.labels import Classes
from dbdask.data.recipe import Recipe
from dbdask.metrics.scores import CLASS_LOSSES


def targets_for_loss(recipe: Recipe, loss: str | None, outputs: int | None) -> Recipe:
    """Return the recipe with targets as a loss takes them; None is a loss without a name.

    Raises
    ------
    ValueError, TypeError
        The loss cannot take the targets, or their number does not fit the outputs.
    """
    if recipe.targets is None:
        return recipe
    if loss == "squared":
        for variable in recipe.targets.variables:
            check_numbers("targets", variable)
        _check_count(recipe.targets, loss, outputs)
        return replace(recipe, classes=None)
    if not recipe.scales_targets:
        recipe = replace(recipe, targets=recipe.targets.scaled(None))
    if loss not in CLASS_LOSSES:
        return _for_own_loss(recipe, outputs)
    if recipe.scales_targets:
        raise ValueError(
            f"targets=True: a {loss!r} loss takes labels, or 0/1 for every output, which cannot be "
            "scaled; leave targets=None in standardize"
        )
    assert recipe.targets is not None
    if recipe.targets.shape != ():
        if loss == "softmax":
            raise ValueError(
                f"targets have shape {recipe.targets.shape}, a 'softmax' loss takes one label for "
                "each example"
            )
        _check_count(recipe.targets, loss, outputs)
        return recipe
    # The one output of a logistic loss is the probability of the second of two classes.
    count = 2 if loss == "logistic" and outputs == 1 else outputs
    return replace(recipe, classes=_classes_for(recipe.targets, recipe.classes, count, outputs))


def _for_own_loss(recipe: Recipe, outputs: int | None) -> Recipe:
    """Return the recipe for a loss of a user: whole numbers are labels unless that is ruled out.

    They are values if they are scaled, or if there is one output, and no classes were given.
    """
    assert recipe.targets is not None
    asked = recipe.classes is not None and recipe.classes.labels is not None
    are_values = recipe.scales_targets or outputs == 1
    return replace(recipe, classes=None) if are_values and not asked else recipe


def _check_count(targets: FeatureSet, loss: str, outputs: int | None) -> None:
    elements = math.prod(targets.shape)
    if outputs is not None and elements != outputs:
        raise ValueError(
            f"targets have {elements} elements for each example, the model has {outputs} outputs; "
            f"a {loss!r} loss takes one for each output"
        )


def _classes_for(
    targets: FeatureSet, classes: Classes | None, count: int | None, outputs: int | None
) -> Classes:
    """Return the `count` classes that the model's outputs stand for."""
    if classes is None or classes.labels is None:
        return Classes(count=count)
    if not classes.labels:
        kind = targets.variables[0].shown_dtype
        why = classes.unknown or (
            f"the labels of {targets.names[0]!r} are {kind}; give classes=[...], or "
            "classes=examples.find_classes()"
        )
        raise ValueError(f"classes: {why}")
    if len(classes.labels) == 1 and outputs == 1 and count == 2:
        raise ValueError(
            f"classes: {targets.names[0]!r} has one class, the lone output of a logistic loss "
            "tells two classes apart; give the loss 'softmax', or two classes"
        )
    if count is not None and len(classes.labels) != count:
        raise ValueError(
            f"classes: {targets.names[0]!r} has {len(classes.labels)} classes, the model has "
            f"{outputs} outputs; give it one output for each class, or one for two classes and a "
            "logistic loss"
        )
    return classes
