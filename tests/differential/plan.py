"""The plan of a dataset: dimensions, and columns with their values, attributes and chunks."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from .attributes import draw_attributes, draw_flags
from .kinds import (
    FLOATS,
    INTEGERS,
    ONE_DIMENSIONAL,
    TEXTS,
    TIMES,
    WORDS,
    as_pandas,
    as_text,
    as_time,
    choose,
    draw_values,
)

SAMPLE, FEATURE = ("a", "b", "c"), ("p", "q")


@dataclass
class Column:
    """One variable before it is written anywhere.

    Parameters
    ----------
    name
        Its first letter is its role: x (inputs), y (targets), w (weights), g (groups).
    fill
        What an array of Zarr holds where no chunk is written; None: none is left out.
    """

    name: str
    dims: tuple[str, ...]
    values: Any
    attrs: dict[str, Any] = field(default_factory=dict)
    fill: Any = 0
    chunks: tuple[int, ...] = ()
    holes: tuple[int, ...] = ()


@dataclass
class Plan:
    """What is drawn of a dataset before it is stored."""

    sizes: dict[str, int]
    columns: list[Column]
    coords: dict[str, np.ndarray | pd.Index]


def draw_plan(rng: np.random.Generator, raw: bool, pandas: bool) -> Plan:
    """Draw a dataset.

    Parameters
    ----------
    raw
        Whether it is written array by array, with attributes as the world writes them.
    pandas
        Whether it stays in memory, where pandas' own dtypes can be.
    """
    count = choose(rng, (1, 2, 3), (6, 3, 1))
    longest = {1: 40, 2: 9, 3: 5}[count]
    sizes = {dim: int(rng.integers(1 if rng.random() < 0.1 else 3, longest + 1)) for dim in SAMPLE}
    sizes = {dim: sizes[dim] for dim in SAMPLE[:count]}
    sizes |= {dim: int(rng.integers(1, 4)) for dim in FEATURE[: choose(rng, (0, 1, 2), (3, 3, 1))]}
    plan = Plan(sizes, [], _coords(rng, sizes, raw))
    for number in range(choose(rng, (1, 2, 3), (5, 3, 1))):
        plan.columns.append(_numbers(rng, plan, f"x{number}", raw, pandas))
    _add_targets(rng, plan, raw, pandas)
    if rng.random() < 0.3:
        plan.columns.append(_weights(rng, plan, raw))
    if rng.random() < 0.4:
        plan.columns.append(_groups(rng, plan, raw, pandas))
    if rng.random() < 0.1:
        _spoil(rng, plan, raw)
    for column in plan.columns:
        _lay_out(rng, plan, column, raw)
    return plan


def _coords(rng: np.random.Generator, sizes: dict[str, int], raw: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for dim, size in sizes.items():
        if rng.random() < (0.75 if dim in SAMPLE else 0.2):
            how = choose(rng, ("number", "down", "decimal", "date", "text"), (4, 1, 2, 2, 1))
            numbers = 10 * np.arange(size)
            found[dim] = {
                "number": numbers,
                "down": numbers[::-1].copy(),
                "decimal": numbers / 4,
                "date": np.datetime64("2020-01-01", "ns")
                + np.arange(size) * np.timedelta64(1, "D"),
                "text": np.array([f"n{n:03d}" for n in range(size)], object),
            }["number" if raw and how in ("date", "text") else how]
    return found


def _dims(rng: np.random.Generator, plan: Plan, features: bool) -> tuple[str, ...]:
    """Draw a variable's dimensions: mostly all sample dimensions, in any order."""
    own = [dim for dim in plan.sizes if dim in SAMPLE]
    if len(own) > 1 and rng.random() < 0.2:
        own.pop(int(rng.integers(len(own))))
    others = [dim for dim in plan.sizes if dim in FEATURE and features and rng.random() < 0.7]
    order = [*own, *others]
    return tuple(rng.permutation(order).tolist()) if rng.random() < 0.3 else tuple(order)


def _shape(plan: Plan, dims: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(plan.sizes[dim] for dim in dims)


def _numbers(
    rng: np.random.Generator, plan: Plan, name: str, raw: bool, pandas: bool, features: bool = True
) -> Column:
    dims = _dims(rng, plan, features)
    kinds = [*INTEGERS, *FLOATS, "float32", "float64", "float64", "bool"]
    if pandas and len(dims) == 1:
        kinds += ["Int64", "UInt8", "Float32", "Float64", "boolean"]
    kind = choose(rng, kinds)
    column = Column(name, dims, draw_values(rng, kind, _shape(plan, dims)))
    if raw and kind not in ("bool", "float16"):
        draw_attributes(rng, column)
    return column


def _add_targets(rng: np.random.Generator, plan: Plan, raw: bool, pandas: bool) -> None:
    how = choose(rng, ("none", "values", "several values", "labels"), (1, 4, 1, 5))
    if how in ("values", "several values"):
        for number in range(1 if how == "values" else 2):
            plan.columns.append(_numbers(rng, plan, f"y{number}", raw, pandas, rng.random() < 0.5))
    if how == "labels":
        plan.columns.append(_labels(rng, plan, raw, pandas))


def _labels(rng: np.random.Generator, plan: Plan, raw: bool, pandas: bool) -> Column:
    dims = _dims(rng, plan, False)
    codes = rng.integers(0, choose(rng, (1, 2, 3, 5)), _shape(plan, dims))
    column = Column("y0", dims, None)
    how = choose(
        rng, ("codes", "ids", "floats", "text", "bool", "time", "pandas"), (4, 4, 2, 4, 1, 1, 2)
    )
    if how == "pandas" and not (pandas and len(dims) == 1):
        how = "codes"
    if how == "codes":
        column.values = codes.astype(choose(rng, INTEGERS))
    elif how == "ids":
        column.values = _identities(rng, codes)
    elif how == "floats":
        column.values = codes + choose(rng, (0.0, 20240101.0, 2.0**53 - 8))
        if rng.random() < 0.4:
            column.values[rng.random(codes.shape) < 0.1] = np.nan
    elif how == "text":
        column.values = _words(rng, codes, raw)
    elif how == "bool":
        column.values = codes % 2 == 1
    elif how == "time":
        column.values = codes if raw else as_time(rng, choose(rng, TIMES), codes * 30)
    else:
        column.values = as_pandas(rng, choose(rng, ONE_DIMENSIONAL), codes)
    if how in ("codes", "ids") and rng.random() < 0.3:
        draw_flags(rng, column)
    elif how in ("codes", "ids") and raw:
        draw_attributes(rng, column, packs=False)
    return column


def _identities(rng: np.random.Generator, codes: np.ndarray) -> np.ndarray:
    """Return codes as whole numbers that a smaller dtype would confuse."""
    dtype, first = choose(
        rng,
        (
            ("uint64", 2**63),
            ("uint64", 2**64 - 10),
            ("int64", 2**53),
            ("int64", 20240101),
            ("int32", 2**24),
            ("uint8", 250),
            ("int8", -3),
            ("uint16", 255),
        ),
    )
    return np.array([first + n for n in range(6)], dtype)[codes]


def _words(rng: np.random.Generator, codes: np.ndarray, raw: bool) -> np.ndarray:
    words = np.array(rng.permutation(np.array(WORDS, object)), object)[codes]
    return as_text(rng, choose(rng, ("fixed", "string") if raw else TEXTS), words)


def _weights(rng: np.random.Generator, plan: Plan, raw: bool) -> Column:
    dims = _dims(rng, plan, False)
    values = rng.random(_shape(plan, dims)).astype(choose(rng, ("float32", "float64")))
    how = choose(rng, ("as they are", "whole", "missing", "negative"), (8, 2, 1, 0.4))
    if how == "whole":
        values = np.round(3 * values).astype(choose(rng, ("uint8", "int64")))
    elif how != "as they are":
        values[rng.random(values.shape) < 0.1] = np.nan if how == "missing" else -1
    return Column("w", dims, values)


def _groups(rng: np.random.Generator, plan: Plan, raw: bool, pandas: bool) -> Column:
    dim = choose(rng, [dim for dim in plan.sizes if dim in SAMPLE])
    size = plan.sizes[dim]
    codes = np.repeat(np.arange(size), rng.integers(1, 7, size))[:size]
    how = choose(rng, ("numbers", "ids", "floats", "text", "time", "pandas"), (4, 4, 3, 3, 1, 1))
    if how == "pandas" and not pandas:
        how = "numbers"
    if how == "numbers":
        values = codes.astype(choose(rng, INTEGERS))
    elif how == "ids":
        dtype, first = choose(rng, (("uint64", 2**63), ("int64", 2**53), ("int32", 2**24)))
        values = np.array([first + n for n in range(size)], dtype)[codes]
    elif how == "floats":
        values = codes + choose(rng, (0.5, 20240101.0, 2.0**52))
    elif how == "text":
        words = np.array([f"u{n}" if n else "" for n in range(size)], object)[codes]
        values = as_text(rng, choose(rng, ("fixed", "string") if raw else TEXTS), words)
    elif how == "time":
        values = codes if raw else as_time(rng, "date", codes)
    else:
        kind = choose(rng, ("Int64", "categorical number"))
        values = as_pandas(rng, kind, codes) if kind == "Int64" else pd.Categorical(codes)
    return Column("g", (dim,), values)


def _spoil(rng: np.random.Generator, plan: Plan, raw: bool) -> None:
    """Give one column a kind that its role does not take."""
    column = choose(rng, plan.columns)
    kind = choose(rng, ("fixed", "string") if raw else ("fixed", "text", "date", "duration"))
    if column.name[0] in "xw" and rng.random() < 0.3:
        column.values = draw_values(rng, kind, _shape(plan, column.dims))
        column.attrs, column.fill = {}, 0


def _lay_out(rng: np.random.Generator, plan: Plan, column: Column, raw: bool) -> None:
    """Draw chunks, and which of them are not written."""
    how = choose(rng, ("regular", "one", "larger"), (6, 2, 1))
    sizes = _shape(plan, column.dims)
    if how == "one":
        column.chunks = sizes
    elif how == "larger":
        column.chunks = tuple(size + int(rng.integers(0, 4)) for size in sizes)
    else:
        column.chunks = tuple(int(rng.integers(1, size + 1)) for size in sizes)
    count = int(np.prod([-(-n // c) for n, c in zip(sizes, column.chunks, strict=True)]))
    if raw and rng.random() < 0.2 and column.fill is not None:
        column.holes = tuple(n for n in range(count) if rng.random() < 0.3)
