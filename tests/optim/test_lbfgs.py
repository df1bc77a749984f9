"""L-BFGS against SciPy, against dense BFGS, and its line search against its own conditions."""

import math

import numpy as np
import pytest
from scipy.optimize import fmin_l_bfgs_b, rosen, rosen_der

from dbdask.optim import lbfgs
from dbdask.optim.lbfgs import Settings, State, direction_coefficients
from dbdask.optim.line_search import CURVATURE, SUFFICIENT, Trial, strong_wolfe
from dbdask.optim.serial import minimise_array

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


def dense_direction(pairs, gradient):
    """Minus the dense BFGS inverse times the gradient, from the pairs (s, y), oldest first."""
    inverse = np.eye(gradient.size)
    if pairs:  # the recursion starts from gamma times the identity of the newest pair
        s, y = pairs[-1]
        inverse *= (s @ y) / (y @ y)
    for s, y in pairs:
        left = np.eye(gradient.size) - np.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + np.outer(s, s) / (s @ y)
    return -inverse @ gradient


def test_directions_are_those_of_dense_bfgs_with_full_memory():
    rng = np.random.default_rng(2)
    size, pairs = 12, 6
    state = State(evaluations=1)
    vectors = {"gradient": rng.normal(size=size)}
    factor = rng.normal(size=(size, size))
    hessian = factor @ factor.T + np.eye(size)
    for slot in range(pairs):
        s = rng.normal(size=size)
        y = hessian @ s
        vectors |= {f"s{slot}": s, f"y{slot}": y}
        state.pairs.append(slot)
    names = list(vectors)
    gram = np.array([[vectors[a] @ vectors[b] for b in names] for a in names])
    state.keep(names, names, gram)
    coefficients = direction_coefficients(state)
    direction = sum(factor * vectors[name] for name, factor in coefficients.items())
    both = [(vectors[f"s{slot}"], vectors[f"y{slot}"]) for slot in range(pairs)]
    np.testing.assert_allclose(direction, dense_direction(both, vectors["gradient"]), rtol=1e-8)


def wavy(x):
    """Curved up and down by turns, along each coordinate with a slope of its own."""
    slopes = np.arange(1.0, x.size + 1)
    return float((slopes * np.sin(x)).sum()), slopes * np.cos(x)


def straight(x):
    return float(x.sum()), np.ones_like(x)


def turning(x):
    """The gradient turns with the point: s.y is above 0, and nothing beside |s||y|."""
    left, right = np.split(x, 2)
    return -float(x @ x), 1.0 + np.concatenate([right, -left]) + 1e-12 * x


@pytest.mark.parametrize("history_length", [1, 3, 10])
@pytest.mark.parametrize("function", [wavy, straight, turning])
def test_a_pair_without_curvature_has_no_part_in_the_directions(
    monkeypatch, function, history_length
):
    """The search is made to accept steps that the Wolfe conditions forbid."""
    steps = np.random.default_rng(273).choice([1.0, 3.0, 6.0], size=12)
    forced, seen = iter(steps), []

    def first_step(value, slope, first, resolution):
        step = next(forced)
        return Trial(step, *(yield step))

    def function_seen(x):
        value, gradient = function(x)
        seen.append((x.copy(), gradient.copy()))
        return value, gradient

    monkeypatch.setattr(lbfgs, "strong_wolfe", first_step)
    settings = Settings(len(steps), history_length, tolerance=0.0, **FINE)
    _, state, reason = minimise_array(function_seen, np.linspace(-1.0, 2.0, 6), settings)
    assert reason == "iterations" and len(seen) == len(steps) + 1

    pairs, bad = [], 0
    for (x, gradient), (after, gradient_after), step in zip(seen, seen[1:], steps, strict=False):
        np.testing.assert_allclose(after - x, step * dense_direction(pairs, gradient), rtol=1e-6)
        if len(pairs) == history_length:
            del pairs[0]  # the newest is formed in its place
        s, y = after - x, gradient_after - gradient
        if s @ y > 1e-10 * np.linalg.norm(s) * np.linalg.norm(y):
            pairs.append((s, y))
        else:
            bad += 1
    assert len(state.pairs) == len(pairs)
    assert bad in (2, 3) if function is wavy else bad == len(steps)


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
