"""Finding labels: one pass over examples, for classes of targets and categories of inputs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dbdask.data.categories import MOST_LABELS, fitted
from dbdask.data.labels import Classes, Label, as_classes
from dbdask.data.measures import MeasureLabels
from dbdask.data.recipe import Recipe
from dbdask.data.sources import Variable
from dbdask.data.sweeps import sweep
from dbdask.errors import DataError

if TYPE_CHECKING:
    from distributed import Client

Place = tuple[str, int]
"""A role, "inputs" or "targets", and the place of a variable in it."""


def classes_of_targets(recipe: Recipe, client: "Client | None") -> Classes:
    """Return the labels of the targets that occur, sorted.

    Raises
    ------
    ValueError
        The targets are not one label an example, or none occurs.
    DataError
        The labels are of kinds that cannot be sorted together.
    """
    targets = recipe.targets
    if targets is None or targets.shape != ():
        shape = None if targets is None else targets.shape
        raise ValueError(f"find_classes needs one label an example, target_shape is {shape}")
    (found,) = _found(recipe, [("targets", 0)], None, client)
    return _sorted("targets", targets.variables[0], found)


def with_categories(recipe: Recipe, client: "Client | None", *, unknown_only: bool) -> Recipe:
    """Return the recipe with the labels of inputs that occur at its examples, sorted.

    With `unknown_only`, those that are known already stay as they are.

    Raises
    ------
    DataError
        An input has no labels, too many, or some of kinds that cannot be sorted together.
    """
    inputs = recipe.inputs
    chosen = [
        n
        for n, category in enumerate(inputs.categories)
        if category is not None and not (unknown_only and category.classes is not None)
    ]
    if not chosen:
        return recipe
    limits = [MOST_LABELS[category.how] for n in chosen if (category := inputs.category(n))]
    # Each position counts once, however many windows contain it.
    bare = replace(recipe, inputs=replace(inputs, windows=()), groups=None)
    places: list[Place] = [("inputs", n) for n in chosen]
    found = _found(bare, places, limits, client)
    classes = {}
    for number, labels in zip(chosen, found, strict=True):
        variable = inputs.variables[number]
        if not labels:
            raise DataError(
                f"categories: {variable.name!r} has no label that is not missing; leave it out"
            )
        classes[number] = _sorted("categories", variable, labels)
    return replace(recipe, inputs=replace(inputs, categories=fitted(inputs.categories, classes)))


def _found(
    recipe: Recipe, places: list[Place], limits: Sequence[int] | None, client: "Client | None"
) -> list[set[Label]]:
    """Return the labels of the variables at some places that occur at the examples."""
    found: list[set[Label]] = [set() for _ in places]
    needed = frozenset(recipe.features(role).variables[n].key for role, n in places)
    for here in sweep(replace(recipe, needed=needed), MeasureLabels(tuple(places)), client):
        for mine, labels in zip(found, here, strict=True):
            mine.update(labels)
        for (role, number), mine, most in zip(places, found, limits or (), strict=False):
            if len(mine) > most:
                name = recipe.features(role).names[number]
                raise DataError(
                    f"categories: {name!r} has more than {most:,} different labels; leave it out, "
                    "give it as a number, or merge labels that are rare"
                )
    return found


def _sorted(argument: str, variable: Variable, labels: set[Label]) -> Classes:
    """Return labels in their order; flags that are held as Python objects are 0 and 1."""
    if variable.dtype.kind == "O":
        # Flags are 1 and 0 if some of the objects are numbers, in whichever block.
        labels = {int(label) if isinstance(label, bool) else label for label in labels}
    try:
        return as_classes(sorted(labels))
    except TypeError as error:
        raise DataError(
            f"{argument}: the labels of {variable.name!r} are of different kinds ({error}); give "
            "numbers only, or text only"
        ) from error
