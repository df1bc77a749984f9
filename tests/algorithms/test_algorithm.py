"""Algorithm 1.1 of the paper against a loop written here, gradient included; and what it notes."""

import datetime
import time

import numpy as np
import pytest
import xarray as xr
from counting import CountingModel
from routing import disturb

import dbdask
from dbdask.run.shared_arguments import validation_interval
from dbdask.schedule.portions import suggest_portion_rows

ROWS, FEATURES, CLASSES, BATCH = 1200, 6, 3, 20


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(1)
    inputs = 3 * rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    dataset = xr.Dataset(
        {
            "x": (("row", "feature"), inputs),
            "label": ("row", (inputs @ rng.normal(size=(FEATURES, CLASSES))).argmax(axis=1)),
            "index": ("row", np.arange(ROWS, dtype=np.float32)),
            "zero": ("row", np.zeros(ROWS, np.float32)),
        }
    )
    path = str(tmp_path_factory.mktemp("algorithm") / "store.zarr")
    dataset.chunk({"row": 100}).to_zarr(path, consolidated=False)
    return path


def labelled(store):
    return dbdask.Examples(store, inputs="x", targets="label", along="row")


def counted(store):
    return dbdask.Examples(store, inputs="index", targets="zero", along="row")


def start():
    """Parameters far from any optimum, so that every step is long."""
    size = (FEATURES + 1) * CLASSES
    return np.random.default_rng(2).normal(size=size).astype(np.float32)


def train(client, store, **options):
    model = dbdask.Network(input_shape=(FEATURES,), layers=[dbdask.Dense(CLASSES)], loss="softmax")
    result = dbdask.downpour(
        model,
        labelled(store),
        client=client,
        parameters=start(),
        batch_size=BATCH,
        replicas=1,
        shards=1,
        progress=False,
        **options,
    )
    flat = np.concatenate([v.values.ravel() for v in result.parameters.data_vars.values()])
    return flat, result


def portions_of(store, epochs):
    """The minibatches of every portion, in order: inputs and labels."""
    examples = labelled(store)
    rows = suggest_portion_rows(len(examples), examples.row_bytes, start().size, BATCH)
    cut, reader = examples.cut(rows, BATCH), examples.reader()
    for epoch in range(epochs):
        for portion in cut.portions(0, epoch):
            batches = reader.minibatches(portion, BATCH)
            yield [(b.inputs.copy(), b.targets.astype(int).ravel()) for b in batches]


def mean_gradient(parameters, inputs, labels):
    """The gradient of the mean cross-entropy of softmax(inputs @ weights.T + biases)."""
    weights = parameters[: FEATURES * CLASSES].reshape(CLASSES, FEATURES)
    outputs = inputs.astype(np.float64) @ weights.T + parameters[FEATURES * CLASSES :]
    shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(len(labels)), labels] -= 1
    return np.concatenate([(shares.T @ inputs).ravel(), shares.sum(axis=0)]) / len(labels)


def algorithm_1_1(store, rate, *, n_fetch=1, n_push=1, local_rate=0.0, clip_norm=np.inf, epochs=1):
    """Serially, in float64: the parameters, and each portion's gradient norms.

    A replica begins every portion with a fetch. One that starts beside a minibatch is there at
    the next, which ends the local steps taken since; with `n_fetch = 1` each is waited for. The
    gradients left over at the end of a portion are pushed.
    """
    parameters, norms = start().astype(np.float64), []
    for batches in portions_of(store, epochs):
        local, arriving = parameters.copy(), None
        accrued = np.zeros_like(parameters)
        norms.append([])
        for step, (inputs, labels) in enumerate(batches):
            if arriving is not None:
                local, arriving = arriving, None
            if n_fetch == 1:
                local = parameters.copy()
            elif step > 0 and step % n_fetch == 0:
                arriving = parameters.copy()
            gradient = mean_gradient(local, inputs, labels)
            norms[-1].append(np.linalg.norm(gradient))
            gradient *= min(1.0, clip_norm / norms[-1][-1])
            accrued += gradient
            local -= local_rate * gradient
            if (step + 1) % n_push == 0 or step == len(batches) - 1:
                parameters -= rate * accrued
                accrued[:] = 0
    return parameters, norms


@pytest.mark.parametrize(
    ("n_fetch", "n_push"),
    [(3, 2), pytest.param(2, 3, marks=pytest.mark.slow), (1, 3), (4, 1)],
)
def test_downpour_is_algorithm_1_1(threads_client, store, n_fetch, n_push):
    paces = {"n_fetch": n_fetch, "n_push": n_push, "epochs": 2}
    found, _ = train(
        threads_client, store, optimizer=dbdask.sgd(0.05), local_learning_rate=0.3, **paces
    )
    expected, _ = algorithm_1_1(store, 0.05, local_rate=0.3, **paces)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    without, _ = algorithm_1_1(store, 0.05, **paces)
    far = np.abs(without - expected).max()
    assert far == 0 if n_fetch == 1 else far > 1e-3


def test_a_fetch_brings_what_was_there_before_the_step_however_slow_it_is(
    threads_client, store, request
):
    def slowly(way, place, request, sent, into):
        if request.method == "fetch":
            time.sleep(0.02)
        return way.start(request, sent, into)

    request.addfinalizer(disturb(slowly))
    paces = {"n_fetch": 4, "n_push": 1}
    found, _ = train(threads_client, store, optimizer=dbdask.sgd(0.05), **paces)
    expected, _ = algorithm_1_1(store, 0.05, local_rate=0.05, **paces)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_local_rate_is_that_of_sgd_unless_given(threads_client, store):
    found, _ = train(threads_client, store, optimizer=dbdask.sgd(0.2), n_fetch=3, n_push=2)
    expected, _ = algorithm_1_1(store, 0.2, n_fetch=3, n_push=2, local_rate=0.2)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_longer_gradients_are_clipped_and_shorter_ones_are_not(threads_client, store):
    found, result = train(threads_client, store, optimizer=dbdask.sgd(0.1), clip_norm=1.0)
    expected, norms = algorithm_1_1(store, 0.1, clip_norm=1.0)
    every = np.concatenate(norms)
    assert (every > 1.1).any() and (every < 0.9).any()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(result.history["gradient_norm"], root_mean_squares(norms), rtol=1e-4)


def root_mean_squares(norms):
    return [np.sqrt(np.mean(np.square(portion))) for portion in norms]


def test_the_history_notes_staleness_and_gradient_norms(threads_client, store):
    _, result = train(threads_client, store, optimizer=dbdask.sgd(0.1), epochs=2)
    _, norms = algorithm_1_1(store, 0.1, epochs=2)
    history = result.history
    np.testing.assert_allclose(history["gradient_norm"], root_mean_squares(norms), rtol=1e-4)
    np.testing.assert_array_equal(history["step"], np.cumsum([len(portion) for portion in norms]))
    np.testing.assert_array_equal(history["staleness_median"], 0)
    np.testing.assert_array_equal(history["staleness_max"], 0)


def test_validation_by_the_clock(threads_client, store):
    result = dbdask.downpour(
        CountingModel(ROWS, seconds=0.03),
        counted(store),
        client=threads_client,
        optimizer=dbdask.sgd(BATCH),
        batch_size=BATCH,
        replicas=1,
        validation=counted(store).isel(row=slice(0, 20)),
        validate_every="50ms",
        progress=False,
    )
    assert np.isfinite(result.history["validation_loss"]).sum() >= 3  # by epochs it is one


@pytest.mark.parametrize(
    ("value", "interval"),
    [
        (None, (None, None)),
        (4, (4, None)),
        (np.int64(4), (4, None)),
        (np.uint8(4), (4, None)),
        ("50ms", (None, 0.05)),
        (0.5, (None, 0.5)),
        (datetime.timedelta(seconds=4), (None, 4.0)),
    ],
)
def test_whole_numbers_are_minibatches_and_the_rest_is_time(store, value, interval):
    assert validation_interval(value, counted(store)) == interval


@pytest.mark.parametrize("value", [True, np.True_])
def test_validate_every_is_not_a_truth_value(store, value):
    with pytest.raises((TypeError, ValueError), match="validate_every must be"):
        validation_interval(value, counted(store))
