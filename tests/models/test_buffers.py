"""Buffers of a model: parameters that are kept with the others, and that no update changes."""

import numpy as np
import pytest
from test_downpour import labelled, write_store

import dbdask
from dbdask.models.layout import Layout, Parameter


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
