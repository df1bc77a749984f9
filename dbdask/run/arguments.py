"""Checks of public arguments: each error names the argument, the value and the rule."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from dask.utils import parse_timedelta


def at_least(name: str, value: Any, least: int) -> int:
    """Return a whole number of at least `least`.

    Raises
    ------
    TypeError
        It is not a whole number.
    ValueError
        It is below `least`.

    Examples
    --------
    >>> at_least("n_push", 0, 1)
    Traceback (most recent call last):
    ValueError: n_push must be at least 1, got 0
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def positive(name: str, value: Any) -> float:
    """Return a finite number above zero.

    Raises
    ------
    TypeError
        It is not a number.
    ValueError
        It is not finite, or not above zero.
    """
    if finite(name, value) <= 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return float(value)


def not_negative(name: str, value: Any) -> float:
    """Return a finite number of at least zero.

    Raises
    ------
    TypeError
        It is not a number.
    ValueError
        It is not finite, or below zero.
    """
    if finite(name, value) < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return float(value)


def finite(name: str, value: Any) -> float:
    """Return a finite number.

    Raises
    ------
    TypeError
        It is not a number.
    ValueError
        It is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """Return the value.

    Raises
    ------
    ValueError
        It is not one of `allowed`.
    """
    if not any(
        value is choice or (isinstance(value, str) and value == choice) for choice in allowed
    ):
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
    return value


def duration(name: str, value: Any) -> float:
    """Return the seconds of "30s", a timedelta or a number.

    Raises
    ------
    ValueError
        It is no duration, or not above zero.
    """
    try:
        seconds = float(parse_timedelta(value))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f'{name} must be a duration such as "30s", got {value!r}') from error
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"{name} must be a duration above 0, got {value!r}")
    return seconds
