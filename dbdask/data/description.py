"""Descriptions: a recipe as plain data, and that recipe again on the same or on other data."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dbdask.data.alignment import same_labels
from dbdask.data.categories import Category
from dbdask.data.decoding import Decoding
from dbdask.data.feature_sets import FeatureSet
from dbdask.data.labels import Classes
from dbdask.data.missing_rules import MissingRules
from dbdask.data.opening import open_recipe
from dbdask.data.recipe import Recipe
from dbdask.data.routes import Absent
from dbdask.data.sources import Source, Variable
from dbdask.data.standardization import Scaling
from dbdask.json_types import JsonObject


def describe(recipe: Recipe) -> JsonObject:
    """Return a recipe as JSON: all but the values and the selection."""
    targets = recipe.targets
    categories = [c if c is None else c.to_json() for c in recipe.inputs.categories]
    return {
        "inputs": list(recipe.inputs.names),
        "targets": None if targets is None else list(targets.names),
        "along": list(recipe.along),
        "input_dims": _dims_json(recipe.inputs),
        "target_dims": None if targets is None else _dims_json(targets),
        "window": _windows_json(recipe.inputs),
        "edges": recipe.edges.to_json(),
        "groups": None if recipe.groups is None else recipe.groups.name,
        "weights": None if recipe.weights is None else recipe.weights.name,
        "classes": None if recipe.classes is None else recipe.classes.to_json(),
        "missing": recipe.missing.to_json(),
        "input_scalings": _scalings_json(recipe.inputs),
        "target_scalings": None if targets is None else _scalings_json(targets),
        "variables": [_variable_json(variable) for variable in recipe.variables],
        **({"categories": categories} if any(categories) else {}),
    }


def rebuild(description: JsonObject) -> Recipe:
    """Return the recipe that a description describes; its variables have no values."""
    variables = [_detached(described) for described in description["variables"]]
    # By number: DataArrays may have one name.
    numbered = {str(number): variable for number, variable in enumerate(variables)}
    source = Source(numbered, frozenset(), {}, description="the saved description")
    classes = description["classes"]
    rest = iter(variables)
    inputs = [next(rest) for _ in description["inputs"]]
    targets = description["targets"] and [next(rest) for _ in description["targets"]]
    weights = description["weights"] and next(rest)
    groups = description["groups"] and next(rest)
    given = {"targets": targets, "weights": weights, "groups": groups}
    recipe = _open({**description, **given}, source, inputs)
    if recipe.targets is None:
        return recipe
    scaled = recipe.targets.ordered("targets", description["target_dims"])
    return replace(
        recipe,
        classes=None if classes is None else Classes.from_json(classes),
        targets=_with_scalings(scaled, description["target_scalings"]),
    )


def inputs_on(recipe: Recipe, source: Source, own: Source | None) -> Recipe:
    """Return the recipe that prediction reads: the inputs alone, on another source.

    Examples with missing values are left out, unless training masked them. `own` is the source
    of the recipe, if it is known.

    Raises
    ------
    ValueError
        The source lacks an input or the groups, or has the inputs in another shape.
    """
    described = describe(recipe) | {"targets": None, "weights": None}
    described["missing"] = recipe.missing.to_predict().to_json()
    is_own = own is not None and own.shows_the_same(source)
    if recipe.groups is not None:
        described["groups"] = _found_on("groups", recipe.groups, recipe, source, is_own)
    inputs = [_found_on("inputs", v, recipe, source, is_own) for v in recipe.inputs.variables]
    found = _open(described, source, inputs, to_predict=True)
    if found.inputs.shape != recipe.inputs.shape:
        raise ValueError(
            f"data: the inputs {', '.join(found.inputs.names)} have shape {found.inputs.shape} in "
            f"{source.description}, the model was trained on {recipe.inputs.shape}"
        )
    return found


def _found_on(
    argument: str, variable: Variable, recipe: Recipe, source: Source, is_own: bool
) -> str | Variable:
    """Return the name under which a source has a variable, or the DataArray that still fits it.

    A DataArray that was given beside the data fits those data. It also fits other data with the
    same labels along its sample dimensions, if it lacks one sample dimension. An array that has
    them all was derived from the first data, and fits no other.

    Raises
    ------
    ValueError
        The source has no such variable, and the DataArray does not fit it.
    """
    if variable.is_beside and is_own:
        return variable
    if variable.name in source.variables or not variable.is_beside:
        return variable.name
    dims = [dim for dim in recipe.along if dim in variable.dims]
    static = len(dims) < len(recipe.along) and not isinstance(variable.origin, Absent)
    if static and all(_is_labelled_alike(recipe, source, dim) for dim in dims):
        return variable
    raise ValueError(
        f"{argument}: {variable.name!r} was given as a DataArray, and {source.description} has no "
        f"such variable; give a Dataset that has it, as data.assign({variable.name}=array)"
    )


def _is_labelled_alike(recipe: Recipe, source: Source, dim: str) -> bool:
    labels = source.labels(dim)
    known = recipe.coordinates.get(dim)
    if labels is None or known is None or isinstance(known.origin, Absent):
        return False
    return same_labels(known.label_index(), labels)


def prepared_like(recipe: Recipe, other: Recipe) -> Recipe:
    """Return a recipe with the scalings, classes and order of dimensions of another one.

    Raises
    ------
    ValueError
        The two differ in window, or in the names or shapes of inputs or targets.
    """
    recipe = replace(recipe, inputs=_features_like("inputs", recipe.inputs, other.inputs))
    if recipe.inputs.windows != other.inputs.windows:
        raise ValueError(
            f"examples have the window {_windows_json(recipe.inputs)}, the training examples "
            f"{_windows_json(other.inputs)}; give the same window"
        )
    if recipe.inputs.shape != other.inputs.shape:
        raise ValueError(
            f"examples have input_shape {recipe.inputs.shape}, the training examples "
            f"{other.inputs.shape}; give the same inputs and window"
        )
    if recipe.targets is None or other.targets is None:
        return recipe
    recipe = replace(recipe, targets=_features_like("targets", recipe.targets, other.targets))
    assert recipe.targets is not None
    if recipe.targets.shape != other.targets.shape:
        raise ValueError(
            f"examples have target_shape {recipe.targets.shape}, the training examples "
            f"{other.targets.shape}; give the same targets"
        )
    return replace(recipe, classes=other.classes)


def _features_like(argument: str, features: FeatureSet, other: FeatureSet) -> FeatureSet:
    """Return a feature set with the order and the scalings of that of the training."""
    if features.names != other.names and set(features.names) == set(other.names):
        raise ValueError(
            f"{argument} are {', '.join(features.names)}, the training examples' are "
            f"{', '.join(other.names)}; give them in the same order"
        )
    alike = features.ordered(argument, other.feature_dims).scaled(other.scalings)
    if _shown(features) != _shown(other):
        raise ValueError(
            f"{argument} have the categories {_shown(features)}, the training examples "
            f"{_shown(other)}; give the same categories"
        )
    return replace(alike, categories=other.categories)


def _open(
    described: JsonObject,
    source: Source,
    inputs: Sequence[str | Variable],
    to_predict: bool = False,
) -> Recipe:
    window = described["window"]
    recipe = open_recipe(
        source,
        inputs=inputs,
        targets=described["targets"],
        along=described["along"],
        window=None,
        windows=window if isinstance(window, list) else [window] * len(inputs),
        edges=described["edges"],
        groups=described["groups"],
        weights=described["weights"],
        classes=None,
        missing=MissingRules.from_json(described["missing"]),
        categories=tuple(
            None if table is None else Category.from_json(table)
            for table in described.get("categories", ())
        ),
        to_predict=to_predict,
    )
    ordered = recipe.inputs.ordered("inputs", described["input_dims"])
    return replace(recipe, inputs=_with_scalings(ordered, described["input_scalings"]))


def _shown(features: FeatureSet) -> dict[str, str]:
    """Return how each variable that is a label is shown, by name."""
    pairs = zip(features.names, features.categories, strict=False)
    return {name: category.how for name, category in pairs if category is not None}


def _windows_json(features: FeatureSet) -> Any:
    """Return the window of all variables, or a list of the window of each if they differ."""
    windows = [window.to_json() or None for window in features.windows]
    return windows[0] if all(window == windows[0] for window in windows) else windows


def _dims_json(features: FeatureSet) -> list[list[str]]:
    return [list(dims) for dims in features.feature_dims]


def _scalings_json(features: FeatureSet) -> list[JsonObject | None] | None:
    if features.scalings is None:
        return None
    return [None if scaling is None else scaling.to_json() for scaling in features.scalings]


def _with_scalings(features: FeatureSet, tables: list[JsonObject | None] | None) -> FeatureSet:
    if tables is None:
        return features.scaled(None)
    return features.scaled([None if t is None else Scaling.from_json(t) for t in tables])


def _variable_json(variable: Variable) -> JsonObject:
    kept = {str(name): _plain(value) for name, value in variable.attrs.items()}
    return {
        "name": variable.name,
        "dims": list(variable.dims),
        "shape": list(variable.shape),
        "dtype": variable.value_dtype.str,
        "stored_dtype": _number_dtype(variable),
        "dtype_name": variable.dtype_name,
        "missing": [m for value in variable.decoding.missing if (m := _plain(value)) is not None],
        "attrs": {name: value for name, value in kept.items() if value is not None},
    }


def _number_dtype(variable: Variable) -> str | None:
    """Return the dtype in which numbers are stored; None if they are no numbers."""
    dtype = variable.stored_dtype
    return dtype.str if isinstance(dtype, np.dtype) and dtype.kind in "iufb" else None


def _detached(described: JsonObject) -> Variable:
    """Return a variable of which only the metadata are known."""
    dtype = np.dtype(described["dtype"])
    return Variable(
        name=described["name"],
        key=described["name"],
        dims=tuple(described["dims"]),
        shape=tuple(described["shape"]),
        dtype=dtype,
        itemsize=dtype.itemsize,
        chunks=tuple(max(1, size) for size in described["shape"]),
        attrs=dict(described["attrs"]),
        decoding=Decoding(missing=tuple(described["missing"])),
        origin=Absent("store"),
        was_stored=np.dtype(described.get("stored_dtype") or dtype),
        dtype_name=described.get("dtype_name", ""),
    )


def _plain(value: object) -> Any:
    """Return an attribute as text, a number or a list of them; None if it is something else."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool)) else None
