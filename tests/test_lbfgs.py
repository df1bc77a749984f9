"""L-BFGS against SciPy, against dense BFGS, and its line search against its own conditions."""

import math

import numpy as np
import pytest
from scipy.optimize import fmin_l_bfgs_b, rosen, rosen_der

from dbdask.numbers.lbfgs import Settings, State, direction_coefficients
from dbdask.numbers.line_search import CURVATURE, SUFFICIENT, strong_wolfe
from dbdask.numbers.serial import minimise_array

FINE = {"epsilon": 2.0**-52}


def rosenbrock(x):
    return rosen(x), rosen_der(x)


@pytest.mark.parametrize("size", [2, 10, 40])
def test_rosenbrock_to_eight_digits_in_about_scipys_evaluations(size):
    start = np.tile([-1.2, 1.0], size // 2)
    point, state, reason = minimise_array(
        rosenbrock, start, Settings(iterations=2000, tolerance=1e-9, **FINE)
    )
    assert reason == "tolerance"
    np.testing.assert_allclose(point, 1.0, atol=1e-8)
    _, _, told = fmin_l_bfgs_b(rosenbrock, start, m=10, pgtol=1e-9, factr=0.1)
    assert state.evaluations <= 1.2 * told["funcalls"]


def test_directions_are_those_of_dense_bfgs_with_full_memory():
    rng = np.random.default_rng(2)
    size, pairs = 12, 6
    inverse = np.eye(size)
    state = State(evaluations=1)
    vectors = {"gradient": rng.normal(size=size)}
    factor = rng.normal(size=(size, size))
    hessian = factor @ factor.T + np.eye(size)
    for slot in range(pairs):
        s = rng.normal(size=size)
        y = hessian @ s
        vectors |= {f"s{slot}": s, f"y{slot}": y}
        state.pairs.append(slot)
    # The recursion starts from gamma times the identity of the newest pair.
    inverse *= (s @ y) / (y @ y)
    for slot in range(pairs):
        s, y = vectors[f"s{slot}"], vectors[f"y{slot}"]
        rho = 1 / (s @ y)
        left = np.eye(size) - rho * np.outer(s, y)
        inverse = left @ inverse @ left.T + rho * np.outer(s, s)
    names = list(vectors)
    gram = np.array([[vectors[a] @ vectors[b] for b in names] for a in names])
    state.keep(names, names, gram)
    coefficients = direction_coefficients(state)
    direction = sum(factor * vectors[name] for name, factor in coefficients.items())
    np.testing.assert_allclose(direction, -inverse @ vectors["gradient"], rtol=1e-8)


def test_the_state_holds_every_product_that_the_next_direction_needs_and_no_other():
    start = np.tile([-1.2, 1.0], 5)
    _, state, _ = minimise_array(rosenbrock, start, Settings(iterations=30, **FINE))
    assert state.iteration == 30 and len(state.pairs) == 10
    names = [f"{letter}{slot}" for slot in state.pairs for letter in "sy"] + ["gradient"]
    assert set(state.products) == {" ".join(sorted((a, b))) for a in names for b in names}


@pytest.mark.parametrize("shift", [1.0, 1e3])
def test_it_stops_at_the_precision_of_the_loss(shift):
    scale = np.geomspace(1, 1e3, 20).astype(np.float32)

    def noisy(x):
        value = np.float32(shift) + np.float32(0.5) * np.dot(scale * x, x)
        return float(value), scale * x + np.float32(1e-3) * np.sin(1e4 * x)

    point, state, reason = minimise_array(
        noisy, np.ones(20, np.float32), Settings(iterations=500, tolerance=0.0)
    )
    assert reason == "precision"
    assert np.abs(point).max() < 0.3 and state.loss <= shift * (1 + 1e-4)


def test_a_function_without_a_lower_point_fails_and_says_so():
    def wrong(x):
        return float(x @ x), -2 * x  # the gradient points the wrong way

    _, _, reason = minimise_array(wrong, np.ones(3))
    assert reason == "search_failed"
    _, _, reason = minimise_array(lambda x: (math.nan, x), np.ones(3))
    assert reason == "search_failed"


@pytest.mark.parametrize("stop", ["tolerance", "iterations"])
def test_the_other_stops(stop):
    settings = Settings(iterations=3 if stop == "iterations" else 100, tolerance=1e-3)
    _, state, reason = minimise_array(rosenbrock, np.array([-1.2, 1.0]), settings)
    assert reason == stop
    assert state.iteration == 3 if stop == "iterations" else state.largest <= 1e-3


LINES = {
    "quartic": (lambda t: (t - 2) ** 4, lambda t: 4 * (t - 2) ** 3),
    "wavy": (lambda t: -t + 0.9 * math.sin(3 * t), lambda t: -1 + 2.7 * math.cos(3 * t)),
    "exponential": (lambda t: math.exp(t) - 8 * t, lambda t: math.exp(t) - 8),
    "steep": (lambda t: 1e6 * (t - 1e-3) ** 2, lambda t: 2e6 * (t - 1e-3)),
    "wall": (
        lambda t: -t if t < 3 else math.inf,
        lambda t: -1.0 + 0.99 * t / 3 if t < 3 else math.nan,
    ),
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("first", [1e-4, 0.1, 1.0, 50.0])
def test_an_accepted_step_keeps_the_strong_wolfe_conditions(name, first):
    value, slope = LINES[name]
    if slope(0.0) >= 0:
        value_, slope_ = value, slope
        value, slope = (lambda t: value_(t + 0.4)), (lambda t: slope_(t + 0.4))
    assert slope(0.0) < 0
    search = strong_wolfe(value(0.0), slope(0.0), first)
    answer, trials = None, 0
    try:
        while True:
            step = next(search) if answer is None else search.send(answer)
            trials += 1
            answer = value(step), slope(step)
    except StopIteration as done:
        found = done.value
    assert found is not None and trials <= 20
    assert found.value <= value(0.0) + SUFFICIENT * found.step * slope(0.0)
    assert abs(found.slope) <= CURVATURE * abs(slope(0.0))
