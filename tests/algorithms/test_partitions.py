"""Replicas that are cut over workers: the same losses, the messages that were counted before."""

from collections import Counter

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from routing import disturb
from test_downpour import assert_nothing_left, flat, labelled, network, write_store

import dbdask
from dbdask.models.exchange_cost import messages
from dbdask.models.partition import partition_of
from dbdask.rpc.same_host import SameHost
from dbdask.rpc.transport import DaskConnection
from dbdask.worker.peers import Peers
from dbdask.worker.share import PartOfGang

ROWS, BATCH = 600, 20


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("partitions") / "store.zarr", ROWS)


@pytest.fixture(params=["threads", "processes"])
def client(request, threads_client, process_client):
    return threads_client if request.param == "threads" else process_client


@pytest.fixture(params=["threads", pytest.param("processes", marks=pytest.mark.slow)])
def seldom(request, threads_client, process_client):
    """Threads; in the long suite processes as well."""
    return threads_client if request.param == "threads" else process_client


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


def train(client, store, *, model=None, **options):
    settings = {"optimizer": dbdask.sgd(0.1), "batch_size": BATCH, "progress": False} | options
    return dbdask.downpour(model or network(), labelled(store), client=client, **settings)


def minimise(client, store, **options):
    settings = {"l2": 1e-3, "iterations": 6, "tolerance": 0.0, "progress": False} | options
    return dbdask.sandblaster(network(), labelled(store), client=client, **settings)


def losses(result):
    found = result.history["loss"].values
    return found[np.isfinite(found)]


def assert_same(result, other, tolerance=1e-5):
    np.testing.assert_allclose(losses(result), losses(other), rtol=tolerance)
    np.testing.assert_allclose(flat(result), flat(other), atol=tolerance)


# The same as without parts


def test_downpour_in_two_parts_goes_where_one_goes(client, store):
    options = {"replicas": 1, "epochs": 2}
    parts = train(client, store, partitions=2, **options)
    assert_same(parts, train(client, store, **options))
    assert parts.status.reason == "epochs"
    assert parts.history["replicas"].values[-1] == 1
    assert parts.history["seconds_exchanging"].values[-1] > 0
    assert_nothing_left(client)


PACES = [
    {"n_fetch": 2, "n_push": 3},
    {"optimizer": dbdask.adagrad(0.1), "clip_norm": 0.1, "shards": 5},
    {"optimizer": dbdask.sgd(1.0), "local_optimizer": dbdask.sgd(0.1), "n_fetch": 3, "n_push": 3},
]


@pytest.mark.parametrize("pace", PACES, ids=["paces", "clipped", "local steps"])
def test_downpour_in_three_parts_goes_where_one_goes(three, store, pace):
    options = {"replicas": 1, "epochs": 1} | pace
    whole, parts = (train(three, store, partitions=n, **options) for n in (1, 3))
    assert_same(parts, whole)
    assert_nothing_left(three)


@pytest.fixture(scope="module")
def minimised(three, store):
    """L-BFGS without parts."""
    return minimise(three, store, replicas=1)


def test_sandblaster_in_two_parts_goes_where_one_goes(seldom, store, minimised):
    parts = minimise(seldom, store, partitions=2, replicas=1)
    assert_same(parts, minimised)
    assert_nothing_left(seldom)


def test_sandblaster_in_three_parts_goes_where_one_goes(three, store, minimised):
    parts = minimise(three, store, partitions=3, replicas=1)
    assert_same(parts, minimised)
    assert_nothing_left(three)


# Messages


@pytest.mark.parametrize("parts", [2, 3])
def test_messages_and_bytes_of_a_step_are_those_that_were_counted(
    three, store, request, parts, monkeypatch
):
    carried, steps = [], []

    def start(way, place, call, sent, into):
        if call.method == "deliver":
            address, _, _, few = call.arguments
            carried.append((*address[4:7], (few if sent is None else sent).nbytes))
        return way.start(call, sent, into)

    begin = Peers.begin_step

    def count(peers):
        steps.append(peers.member.index)
        begin(peers)

    monkeypatch.setattr(Peers, "begin_step", count)
    request.addfinalizer(disturb(start))
    result = train(three, store, partitions=parts, batch_size=40, replicas=1)
    in_steps = [message for message in carried if message[1] != "begin"]
    count_of_steps = int(result.history["step"].values[-1])
    assert count_of_steps == ROWS // 40 and len(steps) == parts * count_of_steps
    cut = partition_of(network(), parts, 40).cut
    expected = [(m[0], m[1], m[2], m[4]) for m in messages(network(), cut, 40)]
    assert sorted(in_steps) == sorted(expected * count_of_steps)


# Rule 23


def test_the_first_part_alone_asks_what_was_applied(three, store, monkeypatch):
    """The shards of every part, of each of them once a portion."""
    asked, plain = [], PartOfGang.begin

    def begin(share, portion):
        before = share._everything.progress
        share._everything.progress = lambda *a: asked.append((share.index, portion)) or before(*a)
        share.link.progress = lambda *a: pytest.fail("a part asks its own shards")
        return plain(share, portion)

    monkeypatch.setattr(PartOfGang, "begin", begin)
    train(three, store, partitions=3, replicas=1)
    assert asked and {index for index, _ in asked} == {0}
    assert len(set(asked)) == len(asked)


# Snapshots


RULE = {"optimizer": dbdask.adagrad(0.1), "replicas": 1}


@pytest.fixture(scope="module")
def unbroken(three, store):
    """Two epochs without parts."""
    return train(three, store, epochs=2, **RULE)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3), (3, 2)])
def test_a_run_is_resumed_with_another_cut(three, store, tmp_path, unbroken, before, after):
    path = str(tmp_path / "run.zarr")
    train(three, store, epochs=1, partitions=before, checkpoint=path, **RULE)
    again = train(three, store, epochs=2, partitions=after, checkpoint=path, resume=True, **RULE)
    assert_same(again, unbroken)


@pytest.mark.parametrize(("before", "after"), [(3, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_history_of_curvature_is_resumed_with_another_cut(
    three, store, tmp_path, minimised, before, after
):
    path = str(tmp_path / "run.zarr")
    options = {"checkpoint": path, "replicas": 1}
    minimise(three, store, iterations=3, partitions=before, **options)
    again = minimise(three, store, partitions=after, resume=True, **options)
    assert_same(again, minimised, 1e-3)


def test_snapshots_under_way_change_nothing(three, store, tmp_path):
    options = {"replicas": 1, "epochs": 2, "partitions": 3}
    plain = train(three, store, **options)
    snapshots = {"checkpoint": str(tmp_path / "run.zarr"), "snapshot_every": "20ms"}
    paused = train(three, store, **options, **snapshots)
    np.testing.assert_array_equal(flat(plain), flat(paused))


# However messages and data travel


@pytest.mark.parametrize("way", ["same-host", pytest.param("dask", marks=pytest.mark.slow)])
def test_each_transport_gives_the_same_to_the_bit(process_client, threads_client, store, way):
    options = {"replicas": 1, "partitions": 2}
    direct = train(threads_client, store, **options)
    with dask.config.set({"dbdask.transport": way}):
        process_client.run(dask.config.set, {"dbdask.transport": way})
        try:
            other = train(process_client, store, **options)
        finally:
            process_client.run(dask.config.set, {"dbdask.transport": "auto"})
    np.testing.assert_array_equal(flat(direct), flat(other))


def watch():
    """Count, in a worker's process, by which way messages of parts go."""
    SEEN.clear()
    for kind in (DaskConnection, SameHost):
        PLAIN[kind] = kind.start

        def start(way, request, sent=None, into=None, kind=kind):
            if request.method == "deliver":
                SEEN[kind.__name__] += 1
            return PLAIN[kind](way, request, sent, into)

        kind.start = start


def seen():
    """Return the counts, and count no more."""
    for kind, start in PLAIN.items():
        kind.start = start
    return dict(SEEN)


SEEN, PLAIN = Counter(), {}


def test_parts_in_processes_of_one_host_share_memory(process_client, store):
    layers = [dbdask.Dense(300, "tanh"), dbdask.Dense(3)]  # of which messages are large
    model = dbdask.Network(input_shape=6, layers=layers, loss="softmax")
    process_client.run(watch)
    try:
        train(process_client, store, model=model, partitions=2, replicas=1)
    finally:
        counts = process_client.run(seen)
    steps = ROWS // BATCH
    assert [count["SameHost"] >= 4 * steps for count in counts.values()] == [True, True]
    assert not any("DaskConnection" in count for count in counts.values())


@pytest.mark.parametrize("route", ["dask", "memory"])
def test_data_that_dask_brings_reach_every_part(threads_client, store, route):
    data = xr.open_zarr(store, consolidated=False)
    data = data.load() if route == "memory" else data
    examples = dbdask.Examples(data, inputs="x", targets="label", along="row")
    result = dbdask.downpour(
        network(),
        examples,
        client=threads_client,
        optimizer=dbdask.sgd(0.1),
        batch_size=BATCH,
        replicas=1,
        partitions=2,
        progress=False,
    )
    assert_same(result, train(threads_client, store, replicas=1))
    assert_nothing_left(threads_client)


# What comes with a run


def test_the_best_by_validation_are_the_models_own_parameters(seldom, store):
    held_out = labelled(store).isel(row=slice(500, 600))
    result = train(
        seldom, store, partitions=2, epochs=3, validation=held_out, keep="best", shard_copies=2
    )
    best = np.nanmin(result.history["validation_loss"].values)
    assert result.evaluate(held_out)["loss"] == pytest.approx(best, rel=1e-5)
    assert_nothing_left(seldom)


def test_a_run_begins_with_the_parameters_of_another(three, store):
    first = train(three, store, replicas=1)
    whole, parts = (train(three, store, replicas=1, parameters=first, partitions=n) for n in (1, 3))
    assert_same(parts, whole)


# Memory


def test_a_model_that_fits_no_worker_trains_on_two(store, monkeypatch):
    """Its replica and its shards are counted for the part that a worker holds."""
    monkeypatch.setattr("dbdask.run.preflight.PROCESS_BYTES", 0)
    layers = [dbdask.Dense(256, "tanh"), dbdask.Dense(256, "tanh"), dbdask.Dense(3)]
    model = dbdask.Network(input_shape=6, layers=layers, loss="softmax")
    one = 4 * model.parameter_count
    share = 3 * one / 2 + 2 * one / 2  # parameters, gradient, those that arrive; shard and a copy
    free = {f"distributed.worker.memory.{name}": False for name in ("spill", "pause", "target")}
    with (
        dask.config.set(free),
        LocalCluster(
            processes=False,
            n_workers=2,
            threads_per_worker=1,
            memory_limit=int(1.05 * share),
            dashboard_address=":0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        named = "does not fit worker .* cut a replica over 2 or more of them with partitions=$"
        with pytest.raises(ValueError, match=named):
            train(client, store, model=model, replicas=1)
        result = train(client, store, model=model, partitions=2, replicas=1)
        assert result.status.ok


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


@pytest.mark.parametrize("algorithm", [dbdask.downpour, dbdask.sandblaster])
@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_cut_is_refused_before_work_begins(
    threads_client, store, algorithm, options, message
):
    settings = {"model": network(), "progress": False} | options
    model = settings.pop("model")
    with pytest.raises(ValueError, match=message):
        algorithm(model, labelled(store), client=threads_client, **settings)
    assert_nothing_left(threads_client)
