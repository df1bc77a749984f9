"""The three losses against formulas of SciPy and scikit-learn, and against finite differences."""

from types import ModuleType

import numpy as np
import pytest
from scipy.special import expit, log_expit, log_softmax
from scipy.special import softmax as scipy_softmax

from dbdask.models.losses import LOSSES, Loss, logistic, probabilities, sigmoid, softmax, squared

EXAMPLES, OUTPUTS = 6, 4


def metrics() -> ModuleType:
    """Return scikit-learn's metrics, or skip the test."""
    found: ModuleType = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    return found


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs, labels and 0/1 targets."""
    rng = np.random.default_rng(seed)
    outputs = rng.normal(scale=3, size=(EXAMPLES, OUTPUTS))
    targets = rng.integers(0, 2, (EXAMPLES, OUTPUTS)).astype(np.float32)
    return outputs, rng.integers(0, OUTPUTS, EXAMPLES), targets


def test_softmax_is_scikit_learns_log_loss() -> None:
    outputs, labels, _ = drawn(0)
    expected = metrics().log_loss(
        labels, scipy_softmax(outputs, axis=1), labels=range(OUTPUTS), normalize=False
    )
    assert softmax(outputs.copy(), labels, None) == pytest.approx(expected, rel=1e-12)


def test_softmax_weighs_examples() -> None:
    outputs, labels, _ = drawn(1)
    weights = np.array([0, 1, 2, 0.5, 3, 0], np.float32)
    expected = -weights @ log_softmax(outputs, axis=1)[np.arange(EXAMPLES), labels]
    assert softmax(outputs.copy(), labels, weights) == pytest.approx(expected, rel=1e-12)


def test_logistic_sums_over_outputs() -> None:
    outputs, _, targets = drawn(2)
    expected = -(targets * log_expit(outputs) + (1 - targets) * log_expit(-outputs)).sum()
    assert logistic(outputs.copy(), targets, None) == pytest.approx(expected, rel=1e-12)


def test_logistic_takes_a_label_as_one_against_all() -> None:
    outputs, labels, _ = drawn(3)
    by_label, by_output = outputs.copy(), outputs.copy()
    assert logistic(by_label, labels, None) == logistic(by_output, np.eye(OUTPUTS)[labels], None)
    assert np.array_equal(by_label, by_output)


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_logistic_of_one_output_takes_its_0_or_1(dtype: type) -> None:
    outputs = drawn(4)[0][:, :1]
    targets = np.array([0, 1, 1, 0, 1, 0]).astype(dtype)
    expected = metrics().log_loss(targets, expit(outputs[:, 0]), normalize=False)
    assert logistic(outputs.copy(), targets, None) == pytest.approx(expected, rel=1e-12)


def test_squared_is_half_the_squared_error_summed() -> None:
    outputs, _, targets = drawn(5)
    expected = 0.5 * OUTPUTS * EXAMPLES * metrics().mean_squared_error(targets, outputs)
    assert squared(outputs.copy(), targets, None) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", ["softmax", "logistic", "squared"])
@pytest.mark.parametrize("weighing", ["none", "example", "element"])
def test_gradients_equal_finite_differences(loss: str, weighing: str) -> None:
    outputs, labels, targets = drawn(6)
    targets = labels if loss == "softmax" else targets
    rng = np.random.default_rng(7)
    weights = {
        "none": None,
        "example": rng.random(EXAMPLES),
        "element": rng.random((EXAMPLES, 1 if loss == "softmax" else OUTPUTS)),
    }[weighing]
    gradient, step = outputs.copy(), 1e-6
    LOSSES[loss](gradient, targets, weights)
    for place in np.ndindex(outputs.shape):
        ends = []
        for sign in (1, -1):
            moved = outputs.copy()
            moved[place] += sign * step
            ends.append(LOSSES[loss](moved, targets, weights))
        assert gradient[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("loss", [logistic, squared])
def test_what_has_weight_zero_counts_for_nothing_even_if_it_is_nan(loss: Loss) -> None:
    outputs, _, targets = drawn(8)
    weights = np.ones((EXAMPLES, OUTPUTS), np.float32)
    targets[1, 2], weights[1, 2] = np.nan, 0
    gradient = outputs.copy()
    value = loss(gradient, targets, weights)
    assert np.isfinite(value) and np.isfinite(gradient).all() and gradient[1, 2] == 0
    targets[1, 2] = 1
    assert loss(outputs.copy(), targets, weights) == value


@pytest.mark.parametrize("loss", ["softmax", "logistic"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_outputs_stay_finite(loss: str, dtype: type) -> None:
    outputs = np.array([[5e4, -5e4], [-5e4, 5e4]], dtype)
    labels = np.array([0, 0])
    value = LOSSES[loss](outputs.copy(), labels, None)
    assert value == pytest.approx(1e5)
    shares = probabilities(loss, outputs.copy())
    assert shares.tolist() == [[1, 0], [0, 1]]


def test_losses_add_up_in_float64() -> None:
    outputs = np.full((1, 3), 1e-4, np.float32)
    outputs[0, 0] = 1e4
    value = squared(outputs, np.zeros((1, 3), np.float32), None)
    assert value - 5e7 == pytest.approx(1e-8, rel=0.5)


def test_probabilities_are_scipys() -> None:
    outputs, _, _ = drawn(9)
    np.testing.assert_allclose(
        probabilities("softmax", outputs.copy()), scipy_softmax(outputs, axis=1), rtol=1e-12
    )
    np.testing.assert_allclose(probabilities("logistic", outputs.copy()), expit(outputs))
    assert np.array_equal(probabilities("squared", outputs.copy()), outputs)


def test_the_sigmoid_is_scipys_far_out_too() -> None:
    values = np.linspace(-100, 100, 401)
    expected = expit(values)
    sigmoid(values)
    np.testing.assert_allclose(values, expected, atol=1e-15)


@pytest.mark.parametrize(
    ("loss", "targets", "weights", "message"),
    [
        ("softmax", np.array([0, 4, 0]), None, "labels must lie in 0 to 3.*from 0 to 4"),
        ("softmax", np.array([0, -1, 0]), None, "from -1 to 0"),
        ("softmax", np.zeros(3), None, "integer labels.*float64"),
        ("softmax", np.array([0, 1]), None, r"shape \(3,\), got int64 of shape \(2,\)"),
        ("logistic", np.array([0, 4, 0]), None, "labels must lie in 0 to 3"),
        ("logistic", np.full((3, 4), 2.0), None, "must lie in 0 to 1.*got 2"),
        ("logistic", np.full((3, 4), np.nan), None, "got nan"),
        ("squared", np.zeros((3, 5)), None, r"each of the 4 outputs.*got shape \(3, 5\)"),
        ("squared", np.zeros((3, 4)), np.ones(4), r"weights.*got shape \(4,\)"),
        ("squared", np.zeros((3, 4)), np.ones((3, 2)), r"weights.*got shape \(3, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(
    loss: str, targets: np.ndarray, weights: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LOSSES[loss](np.zeros((3, 4)), targets, weights)


def test_no_examples_lose_nothing() -> None:
    assert softmax(np.zeros((0, 3)), np.zeros(0, np.int64), None) == 0
    assert logistic(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0)) == 0
