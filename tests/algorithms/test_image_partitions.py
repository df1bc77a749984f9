"""Image networks that are cut over workers: the same losses, the messages counted before."""

from collections import Counter

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from routing import disturb
from test_downpour import assert_nothing_left
from test_partitions import assert_same

import dbdask
from dbdask.models.exchange_cost import agreement_messages, exchange_cost, messages
from dbdask.models.partition import partition_of
from dbdask.worker.link import ServerLink
from dbdask.worker.share import PartOfGang

ROWS, BATCH, CLASSES = 300, 20, 4
IMAGE = (12, 9, 2)


@pytest.fixture(scope="module")
def three():
    """Three workers of one thread in this process."""
    with (
        LocalCluster(
            processes=False, n_workers=3, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Pictures, whose class says in which quarter of the rows the brightness lies."""
    rng = np.random.default_rng(20)
    labels = rng.integers(0, CLASSES, ROWS)
    pictures = rng.normal(size=(ROWS, *IMAGE))
    quarter = IMAGE[0] // CLASSES
    for picture, label in zip(pictures, labels, strict=True):
        picture[label * quarter : (label + 1) * quarter] += 1.5
    data = xr.Dataset(
        {
            "picture": (("row", "y", "x", "colour"), pictures.astype(np.float32)),
            "label": ("row", labels),
        }
    )
    path = str(tmp_path_factory.mktemp("pictures") / "store.zarr")
    data.chunk(row=50).to_zarr(path, consolidated=False)
    return path


def examples(store):
    return dbdask.Examples(store, inputs="picture", targets="label", along="row")


def network(loss="softmax"):
    layers = [
        dbdask.LocallyConnected(3, 3),
        dbdask.L2Pool(2, stride=1),
        dbdask.LocalContrastNorm(3),
        dbdask.LocallyConnected(4, 3, activation="tanh"),
        dbdask.Dense(CLASSES),
    ]
    return dbdask.Network(input_shape=IMAGE, layers=layers, loss=loss)


def train(client, store, **options):
    settings = {"optimizer": dbdask.sgd(0.05), "batch_size": BATCH, "epochs": 2} | options
    return run_of(dbdask.downpour, client, store, settings)


def minimise(client, store, **options):
    settings = {"l2": 1e-3, "iterations": 5, "tolerance": 0.0, "portion_size": 60} | options
    return run_of(dbdask.sandblaster, client, store, settings)


def run_of(algorithm, client, store, settings):
    common = {"client": client, "replicas": 1, "progress": False}
    return algorithm(network(), examples(store), **common, **settings)


ALGORITHMS = {"downpour": train, "sandblaster": minimise}


@pytest.fixture(scope="module")
def in_one_part(three, store):
    return {name: algorithm(three, store) for name, algorithm in ALGORITHMS.items()}


class Counted:
    """What the parts of a run have exchanged.

    Attributes
    ----------
    carried
        How often each message came: boundary, direction, sender, bytes.
    begun
        Messages with which the first part tells another where a piece of work begins.
    minibatches
        The examples of each minibatch, once for each part.
    pushes
        Pushes of all parts.
    """

    def __init__(self, monkeypatch):
        self.carried, self.minibatches, self.begun, self.pushes = Counter(), [], 0, 0
        minibatch, push = PartOfGang.minibatch, ServerLink.start_push

        def of_minibatch(share, parameters, batch, *arguments, **options):
            self.minibatches.append(len(batch.inputs))
            return minibatch(share, parameters, batch, *arguments, **options)

        def of_push(*arguments):
            self.pushes += 1
            return push(*arguments)

        monkeypatch.setattr(PartOfGang, "minibatch", of_minibatch)
        monkeypatch.setattr(ServerLink, "start_push", of_push)

    def start(self, way, place, call, sent, into):
        """Start a call, as `routing.disturb` asks for."""
        if call.method == "deliver":
            (*_, boundary, direction, sender), _, _, few = call.arguments
            size = (few if sent is None else sent).nbytes
            if direction == "begin":
                self.begun += 1
            else:
                self.carried[boundary, direction, sender, size] += 1
        return way.start(call, sent, into)

    def of_steps(self, parts, batch_size):
        """What `messages` counts for all minibatches of a run, as `carried` has it."""
        cut, found = partition_of(network(), parts, batch_size).cut, Counter()
        for count, times in Counter(self.minibatches).items():
            assert times % parts == 0
            for boundary, direction, sender, _, size in messages(network(), cut, count):
                found[boundary, direction, sender, size] += times // parts
        return found


@pytest.fixture
def counted(request, monkeypatch):
    found = Counted(monkeypatch)
    request.addfinalizer(disturb(found.start))
    return found


BATCH_SIZES = {"downpour": BATCH, "sandblaster": 60}


@pytest.mark.parametrize("parts", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_parts_of_an_image_network_go_where_one_goes_with_the_messages_that_were_counted(
    three, store, in_one_part, counted, algorithm, parts
):
    result = ALGORITHMS[algorithm](three, store, partitions=parts)
    assert_same(result, in_one_part[algorithm])
    batch_size = BATCH_SIZES[algorithm]
    expected = counted.of_steps(parts, batch_size)
    assert counted.carried == expected
    assert len({boundary for boundary, *_ in expected if boundary}) >= 2  # a halo, and all of it
    steps = len(counted.minibatches) // parts
    assert steps >= ROWS * 2 // batch_size
    cut = partition_of(network(), parts, batch_size).cut
    costs = [exchange_cost(network(), cut, count) for count in counted.minibatches]
    assert parts * counted.carried.total() == sum(cost.messages for cost in costs)
    carried = sum(size * times for (*_, size), times in counted.carried.items())
    assert parts * carried == sum(cost.size for cost in costs)
    assert counted.begun % (parts - 1) == 0 and counted.begun < steps * (parts - 1)
    assert_nothing_left(three)


@pytest.mark.parametrize("n_push", [1, 3])
def test_a_push_of_local_steps_costs_one_agreement_more(three, store, counted, n_push):
    parts = 3
    paces = {"n_fetch": n_push, "n_push": n_push, "local_optimizer": dbdask.sgd(0.05)}
    train(three, store, partitions=parts, optimizer=dbdask.sgd(1.0), **paces)
    agreements = Counter()
    for boundary, direction, sender, _, size in agreement_messages(parts):
        agreements[boundary, direction, sender, size] += counted.pushes // parts
    assert counted.pushes % parts == 0
    assert n_push * counted.pushes >= len(counted.minibatches) > 0
    assert agreements.total() == 2 * counted.pushes
    assert counted.carried == counted.of_steps(parts, BATCH) + agreements


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_the_parts_are_compared_with_has_learnt(in_one_part, algorithm):
    losses = in_one_part[algorithm].history["loss"].values
    losses = losses[np.isfinite(losses)]
    assert losses[-1] < 0.9 * losses[0]
