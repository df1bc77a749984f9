"""Figures that contestants are measured by, and how they are shown."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

Figures = Mapping[str, float]
Results = Mapping[str, Sequence[Figures]]
"""The figures of every round, by contestant."""


@dataclass(frozen=True)
class Spread:
    """The median, the least and the most of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least one value; if one is NaN, everything is."""
        if any(map(math.isnan, values)):
            return cls(math.nan, math.nan, math.nan)
        return cls(statistics.median(values), min(values), max(values))

    def as_json(self) -> dict[str, float]:
        """Return the three values by name."""
        return asdict(self)


def shown(value: float) -> str:
    """Return a figure as a table shows it.

    Examples
    --------
    >>> shown(203530.4), shown(12.345), shown(0.91), shown(float("inf"))
    ('203,530', '12.3', '0.910', 'never')
    """
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "never"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as lines: the first column to the left, the others to the right.

    Examples
    --------
    >>> print(aligned([["", "a"], ["name", "10"]]))
           a
    name  10
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
