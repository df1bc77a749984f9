"""The NumPy network: gradients, contract, initial numbers, and what does not fit."""

import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from dbdask.models.layers import Dense
from dbdask.models.model import Model
from dbdask.models.network import Network

ACTIVATIONS = ["linear", "sigmoid", "tanh", "relu"]
PAPER = Network(
    input_shape=(440,), layers=[Dense(2560, "sigmoid")] * 4 + [Dense(8192)], loss="softmax"
)


def small(loss: str = "softmax", activation: str = "sigmoid", last: str = "linear") -> Network:
    layers = [Dense(5, activation), Dense(4, activation), Dense(3, last)]
    return Network(input_shape=(2, 3), layers=layers, loss=loss)


def drawn(
    network: Network, seed: int, examples: int = 7
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters in float64, inputs, and targets that fit the loss."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(examples, *network.input_shape)).astype(np.float32)
    outputs = network.output_shape[0]
    targets = {
        "softmax": rng.integers(0, outputs, examples),
        "logistic": rng.integers(0, 2, (examples, outputs)).astype(np.float32),
        "squared": rng.normal(size=(examples, outputs)).astype(np.float32),
    }[network.loss]
    return rng.normal(scale=0.7, size=network.parameter_count), inputs, np.asarray(targets)


def evaluated(
    network: Network,
    parameters: np.ndarray,
    inputs: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray | None = None,
) -> tuple[float, np.ndarray]:
    gradient = np.full_like(parameters, np.nan)
    loss = network.loss_and_gradient(
        parameters, inputs, targets, weights=weights, seed=0, gradient=gradient
    )
    return loss, gradient


def by_differences(
    function: Callable[[np.ndarray], float], point: np.ndarray, step: float = 1e-6
) -> np.ndarray:
    slopes = np.empty_like(point)
    for place in range(point.size):
        moved = point.copy()
        moved[place] += step
        ahead = function(moved)
        moved[place] -= 2 * step
        slopes[place] = (ahead - function(moved)) / (2 * step)
    return slopes


@pytest.mark.parametrize("loss", ["softmax", "logistic", "squared"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_equal_finite_differences(loss: str, activation: str) -> None:
    network = small(loss, activation)
    parameters, inputs, targets = drawn(network, seed=1)
    weights = np.random.default_rng(2).random(len(inputs))
    _, gradient = evaluated(network, parameters, inputs, targets, weights)
    expected = by_differences(
        lambda point: evaluated(network, point, inputs, targets, weights)[0], parameters
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("last", ACTIVATIONS)
def test_gradients_through_a_last_activation_and_element_weights(last: str) -> None:
    network = small("squared", "tanh", last)
    parameters, inputs, targets = drawn(network, seed=3)
    weights = np.random.default_rng(4).integers(0, 2, targets.shape).astype(np.float32)
    _, gradient = evaluated(network, parameters, inputs, targets, weights)
    expected = by_differences(
        lambda point: evaluated(network, point, inputs, targets, weights)[0], parameters
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("loss", "peer"), [("softmax", "MLPClassifier"), ("squared", "MLPRegressor")]
)
def test_predictions_equal_scikit_learns_with_the_same_parameters(loss: str, peer: str) -> None:
    peers = pytest.importorskip("sklearn.neural_network", reason="needs scikit-learn")
    network = Network(input_shape=4, layers=[Dense(6, "tanh"), Dense(3)], loss=loss)
    parameters, inputs, targets = drawn(network, seed=5, examples=30)
    fitted = getattr(peers, peer)(
        hidden_layer_sizes=(6,), activation="tanh", max_iter=1, solver="adam", random_state=0
    )
    with pytest.warns(UserWarning, match="Maximum iterations"):
        fitted.fit(inputs.astype(np.float64), targets)
    views = list(network.layout.views(parameters).values())
    for layer in range(2):
        views[2 * layer][:] = fitted.coefs_[layer].T
        views[2 * layer + 1][:] = fitted.intercepts_[layer]
    outputs = network.predict(parameters, inputs)
    theirs = fitted.predict_proba(inputs) if loss == "softmax" else fitted.predict(inputs)
    np.testing.assert_allclose(outputs, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", ["softmax", "logistic", "squared"])
def test_float32_agrees_with_float64(loss: str) -> None:
    network = small(loss)
    parameters, inputs, targets = drawn(network, seed=6)
    exact, exact_gradient = evaluated(network, parameters, inputs, targets)
    value, gradient = evaluated(network, parameters.astype(np.float32), inputs, targets)
    assert gradient.dtype == np.float32
    assert value == pytest.approx(exact, rel=1e-5)
    np.testing.assert_allclose(gradient, exact_gradient, rtol=1e-3, atol=1e-5)


def test_portions_add_up_and_weights_repeat_examples() -> None:
    network = small()
    parameters, inputs, targets = drawn(network, seed=7)
    whole, whole_gradient = evaluated(network, parameters, inputs, targets)
    parts = [
        evaluated(network, parameters, inputs[s], targets[s]) for s in ([0, 1, 2], [3, 4, 5, 6])
    ]
    assert parts[0][0] + parts[1][0] == pytest.approx(whole)
    np.testing.assert_allclose(parts[0][1] + parts[1][1], whole_gradient, atol=1e-12)
    doubled, _ = evaluated(network, parameters, inputs, targets, np.full(7, 2.0))
    assert doubled == pytest.approx(2 * whole)


def test_no_examples_have_a_zero_gradient() -> None:
    network = small()
    parameters, inputs, targets = drawn(network, seed=8)
    loss, gradient = evaluated(network, parameters, inputs[:0], targets[:0])
    assert loss == 0 and not gradient.any()


def test_threads_share_one_network_and_touch_nothing_given() -> None:
    network = small()
    parameters, inputs, targets = drawn(network, seed=9, examples=400)
    given = [parameters, inputs, targets]
    copies = [array.copy() for array in given]
    for array in given:
        array.flags.writeable = False
    expected = evaluated(network, parameters, inputs, targets)
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: evaluated(network, *given), range(40)))
    assert all(loss == expected[0] and np.array_equal(g, expected[1]) for loss, g in runs)
    assert all(np.array_equal(a, b) for a, b in zip(given, copies, strict=True))


def test_the_papers_network_has_the_papers_count() -> None:
    assert PAPER.parameter_count == 41_777_152
    assert PAPER.output_shape == (8192,)


def test_any_cut_of_the_initial_vector_has_the_same_numbers() -> None:
    network = Network(
        input_shape=(300,), layers=[Dense(500, "relu"), Dense(400), Dense(2)], loss="softmax"
    )
    count = network.parameter_count
    whole = network.initial_parameters(11, 0, count)
    assert whole.dtype == np.float32 and whole.shape == (count,)
    for edges in ([0, 1, 65_535, 65_537, count], [0, 149_999, 150_400, 150_501, count]):
        pieces = [network.initial_parameters(11, start, stop) for start, stop in pairwise(edges)]
        assert np.array_equal(np.concatenate(pieces), whole)
    assert not np.array_equal(network.initial_parameters(12, 0, count), whole)


def test_initial_weights_fill_their_range_and_biases_are_zero() -> None:
    layers = [Dense(400, "sigmoid"), Dense(200, "tanh"), Dense(100, "relu"), Dense(50)]
    network = Network(input_shape=(300,), layers=layers, loss="squared")
    views = network.layout.views(network.initial_parameters(0, 0, network.parameter_count))
    limits = [4 * (6 / 700) ** 0.5, (6 / 600) ** 0.5, (6 / 200) ** 0.5, (6 / 150) ** 0.5]
    for position, limit in enumerate(limits):
        weights = views[f"dense_{position}_weights"]
        assert 0.98 * limit < np.abs(weights).max() <= limit
        assert weights.std() == pytest.approx(limit / 3**0.5, rel=0.03)
        assert abs(weights.mean()) < 0.03 * limit
        assert not views[f"dense_{position}_bias"].any()


def test_the_layout_puts_the_output_unit_first() -> None:
    first, bias, *_ = small().layout.parameters
    assert (first.name, first.shape) == ("dense_0_weights", (5, 6))
    assert first.dims == ("dense_0_unit", "dense_0_input")
    assert (bias.name, bias.dims) == ("dense_0_bias", ("dense_0_unit",))


def test_a_network_is_a_model_small_equal_and_described() -> None:
    assert isinstance(PAPER, Model)
    assert len(pickle.dumps(PAPER)) < 3000
    assert pickle.loads(pickle.dumps(PAPER)) == PAPER
    assert hash(PAPER) == hash(pickle.loads(pickle.dumps(PAPER)))
    assert Network.from_description(json.loads(json.dumps(PAPER.description()))) == PAPER
    assert small() != PAPER


def test_integer_inputs_count_as_numbers() -> None:
    network = small()
    parameters, _, targets = drawn(network, seed=10)
    inputs = np.random.default_rng(0).integers(0, 255, (7, 2, 3), np.uint8)
    as_bytes = evaluated(network, parameters, inputs, targets)[0]
    assert as_bytes == evaluated(network, parameters, inputs.astype(np.float32), targets)[0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Dense(0), ValueError, "units must be at least 1, got 0"),
        (lambda: Dense(2.5), TypeError, "units must be a whole number"),
        (lambda: Dense(True), TypeError, "units must be a whole number"),
        (lambda: Dense(2, "swish"), ValueError, "activation must be one of"),
        (
            lambda: Network(input_shape=(2,), layers=[], loss="softmax"),
            ValueError,
            "layers must hold at least one",
        ),
        (
            lambda: Network(input_shape=(2,), layers=[3], loss="softmax"),
            TypeError,
            r"layers must hold layers such as dbdask\.Dense",
        ),
        (
            lambda: Network(input_shape=(2,), layers=Dense(2), loss="softmax"),
            TypeError,
            "layers must be a list",
        ),
        (
            lambda: Network(input_shape=(2.5,), layers=[Dense(2)], loss="softmax"),
            TypeError,
            "input_shape must hold whole numbers",
        ),
        (
            lambda: Network(input_shape=(0,), layers=[Dense(2)], loss="softmax"),
            ValueError,
            "input_shape",
        ),
        (
            lambda: Network(input_shape=(2,), layers=[Dense(2)], loss="hinge"),
            ValueError,
            "loss must be one of 'softmax'",
        ),
        (lambda: small("softmax", last="tanh"), ValueError, "last layer.*must be linear"),
        (
            lambda: Network.from_description({**small().description(), "network": "conv"}),
            ValueError,
            "'dense' network",
        ),
        (
            lambda: small().predict(np.zeros(small().parameter_count), np.zeros((4, 3, 2))),
            ValueError,
            r"inputs must have shape \(examples, 2, 3\), got \(4, 3, 2\)",
        ),
        (
            lambda: small().predict(np.zeros(3), np.zeros((4, 2, 3))),
            ValueError,
            r"got \(3,\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
