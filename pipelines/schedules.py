"""Learning rates that change from step to step."""

import math
from dataclasses import dataclass

LAST = 0.01
"""Share of the rate that is left at the end."""


@dataclass(frozen=True)
class Falling:
    """A rate that falls from `first` in half a cosine, to a hundredth of it after `steps`.

    Source: Loshchilov and Hutter 2017, without restarts.

    Examples
    --------
    >>> rate = Falling(0.1, 100)
    >>> round(rate(0), 4), round(rate(50), 4), round(rate(100), 4), round(rate(999), 4)
    (0.1, 0.0505, 0.001, 0.001)
    """

    first: float
    steps: int

    def __call__(self, step: int) -> float:
        """Return the rate of a step."""
        share = min(1.0, step / max(1, self.steps))
        return self.first * (LAST + (1 - LAST) * (1 + math.cos(math.pi * share)) / 2)
