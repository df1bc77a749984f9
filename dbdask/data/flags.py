"""Flags: the classes that a variable's attributes declare, in all the forms in use."""

import math
from typing import Any

import numpy as np

from dbdask.data.declared import listed, number
from dbdask.data.decoding import Attributes
from dbdask.data.labels import Classes, as_classes

_RULE = "give the labels with classes=, as they are shown"


def declared_classes(
    attrs: Attributes, dtype: np.dtype | None, is_text: bool = False
) -> Classes | None:
    """Return the classes that `flag_values` and `flag_meanings` declare; None if they do not.

    Attributes that cannot be understood give classes without labels, whose `unknown` says why.

    Parameters
    ----------
    attrs
        The variable's attributes.
    dtype
        The integer dtype of the values that flags are compared with, as shown; None: not known.
    is_text
        Whether the labels are text.

    Examples
    --------
    >>> declared_classes({"flag_values": "0b, -66b"}, np.dtype("u1")).labels
    (0, 190)
    """
    given = attrs.get("flag_values")
    if given is None or is_text:
        return None
    if attrs.get("flag_masks") is not None:
        return _unknown("flag_masks", attrs["flag_masks"], "says that labels are sums of bits")
    values = [number(one) for one in _listed(given)]
    if any(value is None or value != value for value in values):
        return _unknown("flag_values", given, "holds something that is no number")
    labels = [_as_shown(value, dtype) for value in values if value is not None]
    if not labels:
        return None
    if len(set(labels)) < len(labels):
        return _unknown("flag_values", given, "holds a value twice")
    meanings = _meanings(attrs.get("flag_meanings"))
    return as_classes(labels, meanings if len(meanings) == len(labels) else None)


def _unknown(name: str, given: object, why: str) -> Classes:
    given = given.tolist() if hasattr(given, "tolist") else given
    return Classes((), unknown=f"the attribute {name}={given!r} {why}; {_RULE}")


def _listed(given: object) -> list[Any]:
    if isinstance(given, str):
        return given.replace(",", " ").split()
    return listed(given)


def _meanings(given: object) -> list[str]:
    if isinstance(given, str):
        return given.split()
    return [str(one) for one in given] if isinstance(given, (list, tuple, np.ndarray)) else []


def _as_shown(value: int | float, dtype: np.dtype | None) -> int | float:
    """Return a flag as the values show it; one of the other sign is read from the same bytes."""
    if dtype is None or not math.isfinite(value) or value != int(value):
        return value
    limits, whole = np.iinfo(dtype), int(value)
    if limits.min <= whole <= limits.max:
        return whole
    wrapped = (whole - limits.min) % 2 ** (8 * dtype.itemsize) + limits.min
    is_other_sign = -(2 ** (8 * dtype.itemsize - 1)) <= whole < 2 ** (8 * dtype.itemsize)
    return int(wrapped) if is_other_sign else whole
