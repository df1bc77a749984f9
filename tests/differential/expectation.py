"""The expected inputs, targets and weights of a table's rows, and the errors that must come."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .labels import declared_labels, plain
from .oracle import Selected, Table, feature_dims, taken, together
from .scaling import Scaling, scaling_of
from .shown import Shown

ULP = float(np.finfo(np.float32).eps)


def fill(
    table: Table,
    classes: list[Any] | None = None,
    outputs: int | None = None,
    trained: dict[str, Scaling] | None = None,
) -> None:
    """Find what the rows hold.

    Parameters
    ----------
    classes
        The labels of the outputs, where they were given or found.
    outputs
        The outputs of the model.
    trained
        The scalings to apply, to predict; None: those of the selected positions themselves.
    """
    asked, world = table.asked, table.world
    count = len(table.positions)
    table.kept = np.ones(count, bool)
    unusable: list[np.ndarray] = []
    scalings = measure(table) if trained is None else trained
    _check_groups(table)
    inputs = [world.variables[name] for name in asked.inputs]
    for name, shown in zip(asked.inputs, inputs, strict=True):
        _check_numbers(table, f"inputs {name}", shown)
    parts = _values(
        table, asked.inputs, feature_dims(inputs, asked.along), True, scalings, unusable
    )
    if parts is not None:
        table.inputs, table.inputs_tolerance = together(parts[0]), together(parts[1])
    if trained is None:
        _fill_targets(table, classes, outputs, scalings, unusable)
        _fill_weights(table, unusable)
    for bad in unusable:
        if (bad & table.kept).any():
            table.required.append("wrong value: one that is used is infinite, unknown or negative")
        elif bad.any():
            table.allowed.append("wrong value: one of an example that is left out")


def measure(table: Table) -> dict[str, Scaling]:
    """Return the scaling of every variable that one is measured for."""
    asked, found = table.asked, {}
    options = asked.standardize
    measured = [asked.inputs] if options or asked.missing == "mask" else []
    if options and options["targets"] is not False:
        measured.append(asked.targets)  # the loss is not known yet
    for name, features in _with_features(table, measured):
        shown = table.world.variables[name]
        if shown.kind == "number":
            per = options["per"] if options else "variable"
            one = scaling_of(shown, asked.along, features, table.selected, per)
            found[name] = one
            if one.infinite:
                table.allowed.append(
                    f"wrong value: {name} holds an infinite one where it is measured"
                )
            if one.empty:
                table.allowed.append(f"nothing to measure: {name}")
            if (one.empty or one.doubtful) and (name in asked.inputs or asked.loss == "squared"):
                table.doubtful_values = True
    return found


def _with_features(table: Table, roles: list[list[str]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for names in roles:
        shown = [table.world.variables[name] for name in names]
        yield from zip(names, feature_dims(shown, table.asked.along), strict=True)


def _check_numbers(table: Table, what: str, shown: Shown) -> None:
    if shown.kind in ("text", "time") and shown.certain:
        table.required.append(f"no numbers: {what} holds {shown.kind}")
    elif shown.kind != "number":
        table.allowed.append(f"odd: {what}")
        table.doubtful_values = True
    elif shown.doubt:
        table.allowed.append(f"odd: {what}, {shown.doubt}")
    if "units" in shown.attrs and (shown.values == np.iinfo(np.int64).min).any():
        table.allowed.append(f"missing: {what} may have gaps that xarray shows as numbers")
    if not shown.certain:
        table.allowed.append(f"odd: {what} has attributes without sense")


def _values(
    table: Table,
    names: list[str],
    dims: list[tuple[str, ...]],
    window: bool,
    scalings: dict[str, Scaling],
    unusable: list[np.ndarray],
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]] | None:
    """Return each variable as float32, tolerances and gaps; None where they are no numbers."""
    asked = table.asked
    found: tuple[list[np.ndarray], ...] = ([], [], [])
    for name, own in zip(names, dims, strict=True):
        shown = table.world.variables[name]
        if shown.kind != "number":
            return None
        values = taken(table, shown, shown.values, own, window)
        missing = taken(table, shown, shown.missing, own, window)
        others = tuple(range(1, missing.ndim))
        _judge_missing(table, missing.any(axis=others))
        scaling = scalings.get(name) if asked.standardize or window else None
        unusable.append((_infinite(table, values, scaling) & ~missing).any(axis=others))
        for part, one in zip(found, _rounded(asked, values, missing, scaling, shown), strict=False):
            part.append(one)
        found[2].append(missing)
    return found


def _judge_missing(table: Table, missing: np.ndarray) -> None:
    if table.asked.missing == "error" and missing.any():
        table.required.append("missing: a value that is used")
    if table.asked.missing == "drop":
        table.kept &= ~missing


def _infinite(table: Table, values: np.ndarray, scaling: Scaling | None) -> np.ndarray:
    if values.dtype.kind != "f":
        return np.zeros(values.shape, bool)
    with np.errstate(over="ignore", invalid="ignore"):
        small = np.isinf(values.astype(np.float32))
    if scaling is not None and table.asked.standardize and (small & ~np.isinf(values)).any():
        table.allowed.append("wrong value: one is too large for float32")
    return small


def _rounded(
    asked: Any, values: np.ndarray, missing: np.ndarray, scaling: Scaling | None, shown: Shown
) -> tuple[np.ndarray, np.ndarray]:
    """Return values as float32, and how far others may be from them."""
    with np.errstate(all="ignore"):
        if scaling is None or not asked.standardize:
            exact = values.astype(np.float32)
            packed = 2 * ULP * np.abs(exact).max(initial=0.0) if shown.packed else 0.0
            tolerance = np.full(exact.shape, packed)
            if scaling is not None:
                exact = np.where(missing, np.float32(scaling.mean), exact)
                tolerance = np.where(
                    missing, scaling.mean_error + ULP * abs(scaling.mean), tolerance
                )
            return exact, tolerance
        mean, deviation = scaling.mean, scaling.deviation
        wide = (values.astype(np.float64) - mean) / deviation
        lost = (scaling.mean_error + 4e-16 * np.abs(values.astype(np.float64))) / deviation
        if shown.packed:
            lost = lost + 2 * ULP * np.nanmax(np.abs(values), initial=0.0) / deviation
        exact = np.where(missing, 0, wide).astype(np.float32)
        return exact, np.where(missing, 0, 3 * ULP * np.abs(wide) + lost + ULP / 2)


def _fill_targets(
    table: Table,
    classes: list[Any] | None,
    outputs: int | None,
    scalings: dict[str, Scaling],
    unusable: list[np.ndarray],
) -> None:
    asked, world = table.asked, table.world
    if not asked.targets:
        return
    shown = [world.variables[name] for name in asked.targets]
    if asked.standardize and asked.standardize["targets"] and shown[0].attrs.get("flag_values"):
        table.allowed.append("classes: what declares labels is not scaled")
    if asked.loss != "squared":
        _fill_labels(table, shown[0], classes, outputs, unusable)
        return
    for name, one in zip(asked.targets, shown, strict=True):
        _check_numbers(table, f"targets {name}", one)
    dims = feature_dims(shown, asked.along)
    parts = _values(table, asked.targets, dims, False, scalings, unusable)
    if parts is None:
        return
    table.targets, table.targets_tolerance = together(parts[0]), together(parts[1])
    if asked.missing == "mask":
        table.gaps = together(parts[2])


def _fill_labels(
    table: Table,
    shown: Shown,
    classes: list[Any] | None,
    outputs: int | None,
    unusable: list[np.ndarray],
) -> None:
    """Encode the labels, which are compared as Python compares numbers and text."""
    asked = table.asked
    flags, certain = declared_labels(shown, shown.attrs)
    if shown.kind in ("odd", "time") or not certain or not shown.certain or shown.doubt:
        table.allowed.append("odd: labels of a kind that may be refused")
        table.doubtful_values |= shown.kind in ("odd", "time") or not certain
    values = taken(table, shown, shown.values, (), False)
    missing = taken(table, shown, shown.missing, (), False)
    _judge_missing(table, missing)
    labels = classes if classes is not None else flags
    count = 2 if asked.loss == "logistic" and outputs == 1 else outputs
    if labels is None and shown.kind == "text":
        table.required.append("classes: text needs them")
        return
    if labels is not None and len(labels) != count:
        table.required.append("classes: more than outputs, or fewer")
        return
    codes = {
        label: n for n, label in enumerate(labels if labels is not None else range(count or 0))
    }
    if len(codes) != (len(labels) if labels is not None else count or 0):
        table.required.append("classes: one is there twice")
        return
    found = [
        0 if m else codes.get(plain(v), -1) for v, m in zip(values.tolist(), missing, strict=True)
    ]
    table.targets = np.array(found, np.int64)
    table.targets_tolerance = np.zeros(len(found))
    unusable.append(table.targets < 0)
    table.classes = labels if labels is not None else list(range(count or 0))
    if asked.missing == "mask":
        table.gaps = missing


def _fill_weights(table: Table, unusable: list[np.ndarray]) -> None:
    asked = table.asked
    if not asked.weights:
        return
    shown = table.world.variables[asked.weights]
    _check_numbers(table, f"weights {asked.weights}", shown)
    if shown.kind != "number":
        return
    values = taken(table, shown, shown.values, (), False)
    missing = taken(table, shown, shown.missing, (), False)
    _judge_missing(table, missing)
    with np.errstate(all="ignore"):
        table.weights = np.where(missing, 0, values.astype(np.float32))
        unusable.append((np.isinf(table.weights) | (values < 0)) & ~missing)


def _check_groups(table: Table) -> None:
    """A group that returns where examples are must be refused; one that returns elsewhere may."""
    asked, world = table.asked, table.world
    if not asked.groups:
        return
    shown = world.variables[asked.groups]
    if shown.kind not in ("number", "text") or shown.missing.any() or shown.doubt:
        table.allowed.append("odd: groups of a kind that may be refused, or with gaps")
        table.doubtful_values |= bool(shown.missing.any()) or shown.kind not in ("number", "text")
        return
    dim = shown.dims[0]
    seen = np.unique(table.places[dim]).tolist() if len(table.positions) else []
    centres = table.positions[:, asked.along.index(dim)].tolist()
    if _returns([plain(shown.values[n]) for n in sorted({*seen, *centres})]):
        table.required.append("groups: one returns")
    elif _returns([plain(value) for value in shown.values.tolist()]):
        table.allowed.append("groups: one returns where no example is")


def _returns(values: list[Any]) -> bool:
    runs = [value for n, value in enumerate(values) if n == 0 or value != values[n - 1]]
    return len(runs) != len(set(runs))


def selected_labels(table: Table, selected: Selected) -> np.ndarray:
    """Say of each value of the labels' variable whether it belongs to a selected position."""
    shown = table.world.variables[table.asked.targets[0]]
    keep = np.zeros(shown.values.shape, bool)
    along = table.asked.along
    for place in np.argwhere(selected.mask):
        if all(p in selected.positions(d) for p, d in zip(place, along, strict=True)):
            keep[tuple(place[along.index(dim)] for dim in shown.dims)] = True
    return keep
