"""Inputs that `missing="mask"` fills with means: who finds those, and when."""

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import dbdask
from dbdask.data import examples as module
from dbdask.data.moments import measured_means

FUNCTIONS = {
    "downpour": lambda *given, **more: dbdask.downpour(*given, batch_size=10, **more),
    "sandblaster": lambda *given, **more: dbdask.sandblaster(*given, iterations=1, **more),
}


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(processes=False, n_workers=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


class Line:
    """A linear model that cannot be cut into parts."""

    layout = dbdask.Layout([dbdask.Parameter("slopes", (2,), ("f",))])

    def initial_parameters(self, seed, start, stop):
        return np.zeros(stop - start, np.float32)

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        errors = inputs @ parameters - targets.reshape(-1)
        gradient[...] = errors @ inputs
        return 0.5 * float(errors @ errors)

    def predict(self, parameters, inputs):
        return inputs @ parameters


def masked():
    """Return examples with gaps in their inputs, and the mean of those that are there."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 2))
    inputs[::7, 0] = np.nan
    data = xr.Dataset({"x": (("row", "f"), inputs), "y": ("row", rng.normal(size=60))})
    examples = dbdask.Examples(data, inputs="x", targets="y", along="row", missing="mask")
    return examples, np.nanmean(inputs)


@pytest.mark.parametrize("verb", FUNCTIONS)
@pytest.mark.parametrize("validated", [False, True])
def test_the_means_are_found_once_by_the_given_client(client, monkeypatch, verb, validated):
    examples, mean = masked()
    found = []

    def measure(recipe, by=None):
        found.append(by)
        return measured_means(recipe, by)

    monkeypatch.setattr(module, "measured_means", measure)
    result = FUNCTIONS[verb](
        Line(),
        examples,
        client=client,
        progress=False,
        validation=masked()[0] if validated else None,
    )
    kept = result.examples.with_means().recipe.inputs.scaling(0)
    assert found == [client]
    np.testing.assert_allclose(kept.mean, mean, rtol=1e-6)


@pytest.mark.parametrize("verb", FUNCTIONS)
@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"client": 3}, TypeError, "client must be"),
        ({"workers": ["nobody"]}, dbdask.WorkerError, "names no running worker"),
        ({"shard_workers": ["nobody"]}, dbdask.WorkerError, "names no running worker"),
        ({"partitions": 2, "validation": True}, ValueError, "partitions must be 1"),
        ({"checkpoint": "there"}, dbdask.CheckpointError, "exists already"),
        ({"checkpoint": "new", "resume": True}, dbdask.CheckpointError, "does not exist"),
    ],
)
def test_what_is_wrong_is_said_before_the_means_are_looked_for(
    client, monkeypatch, tmp_path, verb, wrong, error, words
):
    train = FUNCTIONS[verb]
    if wrong.get("checkpoint") == "there":
        train(Line(), masked()[0], client=client, progress=False, checkpoint=tmp_path / "there")
    monkeypatch.setattr(module, "measured_means", lambda *_: pytest.fail("values were read"))
    given = {"client": client, "progress": False} | wrong
    if "checkpoint" in wrong:
        given["checkpoint"] = tmp_path / wrong["checkpoint"]
    if "validation" in wrong:
        given["validation"] = masked()[0]
    with pytest.raises(error, match=words):
        train(Line(), masked()[0], **given)


def test_a_check_hands_its_client_on(client, monkeypatch):
    found = []
    monkeypatch.setattr(
        module, "measured_means", lambda recipe, by: found.append(by) or measured_means(recipe, by)
    )
    masked()[0].check(client)
    assert found == [client]
