"""Buffers of a model: parameters that are kept with the others, and that no update changes."""

import threading

import numpy as np
import pytest
from test_downpour import labelled, write_store

import dbdask
from dbdask.models.layout import Layout, Parameter
from dbdask.schedule.ledger import Ledger
from dbdask.worker.shard import ParameterShard
from dbdask.worker.shard_state import ShardState


class Scaled:
    """Softmax regression on inputs that are divided by a deviation, a buffer in the middle."""

    loss = "softmax"

    def __init__(self):
        self.network = dbdask.Network(input_shape=(6,), layers=[dbdask.Dense(3)], loss="softmax")
        self.layout = Layout(
            (
                Parameter("weights", (18,), ("weight",)),
                Parameter("deviation", (6,), ("feature",), "buffer"),
                Parameter("bias", (3,), ("output",)),
            )
        )

    def initial_parameters(self, seed, start, stop):
        whole = np.zeros(27, np.float32)
        whole[18:24] = np.arange(1, 7)
        return whole[start:stop]

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        inner = np.concatenate([parameters[:18], parameters[24:]])
        slope = np.empty_like(inner)
        loss = self.network.loss_and_gradient(
            inner, inputs / parameters[18:24], targets, weights=weights, gradient=slope
        )
        gradient[:18], gradient[18:24], gradient[24:] = slope[:18], 99.0, slope[18:]
        return loss

    def predict(self, parameters, inputs):
        inner = np.concatenate([parameters[:18], parameters[24:]])
        return self.network.predict(inner, inputs / parameters[18:24])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("buffers") / "store.zarr")


@pytest.mark.parametrize("shards", [1, 4])
def test_no_rule_changes_a_buffer(threads_client, store, shards):
    for optimizer in (dbdask.sgd(0.1, weight_decay=0.1), dbdask.adam(0.1, weight_decay=0.1)):
        result = dbdask.downpour(
            Scaled(),
            labelled(store),
            client=threads_client,
            optimizer=optimizer,
            batch_size=20,
            shards=shards,
            progress=False,
        )
        parameters = result.parameters
        np.testing.assert_array_equal(parameters["deviation"], np.arange(1, 7))
        assert np.abs(parameters["weights"]).max() > 0 and np.abs(parameters["bias"]).max() > 0
        assert set(np.unique(result.predict(store))) <= {0, 1, 2}


def test_sandblaster_leaves_buffers_alone_and_refuses_to_penalise_them(threads_client, store):
    options = {"client": threads_client, "progress": False, "iterations": 5, "shards": 2}
    result = dbdask.sandblaster(Scaled(), labelled(store), **options)
    np.testing.assert_array_equal(result.parameters["deviation"], np.arange(1, 7))
    losses = result.history["loss"].values
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match=r"l2 must be 0 .* buffers.* got 0\.1"):
        dbdask.sandblaster(Scaled(), labelled(store), l2=0.1, **options)


class Averaging(Scaled):
    """Counts its minibatches, and averages its inputs, in the buffer; spoils one if asked to."""

    def __init__(self, spoiled=-1):
        super().__init__()
        self.spoiled, self.held = spoiled, threading.local()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "held"}

    def __setstate__(self, state):
        vars(self).update(state, held=threading.local())

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        buffer = parameters[18:24].copy()
        buffer[0] += 1
        buffer[1:] = 0.9 * buffer[1:] + 0.1 * inputs[:, 1:].std(axis=0)
        if buffer[0] == self.spoiled:
            buffer[1] = np.nan
        self.held.changed = {"deviation": buffer}
        return super().loss_and_gradient(
            parameters, inputs, targets, weights=weights, seed=seed, gradient=gradient
        )

    def updated_buffers(self):
        return self.held.changed


def in_a_loop(store, epochs, batch_size=20):
    """Return what a serial loop makes of the buffer."""
    found, steps = np.arange(1, 7, dtype=np.float32), 0
    for epoch in range(epochs):
        for inputs, _, _ in labelled(store).minibatches(batch_size, epoch=epoch):
            found[0] += 1
            found[1:] = 0.9 * found[1:] + 0.1 * inputs[:, 1:].std(axis=0)
            steps += 1
    return found, steps


@pytest.mark.parametrize("options", [{}, {"shards": 5}, {"n_push": 3, "n_fetch": 3}])
def test_with_one_replica_buffers_are_those_of_a_serial_loop(threads_client, store, options):
    result = dbdask.downpour(
        Averaging(),
        labelled(store),
        client=threads_client,
        optimizer=dbdask.adam(0.01, weight_decay=0.1),
        batch_size=20,
        epochs=2,
        replicas=1,
        shard_copies=2,
        progress=False,
        **options,
    )
    wanted, steps = in_a_loop(store, 2)
    found = result.parameters["deviation"].values
    if not options.get("n_fetch"):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    # A fetch beside a minibatch brings buffers without what that minibatch changed.
    assert steps // 2 <= found[0] - 1 <= steps


def test_a_buffer_that_is_not_finite_is_refused_and_named(threads_client, store):
    with pytest.warns(dbdask.TrainingWarning, match="deviation"):
        result = dbdask.downpour(
            Averaging(spoiled=9),
            labelled(store),
            client=threads_client,
            batch_size=20,
            replicas=1,
            max_refused=3,
            progress=False,
        )
    assert result.status.reason == "bad_gradients"
    assert np.isfinite(result.parameters["deviation"]).all()
    assert result.parameters["deviation"].values[0] == 8


def test_a_push_that_comes_twice_changes_buffers_once():
    def initial(start, stop, optimizer):
        return ShardState({"parameters": np.zeros(stop - start, np.float32)}, 0, Ledger())

    shard = ParameterShard(4, 12, dbdask.sgd(1.0), 0, initial, [(0, 6), (10, 20)], [(6, 10)])
    shard.push((0, 0, 0), 0, np.arange(8, dtype=np.float32))
    shard.push((0, 0, 0), 0, np.full(8, 99, np.float32))
    held = shard.state.vectors["parameters"]
    assert held.tolist() == [0, -1, 2, 3, 4, 5, -6, -7]
