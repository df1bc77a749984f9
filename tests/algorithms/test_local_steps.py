"""Steps of a local optimiser, whose displacement is pushed, against a loop in one process."""

import numpy as np
import pytest
from test_algorithm import BATCH, mean_gradient, portions_of, start, store, train  # noqa: F401

import dbdask
from dbdask.errors import TrainingWarning


class Momentum:
    """The local rule in float64, written apart from the library's."""

    def __init__(self, rate, momentum):
        self.rate, self.momentum, self.velocity = rate, momentum, 0.0

    def step(self, parameters, gradient):
        self.velocity = self.momentum * self.velocity + gradient
        return parameters - self.rate * self.velocity


class Exploding:
    """A rule whose steps lead out of the finite numbers."""

    slots = ()

    def update(self, parameters, gradient, slots, step):
        parameters += np.float32(np.inf)


def in_one_process(store, outer_rate, rule, *, n_fetch, n_push, epochs):  # noqa: F811
    """Return the parameters after local steps whose displacements move the outer parameters."""
    parameters = start().astype(np.float64)
    for batches in portions_of(store, epochs):
        local, moved = parameters.copy(), 0.0
        for step, (inputs, labels) in enumerate(batches):
            if step % n_fetch == 0:
                local = parameters.copy()
            stepped = rule.step(local, mean_gradient(local, inputs, labels))
            moved = moved + (local - stepped)
            local = stepped
            if (step + 1) % n_push == 0 or step == len(batches) - 1:
                parameters = parameters - outer_rate * moved
                moved = 0.0
    return parameters


PACES = {1.0: [(1, 1), (4, 4), (3, 2)], 0.5: [(2, 3), (1, 3), (4, 1)]}  # in the short suite
ALL_PACES = [(1, 1), (4, 4), (3, 2), (2, 3), (1, 3), (4, 1)]


@pytest.mark.parametrize(
    ("n_fetch", "n_push", "outer"),
    [
        pytest.param(*paces, outer, marks=() if paces in short else pytest.mark.slow)
        for outer, short in PACES.items()
        for paces in ALL_PACES
    ],
)
def test_the_shards_apply_the_displacement(threads_client, store, n_fetch, n_push, outer):  # noqa: F811
    paces = {"n_fetch": n_fetch, "n_push": n_push, "epochs": 2}
    found, result = train(
        threads_client,
        store,
        optimizer=dbdask.sgd(outer),
        local_optimizer=dbdask.momentum(0.03, momentum=0.8),
        **paces,
    )
    expected = in_one_process(store, outer, Momentum(0.03, 0.8), **paces)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(expected - start()).max() > 0.1
    pushes = sum(-(-len(batches) // n_push) for batches in portions_of(store, 2))
    assert result.history["step"][-1] == sum(len(batches) for batches in portions_of(store, 2))
    assert len(result.history["staleness_median"]) <= pushes


def test_with_plain_outer_descent_one_replica_makes_the_steps_of_one_process(
    threads_client,
    store,  # noqa: F811
):
    """Any rule: its state lasts from one portion, and one epoch, to the next."""
    rule = dbdask.adam(0.02)
    found, _ = train(
        threads_client,
        store,
        optimizer=dbdask.sgd(1.0),
        local_optimizer=rule,
        n_fetch=5,
        n_push=5,
        epochs=2,
    )
    parameters = start()
    slots = {name: np.zeros_like(parameters) for name in rule.slots}
    for step, (inputs, labels) in enumerate(
        batch for batches in portions_of(store, 2) for batch in batches
    ):
        gradient = mean_gradient(parameters, inputs, labels).astype(np.float32)
        rule.update(parameters, gradient, slots, step)
    np.testing.assert_allclose(found, parameters, atol=2e-4)


def test_rests_of_the_run_change_no_bit(threads_client, store, tmp_path):  # noqa: F811
    options = {
        "optimizer": dbdask.nesterov(0.7, momentum=0.9),
        "local_optimizer": dbdask.adam(0.01),
        "n_fetch": 4,
        "n_push": 4,
        "epochs": 2,
    }
    plain, _ = train(threads_client, store, **options)
    checkpoint = str(tmp_path / "run.zarr")
    often, _ = train(threads_client, store, checkpoint=checkpoint, snapshot_every="1ms", **options)
    np.testing.assert_array_equal(plain, often)


def test_a_displacement_that_is_not_finite_is_refused(threads_client, store):  # noqa: F811
    with pytest.warns(TrainingWarning, match="gradients were refused"):
        found, result = train(
            threads_client,
            store,
            optimizer=dbdask.sgd(1.0),
            local_optimizer=Exploding(),
            epochs=1,
            max_refused=3,
        )
    assert result.status.reason == "bad_gradients"
    assert "the displacement by local_optimizer" in result.status.message
    np.testing.assert_array_equal(found, start())


def test_two_ways_of_local_steps_exclude_each_other(threads_client, store):  # noqa: F811
    with pytest.raises(ValueError, match="local_learning_rate is of steps without local_optimizer"):
        train(
            threads_client,
            store,
            local_learning_rate=0.1,
            local_optimizer=dbdask.sgd(0.1),
            n_fetch=2,
        )


@pytest.mark.parametrize(
    ("given", "message"), [(0.1, "local_optimizer must be dbdask.sgd"), (dbdask.sgd, "must be")]
)
def test_a_local_optimizer_is_a_rule(threads_client, store, given, message):  # noqa: F811
    with pytest.raises(TypeError, match=message):
        train(threads_client, store, local_optimizer=given)
