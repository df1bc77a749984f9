"""Finite differences in float32: right gradients pass, wrong ones do not, kinks are no fault."""

import numpy as np
import pytest

from dbdask.models.finite_differences import directions, noise_of, probe

SIZE = 12
CURVATURE = np.linspace(0.1, 3, SIZE)


def bowl(point):
    return float(np.float32(5 + 0.5 * (CURVATURE * point.astype(float) ** 2).sum()))


def bowl_gradient(point):
    return (CURVATURE * point).astype(np.float32)


def folded(point):
    """A sum of absolute values: a kink wherever a coordinate is zero."""
    return float(np.float32(np.abs(point).sum()))


def a_point(seed=0):
    return np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)


def verdicts(function, gradient, point, seed=0):
    noise, rng = noise_of(function, point), np.random.default_rng(seed)
    part = slice(2, SIZE)
    found = [
        probe(function, gradient, point, part, direction, noise)
        for direction in directions(gradient[part], rng)
    ]
    return [p.agrees for p in found if p is not None]


@pytest.mark.parametrize("seed", range(5))
def test_a_right_gradient_agrees_in_every_direction(seed):
    point = a_point(seed)
    assert len(verdicts(bowl, bowl_gradient(point), point, seed)) >= 3
    assert all(verdicts(bowl, bowl_gradient(point), point, seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "spoil",
    [
        lambda g: -g,
        lambda g: 0.9 * g,
        lambda g: 0 * g,
        lambda g: g[::-1].copy(),
        lambda g: g + np.float32(0.3),
    ],
)
def test_a_wrong_gradient_does_not(seed, spoil):
    point = a_point(seed)
    wrong = spoil(bowl_gradient(point)).astype(np.float32)
    assert not all(verdicts(bowl, wrong, point, seed))


@pytest.mark.parametrize("distance", [1e-6, 1e-4, 1e-2, 0.3])
def test_a_kink_nearby_is_no_fault(distance):
    point = a_point()
    point[3] = distance
    assert all(verdicts(folded, np.sign(point), point))
    assert not all(verdicts(folded, -np.sign(point), point))


def test_the_noise_is_about_the_rounding_of_float32():
    noise = noise_of(bowl, a_point())
    assert 1e-8 < noise < 1e-5


def test_a_function_that_does_not_change_tells_nothing_but_refutes_a_slope():
    def level(point):
        return 3.0

    point, part = a_point(), slice(0, SIZE)
    direction = np.ones(SIZE) / SIZE**0.5
    assert probe(level, np.zeros(SIZE, np.float32), point, part, direction, 1e-7) is None
    wrong = probe(level, np.ones(SIZE, np.float32), point, part, direction, 1e-7)
    assert wrong is not None and not wrong.agrees and wrong.measured == 0
