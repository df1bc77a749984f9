"""Magnitudes: the size of a variable's values, and their loss of precision in float32.

A network trains well on inputs around 1. Each replica measures a sample of the first block that
it reads; the client merges the reports of the workers, and warns if scaling would help.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dbdask.arrays import Float64Array

LARGE = 25.0
"""Inputs whose root mean square is above this hinder training: Kelvin and pixels up to 255 do,
logarithms of energies and standard scores do not."""
SMALL = 0.01
"""Inputs that are all below this hardly change the first layer."""
LOST_SHARE = 0.01
"""The share of the deviation that rounding to float32 may cost."""
MOST_NAMED = 3


@dataclass(frozen=True)
class Magnitude:
    """Count, mean, summed squared deviations and largest magnitude of a variable's values.

    Parameters
    ----------
    role
        "inputs" or "targets".
    rounding
        Summed squared differences between the values and their float32.

    Examples
    --------
    >>> found = Magnitude.of("inputs", "t", np.array([280.0, 290.0]))
    >>> found.mean, found.deviation, found.largest
    (285.0, 5.0, 290.0)
    >>> (found + found) == Magnitude("inputs", "t", 4, 285.0, 100.0, 290.0, 0.0)
    True
    """

    role: str
    name: str
    count: int
    mean: float
    squares: float
    largest: float
    rounding: float

    @classmethod
    def of(cls, role: str, name: str, values: Float64Array) -> "Magnitude":
        """Return the magnitude of the finite ones of some float64 values, of any shape."""
        good = values[np.isfinite(values)]
        if not good.size:
            return cls(role, name, 0, 0.0, 0.0, 0.0, 0.0)
        with np.errstate(over="ignore"):  # beyond float32, values are refused as infinite
            lost = good - good.astype(np.float32)
            mean = float(good.mean())
            squares = float(np.square(good - mean).sum())
        rounding = float(np.square(lost[np.isfinite(lost)]).sum())
        return cls(role, name, good.size, mean, squares, float(np.abs(good).max()), rounding)

    def __add__(self, other: "Magnitude") -> "Magnitude":
        """Return the magnitude of both samples together (Chan, Golub and LeVeque, 1983)."""
        count = self.count + other.count
        step, part = other.mean - self.mean, other.count / count if count else 0.0
        return Magnitude(
            self.role,
            self.name,
            count,
            self.mean + step * part,
            self.squares + other.squares + step * step * self.count * part,
            max(self.largest, other.largest),
            self.rounding + other.rounding,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    @property
    def typical(self) -> float:
        """Root mean square."""
        return math.hypot(self.mean, self.deviation)

    @property
    def lost_share(self) -> float:
        """The error of rounding to float32 as a share of the deviation; 0 for a constant."""
        return math.sqrt(self.rounding / self.squares) if self.squares > 0 else 0.0


def merged(reports: Iterable[Sequence[Magnitude]]) -> list[Magnitude]:
    """Return the reports of several workers merged by variable."""
    found: dict[tuple[str, str], Magnitude] = {}
    for magnitude in (one for report in reports for one in report):
        key = magnitude.role, magnitude.name
        found[key] = found[key] + magnitude if key in found else magnitude
    return list(found.values())


def scale_warning(magnitudes: Sequence[Magnitude]) -> str:
    """Return a warning that names variables to scale, and the remedy; "" if there are none."""
    coarse = [one for one in magnitudes if one.lost_share > LOST_SHARE]
    far = [one for one in magnitudes if one not in coarse and _is_far(one)]
    sentences = [
        f"{one.role}: float32, in which models compute, cannot tell the values of {one.name!r} "
        f"apart: rounding loses {percent(one.lost_share)} % of their spread "
        f"(mean {one.mean:.9g}, deviation {one.deviation:.3g})"
        for one in coarse[:MOST_NAMED]
    ] + [
        f"{one.role}: the values of {one.name!r} are far from 1 (mean {one.mean:.3g}, deviation "
        f"{one.deviation:.3g}): unless the model scales them itself, it learns slowly or diverges"
        for one in far[:MOST_NAMED]
    ]
    if not sentences:
        return ""
    both = any(one.role == "targets" for one in coarse)
    remedy = "examples.standardize(targets=True)" if both else "examples.standardize()"
    return (
        f"{'; '.join(sentences)}; give {remedy}, which subtracts the mean before it rounds, and "
        "divides by the deviation"
    )


def percent(share: float) -> str:
    """Return a share in two digits.

    Examples
    --------
    >>> percent(0.01234), percent(0.37), percent(3.0)
    ('1.2', '37', '100')
    """
    return f"{float(f'{100 * min(share, 1.0):.2g}'):g}"


def _is_far(one: Magnitude) -> bool:
    return one.role == "inputs" and (one.typical > LARGE or 0 < one.largest < SMALL)
