"""What the library notices of a model that does not fill the gradient it is given."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_downpour import labelled, store  # noqa: F401

import dbdask
from dbdask.models.buffers import buffer_ranges
from dbdask.models.evaluation import (
    UNWRITTEN,
    Evaluator,
    loss_of_minibatch,
    mark_unwritten,
)
from dbdask.models.layout import as_layout
from dbdask.models.model import as_loss, check_members

BATCH = SimpleNamespace(inputs=np.ones((4, 6), np.float32), targets=np.zeros(4, int), weights=None)


class Inner:
    """Softmax regression that a subclass spoils."""

    loss, output_shape = "softmax", (3,)

    def __init__(self):
        self.network = dbdask.Network(input_shape=(6,), layers=[dbdask.Dense(3)], loss="softmax")
        self.layout = [("weights", (3, 6)), ("bias", (3,))]

    def initial_parameters(self, seed, start, stop):
        return np.zeros(stop - start, np.float32)

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        return self.fill(parameters, inputs, targets, weights, gradient)

    def fill(self, parameters, inputs, targets, weights, gradient):
        return self.network.loss_and_gradient(
            parameters, inputs, targets, weights=weights, gradient=gradient
        )

    def predict(self, parameters, inputs):
        return self.network.predict(parameters, inputs)


class Rebinds(Inner):
    def fill(self, parameters, inputs, targets, weights, gradient):
        gradient = np.zeros(21, np.float32)
        return super().fill(parameters, inputs, targets, weights, gradient)


class Forgets(Inner):
    def fill(self, parameters, inputs, targets, weights, gradient):
        whole = np.zeros(21, np.float32)
        loss = super().fill(parameters, inputs, targets, weights, whole)
        gradient[:18] = whole[:18]
        return loss


class Adds(Inner):
    def fill(self, parameters, inputs, targets, weights, gradient):
        whole = np.zeros(21, np.float32)
        loss = super().fill(parameters, inputs, targets, weights, whole)
        gradient += whole
        return loss


class Resizes(Inner):
    def fill(self, parameters, inputs, targets, weights, gradient):
        loss = super().fill(parameters, inputs, targets, weights, gradient)
        gradient.resize(3, refcheck=False)
        return loss


class WrongInitial(Inner):
    def initial_parameters(self, seed, start, stop):
        return np.zeros(3, np.float32)


class NanInitial(Inner):
    def initial_parameters(self, seed, start, stop):
        return np.where(np.arange(start, stop) == 4, np.inf, 0)


class NoLoss(Inner):
    def fill(self, *arguments):
        super().fill(*arguments)


@pytest.fixture(params=[dbdask.downpour, dbdask.sandblaster])
def algorithm(request):
    return request.param


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Rebinds(), r"did not overwrite gradient: fill .* in place \(gradient\[:\] = ...\)"),
        (Forgets(), "did not overwrite the gradient of 'bias': fill"),
        (Adds(), "did not overwrite gradient: .* do not add to what it holds"),
        (Resizes(), r"changed the shape of gradient from \(21,\) to \(3,\)"),
        (WrongInitial(), r"initial_parameters\(seed, 0, 21\) must have shape \(21,\), got \(3,\)"),
        (NanInitial(), r"initial_parameters\(seed, 0, 21\) must hold finite .*'weights'"),
        (NoLoss(), "loss_and_gradient must return the sum of the losses as one number, got None"),
    ],
)
def test_a_run_ends_at_once_and_says_what_to_change(
    algorithm,
    threads_client,
    store,  # noqa: F811
    model,
    message,
):
    with pytest.raises(dbdask.ModelError, match=message):
        algorithm(model, labelled(store), client=threads_client, progress=False)


def test_a_gradient_of_nan_is_written(threads_client, store):  # noqa: F811
    class Diverged(Inner):
        def fill(self, parameters, inputs, targets, weights, gradient):
            gradient[:] = np.nan
            return np.nan

    with pytest.warns(dbdask.TrainingWarning, match="gradients were refused"):
        result = dbdask.downpour(Diverged(), labelled(store), client=threads_client, progress=False)
    assert result.status.reason == "bad_gradients"


@pytest.mark.parametrize(
    ("loss", "position", "value", "named"),
    [
        (1.0, 19, np.nan, "bias"),
        (1.0, 2, np.inf, "weights"),
        (1.0, 20, -9e19, "bias"),  # finite, and its square is not
        (np.nan, 0, 1.0, "the loss"),
        (np.inf, 0, 1.0, "the loss"),
        (np.nan, 0, np.nan, "weights"),
    ],
)
def test_a_bad_minibatch_names_its_culprit(loss, position, value, named):
    class Spoiled(Inner):
        def fill(self, parameters, inputs, targets, weights, gradient):
            gradient[:] = 1
            gradient[position] = value
            return loss

    batch = SimpleNamespace(**vars(BATCH), step=0)
    evaluator = Evaluator(Spoiled(), seed=0)
    gradient = np.empty(21, np.float32)
    found = evaluator.minibatch(
        np.zeros(21, np.float32), batch, (0, 0), gradient=gradient, as_mean=True
    )
    assert found.bad == named


def test_only_the_first_minibatch_is_looked_at():
    model = Inner()
    evaluator, parameters = Evaluator(model), np.zeros(21, np.float32)
    gradient = np.empty(21, np.float32)
    evaluator.evaluate(parameters, BATCH, seed=0, gradient=gradient)
    evaluator.model = Rebinds()
    evaluator.evaluate(parameters, BATCH, seed=0, gradient=gradient)
    with pytest.raises(dbdask.ModelError):
        Evaluator(Rebinds()).evaluate(parameters, BATCH, seed=0, gradient=gradient)


def test_the_gradient_of_a_buffer_need_not_be_written():
    class Buffered(Inner):
        def __init__(self):
            super().__init__()
            self.layout = [("first", (2,), ("a",), "buffer"), ("w", (21,))]
            self.layout.append(("last", (3,), ("b",), "buffer"))

        def fill(self, parameters, inputs, targets, weights, gradient):
            return super().fill(parameters[2:23], inputs, targets, weights, gradient[2:23])

    gradient = np.full(26, np.nan, np.float32)
    evaluator = Evaluator(Buffered())
    for _ in range(2):
        evaluator.evaluate(np.zeros(26, np.float32), BATCH, seed=0, gradient=gradient)
        assert np.isfinite(gradient).all() and not gradient[:2].any() and not gradient[23:].any()
        gradient.fill(np.nan)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("t", []),
        ("b", [(0, 2)]),
        ("bt", [(0, 2)]),
        ("tb", [(2, 4)]),
        ("tbbt", [(2, 6)]),
        ("btbtb", [(0, 2), (4, 6), (8, 10)]),
    ],
)
def test_buffer_ranges_are_what_is_not_trained(kinds, expected):
    names = {"t": "trained", "b": "buffer"}
    layout = as_layout([(f"p{i}", (2,), ("x",), names[k]) for i, k in enumerate(kinds)])
    assert [(part.start, part.stop) for part in buffer_ranges(layout)] == expected


def test_the_mark_is_a_nan_that_arithmetic_does_not_make():
    vector = np.ones(70_000, np.float32)
    mark_unwritten(vector)
    assert np.isnan(vector).all()
    with np.errstate(all="ignore"):
        made = np.array([np.nan, -np.nan, np.inf - np.inf, np.float32(0) / np.float32(0)])
    assert not (made.astype(np.float32).view(np.uint32) == UNWRITTEN).any()


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float32(2), np.float64(2), np.array(2.0), np.ones(1) * 2]
)
def test_a_loss_is_one_number(value):
    assert as_loss(value) == 2.0 and type(as_loss(value)) is float


@pytest.mark.parametrize("value", [None, "2", 2j, np.ones(2), True, np.complex64(1), [2.0]])
def test_what_is_no_loss_is_refused(value):
    with pytest.raises(dbdask.ModelError, match="sum of the losses as one number, got"):
        as_loss(value)


def test_scores_take_the_loss_without_a_gradient_if_there_is_one():
    class Quick(Inner):
        def loss_only(self, parameters, inputs, targets, *, weights, seed):
            return 7.0

    assert loss_of_minibatch(Quick(), np.zeros(21, np.float32), BATCH, scratch=None) == 7
    scratch = np.empty(21, np.float32)
    loss = loss_of_minibatch(Inner(), np.zeros(21, np.float32), BATCH, scratch=scratch)
    assert loss == pytest.approx(4 * np.log(3))


class FewKeywords(Inner):
    def loss_and_gradient(self, parameters, inputs, targets, gradient):
        return 0.0


class LossOnlyWithoutSeed(Inner):
    def loss_only(self, parameters, inputs, targets, weights):
        return 0.0


class NoMethod(Inner):
    predict = 3


class Decorated(Inner):
    def loss_and_gradient(self, *arguments, **options):
        return super().loss_and_gradient(*arguments, **options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (FewKeywords(), r"loss_and_gradient must take \(parameters, inputs, targets, \*, weights"),
        (LossOnlyWithoutSeed(), r"loss_only must take \(.*, \*, weights, seed\): .*'seed'"),
        (NoMethod(), "model.predict must be a method, got 3"),
        (Inner, "got the class Inner: make one of it"),
        (object(), "model has no 'layout'"),
    ],
)
def test_how_members_are_called_is_checked_before_training(algorithm, store, model, message):  # noqa: F811
    with pytest.raises(TypeError, match=message):
        algorithm(model, labelled(store))


def test_a_model_that_passes_its_arguments_on_is_one():
    check_members(Decorated())
