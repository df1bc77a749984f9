"""Sandblaster: exact passes, whatever happens to workers, and the same end as in one process."""

import os
import pickle
import signal
from contextlib import nullcontext

import numpy as np
import pytest
import xarray as xr
from acting import After, SlowUntil, over, touch
from counting import CountingModel
from distributed import Client, LocalCluster
from test_downpour import assert_nothing_left, counted, flat, labelled, network, write_store
from test_leaving import addresses, shard_workers, wait_until
from test_recovery import assert_workers_run_tasks, kill_a_shard

import dbdask
from dbdask.algorithms.gradient_pass import GradientPass
from dbdask.algorithms.sandblaster_method import Sandblaster
from dbdask.errors import ShardLost, Stale
from dbdask.optim.lbfgs import Settings
from dbdask.optim.serial import minimise_array
from dbdask.storage import checkpoint
from dbdask.worker.context import close_context, contexts_on
from dbdask.worker.link import ServerLink

ROWS = 1200


class LinearCounting(CountingModel):
    """The loss is minus the sum of the examples' parameters.

    With l2 = 1 / examples the minimum is at the number of times that a pass counts each example:
    one, where every pass is exact.
    """

    def __init__(self, examples, seconds=0.0):
        super().__init__(examples)
        self.seconds = seconds

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        # In slices, so that a stopped process is late by as long as it was stopped.
        import time

        for _ in range(int(self.seconds / 0.001)):
            time.sleep(0.001)
        super().loss_and_gradient(
            parameters, inputs, targets, weights=weights, seed=seed, gradient=gradient
        )
        return -float(parameters[inputs.reshape(-1).astype(np.int64)].sum())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("sandblaster") / "store.zarr")


@pytest.fixture(params=["threads", "processes"])
def client(request, threads_client, process_client):
    return threads_client if request.param == "threads" else process_client


@pytest.fixture
def cluster():
    with (
        LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def count(client, store, *, seconds=0.0, brake=0.1, **options):
    """Count by minimising; slowly until an `After` among the callbacks has acted."""
    settings = {"l2": 1 / ROWS, "portion_size": 50, "progress": False, "tolerance": 1e-9}
    model = SlowUntil(LinearCounting(ROWS, seconds), over(options.get("callbacks", ())), 16, brake)
    return dbdask.sandblaster(model, counted(store), client=client, **(settings | options))


def assert_counted_once(result):
    np.testing.assert_allclose(result.parameters["count"].values, 1.0, rtol=1e-5)


def train(client, store, *, model=None, **options):
    settings = {"progress": False, "l2": 1e-3, "iterations": 20}
    model = model or network()
    return dbdask.sandblaster(model, labelled(store), client=client, **(settings | options))


def test_a_lone_replica_is_the_same_to_the_bit(client, store):
    options = {"replicas": 1, "portion_size": 37, "iterations": 6}
    first, second = (train(client, store, **options) for _ in range(2))
    np.testing.assert_array_equal(flat(first), flat(second))
    for name in ("loss", "bundles"):
        np.testing.assert_array_equal(first.history[name], second.history[name])


def objective(store, l2):
    """The objective in one process, over all examples at once."""
    data = xr.open_zarr(store, consolidated=False).load()
    model, inputs = network(), data["x"].values
    labels = data["label"].values.astype(np.int64)

    def evaluate(x):
        gradient = np.empty_like(x)
        loss = model.loss_and_gradient(x, inputs, labels, weights=None, gradient=gradient)
        gradient = gradient / np.float32(ROWS) + np.float32(l2) * x
        return loss / ROWS + l2 / 2 * float(x @ x), gradient.astype(np.float32)

    return evaluate


def test_it_goes_where_the_same_method_goes_in_one_process(client, store):
    result = train(client, store, shards=2, iterations=8, tolerance=0.0)
    start = network().initial_parameters(0, 0, network().parameter_count)
    point, state, _ = minimise_array(
        objective(store, 1e-3), start, Settings(iterations=8, tolerance=0.0, l2=0.0)
    )
    np.testing.assert_allclose(flat(result), point, atol=2e-3)
    assert result.history["loss"].values[-1] == pytest.approx(state.loss, rel=1e-4)
    assert result.status.reason == "iterations" and result.status.ok
    assert result.history["iteration"].values[-1] == 8
    assert_nothing_left(client)


@pytest.mark.parametrize(("workers", "portion_size"), [(1, 1200), (2, 70), (4, 128), (4, 33)])
def test_the_gradient_of_a_pass_is_that_of_one_process(
    store, tmp_path, threads_client, workers, portion_size
):
    path = str(tmp_path / "run.zarr")
    train(
        threads_client,
        store,
        replicas=workers,
        portion_size=portion_size,
        shards=3,
        tolerance=1e9,
        checkpoint=path,
    )
    group = checkpoint.latest(path).group
    size = network().parameter_count
    found = checkpoint.read_slice(path, group, "gradient", 0, size)
    x = checkpoint.read_slice(path, group, "parameters", 0, size)
    np.testing.assert_allclose(found, objective(store, 1e-3)(x)[1], atol=3e-7)


@pytest.mark.parametrize(
    ("client", "options"),
    [
        ("processes", {}),
        ("threads", {"replicas": 5}),
        # The same of each pass by itself: test_pass.
        pytest.param("threads", {}, marks=pytest.mark.slow),
        pytest.param("threads", {"shards": 3, "portion_size": 7}, marks=pytest.mark.slow),
        pytest.param("processes", {"shards": 3, "portion_size": 7}, marks=pytest.mark.slow),
        pytest.param("processes", {"replicas": 5}, marks=pytest.mark.slow),
    ],
    indirect=["client"],
)
def test_a_pass_counts_every_example_exactly_once(client, store, options):
    result = count(client, store, **options)
    assert_counted_once(result)
    assert result.status.reason == "tolerance"
    assert_nothing_left(client)


@pytest.mark.parametrize(
    ("client", "route"),
    [
        ("processes", "dask"),
        ("threads", "memory"),
        pytest.param("processes", "memory", marks=pytest.mark.slow),
        pytest.param("threads", "dask", marks=pytest.mark.slow),
    ],
    indirect=["client"],
)
def test_what_workers_cannot_read_is_brought_to_them(client, store, route):
    data = xr.open_zarr(store, consolidated=False)
    data = data.load() if route == "memory" else data.chunk(row=300) * np.float32(1)
    result = count(client, data)
    assert_counted_once(result)
    assert_nothing_left(client)


def test_a_push_whose_answer_was_lost_is_counted_as_repeated_and_changes_nothing(
    threads_client, store, monkeypatch
):
    contribute = ServerLink.contribute

    def twice(self, identity, gradient):
        contribute(self, identity, gradient)
        return contribute(self, identity, gradient)

    monkeypatch.setattr(ServerLink, "contribute", twice)
    result = count(threads_client, store, shards=2)
    assert_counted_once(result)
    last = result.history.isel(record=-1)
    assert float(last["repeated"]) >= float(last["bundles"]) > 0


def test_passes_that_a_rollback_undid_stay_counted(threads_client, store, tmp_path, monkeypatch):
    note, trouble = Sandblaster._note_point, [ShardLost("as if a shard were gone")]

    def lose_a_shard_once(self, run):
        note(self, run)
        if self.point.iteration == 5 and trouble:
            run.server.give_up([0])
            raise trouble.pop()

    monkeypatch.setattr(Sandblaster, "_note_point", lose_a_shard_once)
    path = str(tmp_path / "run.zarr")
    options = {"tolerance": 0.0, "checkpoint": path, "snapshot_every": "1h"}
    history = train(threads_client, store, iterations=8, **options).history
    assert not trouble and history["rolled_back"].values[-1] == 5
    assert (np.diff(history["iteration"].values) < 0).any()
    again = train(threads_client, store, iterations=9, resume=True, **options).history
    for name in ("evaluations", "epoch", "bundles", "examples"):
        assert (np.diff(again[name].values) >= 0).all(), name
    assert again["evaluations"].values[-1] == again["epoch"].values[-1] + 1 > 14


class BadInPlaces(LinearCounting):
    """Its gradient is not finite at a row, and where a parameter is above `most`."""

    def __init__(self, examples, row=None, most=np.inf):
        super().__init__(examples)
        self.row, self.most = row, most

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        loss = super().loss_and_gradient(
            parameters, inputs, targets, weights=weights, seed=seed, gradient=gradient
        )
        if self.row in inputs or parameters.max() > self.most:
            gradient[3] = np.nan
        return loss


def minimise_bad(client, store, model, **options):
    settings = {"l2": 1 / ROWS, "portion_size": 50, "progress": False, "tolerance": 1e-9}
    return dbdask.sandblaster(model, counted(store), client=client, **(settings | options))


def test_bad_gradients_at_the_first_point_are_refused_counted_and_named(
    threads_client, store, tmp_path
):
    path = str(tmp_path / "run.zarr")
    with pytest.warns(dbdask.TrainingWarning, match="bad_gradients.*other parameters="):
        result = minimise_bad(threads_client, store, BadInPlaces(ROWS, row=777), checkpoint=path)
    assert result.status.reason == "bad_gradients" and not result.status.ok
    assert "1 gradients were refused, the last in portion 15, step 0: count" in str(result.status)
    assert result.history["refused"].values[-1] == 1
    assert np.isfinite(result.history["gradient_norm"].values).all()
    np.testing.assert_array_equal(result.parameters["count"].values, 0.0)
    last = checkpoint.latest(path)  # as it was before the first pass
    assert checkpoint.vector_names(path, last.group) == ["parameters"]
    model = BadInPlaces(ROWS, row=777)
    with pytest.warns(dbdask.TrainingWarning, match="bad_gradients: 1 gradients were refused"):
        again = minimise_bad(threads_client, store, model, checkpoint=path, resume=True)
    assert again.status.reason == "bad_gradients"
    model = BadInPlaces(ROWS)
    again = minimise_bad(threads_client, store, model, checkpoint=path, resume=True)
    assert again.status.ok


def test_the_line_search_turns_back_from_bad_gradients(threads_client, store):
    result = minimise_bad(threads_client, store, BadInPlaces(ROWS, most=0.15), iterations=1)
    assert result.status.reason == "iterations" and result.history["refused"].values[-1] >= 24
    assert np.isfinite(result.history["loss"].values).all()
    assert "refused" not in result.status.message


def test_a_search_that_bad_gradients_end_names_the_last_of_them(threads_client, store):
    with pytest.warns(dbdask.TrainingWarning, match="search_failed.*check_model"):
        result = minimise_bad(threads_client, store, BadInPlaces(ROWS, most=0.0))
    assert result.status.reason == "search_failed"
    assert "gradients were refused, the last in portion" in result.status.message
    assert result.history["refused"].values[-1] >= 24


def without_a_shard(client):
    return sorted(addresses(client) - set(shard_workers(client)))[0]


def test_a_worker_killed_in_the_middle_of_a_pass_changes_nothing(cluster, store):
    def kill():
        worker = without_a_shard(cluster)
        os.kill(cluster.run(os.getpid, workers=[worker])[worker], signal.SIGKILL)

    result = count(cluster, store, seconds=0.02, brake=0.3, callbacks=[After(1, kill)], shards=1)
    assert_counted_once(result)
    assert_nothing_left(cluster)
    assert_workers_run_tasks(cluster)


def test_a_stopped_worker_is_overtaken_by_backups_and_its_late_push_is_a_repeat(cluster, store):
    stopped = []

    def stop():
        worker = without_a_shard(cluster)
        process = cluster.run(os.getpid, workers=[worker])[worker]
        os.kill(process, signal.SIGSTOP)
        stopped.append(process)

    def go_on(record):
        if stopped and record.backups_won >= 1:
            os.kill(stopped.pop(), signal.SIGCONT)

    try:
        result = count(
            cluster,
            store,
            seconds=0.02,
            brake=0.3,
            callbacks=[After(1, stop), go_on],
            shards=1,
            iterations=6,
        )
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)
    assert result.history["backups_won"].values[-1] >= 1
    assert_counted_once(result)
    wait_until(lambda: not cluster.run_on_scheduler(lambda dask_scheduler: dask_scheduler.tasks))
    assert_nothing_left(cluster)


def test_a_killed_shard_takes_the_run_back_to_its_snapshot(cluster, store, tmp_path):
    whole = train(cluster, store, shards=2, iterations=8, tolerance=0.0)
    killed, over = [], str(tmp_path / "over")

    def kill(record):
        if record.iteration == 3 and not killed:
            killed.append(kill_a_shard(cluster))
            touch(over)

    result = train(
        cluster,
        store,
        model=SlowUntil(network(), over, 10, 0.05),
        shards=2,
        iterations=8,
        tolerance=0.0,
        checkpoint=str(tmp_path / "run.zarr"),
        snapshot_every="1ms",
        callbacks=[kill],
    )
    assert killed and result.history["lost"].values[-1] >= 1
    losses = [r.history["loss"].values[-1] for r in (whole, result)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert_nothing_left(cluster)
    assert_workers_run_tasks(cluster)


def test_a_killed_shard_without_a_checkpoint_is_an_error_that_names_the_remedy(cluster, store):
    with pytest.raises(dbdask.ShardLost, match=r"is gone; the run has no checkpoint.*shard_copies"):
        count(
            cluster,
            store,
            seconds=0.01,
            brake=0.3,
            tolerance=0.0,
            callbacks=[After(1, lambda: kill_a_shard(cluster))],
        )
    assert_nothing_left(cluster)
    assert_workers_run_tasks(cluster)


def test_a_retired_worker_hands_its_shard_on(cluster, store):
    gone = []

    def retire():
        worker = shard_workers(cluster)[0]
        cluster.retire_workers([worker])
        wait_until(lambda: worker not in addresses(cluster))
        gone.append(worker)

    result = count(
        cluster,
        store,
        seconds=0.01,
        brake=0.3,
        shards=2,
        callbacks=[After(1, retire)],
        iterations=4,
    )
    assert_counted_once(result)
    wait_until(lambda: gone)
    assert result.history["lost"].values[-1] == 0


def test_a_resumed_run_goes_on_with_the_history_of_lbfgs(threads_client, store, tmp_path):
    path = str(tmp_path / "run.zarr")
    options = {"replicas": 1, "tolerance": 0.0}
    whole = train(threads_client, store, iterations=8, **options)
    train(threads_client, store, iterations=4, checkpoint=path, **options)
    names = checkpoint.vector_names(path, checkpoint.latest(path).group)
    assert {"parameters", "gradient", "s0", "y3"} <= set(names)
    again = train(threads_client, store, iterations=8, checkpoint=path, resume=True, **options)
    np.testing.assert_allclose(flat(again), flat(whole), atol=2e-3)
    assert again.history["evaluations"].values[-1] == whole.history["evaluations"].values[-1]
    with pytest.raises(dbdask.CheckpointError, match="l2 is 0.001 there and 0.5 here"):
        train(threads_client, store, checkpoint=path, resume=True, l2=0.5)
    with pytest.raises(dbdask.CheckpointError, match="another algorithm wrote it"):
        dbdask.downpour(
            network(), labelled(store), client=threads_client, checkpoint=path, resume=True
        )


def test_it_starts_from_a_downpour_result_and_keeps_the_best(threads_client, store):
    first = dbdask.downpour(
        network(), labelled(store), client=threads_client, batch_size=20, progress=False
    )
    held_out = labelled(store).isel(row=slice(1000, 1200))
    result = train(
        threads_client, store, parameters=first, validation=held_out, keep="best", l2=1e-4
    )
    before = first.evaluate(labelled(store))["loss"]
    assert result.evaluate(labelled(store))["loss"] < before
    best = np.nanmin(result.history["validation_loss"].values)
    assert result.evaluate(held_out)["loss"] == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("how", ["true", "raises", "interrupted"])
def test_callbacks_and_interrupts_stop_it(threads_client, store, how):
    pressed = []

    def act(record):
        if how == "raises":
            raise KeyError("mine")
        if how == "interrupted" and not pressed:  # a second one would abandon the run
            pressed.append(True)
            signal.raise_signal(signal.SIGINT)
        return how == "true"

    options = {"iterations": 10_000, "tolerance": 0.0, "callbacks": [act]}
    if how == "raises":
        with pytest.raises(KeyError, match="mine"):
            train(threads_client, store, **options)
    else:
        warned = pytest.warns(dbdask.TrainingWarning, match="interrupted.*parameters=result")
        with warned if how == "interrupted" else nullcontext():
            result = train(threads_client, store, **options)
        assert result.status.reason == {"true": "callback"}.get(how, how)
    assert_nothing_left(threads_client)


def test_a_task_that_comes_after_the_end_opens_no_context(threads_client):
    def late(run):
        from dbdask.worker.context import open_context

        open_context(run, pickle.dumps(None))

    threads_client.run(close_context, "ended")
    future = threads_client.submit(late, "ended", pure=False)
    with pytest.raises(Stale, match="run ended has ended"):
        future.result()
    future.release()
    assert not any(threads_client.run(contexts_on).values())


def test_weights_count_as_repeated_rows(threads_client, tmp_path):
    data = xr.open_zarr(write_store(tmp_path / "s.zarr"), consolidated=False).load()
    weights = np.random.default_rng(3).integers(0, 3, size=ROWS)
    repeated = data.isel(row=np.repeat(np.arange(ROWS), weights))

    def fit(data, **more):
        examples = dbdask.Examples(data, inputs="x", targets="label", along="row", **more)
        model = dbdask.Network(input_shape=(6,), layers=[dbdask.Dense(3)], loss="softmax")
        return dbdask.sandblaster(
            model, examples, client=threads_client, l2=1e-2, progress=False, tolerance=1e-6
        )

    weighted = fit(data.assign(w=("row", weights.astype(np.float32))), weights="w")
    np.testing.assert_allclose(flat(weighted), flat(fit(repeated)), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"history_length": 0}, "history_length must be at least 1, got 0"),
        ({"tolerance": -1.0}, "tolerance must be at least 0, got -1.0"),
        ({"l2": -0.1}, "l2 must be at least 0, got -0.1"),
        ({"portion_size": 0}, "portion_size must be at least 1, got 0"),
        ({"replicas": 0}, "replicas must be at least 1, got 0"),
        ({"keep": "best"}, 'keep="best" needs validation='),
        ({"resume": True}, "resume=True needs checkpoint="),
        ({"validate_every": 3}, "validate_every=3 needs validation="),
    ],
)
def test_wrong_arguments_are_named_before_work_begins(threads_client, store, options, message):
    with pytest.raises(ValueError, match=message):
        train(threads_client, store, **options)


class Interrupting(LinearCounting):
    """Ctrl-C is pressed once, in the minibatch of the first example."""

    def loss_and_gradient(self, parameters, inputs, targets, **options):
        if inputs.min() == 0 and os.environ.pop("DBDASK_TEST_INTERRUPT", None):
            signal.raise_signal(signal.SIGINT)
        return super().loss_and_gradient(parameters, inputs, targets, **options)


def test_an_interrupt_in_the_first_pass_names_no_loss(threads_client, store, monkeypatch):
    monkeypatch.setenv("DBDASK_TEST_INTERRUPT", "once")
    model = Interrupting(ROWS, seconds=0.2)  # so that the pass outlasts a turn of its coordinator
    with pytest.warns(dbdask.TrainingWarning, match="interrupted"):
        result = dbdask.sandblaster(
            model, counted(store), client=threads_client, progress=False, portion_size=50
        )
    assert result.status.reason == "interrupted"
    assert result.status.message.endswith("(iteration 0, no pass has ended)")


def test_what_a_resumed_run_has_done_stays_counted_where_it_goes_back(
    threads_client, store, tmp_path, monkeypatch
):
    options = {"client": threads_client, "checkpoint": str(tmp_path / "run.zarr"), "l2": 0.1}
    options |= {"tolerance": 0.0, "progress": False}
    first = dbdask.sandblaster(network(), labelled(store), iterations=2, **options)
    made, troubles = [int(first.history["evaluations"].values[-1])], [1]
    work, command = GradientPass.work, Sandblaster._command

    async def counted_work(self):
        sums = await work(self)
        made.append(1)
        return sums

    async def troubled(self, run, commands):
        if len(made) == 2 and troubles:  # after the first pass, before its step is noted
            troubles.pop()
            run.server.give_up([0])
            raise ShardLost("a shard was lost")
        return await command(self, run, commands)

    monkeypatch.setattr(GradientPass, "work", counted_work)
    monkeypatch.setattr(Sandblaster, "_command", troubled)
    result = dbdask.sandblaster(network(), labelled(store), iterations=4, resume=True, **options)
    assert not troubles and len(made) > 3
    assert result.history["evaluations"].values[-1] == sum(made)
