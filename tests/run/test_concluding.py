"""Runs that end otherwise than they were asked to, and inputs that hinder training, are told."""

import copy
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
import xarray as xr

import dbdask
from dbdask.metrics.history import History, Record
from dbdask.run.concluding import Setting, conclude
from dbdask.run.outcome import Outcome
from dbdask.status import Status

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(600, 4))


def examples_of(values, targets):
    data = xr.Dataset({"x": (("row", "f"), values), "y": ("row", targets)})
    return dbdask.Examples(data, inputs="x", targets="y", along="row")


def train(client, examples, algorithm=dbdask.downpour, loss="squared", outputs=1, **options):
    """A run of one replica, and what it warned of."""
    model = dbdask.Network(
        input_shape=examples.input_shape, layers=[dbdask.Dense(outputs)], loss=loss
    )
    if algorithm is dbdask.downpour:
        options = {"batch_size": 20} | options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = algorithm(model, examples, client=client, replicas=1, progress=False, **options)
    assert all(one.category is dbdask.TrainingWarning for one in caught)
    assert all(one.filename == __file__ for one in caught)
    return result, [str(one.message) for one in caught]


FAR = [(1, 0, False), (0.25, 0.5, False), (3, 10, False), (70, 128, True), (5, 280, True)]


@pytest.mark.parametrize(
    ("algorithm", "factor", "offset", "warns"),
    [
        *((dbdask.downpour, *case) for case in FAR),
        (dbdask.sandblaster, *FAR[-1]),
        *(pytest.param(dbdask.sandblaster, *case, marks=pytest.mark.slow) for case in FAR[:-1]),
    ],
)
def test_inputs_far_from_1_are_warned_of_once(threads_client, algorithm, factor, offset, warns):
    many = {"iterations": 2, "portion_size": 300}
    length = {"epochs": 3} if algorithm is dbdask.downpour else many
    labels = RNG.integers(0, 3, 600)
    examples = examples_of(factor * NORMAL + offset, labels)
    options = {"algorithm": algorithm, "loss": "softmax", "outputs": 3} | length
    result, said = train(threads_client, examples, **options)
    assert result.status.ok and len(said) == warns
    assert all("inputs: the values of 'x' are far from 1" in text for text in said)
    assert train(threads_client, examples.standardize(client=threads_client), **options)[1] == []


def test_targets_that_float32_cannot_tell_apart_are_warned_of(threads_client):
    examples = examples_of(NORMAL, 2_460_000.5 + NORMAL[:, 0])
    _, said = train(threads_client, examples, optimizer=dbdask.sgd(1e-9))
    (text,) = said
    assert "targets: float32" in text and "standardize(targets=True)" in text


@pytest.mark.parametrize(
    ("rate", "epochs", "reason"),
    [(0.05, 2, "epochs"), (3.0, 1, "diverged"), (3.0, 20, "bad_gradients"), (1e30, 1, "diverged")],
)
def test_a_run_that_diverged_is_not_ok_and_says_what_to_change(
    threads_client, rate, epochs, reason
):
    few = 40 if rate == 1e30 else 600
    examples = examples_of(NORMAL[:few], NORMAL[:few].sum(axis=1))
    result, said = train(threads_client, examples, optimizer=dbdask.sgd(rate), epochs=epochs)
    assert result.status.reason == reason
    assert result.status.ok == (reason == "epochs") == (not said)
    for text in (*said, *([result.status.message] if said else [])):
        assert "lower the learning rate" in text and "clip_norm" in text and "standardize" in text


SETTING = Setting("downpour", True, None, False, 0.5)


def outcome_of(losses, reason="epochs", *, first=1.0, vector=None, is_best=False, **more):
    history = History([Record(0.0, 0, 1, 20, loss=loss, **more) for loss in losses])
    history.first_loss = first
    vector = np.zeros(3, np.float32) if vector is None else vector
    return Outcome(vector, history, Status(reason, "told"), is_best)


@pytest.mark.parametrize(
    ("losses", "first", "reason"),
    [
        ([1.0, 0.5], 1.0, "epochs"),
        ([1.0, 4.9], 1.0, "epochs"),
        ([1e6, 3.0], 1.0, "epochs"),  # a spike that was overcome
        ([1e-12, 1e-6], 1e-13, "epochs"),  # from an optimum, with noise
        ([300.0, 400.0], 300.0, "epochs"),  # a bad beginning
        ([1.0, 11.0], 1.0, "diverged"),
        ([1e15], 1.0, "diverged"),
        ([1.0, np.inf], 1.0, "diverged"),
    ],
)
def test_a_loss_that_grew_beyond_that_of_knowing_nothing_diverged(losses, first, reason):
    outcome = outcome_of(losses, first=first)
    if reason == "epochs":
        assert conclude(outcome, SETTING) is outcome
        return
    with pytest.warns(dbdask.TrainingWarning, match="diverged: the loss (grew|is not finite)"):
        assert conclude(outcome, SETTING).status.reason == "diverged"


def test_the_best_parameters_are_judged_by_their_own_loss():
    best = Setting("downpour", True, None, True, 0.5)
    outcome = partial(outcome_of, [1e15], is_best=True)
    assert conclude(outcome(validation_loss=0.4), best).status.ok
    with pytest.warns(dbdask.TrainingWarning, match="diverged"):
        assert not conclude(outcome(validation_loss=1e9), best).status.ok


def test_where_there_is_no_best_the_last_parameters_are_judged():
    best = Setting("downpour", True, None, True, 0.5)
    with pytest.warns(dbdask.TrainingWarning) as said:
        assert not conclude(outcome_of([1e15], validation_loss=np.nan), best).status.ok
    assert "no best parameters" in str(said[0].message) and "diverged" in str(said[1].message)


def test_parameters_that_are_not_finite_are_no_success():
    bad = outcome_of([0.5], vector=np.array([1.0, np.nan], np.float32))
    with pytest.warns(dbdask.TrainingWarning, match="parameters are not finite"):
        assert conclude(bad, SETTING).status.reason == "diverged"


@pytest.mark.parametrize("reason", ["callback", "target"])
def test_who_stops_a_run_is_not_contradicted(reason):
    assert conclude(outcome_of([1e15], reason), SETTING).status.reason == reason


@pytest.mark.parametrize("algorithm", ["downpour", "sandblaster"])
@pytest.mark.parametrize("path", [None, "run.zarr"])
@pytest.mark.parametrize("reason", ["search_failed", "interrupted", "bad_gradients"])
def test_every_bad_end_is_warned_of_with_a_remedy(algorithm, path, reason):
    setting = Setting(algorithm, False, path, False, 0.5)
    with pytest.warns(dbdask.TrainingWarning) as caught:
        found = conclude(outcome_of([1.0], reason), setting)
    (text,) = (str(one.message) for one in caught)
    assert text.startswith(f"the run did not end as it was asked to: {reason}: told; ")
    if reason == "interrupted":
        assert ("resume=True" if path else "parameters=result") in text
        assert found.status.message == "told"
    else:
        assert "standardize" in text and found.status.message in text


def test_a_result_can_be_copied_and_pickled(threads_client, tmp_path):
    examples = examples_of(NORMAL, NORMAL.sum(axis=1))
    result, _ = train(threads_client, examples)
    stored, _ = train(threads_client, examples, checkpoint=str(tmp_path / "run.zarr"))
    stored.save(tmp_path / "model.zarr")
    data = xr.Dataset({"x": (("row", "f"), NORMAL)})
    for one in (result, stored, dbdask.load(tmp_path / "model.zarr")):
        wanted = one.predict(data).compute(scheduler="threads")
        for made in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            xr.testing.assert_identical(made.predict(data).compute(scheduler="threads"), wanted)
            xr.testing.assert_identical(made.parameters, one.parameters)
            xr.testing.assert_identical(made.history, one.history)
            assert made.status == one.status
            assert made.evaluate(examples) == one.evaluate(examples)
            made.save(tmp_path / "again.zarr", overwrite=True)
