"""From the arguments of `Examples` to a recipe, with all errors that metadata can show."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xarray as xr

from dbdask.data.categories import CategoriesGiven, Category, as_categories, check_labels
from dbdask.data.edges import Edges, EdgesGiven, as_edges, check_circle
from dbdask.data.feature_sets import FeatureSet, check_numbers, check_sizes
from dbdask.data.flags import declared_classes
from dbdask.data.labels import Classes, as_classes
from dbdask.data.missing_rules import MissingGiven, MissingRules, as_missing_rules
from dbdask.data.recipe import Recipe
from dbdask.data.selection import Selection
from dbdask.data.sources import Source, Variable
from dbdask.data.windows import WindowGiven, windows_by_name, windows_of
from dbdask.errors import DataError
from dbdask.schedule.lengths import Lengths

MADE_ANEW = (ValueError, TypeError, DataError)  # to name the argument; exactly these types

Given = str | xr.DataArray
Known = Given | Variable


def open_recipe(
    source: Source,
    *,
    inputs: Known | Sequence[Known] | Mapping[str, WindowGiven | None],
    targets: Known | Sequence[Known] | None,
    along: str | Sequence[str],
    window: WindowGiven | None,
    edges: EdgesGiven,
    groups: Known | None,
    weights: Known | None,
    classes: Sequence[object] | Classes | None,
    missing: MissingGiven | MissingRules,
    windows: Sequence[WindowGiven | None] | None = None,
    categories: CategoriesGiven | tuple[Category | None, ...] | None = None,
    to_predict: bool = False,
) -> Recipe:
    """Return the recipe of the arguments of `Examples`, checked against the metadata.

    Of the values, at most coordinates are read. `windows` has the window of each input, in place of
    `window`. If the recipe is `to_predict`, the data may have sample dimensions that no input has,
    because the targets had them.

    Raises
    ------
    ValueError, TypeError
        Names the argument, the value, the rule and the remedy.
    """
    dims = _along(along, source)
    shown = as_edges(edges, dims)
    sizes = {dim: source.sizes[dim] for dim in dims if dim in source.sizes}
    named = windows_by_name(inputs, window)
    found = _variables("inputs", inputs if named is None else list(named), source)
    sought = None if targets is None else _variables("targets", targets, source)
    for variable in (*found, *(sought or ())):
        sizes.update({d: n for d, n in variable.sizes.items() if d in dims and d not in sizes})
    missing_dims = _check_dims(dims, found, sought or (), to_predict)
    # A model that was trained on windows predicts from shorter data too, by the rule of its edges.
    bounded = {d: n for d, n in sizes.items() if not to_predict or shown.of(d) == "wrap"}
    spans = windows_of(
        [v.name for v in found], named, windows or (window,) * len(found), dims, bounded
    )
    shown_as = categories if isinstance(categories, tuple) else as_categories(categories, found)
    features = FeatureSet(found, dims, spans, categories=shown_as)
    _check_inputs(features, sizes)
    target, labels = _targets(sought, dims, sizes, classes)
    weight = _weights(weights, source, dims, sizes, target)
    names = [v.name for v in (*found, *(sought or ()), weight) if v is not None]
    return Recipe(
        along=dims,
        inputs=features,
        targets=target,
        classes=labels,
        weights=weight,
        groups=_groups(groups, source, dims, sizes, shown),
        edges=shown,
        missing=as_missing_rules(missing, names),
        selection=Selection.whole(dims, [sizes[dim] for dim in dims]),
        coordinates=_coordinates(source, dims),
        beyond={dim: _lengths_in(source, dim) for dim in missing_dims},
    )


def _check_dims(
    dims: tuple[str, ...],
    inputs: tuple[Variable, ...],
    targets: tuple[Variable, ...],
    to_predict: bool,
) -> list[str]:
    """Return the sample dimensions that no variable has.

    Raises
    ------
    ValueError
        There is one, and the recipe is not `to_predict`.
    """
    known = {dim for variable in (*inputs, *targets) for dim in variable.dims}
    missing = [dim for dim in dims if dim not in known]
    if missing and not to_predict:
        raise ValueError(
            f"along: no variable of inputs or targets has the dimension {missing[0]!r}; they have "
            f"{', '.join(sorted({d for v in inputs for d in v.dims}))}"
        )
    return missing


def _check_inputs(features: FeatureSet, sizes: Mapping[str, int]) -> None:
    """Raise if an input has a wrong length, or is neither a number nor a label."""
    for number, variable in enumerate(features.variables):
        check_sizes("inputs", variable, sizes)
        category = features.category(number)
        if category is None:
            check_numbers("inputs", variable)
        else:
            check_labels(variable, category)


def _lengths_in(source: Source, dim: str) -> Lengths:
    """Return the blocks along a dimension of the largest variable that has it."""
    having = [variable for variable in source.variables.values() if dim in variable.dims]
    return max(having, key=lambda variable: variable.nbytes).lengths[dim]


def _along(along: str | Sequence[str], source: Source) -> tuple[str, ...]:
    dims = (along,) if isinstance(along, str) else as_list("along", along, "a dimension's name")
    if not dims:
        raise ValueError("along must name at least one dimension, got none")
    if len(set(dims)) != len(dims):
        raise ValueError(f"along must not name a dimension twice, got {dims}")
    for dim in dims:
        if dim not in source.sizes:
            known = ", ".join(sorted(source.sizes)) or "none"
            raise ValueError(
                f"along: no dimension {dim!r} in {source.description}; it has: {known}"
            )
        if source.sizes[dim] == 0:
            raise ValueError(
                f"along: dimension {dim!r} of {source.description} has length 0: no examples"
            )
    return dims


def _variables(argument: str, given: object, source: Source) -> tuple[Variable, ...]:
    if isinstance(given, (str, xr.DataArray, Variable)):
        return (_variable(argument, given, source),)
    several = as_list(argument, given, "a variable's name, a DataArray")
    if not several:
        raise ValueError(f"{argument} must name at least one variable, got none")
    found = tuple(
        _variable(argument, one, source, f"{argument}_{number}" if len(several) > 1 else argument)
        for number, one in enumerate(several)
    )
    names = {variable.name: variable for variable in found}
    for variable in found:
        if names[variable.name].key != variable.key:
            raise ValueError(
                f"{argument}: two variables have the name {variable.name!r}; give a DataArray "
                "another with .rename"
            )
    keys = [variable.key for variable in found]
    for variable in found:
        if keys.count(variable.key) > 1:
            raise ValueError(f"{argument} must not name a variable twice, got {variable.name!r}")
    return found


def as_list(argument: str, given: object, one: str) -> tuple[Any, ...]:
    """Return a list that a user gave as a tuple; raise TypeError if it is no list."""
    if isinstance(given, (Mapping, xr.Dataset)) or not isinstance(given, Iterable):
        raise TypeError(f"{argument} must be {one} or a list of them, got {given!r}")
    return tuple(given)


def _variable(argument: str, given: Any, source: Source, name: str = "") -> Variable:
    """Return one variable; a DataArray without a name gets `name`, or the argument's name."""
    if isinstance(given, xr.DataArray) and given.name is None:
        given = given.rename(name or argument)
    try:
        variable = source.variable(given)
        variable.check_decoding()
        _check_dims_differ(variable)
        return variable
    except (ValueError, TypeError) as error:
        if type(error) in MADE_ANEW:
            raise type(error)(f"{argument}: {error}") from error
        error.add_note(f"in the argument {argument}")  # other types take other arguments
        raise


def _check_dims_differ(variable: Variable) -> None:
    if len(set(variable.dims)) < len(variable.dims):
        raise ValueError(
            f"variable {variable.name!r} has a dimension twice: {variable.dims}; give it another "
            "name, as in xr.DataArray(array.values, dims=[...])"
        )


def _weights(
    given: Known | None,
    source: Source,
    along: tuple[str, ...],
    sizes: Mapping[str, int],
    targets: FeatureSet | None,
) -> Variable | None:
    """Return a variable that has a number for each example, or for each target element."""
    if given is None:
        return None
    variable = _variable("weights", given, source)
    of_targets: dict[str, int] = {}
    for one in targets.variables if targets is not None else ():
        of_targets.update(one.sizes)
    check_sizes("weights", variable, {**of_targets, **sizes})
    check_numbers("weights", variable)
    shared = [set(dims) for dims in targets.feature_dims] if targets is not None else []
    known = {*along, *(set.intersection(*shared) if shared else ())}
    for dim in variable.dims:
        if dim not in known:
            more = ", ".join(map(repr, sorted(known - {*along}))) or "none"
            raise ValueError(
                f"weights: variable {variable.name!r} has the dimension {dim!r}, which is not in "
                f"along={along}, and not one that every target has (these are: {more}); it must "
                "have one value for each example, or for each element of its targets"
            )
    return variable


def _groups(
    given: Known | None,
    source: Source,
    along: tuple[str, ...],
    sizes: Mapping[str, int],
    edges: Edges,
) -> Variable | None:
    """Return a variable that has a group for each position of one sample dimension."""
    if given is None:
        return None
    variable = _variable("groups", given, source)
    check_sizes("groups", variable, sizes)
    for dim in variable.dims:
        if dim not in along:
            raise ValueError(
                f"groups: variable {variable.name!r} has the dimension {dim!r}, which is not in "
                f"along={along}; it must have one value for each example"
            )
    if len(variable.dims) != 1:
        raise ValueError(
            f"groups: variable {variable.name!r} must have one dimension, one of along={along}, "
            f"got {variable.dims}"
        )
    check_circle(edges, variable.name, variable.dims)
    return variable


def _targets(
    found: tuple[Variable, ...] | None,
    along: tuple[str, ...],
    sizes: Mapping[str, int],
    classes: Sequence[object] | Classes | None,
) -> tuple[FeatureSet | None, Classes | None]:
    if found is None:
        if classes is not None:
            raise ValueError("classes needs targets, got targets=None")
        return None, None
    features = FeatureSet(found, along)
    for variable in found:
        check_sizes("targets", variable, sizes)
    labels = _classes(features, classes)
    if labels is None:
        for variable in found:
            _check_target(variable, features.shape == ())
    return features, labels


def _check_target(variable: Variable, is_single: bool) -> None:
    """Raise TypeError if values can be neither numbers nor labels."""
    if not is_single or variable.value_dtype.kind in "iufb":
        check_numbers("targets", variable)
        return
    raise TypeError(
        f"targets: variable {variable.name!r} has dtype {variable.shown_dtype}; targets are "
        "numbers, or labels that are whole numbers or text: give array.astype(str) as labels"
    )


def _classes(features: FeatureSet, given: Sequence[object] | Classes | None) -> Classes | None:
    """Return the classes of the targets; None if the targets are no labels."""
    variable = features.variables[0]
    kind = variable.value_dtype.kind
    if given is not None:
        if features.shape != ():
            raise ValueError(
                f"classes needs one label for each example, targets have shape {features.shape}"
            )
        known = given if isinstance(given, Classes) else as_classes(given)
        _check_kind(variable, known)
        return known
    if features.shape != () or kind not in "iufbUO":
        return None
    declared = declared_classes(variable.attrs, variable.flag_dtype, is_text=kind == "U")
    if declared is not None or kind in "iub":
        return declared or Classes()
    # The classes of text are not known yet; of objects, not even the kind is.
    return Classes(()) if kind in "UO" else None


def _check_kind(variable: Variable, classes: Classes) -> None:
    kind = variable.value_dtype.kind
    if kind not in "iufbUO":
        _check_target(variable, is_single=True)
    if classes.labels and kind != "O" and (kind == "U") != isinstance(classes.labels[0], str):
        raise ValueError(
            f"classes: the labels are like {classes.labels[0]!r}, but variable {variable.name!r} "
            f"has dtype {variable.shown_dtype}; give labels of the variable's own kind"
        )


def _coordinates(source: Source, along: tuple[str, ...]) -> dict[str, Variable]:
    return {
        dim: source.coords[dim]
        for dim in along
        if dim in source.coords and source.coords[dim].dims == (dim,)
    }
