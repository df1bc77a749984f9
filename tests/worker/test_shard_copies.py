"""Copies of shards: what a lost worker held goes on elsewhere, and nothing goes back."""

import asyncio
import logging
import os
import pickle
import signal

import numpy as np
import pytest
from acting import After, SlowUntil, touch
from counting import CountingModel
from distributed import Client, LocalCluster
from faults import holders
from test_downpour import assert_nothing_left, counted, flat, network, write_store
from test_leaving import addresses, train_while, wait_until
from test_recovery import assert_workers_run_tasks, kill_a_shard
from test_sandblaster import assert_counted_once, count
from test_sandblaster import train as minimise

import dbdask
from dbdask.optim.optimizers import adagrad
from dbdask.optim.vectors import Fill, Scale
from dbdask.worker.batch_shard import BatchShard
from dbdask.worker.initial import FromModel
from dbdask.worker.link import together
from dbdask.worker.shard import Acknowledgement, ParameterShard

ROWS = 1200


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("copies") / "store.zarr")


@pytest.fixture
def cluster():
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client


def from_model():
    return FromModel(pickle.dumps(CountingModel(6)), 0)


def copy_of(shard):
    """A shard made from another one's whole state, as it is over a wire."""
    state = pickle.loads(pickle.dumps(asyncio.run(shard.whole_state())))
    return type(shard)(shard.start, shard.stop, shard.optimizer, 1, lambda *_: state)


def test_a_copy_has_applied_what_its_shard_has_and_knows_a_repeat():
    shard = ParameterShard(0, 6, adagrad(0.1), 0, from_model())

    shard.push((0, 0, 0), 0, np.ones(6, np.float32))
    asyncio.run(shard.order(1, 0, "copy", 3, True))
    shard.push((0, 0, 1), 1, np.ones(6, np.float32))
    copied = copy_of(shard)
    for name, vector in shard.state.vectors.items():
        np.testing.assert_array_equal(copied.state.vectors[name], vector)
        assert copied.state.vectors[name].flags.writeable
    assert copied.state.copies[3].applied == 1
    repeat = copied.push((0, 0, 1), 1, np.ones(6, np.float32))
    assert repeat.staleness == -1 and repeat.version == 2


def test_a_copy_does_not_do_again_what_its_shard_was_commanded():
    shard = BatchShard(0, 6, adagrad(0.1), 0, from_model())
    asyncio.run(shard.command(1, "carry_out", [Fill("x", 3.0)]))
    asyncio.run(shard.command(2, "carry_out", [Scale("x", 2.0)]))
    copied = copy_of(shard)
    asyncio.run(copied.command(2, "carry_out", [Scale("x", 2.0)]))
    np.testing.assert_array_equal(copied.state.vectors["x"], 6.0)
    asyncio.run(copied.command(3, "carry_out", [Scale("x", 2.0)]))
    np.testing.assert_array_equal(copied.state.vectors["x"], 12.0)


def test_a_copy_goes_on_with_the_pass_that_is_open():
    shard = BatchShard(0, 6, adagrad(0.1), 1, from_model())
    ones = np.ones(6, np.float32)
    asyncio.run(shard.order(1, 1, "open_pass", 4, []))
    assert shard.contribute(4, 0, ones)
    copied = copy_of(shard)
    assert not copied.contribute(4, 0, ones)
    assert copied.contribute(4, 1, ones)
    asyncio.run(copied.command(2, "close_pass", 4, 2, 2.0, "gradient", []))
    np.testing.assert_array_equal(copied.state.vectors["gradient"], 1.0)


def test_a_command_under_way_ends_before_the_state_is_copied():
    shard = BatchShard(0, 6, adagrad(0.1), 0, from_model())

    async def live():
        await shard.command(1, "carry_out", [Fill("x", 3.0)])
        scaling = asyncio.ensure_future(shard.command(2, "carry_out", [Scale("x", 2.0)]))
        await asyncio.sleep(0)  # it has begun, and is not remembered yet
        state = await shard.whole_state()
        await scaling
        return state

    state = asyncio.run(live())
    assert 2 in state.answers
    np.testing.assert_array_equal(state.vectors["x"], 6.0)


def test_what_copies_acknowledge_is_one_answer():
    first, behind = Acknowledgement(9, 2, False), Acknowledgement(7, 0, True)
    assert together([first, behind]) == Acknowledgement(9, 2, True)
    repeat = Acknowledgement(9, -1, False)
    assert together([first, repeat]).staleness == together([repeat, first]).staleness == -1


def test_with_copies_the_numbers_are_those_of_one_copy(cluster, store):
    _, client = cluster
    results = [
        dbdask.downpour(
            CountingModel(ROWS),
            counted(store),
            client=client,
            optimizer=dbdask.sgd(20.0),
            batch_size=20,
            epochs=2,
            shards=3,
            shard_copies=copies,
            progress=False,
        )
        for copies in (1, 2)
    ]
    np.testing.assert_array_equal(*(flat(result) for result in results))
    assert "shard_copies" not in results[0].history
    assert (results[1].history["shard_copies"] == 2).all()
    assert_nothing_left(client)


@pytest.mark.chaos
def test_with_one_worker_the_run_goes_on_without_copies_and_makes_them_when_one_comes(
    store, caplog
):
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
        caplog.at_level(logging.WARNING, "dbdask"),
    ):
        result = train_while(client, store, lambda: cluster.scale(2), epochs=20, shard_copies=2)
        copies = result.history["shard_copies"].values
        assert copies[0] == 1 and copies[-1] == 2
        assert "goes on with 1 until a worker comes" in caplog.text
        np.testing.assert_array_equal(result.parameters["count"].values, 20)
        assert_nothing_left(client)


@pytest.mark.chaos
def test_a_worker_may_leave_though_no_other_can_take_its_copies(cluster, store):
    local, client = cluster
    local.scale(2)
    wait_until(lambda: len(addresses(client)) == 2)

    def retire():
        worker = holders(client)[0]
        client.retire_workers([worker])
        wait_until(lambda: worker not in addresses(client))

    result = train_while(client, store, retire, epochs=12, shard_copies=2)
    np.testing.assert_array_equal(result.parameters["count"].values, 12)
    assert result.history["lost"].values[-1] == 0
    assert result.history["shard_copies"].values[-1] == 1


@pytest.mark.slow
def test_a_killed_copy_takes_no_pass_of_sandblaster_back(cluster, store, tmp_path):
    _, client = cluster
    iterations, killed, over = [], [], str(tmp_path / "over")

    def kill(record):
        iterations.append(record.iteration)
        is_whole = record.lost >= len(killed) and record.shard_copies == 2  # again
        if record.iteration >= 3 + 5 * len(killed) and is_whole and len(killed) < 2:
            killed.append(kill_a_shard(client))
            if len(killed) == 2:
                touch(over)

    whole = minimise(client, store, shards=2, iterations=14, tolerance=0.0)
    result = minimise(
        client,
        store,
        shards=2,
        shard_copies=2,
        iterations=14,
        tolerance=0.0,
        model=SlowUntil(network(), over, 5, 0.3),
        callbacks=[kill],
    )
    assert iterations == list(range(iterations[0], 15))  # each once: nothing went back
    assert result.history["lost"].values[-1] >= 2
    assert result.history["rolled_back"].values[-1] == 0
    losses = [r.history["loss"].values[-1] for r in (whole, result)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert_nothing_left(client)
    assert_workers_run_tasks(client)


def test_a_pass_counts_once_while_a_copy_is_killed(cluster, store):
    _, client = cluster

    def kill():
        for process in client.run(os.getpid, workers=holders(client)[:1]).values():
            os.kill(process, signal.SIGKILL)

    result = count(
        client,
        store,
        seconds=0.02,
        brake=0.3,
        shards=2,
        shard_copies=2,
        callbacks=[After(1, kill)],
        iterations=6,
    )
    assert_counted_once(result)
    assert result.history["lost"].values[-1] >= 1
    assert_nothing_left(client)
