"""Is what dbdask did what must come of it? Values, or an error that names what is wrong."""

import re
from typing import Any

import numpy as np
import xarray as xr

from .arguments import Asked, Cut
from .expectation import fill, selected_labels
from .labels import label_list
from .observing import Observed
from .oracle import Selected, Table, narrowed, rows_of, whole
from .shown import World

WORDS = re.compile(
    r"\b(inputs|targets|weights|groups|along|window|edges|missing|classes|data|split|isel|sel|where"
    r"|standardize|no examples|mask|labels?|fraction)\b"
)
NAMED = (ValueError, TypeError)

SAID = {
    "missing": r"missing",
    "wrong value": r"infinite|too large|negative|whole number|not one of|is not|xarray shows where",
    "no numbers": r"dtype|numbers",
    "groups": r"groups",
    "nothing left": r"no examples|nothing|gets none|no position|of length 0|must hold something",
    "window": r"window",
    "classes": r"classes|outputs|labels|text",
    "nothing to measure": r"missing|no value|infinite|classes|label",
    "odd": r".",
}
"""What an error says that comes for a reason; a reason begins with one of these."""


class Wrong(AssertionError):
    """dbdask shows something else than it must."""


def compare(
    observed: Observed, worlds: list[World], asked: Asked, warned: set[str]
) -> tuple[str, Table]:
    """Return "equal" or "refused", and the table that was met; raise Wrong where there is none.

    `warned` is what xarray warns of when it reads the data alone.
    """
    _check_warnings(observed, warned)
    failures = []
    for world in worlds:
        try:
            return compare_with(observed, world, asked)
        except Wrong as wrong:
            failures.append(str(wrong))
    raise Wrong("\n  or: ".join(dict.fromkeys(failures)))


def compare_with(observed: Observed, world: World, asked: Asked) -> tuple[str, Table]:
    """Compare with one reading of the data."""
    table = expected(observed, world, asked)
    if observed.error is not None:
        _check_error(observed, table)
        return "refused", table
    if table.doubtful_values:
        return "not compared", table
    if table.required:
        raise Wrong(f"no error came, though {'; '.join(table.required)}")
    check_values(observed, table)
    return "equal", table


def _check_error(observed: Observed, table: Table) -> None:
    error, stage = observed.error, observed.stage
    kind = f"{type(error).__name__} in {stage}: {error}"
    if not isinstance(error, NAMED) or isinstance(error, UnicodeError):
        raise Wrong(f"a raw error: {kind}")
    quoted = any(repr(name) in str(error) for name in table.world.variables)
    if not quoted and not WORDS.search(str(error)):
        raise Wrong(f"an error that names nothing: {kind}")
    reasons = [*table.required, *table.allowed]
    if not any(re.search(SAID[reason.partition(":")[0]], str(error)) for reason in reasons):
        raise Wrong(f"an error without reason: {kind}; reasons are {reasons or 'none'}")


def _check_warnings(observed: Observed, warned: set[str]) -> None:
    for warning in observed.warned:
        known = issubclass(warning.category, UserWarning) or str(warning.message) in warned
        if not known:
            raise Wrong(f"a raw warning: {warning.category.__name__}: {warning.message}")


def expected(observed: Observed, world: World, asked: Asked) -> Table:
    """Find what must come of it."""
    selected, reasons, allowed = _after_cuts(observed, world, asked)
    positions, places = rows_of(world, asked, selected)
    table = Table(asked, world, selected, positions, places, reasons, allowed)
    table.doubtful_values = None in observed.parts
    if not len(positions) and not len(_without_groups(world, asked, selected)):
        table.required.append("nothing left: no examples are left")
    classes = asked.classes
    if classes == "find":
        classes = observed.classes
        _check_found(observed, table)
    fill(table, classes, observed.outputs if asked.classes == "find" else asked.outputs)
    for dim in asked.windowed:
        first, last = asked.offsets(dim)
        size = world.sizes[dim]
        if last - first + 1 > size or max(-first, last) >= size:
            table.allowed.append("window: it is wider than its dimension")
    return table


def _without_groups(world: World, asked: Asked, selected: Selected) -> np.ndarray:
    bare = Asked(**{**asked.__dict__, "groups": None})
    return rows_of(world, bare, selected)[0]


def _after_cuts(
    observed: Observed, world: World, asked: Asked
) -> tuple[Selected, list[str], list[str]]:
    selected, required, allowed = whole(world, asked), [], []
    splits = iter(observed.parts)
    for cut in asked.cuts:
        if cut.method.startswith("split"):
            allowed.append("nothing left: a part of a split may be empty")
            parts = next(splits, None)
            if parts is None:
                continue
            selected = _part(world, asked, selected, parts, cut)
        else:
            selected = _cut(world, asked, selected, cut)
        if not len(_without_groups(world, asked, selected)):
            required.append("nothing left: a cut leaves no examples")
            break
    return selected, required, allowed


def _cut(world: World, asked: Asked, selected: Selected, cut: Cut) -> Selected:
    if cut.method == "where":
        mask = cut.indexer.broadcast_like(
            xr.DataArray(np.ones(selected.mask.shape), dims=asked.along)
        ).transpose(*asked.along)
        return Selected(selected.runs, selected.mask & mask.to_numpy())
    positions = selected.positions(cut.dim)
    if cut.method == "isel":
        chosen = positions[np.asarray(cut.indexer, int) if _is_list(cut) else cut.indexer]
    else:
        here = world.indexes[cut.dim][positions]
        where = xr.DataArray(positions, {cut.dim: here}, (cut.dim,))
        chosen = where.sel({cut.dim: cut.indexer}).to_numpy()
    return narrowed(selected, cut.dim, chosen.tolist())


def _is_list(cut: Cut) -> bool:
    return not isinstance(cut.indexer, slice)


def _part(
    world: World, asked: Asked, selected: Selected, parts: list[np.ndarray], cut: Cut
) -> Selected:
    """Take a part as dbdask cut it: parts share nothing, and fractions of 1 lose nothing."""
    every = [tuple(row) for part in parts for row in part.tolist()]
    if len(every) != len(set(every)):
        raise Wrong("two parts of a split share a position")
    wanted = {tuple(row) for row in rows_of(world, asked, selected)[0].tolist()}
    if not set(every) <= wanted:
        raise Wrong("a part of a split holds what was not selected")
    if (len(cut.indexer) == 1 or sum(cut.indexer) > 0.999) and set(every) != wanted:
        raise Wrong("the parts of a split lose positions")
    if asked.groups and cut.seed is not None:
        _check_whole_groups(world, asked, parts)
    for axis, dim in enumerate(asked.along):
        selected = narrowed(selected, dim, np.unique(parts[cut.part][:, axis]).tolist())
    return selected


def _check_whole_groups(world: World, asked: Asked, parts: list[np.ndarray]) -> None:
    shown = world.variables[str(asked.groups)]
    axis = asked.along.index(shown.dims[0])
    groups = [{shown.values[n] for n in part[:, axis].tolist()} for part in parts]
    if sum(map(len, groups)) != len(set().union(*groups)):
        raise Wrong("a drawn split cuts a group in two")


def _check_found(observed: Observed, table: Table) -> None:
    """Labels that were found: all that examples have, and none that nothing selected has."""
    shown = table.world.variables[table.asked.targets[0]]
    most = label_list(shown, selected_labels(table, table.selected))
    if not most:
        table.allowed.append("nothing to measure: there are no labels to find")
    if observed.classes is None:
        return
    if shown.kind in ("number", "text") and not set(observed.classes) <= set(most):
        raise Wrong(f"find_classes gives {observed.classes}, of {most}")
    if observed.classes != sorted(set(observed.classes)):
        raise Wrong(f"find_classes gives {observed.classes}, not sorted or not unique")


def check_values(observed: Observed, table: Table) -> None:
    """Compare every row: which there are, and what each holds."""
    read = observed.read
    assert read is not None
    if observed.epochs:
        raise Wrong("; ".join(observed.epochs))
    found = {tuple(row): n for n, row in enumerate(read.positions[read.valid].tolist())}
    wanted = {tuple(row): n for n, row in enumerate(table.positions.tolist()) if table.kept[n]}
    if len(found) != read.valid.sum():
        raise Wrong("a position is there twice")
    if set(found) != set(wanted):
        more, less = sorted(set(found) - set(wanted))[:4], sorted(set(wanted) - set(found))[:4]
        raise Wrong(f"positions that must be left out: {more}; that must be there: {less}")
    if len(observed.read.positions) > observed.length:
        raise Wrong(f"len(examples) is {observed.length}, positions {len(read.positions)}")
    rows = [wanted[place] for place in found]
    places = list(found)
    check_array("inputs", read.inputs, table.inputs, table.inputs_tolerance, rows, places)
    gaps = None if table.gaps is None else table.gaps[rows]
    if table.targets is not None:
        check_array(
            "targets", read.targets, table.targets, table.targets_tolerance, rows, places, gaps
        )
    elif read.targets is not None:
        raise Wrong("targets came though none were asked for")
    _check_weights(read.weights, table, rows, gaps, places)


def check_array(
    what: str,
    found: Any,
    wanted: Any,
    tolerance: Any,
    rows: list[int],
    places: list[tuple[int, ...]],
    gaps: np.ndarray | None = None,
) -> None:
    """Compare an array's rows with those of the table."""
    wanted, tolerance = wanted[rows], tolerance[rows]
    if found is None or found.shape != wanted.shape:
        raise Wrong(f"{what} have shape {np.shape(found)}, not {wanted.shape}")
    kind = "i" if wanted.dtype.kind == "i" else "f"
    if found.dtype.kind != kind or (kind == "f" and found.dtype != np.float32):
        raise Wrong(f"{what} have dtype {found.dtype}, not {wanted.dtype}")
    if not np.isfinite(found).all():
        raise Wrong(f"{what} are not finite")
    bad = np.abs(found.astype(np.float64) - wanted.astype(np.float64)) > tolerance
    if gaps is not None:
        bad &= ~gaps
    if bad.any():
        at = tuple(np.argwhere(bad)[0])
        raise Wrong(
            f"{what} at {places[at[0]]}, element {tuple(map(int, at[1:]))}, is {found[at]!r}, not "
            f"{wanted[at]!r}; {int(bad.sum())} of {bad.size} elements"
        )


def _check_weights(
    found: np.ndarray | None, table: Table, rows: list[int], gaps: np.ndarray | None, places: Any
) -> None:
    shape = found.shape if found is not None else ()
    wanted = np.ones(len(rows), np.float32) if table.weights is None else table.weights[rows]
    if table.targets is not None:
        shape = table.targets[rows].shape
        wanted = np.broadcast_to(wanted.reshape(-1, *[1] * (len(shape) - 1)), shape)
    if gaps is not None:
        wanted = np.where(gaps, 0, wanted)
    if found is None:
        found = np.ones(wanted.shape, np.float32)
    packed = table.asked.weights and table.world.variables[table.asked.weights].packed
    tolerance = np.full(wanted.shape, 1e-6 if packed else 0.0)
    check_array(
        "weights", found, wanted.astype(np.float32), tolerance, list(range(len(rows))), places
    )
