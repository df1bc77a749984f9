"""A line search for the strong Wolfe conditions, by safeguarded cubic interpolation.

Source: Nocedal and Wright, *Numerical Optimization* (2006), sections 3.5 and 3.6. The search is a
generator: it yields a step, and is sent the (value, slope) there.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass

SUFFICIENT = 1e-4  # c1: share of the predicted decrease that a step must bring
CURVATURE = 0.9  # c2: share of the first slope that may remain
MOST_TRIALS = 20
EXPAND = 4.0  # a step that is still going down grows by at most this
SAFEGUARD = 0.1  # an interpolated step keeps so far from the ends of its bracket


@dataclass(frozen=True)
class Trial:
    """A point along the line: its step, the value there, and the slope."""

    step: float
    value: float
    slope: float


Search = Generator[float, tuple[float, float], Trial | None]


def strong_wolfe(value: float, slope: float, first_step: float, resolution: float = 0.0) -> Search:
    """Search along a descent direction; return the trial that is accepted, or None.

    Parameters
    ----------
    value, slope
        At step 0; the slope is negative.
    first_step
        The step to try first.
    resolution
        The smallest decrease of the value that exceeds rounding. Below it, the slopes decide (the
        approximate Wolfe conditions of Hager and Zhang, 2005).
    """
    origin = Trial(0.0, value, slope)
    low = before = origin
    high: Trial | None = None  # beyond it the value rises again; the bracket is low to high
    step = first_step
    for _ in range(MOST_TRIALS):
        trial = Trial(step, *(yield step))
        if _is_accepted(origin, trial, resolution):
            return trial
        if not (math.isfinite(trial.value) and math.isfinite(trial.slope)):
            high = Trial(step, math.inf, math.nan)
        elif _is_too_high(origin, trial, resolution) or trial.value > low.value + resolution:
            high = trial
        elif trial.slope * (1.0 if high is None else high.step - low.step) >= 0:
            low, high = trial, low
        else:
            low, before = trial, low
        if high is None:
            step = _extrapolate(before, low)
        elif abs(high.step - low.step) > 1e-12 * max(high.step, low.step):
            step = _interpolate(low, high)
        else:
            return None
    return None


def _is_accepted(origin: Trial, trial: Trial, resolution: float) -> bool:
    if not (math.isfinite(trial.value) and abs(trial.slope) <= CURVATURE * abs(origin.slope)):
        return False
    if trial.value <= origin.value + SUFFICIENT * trial.step * origin.slope:
        return True
    approximate = trial.slope <= (2 * SUFFICIENT - 1) * origin.slope
    return approximate and trial.value <= origin.value + resolution


def _is_too_high(origin: Trial, trial: Trial, resolution: float) -> bool:
    return trial.value > origin.value + SUFFICIENT * trial.step * origin.slope + resolution


def _extrapolate(before: Trial, trial: Trial) -> float:
    """Return a larger step, for a slope that is still negative."""
    wanted = _cubic_minimum(before, trial)
    least, most = 1.1 * trial.step, EXPAND * trial.step
    return min(max(wanted, least), most) if wanted > trial.step else most


def _interpolate(low: Trial, high: Trial) -> float:
    """Return a step between the ends of the bracket, not too near to either."""
    if not math.isfinite(high.value):
        return low.step + SAFEGUARD * (high.step - low.step)
    left, right = sorted((low.step, high.step))
    margin = SAFEGUARD * (right - left)
    wanted = _cubic_minimum(low, high)
    if not math.isfinite(wanted):
        return 0.5 * (left + right)
    return min(max(wanted, left + margin), right - margin)


def _cubic_minimum(a: Trial, b: Trial) -> float:
    """Return the minimiser of the cubic through two values and two slopes (equation 3.59)."""
    if a.step == b.step:
        return math.nan
    d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    square = d1 * d1 - a.slope * b.slope
    if square < 0:
        return math.nan
    d2 = math.copysign(math.sqrt(square), b.step - a.step)
    denominator = b.slope - a.slope + 2 * d2
    if denominator == 0:
        return math.nan
    return b.step - (b.step - a.step) * (b.slope + d2 - d1) / denominator
