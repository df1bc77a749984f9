"""Labels as class indices: what `flag_values`, `classes=` and the loss say of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .shown import Shown


def plain(value: Any) -> Any:
    """Return a label as Python's own number or text: equal ones are one."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def label_list(shown: Shown, where: np.ndarray | None = None) -> list[Any]:
    """Return the labels that occur, sorted; those of the wanted positions."""
    keep = ~shown.missing if where is None else where & ~shown.missing
    if shown.kind not in ("number", "text"):
        return []
    found = {plain(value) for value in shown.values[keep].tolist()}
    return sorted(label for label in found if label == label)


def declared_labels(shown: Shown, attrs: Mapping[str, Any]) -> tuple[list[Any] | None, bool]:
    """Return the labels that `flag_values` declares, and whether they can be read for certain."""
    given = attrs.get("flag_values")
    if given is None:
        return None, True
    if isinstance(given, str):
        words = given.replace(",", " ").split()
        try:
            values: list[Any] = [int(word.rstrip("bBsSlLuU")) for word in words]
        except ValueError:
            return None, False
    else:
        values = [plain(value) for value in np.atleast_1d(given).tolist()]
    if shown.kind != "number":
        return None, False
    if shown.values.dtype.kind == "f" and min(values) < 0:
        return None, False  # signed flags of what was unsigned before it got gaps
    if shown.values.dtype.kind == "u" and min(values) < 0:
        bits = 8 * shown.values.dtype.itemsize
        values = [n + 2**bits if n < 0 else n for n in values]
    return values, True
