"""Comparison of a gradient with central differences of a function that computes in float32.

Differences are taken over steps of many lengths, because a long step meets curvature and kinks,
and a short one rounding. A gradient is right if it agrees at one length at which the difference is
far above the rounding. It is wrong if it never agrees, and if the disagreement is proportional to
the length over a decade of lengths: a kink or curvature would disagree less and less.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dbdask.arrays import Float32Array, Float64Array

Function = Callable[[Float32Array], float]

RATIO = math.sqrt(10)
LENGTHS = tuple(RATIO**-n for n in range(13))
SIGNAL = 300.0  # the least difference that can show agreement, in units of the noise
TOLERANCE = 0.02  # of the larger derivative
PROPORTIONAL = (0.7, 1.4)  # limits of the ratio of two successive disagreements, over RATIO
LEAST_STREAK = 3  # lengths of proportional disagreement: a decade
NOISE_STEPS = 9


@dataclass(frozen=True)
class Probe:
    """A derivative along one direction, twice.

    Parameters
    ----------
    claimed
        By the gradient.
    measured
        By central differences.
    agrees
        Whether the two are equal within the precision of float32.
    """

    claimed: float
    measured: float
    agrees: bool


def noise_of(function: Function, point: Float32Array) -> float:
    """Return an estimate of the rounding errors of a function near a point, float32 of (n,).

    It is the spread of fourth differences over steps so short that the function itself hardly
    changes. Source: Hamming's table; Moré and Wild 2011, section 3.
    """
    eps = float(np.finfo(np.float32).eps)
    direction = np.where(np.arange(point.size) % 2, 1, -1) * np.maximum(np.abs(point), 0.1)
    values = np.array(
        [function((point + 4 * eps * n * direction).astype(np.float32)) for n in range(NOISE_STEPS)]
    )
    fourth = np.diff(values, 4)
    gamma = math.factorial(4) ** 2 / math.factorial(8)
    least = eps / 8 * abs(float(values[0]))
    return max(math.sqrt(gamma * float(np.mean(fourth**2))), least, 1e-30)


def probe(
    function: Function,
    gradient: Float32Array,
    point: Float32Array,
    part: slice,
    direction: Float64Array,
    noise: float,
) -> Probe | None:
    """Compare a gradient with differences along a direction; None if they show nothing.

    Parameters
    ----------
    function
        Takes a float32 vector of the point's size, which it may keep.
    gradient, point
        float32, shape (n,).
    part, direction
        The slice of the vector that moves, and how: a direction of length 1.
    noise
        The function's rounding, as `noise_of` estimates it.
    """
    value = function(point.copy())
    streak: list[float] = []  # disagreements in proportion to the length, so far
    wrong: Probe | None = None
    for length in LENGTHS:
        found = _difference(function, gradient, point, value, part, length * direction, noise)
        if found is None:
            continue
        is_large = found.larger >= SIGNAL * noise
        if found.probe.agrees and is_large and found.bend <= TOLERANCE * found.larger:
            return found.probe
        if found.probe.agrees:
            # A disagreement in proportion to the length would still be seen at this one.
            if streak and streak[-1] / RATIO > 2 * found.limit:
                streak, wrong = [], None
            continue
        is_proportional = streak and (
            PROPORTIONAL[0] < found.apart * RATIO / streak[-1] < PROPORTIONAL[1]
        )
        streak = [*streak, found.apart] if is_proportional else [found.apart]
        if len(streak) < LEAST_STREAK:
            wrong = None
        elif wrong is None or is_large:
            wrong = found.probe
    return wrong


@dataclass(frozen=True)
class _Difference:
    """A central difference over one step, compared with the gradient's prediction.

    Parameters
    ----------
    probe
        The two derivatives.
    larger
        The larger magnitude of measured and predicted difference.
    apart
        By how much these two disagree.
    limit
        The disagreement that rounding and curvature explain.
    bend
        The second difference, which is large at a kink.
    """

    probe: Probe
    larger: float
    apart: float
    limit: float
    bend: float


def _difference(
    function: Function,
    gradient: Float32Array,
    point: Float32Array,
    value: float,
    part: slice,
    step: Float64Array,
    noise: float,
) -> _Difference | None:
    """Return the difference over a step of `part` around a point; None if it is not finite.

    `value` is the function's at the point.
    """
    ahead, behind = _moved(point, part, step)
    change = ahead[part].astype(np.float64) - behind[part].astype(np.float64)
    claimed = float(gradient[part].astype(np.float64) @ change)
    function_ahead, function_behind = function(ahead), function(behind)
    measured = function_ahead - function_behind
    if not math.isfinite(measured):
        return None
    larger = max(abs(claimed), abs(measured))
    # At a kink the two sides differ, and the difference is their mean.
    bend = abs(function_ahead + function_behind - 2 * value)
    apart, limit = abs(claimed - measured), TOLERANCE * larger + 6 * noise + 1.2 * bend
    length = float(np.linalg.norm(change))
    found = Probe(claimed / length, measured / length, apart <= limit)
    return _Difference(found, larger, apart, limit, bend)


def _moved(
    point: Float32Array, part: slice, step: Float64Array
) -> tuple[Float32Array, Float32Array]:
    """Return the point a step ahead and a step behind, in float32."""
    ahead, behind = point.copy(), point.copy()
    ahead[part] = point[part] + step
    behind[part] = point[part] - step
    return ahead, behind


def directions(gradient: Float32Array, rng: np.random.Generator) -> list[Float64Array]:
    """Return unit vectors, float64 of (n,), along which a gradient of shape (n,) is tried.

    They are the gradient's own and a random one, in which every component counts, and two single
    components: the largest, and a random one.
    """
    size, found = gradient.size, []
    length = float(np.linalg.norm(gradient))
    if length > 0:
        found.append(gradient.astype(np.float64) / length)
    if size > 1:
        found.append(rng.choice([-1.0, 1.0], size) / math.sqrt(size))
    for place in {int(np.abs(gradient).argmax()), int(rng.integers(size))}:
        single = np.zeros(size)
        single[place] = 1.0
        found.append(single)
    return found
