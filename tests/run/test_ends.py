"""However a run ends, what it leaves can be gone on from, and is the last good snapshot.

One replica is the same to the bit, so a run that is gone on with ends where an unbroken one does:
nothing of what was wrong is left in it, and nothing that was right is lost.
"""

import dataclasses
import signal
import threading

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from test_downpour import assert_nothing_left, flat, labelled, network, write_store

import dbdask
from dbdask.algorithms.downpour_method import Downpour
from dbdask.errors import CheckpointError, DataError, ShardLost, WorkerError
from dbdask.run import session
from dbdask.run.run import Run
from dbdask.storage import checkpoint, owner, sealed

AFTER = 70  # minibatches, of 60 in an epoch, or of a pass
EPOCHS, ITERATIONS = 2, 4


class Spoiled:
    """A model that does something else from a call on, as long as it is not mended."""

    # Of the whole process, which all workers of the tests are in.
    calls, mended, interrupted = 0, False, False

    def __init__(self, act=None, after=AFTER):
        self.model, self.act, self.after = network(), act, after
        Spoiled.calls, Spoiled.mended, Spoiled.interrupted = 0, False, False

    def __getattr__(self, name):
        if name.startswith("__") or name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def loss_and_gradient(self, *arguments, gradient, **options):
        Spoiled.calls += 1
        loss = self.model.loss_and_gradient(*arguments, gradient=gradient, **options)
        if self.act is not None and not Spoiled.mended and Spoiled.calls > self.after:
            return self.act(loss, gradient)
        return loss


def refused(loss, gradient):
    gradient[7] = np.nan
    return loss


def exploding(loss, gradient):
    gradient[:] = 1e15 * np.sign(gradient)  # finite, and so is where it leads to
    return 1e18


def raising(loss, gradient):
    raise ZeroDivisionError("spoiled")


def of_bad_data(loss, gradient):
    raise DataError("spoiled")


def stop(record):
    return record.step > AFTER or record.iteration > 2


def fail(record):
    if stop(record):
        raise ArithmeticError("a callback's")


def interrupt(record):
    if stop(record) and not Spoiled.interrupted:  # a second one would abandon the run
        Spoiled.interrupted = True
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def take_over(path):
    """A callback that gives a checkpoint to a run of another machine."""

    def callback(record):
        if stop(record):
            found = owner.read(path)
            there = dataclasses.replace(found, token="other", machine="another", patience=0.2)
            owner.write(path, there)

    return callback


def rate(step):
    """A schedule that raises, until it is mended."""
    if step > AFTER and not Spoiled.mended:
        raise LookupError("a schedule's")
    return 0.1


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("ends") / "store.zarr")


def downpour(client, store, model=None, **options):
    settings = {"optimizer": dbdask.sgd(0.1), "batch_size": 20, "epochs": EPOCHS}
    return dbdask.downpour(
        model or Spoiled(),
        labelled(store),
        client=client,
        replicas=1,
        shards=2,
        progress=False,
        **(settings | options),
    )


def sandblaster(client, store, model=None, **options):
    settings = {"iterations": ITERATIONS, "tolerance": 0.0, "portion_size": 300}
    return dbdask.sandblaster(
        model or Spoiled(),
        labelled(store),
        client=client,
        replicas=1,
        shards=2,
        progress=False,
        **(settings | options),
    )


ALGORITHMS = {"downpour": downpour, "sandblaster": sandblaster}

mostly_downpour = pytest.mark.parametrize(
    "algorithm", ["downpour", pytest.param("sandblaster", marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module")
def whole(threads_client, store):
    """What an unbroken run of each algorithm ends with."""
    return {name: flat(algorithm(threads_client, store)) for name, algorithm in ALGORITHMS.items()}


def the_snapshot(path, *, alone=True):
    """The last snapshot of a checkpoint, which is good, whole and finite; by itself there or not.

    Where an error ends a run, it may have been about to delete the one before.
    """
    last = checkpoint.latest(path)
    assert not alone or sealed.children(path) == [last.group, "zarr.json"]
    assert last.last_good == last.group
    for name in checkpoint.vector_names(path, last.group):
        vector = checkpoint.VectorReference(path, last.group, name).read()
        assert np.isfinite(vector).all() and abs(vector).max() < 1e3
    return last


def goes_on(client, store, algorithm, path, whole, **options):
    Spoiled.mended = True
    result = ALGORITHMS[algorithm](client, store, checkpoint=path, resume=True, **options)
    assert result.status.ok, result.status
    np.testing.assert_array_equal(flat(result), whole[algorithm])
    the_snapshot(path)
    return result


ENDS = {
    "callback": ({"callbacks": [stop]}, None),
    "interrupted": ({"callbacks": [interrupt]}, None),
    "bad_gradients": ({"max_refused": 4}, refused),
    "diverged": ({}, exploding),
}


@pytest.mark.filterwarnings("ignore::dbdask.TrainingWarning")
@pytest.mark.parametrize(
    ("reason", "every"),
    [
        ("callback", "1h"),
        ("interrupted", "1ms"),
        pytest.param("bad_gradients", "1h", marks=pytest.mark.slow),
        ("bad_gradients", "1ms"),
        ("diverged", "1ms"),
    ],
)
def test_a_downpour_that_was_stopped_or_spoiled_goes_on_as_if_it_had_not_been(
    threads_client, store, tmp_path, whole, reason, every
):
    options, act = ENDS[reason]
    path = str(tmp_path / "run.zarr")
    options = {"checkpoint": path, "snapshot_every": every} | options
    result = downpour(threads_client, store, Spoiled(act), **options)
    assert result.status.reason == reason
    assert np.isfinite(result.vector()).all()
    last = the_snapshot(path)
    if reason in ("bad_gradients", "diverged"):
        assert last.state["counts"]["refused"] == 0
        assert f"the last good snapshot: go on from it with checkpoint='{path}'" in str(
            result.status
        )
        assert last.state["steps"] <= AFTER
        if reason == "diverged":
            assert abs(result.vector()).max() > 1e10  # as it ended
    else:
        assert last.state["steps"] > AFTER
    goes_on(threads_client, store, "downpour", path, whole)
    assert_nothing_left(threads_client)


ERRORS = {
    "data": (DataError, {}, of_bad_data),
    "a model": (WorkerError, {}, raising),
    "a schedule": (LookupError, {"optimizer": dbdask.sgd(rate)}, None),
    "a callback": (ArithmeticError, {"callbacks": [fail]}, None),
}


@pytest.mark.parametrize(
    ("what", "every"),
    [("data", "1ms"), ("a model", "1h"), ("a schedule", "1ms"), ("a callback", "1h")],
)
def test_a_downpour_that_ended_in_an_error_goes_on_as_if_it_had_not(
    threads_client, store, tmp_path, whole, what, every
):
    error, options, act = ERRORS[what]
    path = str(tmp_path / "run.zarr")
    with pytest.raises(error) as caught:
        downpour(
            threads_client,
            store,
            Spoiled(act),
            checkpoint=path,
            snapshot_every=every,
            **options,
        )
    said = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert what == "a callback" or f"checkpoint={path!r}, resume=True" in said
    steps = the_snapshot(path, alone=False).state["steps"]
    assert (steps > 0) == (every == "1ms" or what == "a callback")
    goes_on(threads_client, store, "downpour", path, whole)
    assert_nothing_left(threads_client)


@mostly_downpour
def test_a_callbacks_error_comes_out_though_the_run_cannot_write_its_end(
    threads_client, store, tmp_path, whole, algorithm, monkeypatch
):
    path = str(tmp_path / "run.zarr")
    begin = checkpoint.begin

    def begin_once(path, *arguments):
        if checkpoint.snapshots(path):
            raise CheckpointError(f"checkpoint={path!r} cannot be written: no space left")
        begin(path, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "begin", begin_once)
        with pytest.raises(ArithmeticError, match="a callback's") as caught:
            ALGORITHMS[algorithm](threads_client, store, checkpoint=path, callbacks=[fail])
    (note,) = caught.value.__notes__
    assert note.startswith("the run failed too: dbdask.errors.CheckpointError: checkpoint=")
    assert "no space left" in note
    assert f"checkpoint={path!r}, resume=True" in note
    goes_on(threads_client, store, algorithm, path, whole)
    assert_nothing_left(threads_client)


@mostly_downpour
def test_a_callbacks_error_comes_out_though_it_closed_the_client(store, algorithm):
    def fail_and_close(record):
        try:
            fail(record)
        except ArithmeticError:
            own.close()
            raise

    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False}
    with (
        LocalCluster(dashboard_address=":0", **options) as cluster,
        Client(cluster, set_as_default=False) as own,
        pytest.raises(ArithmeticError, match="a callback's") as caught,
    ):
        ALGORITHMS[algorithm](own, store, callbacks=[fail_and_close])
    (note,) = caught.value.__notes__
    assert "ShardLost: the client was closed while the run was under way" in note


def test_a_run_that_is_abandoned_names_the_error_of_its_callback(
    threads_client, store, monkeypatch
):
    drain = session._drain

    def drain_and_interrupt(run, callbacks, progress, raised, wait):
        drain(run, callbacks, progress, raised, wait)
        if raised:
            raise KeyboardInterrupt

    monkeypatch.setattr(session, "_drain", drain_and_interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        downpour(threads_client, store, callbacks=[fail])
    (note,) = caught.value.__notes__
    assert note == "before this error a callback raised: ArithmeticError: a callback's"
    assert_nothing_left(threads_client)


@mostly_downpour
def test_a_run_whose_shards_are_lost_for_good_goes_on(
    threads_client, store, tmp_path, whole, algorithm, monkeypatch
):
    path = str(tmp_path / "run.zarr")
    with monkeypatch.context() as patched, pytest.raises(ShardLost, match="resume=True"):
        patched.setattr(Run, "conclude", lose)
        ALGORITHMS[algorithm](threads_client, store, checkpoint=path, snapshot_every="1ms")
    goes_on(threads_client, store, algorithm, path, whole)


@mostly_downpour
def test_a_run_whose_checkpoint_was_taken_leaves_it_alone_and_the_next_goes_on(
    threads_client, store, tmp_path, whole, algorithm
):
    path = str(tmp_path / "run.zarr")
    options = {"checkpoint": path, "snapshot_every": "1ms", "callbacks": [take_over(path)]}
    with pytest.raises(CheckpointError, match=r"was taken by .*resume=True"):
        ALGORITHMS[algorithm](threads_client, store, **options)
    assert owner.read(path).token == "other"
    with dask.config.set({"dbdask.owner": "0.2s"}):  # the other run does not renew its name
        goes_on(threads_client, store, algorithm, path, whole)


# Sandblaster


PASS = 4  # minibatches
BATCH_ENDS = {
    "callback": ({"callbacks": [stop]}, None, 0),
    "interrupted": ({"callbacks": [interrupt]}, None, 0),
    "bad_gradients": ({}, refused, 2),
    "iterations": ({"iterations": 3}, None, 0),
}


@pytest.mark.filterwarnings("ignore::dbdask.TrainingWarning")
@pytest.mark.parametrize(
    ("reason", "every"),
    [
        ("callback", "1h"),
        pytest.param("interrupted", "1us", marks=pytest.mark.slow),
        ("bad_gradients", "1us"),
        ("iterations", "1us"),
    ],
)
def test_a_sandblaster_that_was_stopped_or_spoiled_goes_on_as_if_it_had_not_been(
    threads_client, store, tmp_path, whole, reason, every
):
    options, act, after = BATCH_ENDS[reason]
    path = str(tmp_path / "run.zarr")
    options = {"checkpoint": path, "snapshot_every": every} | options
    result = sandblaster(threads_client, store, Spoiled(act, after), **options)
    assert result.status.reason == reason
    last = the_snapshot(path)
    assert (last.state["method"]["evaluations"] == 0) == (reason == "bad_gradients")
    goes_on(threads_client, store, "sandblaster", path, whole)
    assert_nothing_left(threads_client)


@pytest.mark.filterwarnings("ignore::dbdask.TrainingWarning")
def test_a_search_that_bad_gradients_end_leaves_the_point_before_it(
    threads_client, store, tmp_path, whole
):
    path = str(tmp_path / "run.zarr")
    model = Spoiled(refused, 3 * PASS)
    result = sandblaster(threads_client, store, model, checkpoint=path)
    assert result.status.reason == "search_failed" and "were refused" in result.status.message
    assert the_snapshot(path).state["method"]["iteration"] >= 1
    Spoiled.mended = True
    again = sandblaster(threads_client, store, checkpoint=path, resume=True)
    assert again.status.reason == "iterations"
    assert again.history["loss"].values[-1] < result.history["loss"].values[-1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_that_ended_before_its_first_snapshot_was_trained_on_goes_on(
    threads_client, store, tmp_path, whole, algorithm
):
    path = str(tmp_path / "run.zarr")
    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        ALGORITHMS[algorithm](threads_client, store, Spoiled(raising, 0), checkpoint=path)
    goes_on(threads_client, store, algorithm, path, whole)


@pytest.mark.parametrize(
    ("algorithm", "options", "reason"),
    [
        ("downpour", {"target_loss": 100.0}, "target"),
        ("downpour", {}, "epochs"),
        ("sandblaster", {"tolerance": 1e9}, "tolerance"),
        ("sandblaster", {}, "iterations"),
    ],
)
def test_a_run_that_reached_its_end_leaves_it(
    threads_client, store, tmp_path, algorithm, options, reason
):
    path = str(tmp_path / "run.zarr")
    result = ALGORITHMS[algorithm](threads_client, store, checkpoint=path, **options)
    assert result.status.reason == reason
    last = the_snapshot(path)
    reference = checkpoint.VectorReference(path, last.group)
    np.testing.assert_array_equal(reference.read(), result.vector())
    if reason != "target":  # which its snapshot does not know of
        again = ALGORITHMS[algorithm](
            threads_client, store, checkpoint=path, resume=True, **options
        )
        np.testing.assert_array_equal(again.vector(), result.vector())
        assert the_snapshot(path) == last and again.status == result.status


# Rates that are too large


def linear(client, store, tmp_path, rate, **options):
    """A linear model of sums, which diverges with a rate of 3, and what it says."""
    data = xr.open_zarr(store, consolidated=False)
    data["sum"] = data["x"].sum("feature")
    examples = dbdask.Examples(data.load(), inputs="x", targets="sum", along="row")
    model = dbdask.Network(input_shape=6, layers=[dbdask.Dense(1)], loss="squared")
    return dbdask.downpour(
        model,
        examples,
        client=client,
        optimizer=dbdask.sgd(rate),
        batch_size=20,
        replicas=1,
        shards=2,
        progress=False,
        checkpoint=str(tmp_path / "run.zarr"),
        resume="auto",
        validation=examples if options["keep"] == "best" else None,
        **options,
    )


@pytest.mark.filterwarnings("ignore::dbdask.TrainingWarning")
@pytest.mark.parametrize(
    ("rate", "reason", "every", "keep"),
    [
        (2.0, "diverged", "1ms", "last"),
        pytest.param(100.0, "bad_gradients", "1h", "last", marks=pytest.mark.slow),
        (100.0, "bad_gradients", "1ms", "best"),
    ],
)
def test_a_run_that_diverged_goes_on_with_a_smaller_rate(
    threads_client, store, tmp_path, rate, reason, every, keep
):
    options = {"snapshot_every": every, "keep": keep}
    result = linear(threads_client, store, tmp_path, rate, epochs=1, **options)
    assert result.status.reason == reason
    assert "lower the learning rate" in result.status.message
    the_snapshot(str(tmp_path / "run.zarr"))
    if reason == "bad_gradients":
        assert "gradients were refused, the last in epoch 0, portion" in result.status.message
    result = linear(threads_client, store, tmp_path, 0.1, epochs=3, **options)
    assert result.status.ok and result.history["loss"].dropna("record").values[-1] < 1e-3


@pytest.mark.filterwarnings("ignore::dbdask.TrainingWarning")
@pytest.mark.parametrize("end", [refused, exploding])
def test_a_run_without_a_snapshot_after_its_checkpoint_was_deleted_promises_none(
    threads_client, store, tmp_path, whole, end
):
    path = str(tmp_path / "run.zarr")

    def delete_once(loss, gradient):
        if not Spoiled.interrupted:
            Spoiled.interrupted = True
            sealed.clear(path)
        return end(loss, gradient)

    options = {"checkpoint": path, "snapshot_every": "1h", "max_refused": 4}
    result = downpour(threads_client, store, Spoiled(delete_once), **options)
    assert result.status.reason == ("bad_gradients" if end is refused else "diverged")
    assert np.isfinite(result.vector()).all()
    assert checkpoint.snapshots(path) == []
    said = str(result.status)
    assert "lower the learning rate" in said and "resume=True" not in said
    assert f'holds no snapshot: begin anew with checkpoint={path!r}, resume="auto"' in said
    Spoiled.mended = True
    again = downpour(threads_client, store, checkpoint=path, resume="auto")
    np.testing.assert_array_equal(flat(again), whole["downpour"])


@pytest.mark.filterwarnings("ignore::dbdask.TrainingWarning")
def test_the_best_parameters_come_home_where_the_last_have_diverged(
    threads_client, store, tmp_path
):
    paths = [str(tmp_path / name) for name in ("whole.zarr", "spoiled.zarr")]
    options = {"keep": "best", "validation": labelled(store), "epochs": 4}
    whole = downpour(threads_client, store, Spoiled(), checkpoint=paths[0], **options)
    losses = whole.history["validation_loss"].values
    options["checkpoint"] = paths[1]
    result = downpour(threads_client, store, Spoiled(exploding, 2 * 60), **options)
    assert result.status.reason == "epochs"  # the best parameters have not diverged
    found = result.evaluate(labelled(store))["loss"]
    assert found == pytest.approx(losses[np.isfinite(losses)][1], rel=1e-3)
    assert the_snapshot(paths[1]).state["steps"] <= 2 * 60
    Spoiled.mended = True
    again = downpour(threads_client, store, Spoiled(), resume=True, **options)
    np.testing.assert_array_equal(flat(again), flat(whole))


async def lose(run):
    raise ShardLost("lost")


def sometimes(loss, gradient):
    return refused(loss, gradient) if Spoiled.calls % 3 == 0 else loss


def test_a_run_that_refuses_all_the_time_loses_no_more_than_any_other(
    threads_client, store, tmp_path, monkeypatch
):
    path = str(tmp_path / "run.zarr")
    options = {"checkpoint": path, "max_refused": 1000, "snapshot_every": "1ms"}
    advance = Downpour.advance

    async def advance_and_write(method, run):
        """Write a snapshot once gradients are refused, however fast the run is by then."""
        if run.tally.refused and run.tally.steps > AFTER and not Spoiled.interrupted:
            Spoiled.interrupted = True
            await run.snapshots.settle()
            if run.snapshots.committed.state["steps"] <= AFTER:
                await run.attend(epoch_ended=False)
                await run.snapshots.settle()
        await advance(method, run)

    with monkeypatch.context() as patched, pytest.raises(ShardLost):
        patched.setattr(Downpour, "advance", advance_and_write)
        patched.setattr(Run, "conclude", lose)
        downpour(threads_client, store, Spoiled(sometimes), **options)
    last = checkpoint.latest(path)
    assert set(sealed.children(path)) >= {last.last_good, last.group}
    assert last.state["steps"] > AFTER and last.state["counts"]["refused"] > 0
    good = sealed.read(path, f"{last.last_good}/commit", checkpoint.COMMIT)
    assert 0 < good["steps"] <= AFTER and good["counts"]["refused"] == 0
    Spoiled.mended = True
    result = downpour(threads_client, store, resume=True, **options)
    assert result.status.ok and result.history["step"].values[-1] == 60 * EPOCHS
    the_snapshot(path)
