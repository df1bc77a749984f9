"""Update rules against straightforward loops."""

import json
import math
import pickle
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from dbdask.optim.optimizer_checks import prepared_update
from dbdask.optim.optimizers import RULES as BY_NAME
from dbdask.optim.optimizers import UpdateRule, adagrad, adam, momentum, nesterov, sgd

SIZE = 70_003  # more than two of the blocks that the rules work in


def half_by_step(step: int) -> float:
    return 0.1 * 0.5**step


def plain_sgd(p: list, gradients: list, rates: list) -> list:
    for g, rate in zip(gradients, rates, strict=True):
        p = [x - rate * y for x, y in zip(p, g, strict=True)]
    return p


def plain_momentum(p: list, gradients: list, rates: list) -> list:
    v = [0.0] * len(p)
    for g, rate in zip(gradients, rates, strict=True):
        v = [0.8 * a + b for a, b in zip(v, g, strict=True)]
        p = [x - rate * a for x, a in zip(p, v, strict=True)]
    return p


def plain_nesterov(p: list, gradients: list, rates: list) -> list:
    v = [0.0] * len(p)
    for g, rate in zip(gradients, rates, strict=True):
        v = [0.8 * a + b for a, b in zip(v, g, strict=True)]
        p = [x - rate * (b + 0.8 * a) for x, a, b in zip(p, v, g, strict=True)]
    return p


def plain_adagrad(p: list, gradients: list, rates: list) -> list:
    sums = [0.0] * len(p)
    for g, rate in zip(gradients, rates, strict=True):
        sums = [s + b * b for s, b in zip(sums, g, strict=True)]
        p = [x - rate * b / math.sqrt(s) for x, s, b in zip(p, sums, g, strict=True)]
    return p


def plain_adam(p: list, gradients: list, rates: list) -> list:
    m, v = [0.0] * len(p), [0.0] * len(p)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        v = [0.99 * a + 0.01 * b * b for a, b in zip(v, g, strict=True)]
        hats = [(a / (1 - 0.9**t), b / (1 - 0.99**t)) for a, b in zip(m, v, strict=True)]
        p = [x - rate * a / (math.sqrt(b) + 1e-8) for x, (a, b) in zip(p, hats, strict=True)]
    return p


RULES: list[tuple[Callable[..., UpdateRule], dict, Callable]] = [
    (sgd, {}, plain_sgd),
    (momentum, {"momentum": 0.8}, plain_momentum),
    (momentum, {"momentum": 0.8, "nesterov": True}, plain_nesterov),
    (nesterov, {"momentum": 0.8}, plain_nesterov),
    (adagrad, {}, plain_adagrad),
    (adam, {"beta2": 0.99}, plain_adam),
]


def run(optimizer: UpdateRule, start: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    parameters = start.copy()
    slots = {name: optimizer.initial_slot(name, start.size) for name in optimizer.slots}
    slots = {name: slot.astype(start.dtype) for name, slot in slots.items()}
    for step, gradient in enumerate(gradients):
        optimizer.update(parameters, gradient, slots, step)
    return parameters


@pytest.mark.parametrize(("rule", "numbers", "plain"), RULES)
@pytest.mark.parametrize("rate", [0.05, half_by_step])
def test_rules_equal_plain_loops(
    rule: Callable, numbers: dict, plain: Callable, rate: float | Callable
) -> None:
    rng = np.random.default_rng(1)
    start, gradients = rng.normal(size=5), rng.normal(size=(6, 5))
    rates = [rate(step) if callable(rate) else rate for step in range(6)]
    expected = plain(start.tolist(), gradients.tolist(), rates)
    np.testing.assert_allclose(run(rule(rate, **numbers), start, gradients), expected, rtol=1e-6)


@pytest.mark.parametrize(("rule", "numbers", "plain"), RULES)
def test_any_slice_gets_the_same_bits(rule: Callable, numbers: dict, plain: Callable) -> None:
    rng = np.random.default_rng(2)
    optimizer = rule(0.05, weight_decay=0.01, **numbers)
    start = rng.normal(size=SIZE).astype(np.float32)
    gradients = rng.normal(size=(3, SIZE)).astype(np.float32)
    whole = run(optimizer, start, gradients)
    for piece in (slice(0, 7), slice(7, 32_775), slice(32_775, 65_537), slice(65_537, SIZE)):
        assert np.array_equal(run(optimizer, start[piece], gradients[:, piece]), whole[piece])


@pytest.mark.parametrize(("rule", "numbers", "plain"), RULES)
def test_weight_decay_is_a_gradient_and_leaves_the_given_one(
    rule: Callable, numbers: dict, plain: Callable
) -> None:
    rng = np.random.default_rng(3)
    start, gradient = rng.normal(size=(2, 9))
    kept = gradient.copy()
    decayed = run(rule(0.1, weight_decay=0.3, **numbers), start, gradient[None])
    by_hand = run(rule(0.1, **numbers), start, (gradient + 0.3 * start)[None])
    np.testing.assert_allclose(decayed, by_hand, rtol=1e-12)
    assert np.array_equal(gradient, kept)


def test_adagrad_starts_where_it_is_told_and_survives_zero_gradients() -> None:
    optimizer = adagrad(0.1, initial_accumulator=9.0)
    moved = run(optimizer, np.zeros(1), np.array([[4.0]]))
    assert moved[0] == pytest.approx(-0.1 * 4 / 5, rel=1e-6)
    assert run(adagrad(0.1), np.ones(2), np.zeros((3, 2))).tolist() == [1, 1]


@pytest.mark.parametrize(("rule", "numbers", "plain"), RULES)
def test_every_rule_finds_the_minimum_of_a_bowl(
    rule: Callable, numbers: dict, plain: Callable
) -> None:
    optimizer = rule(0.05, **numbers)
    parameters = np.array([1.0, -2.0], np.float32)
    slots = {name: optimizer.initial_slot(name, 2) for name in optimizer.slots}
    assert all(slot.dtype == np.float32 for slot in slots.values())
    for step in range(2000):
        optimizer.update(parameters, parameters * np.array([1, 3], np.float32), slots, step)
    assert np.abs(parameters).max() < 0.05


def test_nesterov_is_the_gradient_where_the_velocity_leads() -> None:
    """Sutskever et al. 2013, equations 3 and 4, on a bowl: our parameters are the look-ahead."""
    curvature, rate, mu = np.array([1.0, 3.0, 0.2]), 0.1, 0.8
    theta, velocity = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    optimizer, parameters, slots = nesterov(rate, momentum=mu), theta.copy(), None
    slots = {"velocity": np.zeros(3)}
    for step in range(30):
        velocity = mu * velocity - rate * curvature * (theta + mu * velocity)
        theta = theta + velocity
        optimizer.update(parameters, curvature * parameters, slots, step)
        np.testing.assert_allclose(parameters, theta + mu * velocity, rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "peer", "numbers"),
    [
        (sgd(0.1), "SGDOptimizer", {"momentum": 0.0, "nesterov": False}),
        (momentum(0.1), "SGDOptimizer", {"momentum": 0.9, "nesterov": False}),
        (nesterov(0.1), "SGDOptimizer", {"momentum": 0.9, "nesterov": True}),
        (adam(0.1, epsilon=1e-12), "AdamOptimizer", {"epsilon": 1e-12}),
    ],
)
def test_rules_equal_scikit_learns(rule: UpdateRule, peer: str, numbers: dict) -> None:
    peers = pytest.importorskip(
        "sklearn.neural_network._stochastic_optimizers", reason="needs scikit-learn"
    )
    rng = np.random.default_rng(4)
    start, gradients = rng.normal(size=50), rng.normal(size=(20, 50))
    theirs = [start.copy()]
    optimizer = getattr(peers, peer)(theirs, 0.1, **numbers)
    for gradient in gradients:
        optimizer.update_params(theirs, [gradient])
    np.testing.assert_allclose(run(rule, start, gradients), theirs[0], rtol=1e-8)


@pytest.mark.parametrize(("rule", "numbers", "plain"), RULES)
def test_an_update_allocates_nothing_that_grows(
    rule: Callable, numbers: dict, plain: Callable
) -> None:
    optimizer, size = rule(0.1, weight_decay=0.1, **numbers), 2_000_000
    parameters, gradient = np.ones((2, size), np.float32)
    slots = {name: optimizer.initial_slot(name, size) for name in optimizer.slots}
    tracemalloc.start()
    optimizer.update(parameters, gradient, slots, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size  # bytes: a quarter of one vector


def test_what_can_fail_fails_before_any_change() -> None:
    optimizer = momentum(lambda step: math.nan)
    parameters, slots = np.ones(3), {"velocity": np.ones(3)}
    with pytest.raises(ValueError, match=r"learning_rate\(7\) must be finite"):
        optimizer.update(parameters, np.ones(3), slots, 7)
    with pytest.raises(KeyError, match="velocity"):
        momentum(0.1).update(parameters, np.ones(3), {}, 0)
    assert parameters.tolist() == slots["velocity"].tolist() == [1, 1, 1]


def test_a_schedule_is_asked_once_for_all_slices() -> None:
    asked: list[int] = []
    optimizer = sgd(lambda step: asked.append(step) or 0.5)
    update, parameters = prepared_update(optimizer, 3), np.ones(4)
    for part in (slice(0, 1), slice(2, 4)):
        update(parameters[part], np.ones(4)[part], {})
    assert asked == [3] and parameters.tolist() == [0.5, 1, 0.5, 0.5]


def test_checkpoints_know_the_rules_by_these_names() -> None:
    assert list(BY_NAME) == ["sgd", "momentum", "nesterov", "adagrad", "adam"]
    assert all(rule(0.1).description()["name"] == name for name, rule in BY_NAME.items())


def test_optimizers_are_small_equal_and_described() -> None:
    optimizer = adam(half_by_step, weight_decay=1)
    again = pickle.loads(pickle.dumps(optimizer))
    assert again == optimizer and len(pickle.dumps(optimizer)) < 1000
    description = json.loads(json.dumps(again.description()))
    assert description["learning_rate"] == "half_by_step" and description["beta1"] == 0.9
    assert sgd(0.1).description() == {"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sgd(0), ValueError, "learning_rate must be above 0, got 0"),
        (lambda: adagrad(-0.1), ValueError, "learning_rate"),
        (lambda: adam(math.nan), ValueError, "learning_rate"),
        (lambda: sgd("fast"), TypeError, "learning_rate must be a number"),
        (lambda: sgd(0.1, weight_decay=-1), ValueError, "weight_decay must be at least 0"),
        (lambda: momentum(0.1, momentum=1.0), ValueError, "momentum must be below 1"),
        (lambda: nesterov(0.1, momentum=1.0), ValueError, "momentum must be below 1, got 1.0"),
        (lambda: nesterov("0.1"), TypeError, "learning_rate must be a number, got '0.1'"),
        (lambda: adam(0.1, beta2=-0.1), ValueError, "beta2 must be at least 0"),
        (lambda: adam(0.1, epsilon=0), ValueError, "epsilon must be above 0"),
        (lambda: adagrad(0.1, initial_accumulator=-1), ValueError, "initial_accumulator"),
        (lambda: sgd(lambda step: -1.0).rate(3), ValueError, r"learning_rate\(3\)"),
    ],
)
def test_bad_numbers_are_refused(make: Callable, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
