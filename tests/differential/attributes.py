"""Attributes as the world writes them: fills, packing, units, flags; sane and not."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .kinds import choose

if TYPE_CHECKING:
    from .plan import Column


def draw_attributes(rng: np.random.Generator, column: "Column", packs: bool = True) -> None:
    """Draw the attributes of numbers that are written as they are, and the array's own fill."""
    dtype = column.values.dtype
    column.fill = _array_fill(rng, column)
    if rng.random() < 0.35:
        return
    draw = _of_integers if dtype.kind in "iu" else _of_floats
    column.attrs = draw(rng, column, packs)
    if rng.random() < 0.1:
        column.attrs["valid_range"] = choose(rng, ([0, 3], [-1e30, 1e30], "0, 3"))
    if rng.random() < 0.2:
        column.attrs.setdefault("units", choose(rng, ("K", "1", "", "days", "hours")))


def _array_fill(rng: np.random.Generator, column: "Column") -> Any:
    choices = [0, 0, 0, None, column.values.flat[0].item()]
    if column.values.dtype.kind == "f":
        choices += [float("nan"), -9999.0]
    return choose(rng, choices)


def _some_value(rng: np.random.Generator, column: "Column") -> Any:
    """Return a value of the column, so that a fill meets something; never NaN."""
    value = choose(rng, column.values.ravel().tolist())
    return value if value == value and abs(value) != np.inf else -1.0


def _of_integers(rng: np.random.Generator, column: "Column", packs: bool) -> dict[str, Any]:
    limits = np.iinfo(column.values.dtype)
    value = _some_value(rng, column)
    options: list[dict[str, Any]] = [
        {"_FillValue": value},
        {"_FillValue": value},
        {"missing_value": value},
        {"_FillValue": value, "missing_value": value},
        {"_FillValue": value, "missing_value": _some_value(rng, column)},
        {"missing_value": [value, _some_value(rng, column)]},
        {"_FillValue": float(value) if abs(value) < 2**53 else value},
        {"_FillValue": choose(rng, (limits.max + 1, limits.min - 1, -1 - limits.max, 1e20))},
        {"missing_value": choose(rng, (1e20, 9.969209968386869e36, float("nan")))},
        {choose(rng, ("_FillValue", "missing_value")): choose(rng, ("NaN", "-9999", "none", ""))},
        {"_FillValue": float("nan")},
        {"_FillValue": None},
    ]
    if packs:
        options += [_packing(rng, value) for _ in range(6)]
        options += [
            {"_Unsigned": choose(rng, ("true", "false", "True"))} | _signed_fill(rng, column)
        ]
        options += [{"units": choose(rng, ("days since 2000-01-01", "hours since the flood"))}]
    return choose(rng, options)


def _signed_fill(rng: np.random.Generator, column: "Column") -> dict[str, Any]:
    limits = np.iinfo(column.values.dtype)
    return choose(rng, ({}, {"_FillValue": -1 if limits.min else limits.max}, {"_FillValue": 0}))


def _packing(rng: np.random.Generator, value: Any) -> dict[str, Any]:
    scales = (0.1, 0.01, 2, 0.5, 1e-3, 0.1, 0.0, float("nan"), "0.1", [0.1], float("inf"), "two")
    found: dict[str, Any] = {}
    if rng.random() < 0.8:
        found["scale_factor"] = choose(rng, scales, (6, 6, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1))
    if not found or rng.random() < 0.5:
        found["add_offset"] = choose(
            rng, (1.5, 273.15, 10, -7, float("nan"), "1"), (4, 4, 4, 2, 1, 1)
        )
    if rng.random() < 0.5:
        found["_FillValue"] = choose(rng, (value, value, 10**6, -(10**6), 1e20))
    return found


def _of_floats(rng: np.random.Generator, column: "Column", packs: bool) -> dict[str, Any]:
    value = _some_value(rng, column)
    options: list[dict[str, Any]] = [
        {"missing_value": value},
        {"missing_value": choose(rng, (1e20, -9999.0, -9999, float("nan"), "NaN", "-9999"))},
        {"_FillValue": float("nan")},
        {"_FillValue": value},
        {"_FillValue": choose(rng, (1e20, -9999.0, "NaN", 1e300))},
    ]
    if packs:
        options += [_packing(rng, value)]
    return choose(rng, options)


def draw_flags(rng: np.random.Generator, column: "Column") -> None:
    """Declare the labels with `flag_values`, as a list, as text, signed, or not to be read."""
    labels = np.unique(column.values)
    if rng.random() < 0.5:
        labels = labels[::-1]
    words = " ".join(f"word{n}" for n in range(len(labels)))
    signed = labels.view(np.dtype(f"i{labels.itemsize}"))
    how = choose(
        rng,
        (
            "list",
            "array",
            "commas",
            "bytes",
            "spaces",
            "signed",
            "short",
            "not numbers",
            "no words",
        ),
        (4, 3, 2, 2, 1, 2, 1, 1, 1),
    )
    column.attrs = {
        "list": {"flag_values": labels.tolist(), "flag_meanings": words},
        "array": {"flag_values": labels.tolist(), "flag_meanings": words},
        "commas": {"flag_values": ", ".join(map(str, labels.tolist())), "flag_meanings": words},
        "bytes": {
            "flag_values": ", ".join(f"{label}b" for label in labels.tolist()),
            "flag_meanings": words,
        },
        "spaces": {"flag_values": " ".join(map(str, labels.tolist())), "flag_meanings": words},
        "signed": {"flag_values": signed.tolist(), "flag_meanings": words, "_Unsigned": "true"},
        "short": {"flag_values": labels[:-1].tolist() or [77], "flag_meanings": words},
        "not numbers": {"flag_values": "low, high", "flag_meanings": words},
        "no words": {"flag_values": labels.tolist()},
    }[how]
    if how == "signed":
        column.values = column.values.view(signed.dtype)
