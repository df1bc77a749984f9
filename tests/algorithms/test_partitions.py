"""Replicas that are cut over workers: the same losses, the messages that were counted before."""

import numpy as np
import pytest
from test_downpour import assert_nothing_left, flat, labelled, network, write_store

import dbdask

ROWS = 1200


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("partitions") / "store.zarr", ROWS)


def train(client, store, *, model=None, **options):
    settings = {"optimizer": dbdask.sgd(0.1), "batch_size": 20, "progress": False} | options
    return dbdask.downpour(model or network(), labelled(store), client=client, **settings)


def losses(result):
    return result.history["loss"].values


@pytest.fixture(params=["threads", "processes"])
def client(request, threads_client, process_client):
    return threads_client if request.param == "threads" else process_client


def test_downpour_in_two_parts_goes_where_one_goes(client, store):
    options = {"replicas": 1, "epochs": 2}
    whole = train(client, store, **options)
    parts = train(client, store, partitions=2, **options)
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=1e-5)
    np.testing.assert_allclose(flat(parts), flat(whole), atol=1e-5)
    assert parts.status.reason == "epochs"
    assert_nothing_left(client)


# What is refused


class Own:
    """A model of a user, which has no parts."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(network(), name)


class Buffered(dbdask.Dense):
    """A layer with a buffer."""

    def parameters(self, input_shape):
        mean = dbdask.Parameter("mean", (3,), ("own",), "buffer")
        return [*super().parameters(input_shape), mean]

    def initial(self, input_shape):
        return super().initial(input_shape) | {"mean": dbdask.Constant(0.0)}


def buffered():
    return dbdask.Network(input_shape=(6,), layers=[Buffered(3)], loss="softmax")


REFUSED = {
    "a model of a user": (
        {"model": Own(), "partitions": 2},
        "partitions must be 1 for a model that cannot be cut into parts, got 2 for a Own: only",
    ),
    "layers with buffers": (
        {"model": buffered(), "partitions": 2},
        "partitions must be 1 for a network of layers with buffers.* got 2",
    ),
    "more parts than rows": (
        {"partitions": 9},
        "partitions=9 cannot cut the model: part .* of 9 has no parameters: .* at most 8 parts",
    ),
    "no part": ({"partitions": 0}, "partitions must be at least 1, got 0"),
    "too few shards": (
        {"partitions": 3, "shards": 2},
        "shards must be at least partitions=3, because every shard is inside one part.* got 2",
    ),
}


@pytest.mark.parametrize("verb", [dbdask.downpour, dbdask.sandblaster])
@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_cut_is_refused_before_work_begins(
    threads_client, store, verb, options, message
):
    settings = {"model": network(), "progress": False} | options
    model = settings.pop("model")
    with pytest.raises(ValueError, match=message):
        verb(model, labelled(store), client=threads_client, **settings)
    assert_nothing_left(threads_client)
