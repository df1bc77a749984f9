"""`check_model`: what keeps the contract passes, and each way to break it has its own words."""

import re
import threading
import time

import numpy as np
import pytest
import xarray as xr

import dbdask

ROWS, FEATURES, OUTPUTS = 40, 5, 3


def data(seed=0):
    rng = np.random.default_rng(seed)
    return xr.Dataset(
        {
            "x": (("t", "f"), rng.normal(size=(ROWS, FEATURES)).astype(np.float32)),
            "y": (("t", "k"), rng.normal(size=(ROWS, OUTPUTS)).astype(np.float32)),
            "both": (("t", "k"), rng.integers(0, 2, (ROWS, OUTPUTS)).astype(np.float32)),
            "label": ("t", np.arange(ROWS) % OUTPUTS),
            "w": ("t", rng.uniform(0.5, 2, ROWS).astype(np.float32)),
        }
    ).chunk(t=16)


def examples(targets="y", **options):
    return dbdask.Examples(data(), inputs="x", targets=targets, along="t", **options)


class Linear:
    """A linear model with half the squared error, written with care: nothing to find."""

    loss, input_shape, output_shape = "squared", (FEATURES,), (OUTPUTS,)
    layout = (("slopes", (OUTPUTS, FEATURES)), ("offsets", (OUTPUTS,)))
    size = OUTPUTS * (FEATURES + 1)

    def initial_parameters(self, seed, start, stop):
        return np.random.default_rng(seed).normal(size=self.size).astype(np.float32)[start:stop]

    def outputs(self, parameters, inputs):
        slopes, offsets = np.split(parameters, [OUTPUTS * FEATURES])
        return inputs @ slopes.reshape(OUTPUTS, FEATURES).T + offsets

    def errors(self, parameters, inputs, targets, weights, seed):
        errors = self.outputs(parameters, inputs) - targets
        if weights is None:
            return errors, errors
        return errors, errors * weights.reshape(len(errors), -1)

    def fill(self, gradient, weighted, inputs):
        gradient[: OUTPUTS * FEATURES] = (weighted.T @ inputs).reshape(-1)
        gradient[OUTPUTS * FEATURES :] = weighted.sum(axis=0)

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        errors, weighted = self.errors(parameters, inputs, targets, weights, seed)
        self.fill(gradient, weighted, inputs)
        return 0.5 * float((errors * weighted).sum())

    def predict(self, parameters, inputs):
        return self.outputs(parameters, inputs)


class Softmax(Linear):
    """The same with a softmax over labels."""

    loss = "softmax"

    def errors(self, parameters, inputs, targets, weights, seed):
        errors, rows = self.chances(parameters, inputs), np.arange(len(targets))
        losses = -np.log(errors[rows, targets])
        errors[rows, targets] -= 1
        if weights is not None:
            errors, losses = errors * weights[:, None], losses * weights
        return losses, errors

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        losses, errors = self.errors(parameters, inputs, targets, weights, seed)
        self.fill(gradient, errors, inputs)
        return losses.sum()

    def chances(self, parameters, inputs):
        powers = np.exp(self.outputs(parameters, inputs))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, parameters, inputs):
        return self.chances(parameters, inputs)


class Dropout(Linear):
    """Leaves out inputs by the seed, in training alone."""

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        kept = np.random.default_rng(seed).integers(0, 2, inputs.shape).astype(np.float32) * 2
        return super().loss_and_gradient(
            parameters, inputs * kept, targets, weights=weights, seed=seed, gradient=gradient
        )


class Buffered(Linear):
    """Has a buffer in the middle, whose gradient it leaves alone."""

    layout = (
        ("slopes", (OUTPUTS, FEATURES)),
        ("count", (2,), ("n",), "buffer"),
        ("offsets", (OUTPUTS,)),
    )

    def initial_parameters(self, seed, start, stop):
        whole = super().initial_parameters(seed, 0, self.size)
        return np.insert(whole, [15, 15], 7).astype(np.float32)[start:stop]

    def outputs(self, parameters, inputs):
        return super().outputs(np.delete(parameters, [15, 16]), inputs)

    def fill(self, gradient, weighted, inputs):
        inner = np.empty(self.size, np.float32)
        super().fill(inner, weighted, inputs)
        gradient[:15], gradient[17:] = inner[:15], inner[15:]


class LossOnly(Linear):
    def loss_only(self, parameters, inputs, targets, *, weights, seed):
        errors, weighted = self.errors(parameters, inputs, targets, weights, seed)
        return 0.5 * float((errors * weighted).sum())


class Unnamed(Linear):
    """Says nothing of itself but what it must."""

    loss = input_shape = output_shape = None


GOOD = [
    (Linear(), "y"),
    (Softmax(), "label"),
    (Dropout(), "y"),
    (Buffered(), "y"),
    (LossOnly(), "y"),
    (Unnamed(), "y"),
]


@pytest.mark.parametrize(("model", "targets"), GOOD, ids=lambda m: type(m).__name__)
def test_a_careful_model_passes(model, targets):
    report = dbdask.check_model(model, examples(targets))
    assert report.outputs == OUTPUTS and report.probes >= 7 and np.isfinite(report.loss)
    assert f"{report.parameters:,} parameters" in str(report)
    assert ("depends on the seed" in str(report)) == isinstance(model, Dropout)
    assert len(report.notes) == isinstance(model, Dropout)


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize(
    ("loss", "targets"),
    [("softmax", "label"), ("logistic", "label"), ("logistic", "both"), ("squared", "y")],
)
@pytest.mark.parametrize("activation", ["linear", "sigmoid", "tanh", "relu"])
def test_networks_pass(loss, targets, activation, weights):
    layers = [dbdask.Dense(6, activation), dbdask.Dense(4, activation), dbdask.Dense(OUTPUTS)]
    network = dbdask.Network(input_shape=(FEATURES,), layers=layers, loss=loss)
    report = dbdask.check_model(network, examples(targets, weights=weights))
    assert report.probes >= 6 * 3 and not report.notes


def test_a_network_of_one_logistic_output_and_masked_targets_pass():
    layers = [dbdask.Dense(6, "relu"), dbdask.Dense(1)]
    network = dbdask.Network(input_shape=(FEATURES,), layers=layers, loss="logistic")
    two = data().assign(label=("t", np.arange(ROWS) % 2))
    assert dbdask.check_model(network, dbdask.Examples(two, inputs="x", targets="label", along="t"))
    holes = data().load()
    holes["y"].values[::3, 1] = np.nan
    holes["y"].values[1] = np.nan
    masked = dbdask.Examples(holes, inputs="x", targets="y", along="t", missing="mask")
    layers = [dbdask.Dense(OUTPUTS)]
    network = dbdask.Network(input_shape=(FEATURES,), layers=layers, loss="squared")
    assert not dbdask.check_model(network, masked).notes


# Broken models: each is caught with its own words, and alone


class Rebinds(Linear):
    def fill(self, gradient, weighted, inputs):
        gradient = np.zeros(self.size, np.float32)
        super().fill(gradient, weighted, inputs)


class ForgetsOffsets(Linear):
    def fill(self, gradient, weighted, inputs):
        gradient[:15] = (weighted.T @ inputs).reshape(-1)


class AddsUp(Linear):
    def fill(self, gradient, weighted, inputs):
        new = np.empty_like(gradient)
        super().fill(new, weighted, inputs)
        gradient += new


class Mean(Linear):
    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        loss = super().loss_and_gradient(
            parameters, inputs, targets, weights=weights, seed=seed, gradient=gradient
        )
        gradient /= len(inputs)
        return loss / len(inputs)


class MeanDropout(Dropout):
    loss_and_gradient_of_sum = Dropout.loss_and_gradient

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        loss = self.loss_and_gradient_of_sum(
            parameters, inputs, targets, weights=weights, seed=seed, gradient=gradient
        )
        gradient /= len(inputs)
        return loss / len(inputs)


class MeanGradient(Linear):
    def fill(self, gradient, weighted, inputs):
        super().fill(gradient, weighted, inputs)
        gradient /= len(inputs)


class Penalised(Linear):
    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        loss = super().loss_and_gradient(
            parameters, inputs, targets, weights=weights, seed=seed, gradient=gradient
        )
        gradient += 20 * parameters
        return loss + 10 * float(parameters @ parameters)


class IgnoresWeights(Linear):
    def errors(self, parameters, inputs, targets, weights, seed):
        return super().errors(parameters, inputs, targets, None, seed)


class WeightedMean(Linear):
    def errors(self, parameters, inputs, targets, weights, seed):
        share = None if weights is None else weights * (weights.size / weights.sum())
        return super().errors(parameters, inputs, targets, share, seed)


class NoElementWeights(Linear):
    def errors(self, parameters, inputs, targets, weights, seed):
        errors, weighted = super().errors(parameters, inputs, targets, None, seed)
        return errors, weighted if weights is None else errors * weights[:, None]


class CountsZeroWeights(Linear):
    """Looks whether weights are all equal, and else takes the first one."""

    def errors(self, parameters, inputs, targets, weights, seed):
        first = None if weights is None else np.full_like(weights, weights.flat[0])
        return super().errors(parameters, inputs, targets, first, seed)


class WritesInputs(Linear):
    def errors(self, parameters, inputs, targets, weights, seed):
        inputs -= 1
        return super().errors(parameters, inputs, targets, weights, seed)


class WritesTargets(Linear):
    def errors(self, parameters, inputs, targets, weights, seed):
        targets *= 2
        return super().errors(parameters, inputs, targets, weights, seed)


class WritesParameters(Linear):
    def errors(self, parameters, inputs, targets, weights, seed):
        found = super().errors(parameters, inputs, targets, weights, seed)
        parameters += 1
        return found


class WritesWeights(Linear):
    def errors(self, parameters, inputs, targets, weights, seed):
        found = super().errors(parameters, inputs, targets, weights, seed)
        if weights is not None:
            weights[:] = 0
        return found


class KeepsParameters(Linear):
    def __init__(self):
        self.kept = None

    def errors(self, parameters, inputs, targets, weights, seed):
        if self.kept is None:
            self.kept = parameters[:]
        return super().errors(self.kept, inputs, targets, weights, seed)


class KeepsGradient(Linear):
    def __init__(self):
        self.kept = []

    def fill(self, gradient, weighted, inputs):
        for earlier in self.kept:
            earlier[:] = 3
        self.kept.append(gradient)
        super().fill(gradient, weighted, inputs)


class DependsOnTheCut(Linear):
    def initial_parameters(self, seed, start, stop):
        return np.random.default_rng(seed).normal(size=stop - start).astype(np.float32)


class WholeInitial(Linear):
    def initial_parameters(self, seed, start, stop):
        return np.zeros(self.size, np.float32)


class RandomInitial(Linear):
    def initial_parameters(self, seed, start, stop):
        return np.full(stop - start, next(TICKS))


class NanInitial(Linear):
    def initial_parameters(self, seed, start, stop):
        return np.full(stop - start, np.nan, np.float32)


class NoInitial(Linear):
    def initial_parameters(self, seed, start, stop):
        raise LookupError("no initial")


class WrongSign(Linear):
    def fill(self, gradient, weighted, inputs):
        super().fill(gradient, -weighted, inputs)


class WholeSquares(Linear):
    """The squared error without the half in the loss, and with it in the gradient."""

    def loss_and_gradient(self, *arguments, **options):
        return 2 * super().loss_and_gradient(*arguments, **options)


class Transposed(Linear):
    def fill(self, gradient, weighted, inputs):
        super().fill(gradient, weighted, inputs)
        gradient[:15] = gradient[:15].reshape(OUTPUTS, FEATURES).T.reshape(-1).copy()


class OneElementWrong(Linear):
    def fill(self, gradient, weighted, inputs):
        super().fill(gradient, weighted, inputs)
        gradient[15] = 0


class GlobalRandom(Linear):
    def outputs(self, parameters, inputs):
        return super().outputs(parameters, inputs)

    def errors(self, parameters, inputs, targets, weights, seed):
        kept = np.random.random(inputs.shape) < 0.5
        return super().errors(parameters, inputs * kept, targets, weights, seed)


class FlatPrediction(Linear):
    def predict(self, parameters, inputs):
        return self.outputs(parameters, inputs).reshape(-1)


class TwoOutputs(Linear):
    def predict(self, parameters, inputs):
        return self.outputs(parameters, inputs)[:, :2]


class Doubles(Linear):
    """Expects vectors in float64."""

    def fill(self, gradient, weighted, inputs):
        np.dot(weighted.T.astype(float), inputs.astype(float), out=gradient[:15].reshape(3, 5))


class NoLoss(Linear):
    def loss_and_gradient(self, *arguments, **options):
        super().loss_and_gradient(*arguments, **options)


class LossOfEach(Linear):
    def loss_and_gradient(self, parameters, inputs, targets, **options):
        super().loss_and_gradient(parameters, inputs, targets, **options)
        return np.zeros(len(inputs))


class NanLoss(Linear):
    def loss_and_gradient(self, *arguments, **options):
        super().loss_and_gradient(*arguments, **options)
        return np.nan


class NanGradient(Linear):
    def fill(self, gradient, weighted, inputs):
        super().fill(gradient, weighted, inputs)
        gradient[16] = np.nan


class Raises(Linear):
    def outputs(self, parameters, inputs):
        raise LookupError("no outputs")


class Logits(Softmax):
    def predict(self, parameters, inputs):
        return self.outputs(parameters, inputs)


class Unnormalised(Softmax):
    def predict(self, parameters, inputs):
        return self.chances(parameters, inputs) / 2


class RandomPrediction(Linear):
    def predict(self, parameters, inputs):
        kept = np.random.default_rng().random(inputs.shape) < 0.5
        return self.outputs(parameters, inputs * kept)


class PredictsAViewOfItsOwn(Linear):
    def __init__(self):
        self.held = np.zeros((100, OUTPUTS))

    def predict(self, parameters, inputs):
        self.held[: len(inputs)] = self.outputs(parameters, inputs)
        return self.held[: len(inputs)]


class PredictsParameters(Linear):
    """With constant outputs, which are a view of the parameters."""

    layout = (("level", (OUTPUTS,)),)
    size = OUTPUTS

    def outputs(self, parameters, inputs):
        return np.broadcast_to(parameters, (len(inputs), OUTPUTS))

    def fill(self, gradient, weighted, inputs):
        gradient[:] = weighted.sum(axis=0)


class CentredPrediction(Linear):
    def predict(self, parameters, inputs):
        outputs = self.outputs(parameters, inputs)
        return outputs - outputs.mean(axis=0)


class PredictWritesInputs(Linear):
    def predict(self, parameters, inputs):
        inputs *= 2
        return self.outputs(parameters, inputs)


class OtherLossOnly(LossOnly):
    def loss_only(self, *arguments, **options):
        return 2 * super().loss_only(*arguments, **options)


class SharedScratch(Linear):
    """Keeps its errors in the object, where another thread finds them."""

    def errors(self, parameters, inputs, targets, weights, seed):
        self.found = super().errors(parameters, inputs, targets, weights, seed)
        time.sleep(0.002)
        return self.found


class Unpicklable(Linear):
    def __init__(self):
        self.lock = threading.Lock()


class ForgetsItsLayout(Linear):
    def __init__(self):
        self.layout = (("all", (self.size,)),)

    def __getstate__(self):
        return {}


class ExhaustedLayout(Linear):
    def __init__(self):
        self.layout = iter((("all", (self.size,)),))

    def __reduce__(self):
        return Linear, ()


class NoLayout(Linear):
    layout = (("a/b", (18,)),)


class ThreeFaults(WrongSign, DependsOnTheCut, TwoOutputs):
    """Several faults at once: all are named."""


TICKS = iter(range(10**6))

BROKEN = [
    (Rebinds(), r"did not overwrite gradient: fill .* in place \(gradient\[:\] = ...\)"),
    (ForgetsOffsets(), "did not overwrite the gradient of 'offsets'"),
    (AddsUp(), "did not overwrite gradient: .*do not add to what it holds"),
    (Mean(), "returns a mean over the examples.*return the sum"),
    (MeanDropout(), "returns a mean over the examples.*return the sum"),
    (MeanGradient(), r"it is 0.1[23] times .*\(is it divided by the number of examples\?\); along"),
    (Penalised(), "no sum over the examples.* is 1.* times.*penalty belongs into weight_decay="),
    (IgnoresWeights(), "does not multiply each loss .*the loss is 1 times that before, and must"),
    (WeightedMean(), "does not multiply each loss .*nor divide by their sum"),
    (NoElementWeights(), r"raised ValueError.*weights float32 \(8, 3\)"),
    (CountsZeroWeights(), "counts what has weight 0"),
    (WritesInputs(), r"loss_and_gradient writes to inputs: .* copy \(inputs = inputs.copy\(\)\)"),
    (WritesTargets(), "loss_and_gradient writes to targets"),
    (WritesParameters(), "loss_and_gradient writes to parameters"),
    (WritesWeights(), "loss_and_gradient writes to weights"),
    (KeepsParameters(), "loss_and_gradient keeps an array that it was given"),
    (KeepsGradient(), "writes to gradient of an earlier call"),
    (DependsOnTheCut(), r"initial_parameters depends on the cut: elements 1 to 6 asked alone"),
    (WholeInitial(), r"initial_parameters\(seed, 0, 1\) must have shape \(1,\), got \(18,\)"),
    (RandomInitial(), "initial_parameters gives other numbers for the same seed"),
    (NanInitial(), "must hold finite numbers, got float32"),
    (NoInitial(), r"initial_parameters raised LookupError\('no initial'\)"),
    (WrongSign(), "wrong gradient of 'slopes', 'offsets': its sign is wrong; along"),
    (WholeSquares(), "wrong gradient of .*it is 0.5 times what it should be; "),
    (Transposed(), "wrong gradient of 'slopes': along one direction of 'slopes' it says"),
    (OneElementWrong(), "wrong gradient of 'offsets': along one direction of 'offsets' it says"),
    (GlobalRandom(), "other results for the same arguments and seed: draw .*default_rng"),
    (FlatPrediction(), r"predict must return numbers of shape .*\(8, 3\), got float32 \(24,\)"),
    (TwoOutputs(), r"predict must return 3 outputs an example.*\(8, 3\), got \(8, 2\)"),
    (Doubles(), r"raised ValueError.*gradient float32 \(18,\)"),
    (NoLoss(), "must return the sum of the losses as one number, got None"),
    (LossOfEach(), r"as one number, got an array of shape \(8,\)"),
    (NanLoss(), "returned a loss of nan near the initial parameters"),
    (NanGradient(), "gradient that is not finite, of offsets"),
    (Raises(), r"loss_and_gradient raised LookupError\('no outputs'\), given parameters float32"),
    (Logits(), "must return probabilities, because loss is 'softmax': got values .*apply the soft"),
    (Unnormalised(), "add up to 1 .*: got sums from 0.5 to 0.5"),
    (RandomPrediction(), "predict gives other results for the same arguments"),
    (PredictsAViewOfItsOwn(), "predict returns an array that is changed later"),
    (PredictsParameters(), "predict returns an array that is changed later"),
    (CentredPrediction(), "predict gives an example other outputs alone than among others"),
    (PredictWritesInputs(), "predict writes to inputs: it may write to none"),
    (OtherLossOnly(), "loss_only returned .*they must be the same"),
    (SharedScratch(), "other results if several threads call it at once"),
    (Unpicklable(), "cannot be pickled, .*'_thread.lock'"),
    (ForgetsItsLayout(), "has another layout after it was pickled"),
    (NoLayout(), "non-empty without '/'"),
]


@pytest.mark.parametrize(("model", "message"), BROKEN, ids=lambda m: type(m).__name__)
def test_a_broken_model_is_caught_in_words(model, message):
    targets = "label" if model.loss == "softmax" else "y"
    with pytest.raises(dbdask.ModelError) as caught:
        dbdask.check_model(model, examples(targets))
    text = str(caught.value)
    assert re.search(message, text.replace("\n", " ")), text
    assert ("1 fault:" in text) == (type(model) is not Raises), text


def test_several_faults_are_all_named():
    with pytest.raises(dbdask.ModelError, match="3 faults:\n  1. .*\n  2. .*\n  3. ") as caught:
        dbdask.check_model(ThreeFaults(), examples())
    for words in ("depends on the cut", "its sign is wrong", "3 outputs an example"):
        assert words in str(caught.value)


def test_the_model_itself_is_left_as_it_is():
    model = KeepsParameters()
    with pytest.raises(dbdask.ModelError):
        dbdask.check_model(model, examples())
    assert model.kept is None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dbdask.check_model(Linear(), data()), TypeError, "examples must be .*Examples"),
        (lambda: dbdask.check_model(Linear, examples()), TypeError, "got the class Linear"),
        (lambda: dbdask.check_model(3, examples()), TypeError, "model has no 'layout'"),
        (lambda: dbdask.check_model(Linear(), examples(), size=0), ValueError, "size must be at"),
        (lambda: dbdask.check_model(Linear(), examples(), seed=-1), ValueError, "seed must be at"),
        (lambda: dbdask.check_model(Linear(), examples(None)), ValueError, "has no targets"),
        (lambda: dbdask.check_model(Linear(), examples("x")), ValueError, "3 outputs"),
        (
            lambda: dbdask.check_model(Linear(), examples(weights=data().w * 0)),
            dbdask.DataError,
            "no example with a weight above 0",
        ),
    ],
)
def test_what_cannot_be_tried_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_any_number_of_examples_will_do(size):
    assert dbdask.check_model(Softmax(), examples("label"), size=size).examples == min(size, 16)
