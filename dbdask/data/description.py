"""Description: examples as plain data, and put back on the same data or on other."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dbdask.data.bundles import Bundle
from dbdask.data.labels import Classes
from dbdask.data.opening import open_recipe
from dbdask.data.recipe import Recipe
from dbdask.data.sources import Source
from dbdask.data.standardization import Scaling


def describe(recipe: Recipe, source: Source | None) -> dict[str, Any]:
    """Return everything but the values and the selection."""
    targets = recipe.targets
    return {
        "data": None if source is None or source.route != "store" else source.description,
        "inputs": list(recipe.inputs.names),
        "targets": None if targets is None else list(targets.names),
        "along": list(recipe.along),
        "window": recipe.window.to_json() or None,
        "edges": recipe.edges,
        "groups": recipe.groups and recipe.groups.name,
        "weights": recipe.weights and recipe.weights.name,
        "classes": recipe.classes and recipe.classes.to_json(),
        "missing": recipe.missing,
        "input_shape": list(recipe.inputs.shape),
        "input_scalings": _scalings_json(recipe.inputs),
        "target_scalings": None if targets is None else _scalings_json(targets),
        "target_shape": None if targets is None else list(targets.shape),
        "target_attrs": _plain_attrs(targets),
    }


def rebuild(description: Mapping[str, Any], source: Source) -> Recipe:
    """Return the recipe of a description on a source; targets and weights may be absent there."""
    targets = description["targets"]
    has_targets = targets is not None and all(name in source.variables for name in targets)
    weights = description["weights"]
    classes = description["classes"]
    groups = description["groups"]
    recipe = open_recipe(
        source,
        inputs=description["inputs"],
        targets=targets if has_targets else None,
        along=description["along"],
        window=description["window"],
        edges=description["edges"],
        groups=groups,
        weights=weights if weights in source.variables else None,
        classes=Classes.from_json(classes) if classes is not None and has_targets else None,
        missing=description["missing"],
    )
    if recipe.inputs.shape != tuple(description["input_shape"]):
        raise ValueError(
            f"data: the inputs {', '.join(recipe.inputs.names)} have shape {recipe.inputs.shape} "
            f"there, the examples trained on have {tuple(description['input_shape'])}"
        )
    recipe = replace(recipe, inputs=_with_scalings(recipe.inputs, description["input_scalings"]))
    if recipe.targets is None:
        return recipe
    if classes is None:
        recipe = replace(recipe, classes=None)
    scaled = _with_scalings(recipe.targets, description["target_scalings"])
    return replace(recipe, targets=scaled)


def recipe_on(recipe: Recipe, source: Source) -> Recipe:
    """Return a recipe on another source."""
    return rebuild(describe(recipe, None), source)


def _scalings_json(bundle: Bundle) -> list[dict[str, Any]] | None:
    return None if bundle.scalings is None else [s.to_json() for s in bundle.scalings]


def _with_scalings(bundle: Bundle, tables: list[dict[str, Any]] | None) -> Bundle:
    return bundle.scaled(None if tables is None else [Scaling.from_json(t) for t in tables])


def _plain_attrs(targets: Bundle | None) -> list[dict[str, Any]] | None:
    """Return the targets' attributes as far as they are text, numbers or lists of them."""
    if targets is None:
        return None
    return [
        {name: plain for name, value in v.attrs.items() if (plain := _plain(value)) is not None}
        for v in targets.variables
    ]


def _plain(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool)) else None
