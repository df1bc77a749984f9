"""Losses at the worst moments: the parameters, the history and the status still say the same."""

import asyncio
import os
import signal
import threading
import time
import types
import warnings

import dask
import numpy as np
import pytest
import xarray as xr
from asking import workers_of
from counting import CountingModel, missing_updates
from distributed import Client, LocalCluster
from test_downpour import (
    BadModel,
    assert_nothing_left,
    counted,
    labelled,
    network,
    write_store,
)
from test_leaving import wait_until

import dbdask
from dbdask.algorithms.barrier import Barrier
from dbdask.algorithms.downpour_method import Downpour
from dbdask.errors import ShardLost, Stale, WorkerError
from dbdask.optim.optimizers import sgd
from dbdask.rpc import calls
from dbdask.run.parameter_server import ParameterServer
from dbdask.run.run import Run
from dbdask.run.shard_placement import ShardPlacement
from dbdask.schedule.ledger import Row, ShardProgress
from dbdask.storage import checkpoint
from dbdask.worker.context import contexts_on
from dbdask.worker.initial import FromModel
from dbdask.worker.shard import ParameterShard

ROWS, BATCH, EPOCHS = 600, 20, 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("exact") / "store.zarr", ROWS)


class Losses:
    """Shards are really let go when the algorithm comes to look what is lost.

    Parameters
    ----------
    at
        Which shards are lost in the turn after which record, counted from 1. Those whose turn
        has come are taken out.
    """

    def __init__(self, monkeypatch, at=None):
        self.at, self.next = dict(at or {}), []
        hand_out, conclude = Downpour._hand_out, Run.conclude
        drop_lost = ParameterServer.drop_lost

        def lose_and_hand_out(method, run):
            hand_out(method, run)
            self._lose(len(run.tally.history.records))

        async def lose_and_end(run):
            self._lose(len(run.tally.history.records))
            return await conclude(run)

        async def lose(server, workers):
            lost, self.next = self.next, []
            server.give_up(lost)
            return await drop_lost(server, workers) + len(lost)

        monkeypatch.setattr(Downpour, "_hand_out", lose_and_hand_out)
        monkeypatch.setattr(Run, "conclude", lose_and_end)
        monkeypatch.setattr(ParameterServer, "drop_lost", lose)

    def _lose(self, records):
        due = min(self.at, default=records + 1)
        if due <= records:
            self.next = list(self.at.pop(due))
            raise ShardLost("as if a worker were gone")


def train(client, store, path, mirrors=2, epochs=EPOCHS, **options):
    settings = {
        "snapshot_every": "1h",
        "checkpoint": str(path / "run.zarr"),
        "optimizer": dbdask.sgd(float(BATCH)),
    } | options
    return dbdask.downpour(
        CountingModel(ROWS, mirrors, seconds=0.002),
        counted(store),
        client=client,
        batch_size=BATCH,
        epochs=epochs,
        shards=mirrors,
        progress=False,
        **settings,
    )


def last(result, name):
    return int(result.history[name].values[-1])


def assert_exact(result, client, mirrors, *, rolled_back=None):
    """The counts lack what was rolled back, and every step is counted once."""
    assert result.status.reason == "epochs"
    missing = missing_updates(result, EPOCHS, mirrors, BATCH)
    assert missing == last(result, "rolled_back")
    assert rolled_back is None or (missing > 0) == rolled_back
    assert last(result, "examples") == EPOCHS * ROWS
    assert last(result, "step") == EPOCHS * ROWS // BATCH
    assert_nothing_left(client)


@pytest.mark.parametrize("lost", [[0], [0, 1]])
def test_a_loss_in_the_ending_is_made_good(threads_client, store, tmp_path, monkeypatch, lost):
    losses, conclude, times = Losses(monkeypatch), Run.conclude, []

    async def lose(run):
        times.append(0)
        if len(times) == 1:
            losses.next = lost
            raise ShardLost("as if it died in the ending")
        return await conclude(run)

    monkeypatch.setattr(Run, "conclude", lose)
    result = train(threads_client, store, tmp_path)
    assert_exact(result, threads_client, 2, rolled_back=lost == [0])
    assert last(result, "lost") == len(lost)


@pytest.mark.parametrize(
    ("at", "rolled_back"),
    [
        ({2: [0], 5: [0]}, True),
        ({2: [0], 5: [1]}, True),
        ({2: [0], 5: [0, 1]}, False),
        ({2: [0, 1], 5: [1]}, True),
    ],
)
def test_losses_between_two_snapshots_are_told_once(
    threads_client, store, tmp_path, monkeypatch, at, rolled_back
):
    Losses(monkeypatch, at)
    result = train(threads_client, store, tmp_path)
    assert last(result, "lost") == sum(map(len, at.values()))
    assert_exact(result, threads_client, 2, rolled_back=rolled_back)


@pytest.mark.parametrize(
    ("at", "rolled_back", "pace"),
    [({2: [0], 5: [0]}, True, 1), ({2: [0], 5: [0, 1]}, False, 1), ({2: [0, 1]}, False, 3)],
)
def test_displacements_of_local_steps_count_exactly(
    threads_client, store, tmp_path, monkeypatch, at, rolled_back, pace
):
    Losses(monkeypatch, at)
    rules = {"optimizer": dbdask.sgd(1.0), "local_optimizer": dbdask.sgd(float(BATCH))}
    result = train(threads_client, store, tmp_path, n_fetch=pace, n_push=pace, **rules)
    assert last(result, "lost") == sum(map(len, at.values()))
    assert_exact(result, threads_client, 2, rolled_back=rolled_back)


def test_a_loss_before_a_snapshot_and_one_after_it_are_both_told(
    threads_client, store, tmp_path, monkeypatch
):
    Losses(monkeypatch, {2: [0], 5: [0]})
    result = train(threads_client, store, tmp_path, snapshot_every="20ms")
    assert last(result, "lost") == 2
    assert_exact(result, threads_client, 2)


@pytest.mark.parametrize("survivor", ["lives", "dies too"])
def test_shards_made_anew_are_no_survivors_before_they_have_a_ledger(
    threads_client, store, tmp_path, monkeypatch, survivor
):
    losses, make, failed = Losses(monkeypatch, {3: [0, 1]}), ParameterServer._make, []

    async def fail_once(server, index, initial, worker):
        if not losses.at and index == 1 and not failed:
            failed.append(index)
            losses.next = [2] if survivor == "dies too" else []
            raise ShardLost("as if the worker left while it made the shard")
        return await make(server, index, initial, worker)

    monkeypatch.setattr(ParameterServer, "_make", fail_once)
    result = train(threads_client, store, tmp_path, mirrors=3)
    assert failed
    assert_exact(result, threads_client, 3, rolled_back=survivor == "lives")


def lose_first(monkeypatch, command, lost):
    """The first command of a name reaches no shard, or comes late; returns what was held up."""
    call, held = calls._call, []

    async def disturbed(pool, place, method, arguments, *more):
        name = arguments[{"command": 1, "order": 2}.get(method, 0)] if arguments else ""
        if name == command and lost(arguments) and not held:
            held.append((pool, place, method, arguments))
            raise OSError("the connection broke")
        return await call(pool, place, method, arguments, *more)

    monkeypatch.setattr(calls, "_call", disturbed)
    return call, held


def test_an_epoch_that_a_shard_did_not_hear_of_is_closed_later(
    threads_client, store, tmp_path, monkeypatch
):
    _, held = lose_first(monkeypatch, "close_epochs", lambda arguments: arguments[2] == 1)
    result = train(threads_client, store, tmp_path, snapshot_every="20ms")
    assert held
    assert_exact(result, threads_client, 2, rolled_back=False)


def test_an_order_that_comes_late_is_refused(threads_client, store, tmp_path, monkeypatch):
    call, held = lose_first(monkeypatch, "pause", lambda arguments: arguments[3])
    came, progress = [], []

    async def deliver(run):
        if run.server.generation:  # the run has recovered from what was held up
            progress.append(run.progress)
        if not came and progress and run.progress > progress[0]:
            came.append("late")
            with pytest.raises(calls.MethodRaised) as raised:
                await call(*held[0])
            assert isinstance(raised.value.error, Stale)
        await check(run)

    check = Run.check_background
    monkeypatch.setattr(Run, "check_background", deliver)
    result = train(threads_client, store, tmp_path, snapshot_every="20ms")
    assert came
    assert_exact(result, threads_client, 2, rolled_back=False)


@pytest.mark.parametrize(
    ("order", "arguments"),
    [
        ("pause", [True]),
        ("keep_best", [1]),
        ("restore_best", ["nowhere", "none", False]),
        ("drop_all", []),
        ("copy", [2, False]),
        ("adopt", [[], 7, 0]),
    ],
)
def test_a_shard_refuses_the_orders_of_another_generation(order, arguments):
    async def scenario():
        initial = FromModel(dbdask_model(), 0)
        shard = ParameterShard(0, 16, sgd(1.0), 3, initial)
        await shard.order(1, 3, "copy", 1, True)
        await shard.order(2, 3, order, *arguments)
        with pytest.raises(Stale):
            await shard.order(3, 2, order, *arguments)

    asyncio.run(scenario())


def dbdask_model():
    import cloudpickle

    return cloudpickle.dumps(CountingModel(16))


# Setting up


@pytest.mark.parametrize("algorithm", ["downpour", "sandblaster"])
def test_a_worker_that_leaves_while_shards_are_made_costs_nothing(
    threads_client, store, tmp_path, monkeypatch, algorithm
):
    place, times = ParameterServer.place, []

    async def fail_once(server, count, initial, workers):
        times.append(workers)
        await place(server, count, initial, workers)
        if len(times) == 1:
            raise ShardLost("as if a worker left")

    monkeypatch.setattr(ParameterServer, "place", fail_once)
    if algorithm == "downpour":
        assert_exact(train(threads_client, store, tmp_path), threads_client, 2, rolled_back=False)
    else:
        result = dbdask.sandblaster(
            network(),
            labelled(store),
            client=threads_client,
            iterations=2,
            shards=2,
            progress=False,
        )
        assert result.status.ok
        assert_nothing_left(threads_client)
    assert len(times) == 2


def test_shards_that_can_never_be_made_end_the_run(threads_client, store, tmp_path, monkeypatch):
    times = []

    async def fail(server, count, initial, workers):
        times.append(workers)
        raise ShardLost("as if each worker left")

    monkeypatch.setattr(ParameterServer, "place", fail)
    with pytest.raises(ShardLost, match="as if each worker left"):
        train(threads_client, store, tmp_path)
    assert len(times) == 4
    assert_nothing_left(threads_client)


# The barrier


def test_a_barrier_waits_for_a_worker_that_can_complete_a_portion():
    """It takes in, which looks who is there, and ends where nobody comes for too long."""
    looks = []

    async def take_in():
        looks.append(0)
        if len(looks) == 5:
            raise WorkerError("no worker is left to train on")
        await asyncio.sleep(0)

    async def pause():
        return [ShardProgress([Row(0, 1, 4, 5)], 5), ShardProgress([Row(0, 1, 3, 4)], 4)]

    async def order(name, *arguments):
        return None

    run = types.SimpleNamespace(
        server=types.SimpleNamespace(pause=pause, order=order),
        workforce=types.SimpleNamespace(training=[], late_pushes_possible=False, teams=[]),
        take_in=take_in,
        clock=types.SimpleNamespace(seconds=lambda: 0.0),
    )
    stream = types.SimpleNamespace(epoch=0)
    barrier = Barrier(stream, lambda *order: None)

    async def scenario():
        async with asyncio.timeout(30):
            await barrier.rest(run)

    with pytest.raises(WorkerError, match="no worker is left"):
        asyncio.run(scenario())
    assert len(looks) == 5


# What is left out, and what is refused


@pytest.mark.parametrize("every", ["1h", "20ms"])
def test_what_is_dropped_is_counted_however_often_a_portion_is_stopped(
    threads_client, tmp_path, every
):
    zero = np.zeros(ROWS, np.float32)
    zero[:: BATCH + 1] = np.nan
    path = str(tmp_path / "gaps.zarr")
    index = np.arange(ROWS, dtype=np.float32)
    data = xr.Dataset({"index": ("row", index), "zero": ("row", zero)})
    data.chunk(row=100).to_zarr(path, consolidated=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = dbdask.downpour(
            CountingModel(ROWS, seconds=0.005),
            dbdask.Examples(path, inputs="index", targets="zero", along="row", missing="drop"),
            client=threads_client,
            optimizer=dbdask.sgd(1.0),
            batch_size=BATCH,
            epochs=3,
            progress=False,
            checkpoint=str(tmp_path / "run.zarr"),
            snapshot_every=every,
        )
    missing = int(np.isnan(zero).sum())
    assert last(result, "dropped") == 3 * missing
    assert last(result, "examples") == 3 * (ROWS - missing)


@pytest.mark.parametrize("most", [1, 3])
def test_the_last_record_counts_the_refused_as_the_status_does(threads_client, store, most):
    with pytest.warns(dbdask.TrainingWarning, match="bad_gradients"):
        result = dbdask.downpour(
            BadModel(ROWS),
            counted(store),
            client=threads_client,
            batch_size=BATCH,
            max_refused=most,
            progress=False,
        )
    assert result.status.reason == "bad_gradients"
    assert f"{last(result, 'refused')} gradients were refused" in result.status.message
    assert last(result, "refused") >= most


# A worker that stops while a shard is made on it


@pytest.fixture
def processes():
    short = {
        "dbdask.silence": "500ms",
        "dbdask.ping": "2s",
        "dbdask.answer": "500ms",
        "dbdask.lease": "1s",
    }
    with (
        dask.config.set(short),
        LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.slow
def test_a_shard_is_made_elsewhere_where_its_worker_stops(processes, store, tmp_path, monkeypatch):
    """With the deadline of `placement` as it is: a minute would go by."""
    pids, make, stopped = processes.run(os.getpid), ParameterServer._make, []
    losses = Losses(monkeypatch, {2: [0]})

    async def stop_first(server, index, initial, worker):
        if not losses.at and not stopped:
            stopped.append(worker)
            os.kill(pids[worker], signal.SIGSTOP)
        return await make(server, index, initial, worker)

    monkeypatch.setattr(ParameterServer, "_make", stop_first)
    began = time.monotonic()
    try:
        result = train(processes, store, tmp_path)
    finally:
        for worker in stopped:
            os.kill(pids[worker], signal.SIGCONT)
    assert stopped and time.monotonic() - began < 45
    assert missing_updates(result, EPOCHS, 2, BATCH) == last(result, "rolled_back")
    wait_until(
        lambda: not any(processes.run(contexts_on).values())
    )  # the one that stopped looks too
    wait_until(lambda: not processes.run_on_scheduler(keys_of))  # it makes the shard now, in vain
    assert_nothing_left(processes)
    processes.retire_workers(stopped)
    wait_until(lambda: stopped[0] not in workers_of(processes))


def keys_of(dask_scheduler):
    return list(dask_scheduler.tasks)


# The best, and what has been reached


def labelled_network(client, store, path, **options):
    settings = {"checkpoint": str(path / "run.zarr"), "snapshot_every": "1h", "shards": 2}
    settings["optimizer"] = dbdask.sgd(0.1)
    return dbdask.downpour(
        network(),
        labelled(store),
        client=client,
        batch_size=BATCH,
        validation=labelled(store),
        progress=False,
        **(settings | options),
    )


@pytest.mark.parametrize(
    ("keep", "lost"),
    [
        pytest.param("last", [0], marks=pytest.mark.slow),
        ("last", [0, 1]),
        ("best", [0]),
        ("best", [0, 1]),
    ],
)
def test_after_a_loss_in_the_ending_the_result_is_what_was_validated(
    threads_client, store, tmp_path, monkeypatch, keep, lost
):
    losses, write, times = Losses(monkeypatch), Run.write_end, []

    async def lose(run):
        if run.method.stream.done and not times:
            times.append(0)
            losses.next = lost
            raise ShardLost("as if it died while the last snapshot was written")
        return await write(run)

    monkeypatch.setattr(Run, "write_end", lose)
    result = labelled_network(threads_client, store, tmp_path, epochs=3, keep=keep)
    assert times
    scores = result.history["validation_loss"].values
    scores = scores[np.isfinite(scores)]
    loss = result.evaluate(labelled(store))["loss"]
    if keep == "last" or lost == [0]:  # chosen anew from what is there after the loss
        assert loss == pytest.approx(scores[-1], rel=1e-5)
    assert np.isclose(scores, loss, rtol=1e-5).any()


def test_a_target_that_was_lost_again_is_none(threads_client, store, tmp_path, monkeypatch):
    losses, conclude, times = Losses(monkeypatch), Run.conclude, []

    async def lose(run):
        times.append(run.stop_reason)
        if len(times) == 1:
            losses.next = [0, 1]
            raise ShardLost("as if all died in the ending")
        return await conclude(run)

    monkeypatch.setattr(Run, "conclude", lose)
    target = 0.5
    result = labelled_network(
        threads_client, store, tmp_path, epochs=200, target_loss=target, optimizer=dbdask.sgd(0.5)
    )
    assert times[0] == "target" and result.status.reason == "target"
    assert result.evaluate(labelled(store))["loss"] < 1.2 * target
    assert_nothing_left(threads_client)


def test_a_best_that_is_read_for_long_is_no_newer_one():
    """What a shard reads from the checkpoint may come when the generation is another."""

    async def scenario(monkeypatch):
        shard = ParameterShard(0, 16, sgd(1.0), 3, FromModel(dbdask_model(), 0))
        go_on = threading.Event()

        def read(*arguments):
            assert go_on.wait(60)
            return np.ones(16, np.float32)

        monkeypatch.setattr(checkpoint, "read_slice", read)
        late = asyncio.ensure_future(shard.order(1, 3, "restore_best", "path", "group", True))
        await asyncio.sleep(0)
        await shard.command(2, "advance", 4)
        go_on.set()
        with pytest.raises(Stale):
            await late
        assert "best" not in shard.state.vectors

    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(scenario(monkeypatch))


def test_no_best_is_chosen_while_copies_of_shards_are_made(
    threads_client, store, tmp_path, monkeypatch
):
    """A copy that was made before a choice, and one after it, would hold different ones."""
    make, order, making = ParameterServer._make_all, ParameterServer.order, []

    async def slow(server, plan):
        making.append(True)
        await asyncio.sleep(0.05)
        await make(server, plan)
        making.pop()

    async def watched(server, name, *arguments, **options):
        assert not (name == "keep_best" and making)
        return await order(server, name, *arguments, **options)

    times = []

    def now_and_then(placement):
        times.append(0)
        return len(times) % 4 < 2  # asked twice where copies are made: whether, and then again

    monkeypatch.setattr(ShardPlacement, "lacks_copies", property(now_and_then))
    monkeypatch.setattr(ParameterServer, "_make_all", slow)
    monkeypatch.setattr(ParameterServer, "order", watched)
    result = labelled_network(
        threads_client,
        store,
        tmp_path,
        epochs=2,
        keep="best",
        validate_every=5,
        shard_copies=2,
    )
    assert result.status.reason == "epochs" and len(times) >= 3
    assert_nothing_left(threads_client)
