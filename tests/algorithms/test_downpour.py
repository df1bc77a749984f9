"""Downpour against a serial loop, against a model that counts, and against interruptions."""

import numpy as np
import pytest
import xarray as xr
from acting import SlowUntil, touch
from counting import CountingModel

import dbdask
from dbdask.worker.context import contexts_on
from dbdask.worker.replica import _Replica


def write_store(path, rows=1200, chunk=100, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, 6)).astype(np.float32)
    labels = (inputs @ rng.normal(size=(6, 3))).argmax(axis=1)
    index = np.arange(rows, dtype=np.float32)
    dataset = xr.Dataset(
        {
            "x": (("row", "feature"), inputs),
            "label": ("row", labels.astype(np.int32)),
            "index": ("row", index),
            "zero": ("row", np.zeros(rows, np.float32)),
        }
    )
    dataset.chunk({"row": chunk}).to_zarr(path, consolidated=False)
    return str(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("downpour") / "store.zarr")


@pytest.fixture(params=["threads", "processes"])
def client(request, threads_client, process_client):
    return threads_client if request.param == "threads" else process_client


def labelled(store):
    return dbdask.Examples(store, inputs="x", targets="label", along="row")


def counted(store):
    return dbdask.Examples(store, inputs="index", targets="zero", along="row")


def network():
    return dbdask.Network(
        input_shape=(6,), layers=[dbdask.Dense(8, "tanh"), dbdask.Dense(3)], loss="softmax"
    )


def train(client, store, *, model=None, **options):
    settings = {"optimizer": dbdask.sgd(0.1), "batch_size": 20, "progress": False} | options
    return dbdask.downpour(model or network(), labelled(store), client=client, **settings)


def stop_after(client, store, path, records, **options):
    """Train until so many records have come, with a model that is slow from then on."""
    seen, over = [], f"{path}-over"

    def stop(record):
        seen.append(record)
        if len(seen) == records:
            touch(over)
        return len(seen) >= records

    model = SlowUntil(network(), over, 15 * records)
    result = train(client, store, model=model, checkpoint=path, callbacks=[stop], **options)
    assert result.status.reason == "callback"
    return result


def flat(result):
    return np.concatenate([v.values.ravel() for v in result.parameters.data_vars.values()])


def assert_nothing_left(client):
    state = client.run_on_scheduler(
        lambda dask_scheduler: (
            [str(key) for key in dask_scheduler.tasks]
            + [len(worker.actors) for worker in dask_scheduler.workers.values()]
        )
    )
    assert not any(state), state
    assert not any(client.run(contexts_on).values())


def serial_parameters(store, epochs, rate, batch_size=20):
    """The same minibatches in a plain loop."""
    model, examples = network(), labelled(store)
    parameters = model.initial_parameters(0, 0, model.parameter_count)
    gradient = np.empty_like(parameters)
    from dbdask.schedule.portions import suggest_portion_rows

    rows = suggest_portion_rows(len(examples), examples.row_bytes, parameters.size, batch_size)
    cut, reader = examples.cut(rows, batch_size), examples.reader()
    for epoch in range(epochs):
        for portion in cut.portions(0, epoch):
            for batch in reader.minibatches(portion, batch_size):
                model.loss_and_gradient(
                    parameters, batch.inputs, batch.targets, weights=None, gradient=gradient
                )
                parameters -= np.float32(rate) * (gradient / np.float32(len(batch.inputs)))
    return parameters


def test_one_replica_and_one_shard_are_the_serial_loop(client, store):
    result = train(client, store, epochs=2, replicas=1, shards=1)
    np.testing.assert_allclose(flat(result), serial_parameters(store, 2, 0.1), atol=1e-6)
    assert result.status.reason == "epochs" and result.status.ok
    assert_nothing_left(client)


def test_the_number_of_shards_changes_nothing(threads_client, store):
    one = train(threads_client, store, replicas=1, shards=1)
    three = train(threads_client, store, replicas=1, shards=3)
    np.testing.assert_array_equal(flat(one), flat(three))


@pytest.mark.parametrize(
    ("n_fetch", "n_push"),
    [
        (1, 1),
        pytest.param(3, 1, marks=pytest.mark.slow),
        pytest.param(1, 4, marks=pytest.mark.slow),
        (2, 3),
    ],
)
def test_one_replica_is_the_same_to_the_bit_with_snapshots_and_without(
    threads_client, store, tmp_path, n_fetch, n_push
):
    options = {"replicas": 1, "n_fetch": n_fetch, "n_push": n_push, "epochs": 2}
    plain = train(threads_client, store, **options)
    snapshots = {"checkpoint": str(tmp_path / "run.zarr"), "snapshot_every": "10ms"}
    paused = train(threads_client, store, **options, **snapshots)
    np.testing.assert_array_equal(flat(plain), flat(paused))


@pytest.mark.parametrize(
    ("n_fetch", "n_push"),
    [
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(3, 1, marks=pytest.mark.slow),
        (2, 3),
    ],
)
def test_stops_within_a_portion_change_nothing(threads_client, store, monkeypatch, n_fetch, n_push):
    options = {"replicas": 1, "n_fetch": n_fetch, "n_push": n_push, "epochs": 2}
    unbroken = train(threads_client, store, **options)
    await_push, work, began = _Replica._await_push, _Replica.work, []

    def await_and_stop(replica):
        await_push(replica)
        replica.paused = True  # as where a snapshot is due

    def note(replica, blocks):
        began.append(replica.first)
        work(replica, blocks)

    monkeypatch.setattr(_Replica, "_await_push", await_and_stop)
    monkeypatch.setattr(_Replica, "work", note)
    broken = train(threads_client, store, **options)
    assert sum(step > 0 for step in began) > 8
    np.testing.assert_array_equal(flat(unbroken), flat(broken))


@pytest.mark.parametrize(
    ("client", "options"),
    [
        ("processes", {}),
        ("processes", {"n_fetch": 2, "n_push": 2}),
        ("threads", {"warmstart": 7}),
        pytest.param("threads", {}, marks=pytest.mark.slow),
        pytest.param("threads", {"n_fetch": 2, "n_push": 2}, marks=pytest.mark.slow),
        pytest.param("processes", {"warmstart": 7}, marks=pytest.mark.slow),
    ],
    indirect=["client"],
)
def test_every_example_is_applied_exactly_once_an_epoch(client, store, options):
    result = dbdask.downpour(
        CountingModel(1200),
        counted(store),
        client=client,
        optimizer=dbdask.sgd(20.0),
        batch_size=20,
        epochs=3,
        shards=2,
        progress=False,
        **options,
    )
    np.testing.assert_array_equal(result.parameters["count"].values, 3)
    assert_nothing_left(client)


def test_a_resumed_run_ends_where_an_unbroken_one_does(threads_client, store, tmp_path):
    path = str(tmp_path / "run.zarr")
    options = {"replicas": 1, "optimizer": dbdask.adagrad(0.1)}
    whole = train(threads_client, store, epochs=3, **options)
    broken = stop_after(threads_client, store, path, 2, epochs=3, **options)
    again = train(threads_client, store, epochs=3, checkpoint=path, resume=True, **options)
    np.testing.assert_array_equal(flat(whole), flat(again))
    assert again.history.sizes["record"] >= broken.history.sizes["record"]


def test_where_memory_is_short_shards_write_at_rest(threads_client, store, tmp_path, monkeypatch):
    from dbdask.schedule import policies

    roomy = policies.shard_bytes
    monkeypatch.setattr(
        policies,
        "shard_bytes",
        lambda *a, copied, **more: 1 << 60 if copied else roomy(*a, copied=False, **more),
    )
    monkeypatch.setattr(policies, "replica_bytes", lambda *a: 0)
    copies = []
    from dbdask.run.snapshots import Snapshots

    taken = Snapshots.copy
    monkeypatch.setattr(Snapshots, "copy", lambda *a, **k: copies.append(k) or taken(*a, **k))
    path = str(tmp_path / "run.zarr")
    options = {"replicas": 1, "optimizer": dbdask.adagrad(0.1), "epochs": 2}
    plain = train(threads_client, store, **options)
    tight = train(threads_client, store, checkpoint=path, snapshot_every="10ms", **options)
    assert not copies
    np.testing.assert_array_equal(flat(plain), flat(tight))


def test_resume_in_its_three_forms(threads_client, store, tmp_path):
    path = str(tmp_path / "run.zarr")
    with pytest.raises(
        dbdask.CheckpointError, match="resume=True, but checkpoint=.* does not exist"
    ):
        train(threads_client, store, checkpoint=path, resume=True)
    train(threads_client, store, checkpoint=path, resume="auto")
    with pytest.raises(dbdask.CheckpointError, match="exists already"):
        train(threads_client, store, checkpoint=path)
    with pytest.raises(dbdask.CheckpointError, match="batch_size is 20 there and 10 here"):
        train(threads_client, store, checkpoint=path, resume=True, batch_size=10)
    done = train(threads_client, store, checkpoint=path, resume="auto")
    assert done.status.reason == "epochs"


def test_validation_and_the_best_parameters(threads_client, store):
    held_out = labelled(store).isel(row=slice(1000, 1200))
    result = train(threads_client, store, epochs=4, validation=held_out, keep="best")
    losses = result.history["validation_loss"].values
    best = np.nanmin(losses)
    assert np.isfinite(losses).sum() >= 4
    assert result.evaluate(held_out)["loss"] == pytest.approx(best, rel=1e-5)


def test_target_loss_stops_the_run(threads_client, store):
    result = train(threads_client, store, epochs=500, target_loss=0.5)
    assert result.status.reason == "target"
    assert result.history["loss"].min() <= 0.5  # portions that were out then may end above it


def test_a_callback_that_raises_stops_the_run_and_its_error_comes_out(threads_client, store):
    def fail(record):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train(threads_client, store, epochs=100, callbacks=[fail])
    assert_nothing_left(threads_client)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(True, "callback"), (np.True_, "callback"), (np.False_, "epochs"), (1, "epochs")],
)
def test_a_callback_stops_the_run_with_true_alone(threads_client, store, answer, reason):
    epochs = 2 if reason == "epochs" else 500
    result = train(threads_client, store, epochs=epochs, callbacks=[lambda record: answer])
    assert result.status.reason == reason


class BadModel(CountingModel):
    """Its gradient is never finite."""

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        gradient[:] = np.nan
        return 0.0


def test_bad_gradients_are_refused_counted_and_named(threads_client, store):
    with pytest.warns(
        dbdask.TrainingWarning, match="bad_gradients: 4 gradients.*not finite: lower"
    ):
        result = dbdask.downpour(
            BadModel(1200),
            counted(store),
            client=threads_client,
            batch_size=20,
            max_refused=4,
            replicas=1,
            progress=False,
        )
    assert result.status.reason == "bad_gradients" and not result.status.ok
    assert "count" in result.status.message
    np.testing.assert_array_equal(result.parameters["count"].values, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_push": 0}, "n_push must be at least 1, got 0"),
        ({"n_fetch": -1}, "n_fetch must be at least 1, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"warmstart": -1}, "warmstart must be at least 0, got -1"),
        ({"replicas": 0}, "replicas must be at least 1, got 0"),
        ({"shards": 0}, "shards must be at least 1, got 0"),
        ({"shard_copies": 0}, "shard_copies must be at least 1, got 0"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0, got 0.0"),
        ({"keep": "first"}, "keep must be one of 'last', 'best', got 'first'"),
        ({"keep": "best"}, 'keep="best" needs validation='),
        ({"resume": "yes"}, "resume must be one of"),
        ({"resume": True}, "resume=True needs checkpoint="),
        ({"snapshot_every": "soon"}, "snapshot_every must be a duration"),
        ({"validate_every": 5}, "validate_every=5 needs validation="),
        ({"workers": []}, "workers must name at least one worker"),
        ({"parameters": np.zeros(3, np.float32)}, r"parameters has shape \(3,\)"),
    ],
)
def test_wrong_arguments_are_named_before_work_begins(threads_client, store, options, message):
    with pytest.raises(ValueError, match=message):
        train(threads_client, store, **options)


def test_a_model_of_another_shape_is_named(threads_client, store):
    model = dbdask.Network(input_shape=(5,), layers=[dbdask.Dense(3)], loss="softmax")
    with pytest.raises(ValueError, match="input_shape"):
        dbdask.downpour(model, labelled(store), client=threads_client)
