"""Nothing that can wait runs on an event loop: neither the client's, nor a worker's."""

import asyncio
import pickle
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import xarray as xr
from lag import LONGEST, waits_for_a_read, watched
from slow_store import HangingStore, make_hang
from test_downpour import assert_nothing_left
from test_leaving import wait_until
from test_recovery import assert_workers_run_tasks

import dbdask
from dbdask.run import training
from dbdask.worker import context as context_module
from dbdask.worker.context import LONG_READ_SECONDS, close_context, open_context

ROWS, CHUNK = 120, 20
SOON = 4.0
"""Seconds in which a busy machine stops a run; one that waits for a read takes a minute."""


@pytest.fixture
def written(tmp_path):
    path = str(tmp_path / "store.zarr")
    rng = np.random.default_rng(0)
    data = xr.Dataset(
        {"x": (("row", "f"), rng.normal(size=(ROWS, 3))), "y": ("row", np.arange(ROWS) % 2)}
    )
    data.chunk(row=CHUNK).to_zarr(path, consolidated=False)
    return path


@pytest.fixture
def readable(written, tmp_path):
    """Examples of a copy of the store, which can be read."""
    path = str(tmp_path / "copy.zarr")
    shutil.copytree(written, path)
    return dbdask.Examples(path, inputs="x", targets="y", along="row")


@pytest.fixture
def hanging(written, readable):
    """Examples of a store with a chunk that hangs for the whole test."""
    let_go = make_hang(written, "x/c/3/0")
    yield dbdask.Examples(HangingStore.at(written), inputs="x", targets="y", along="row")
    let_go()


def interrupt_where_one_reads(client):
    """Press Ctrl-C when a worker has waited for a moment."""
    wait_until(lambda: any(client.run(waits_for_a_read).values()), seconds=120)
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("cluster", "algorithm"),
    [
        ("threads_client", "downpour"),
        ("process_client", "sandblaster"),
        pytest.param("threads_client", "sandblaster", marks=pytest.mark.slow),
        pytest.param("process_client", "downpour", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:the run did not end:dbdask.TrainingWarning")
def test_a_run_that_ends_while_workers_read_keeps_no_loop_waiting(
    request, hanging, cluster, algorithm
):
    client = request.getfixturevalue(cluster)
    model = dbdask.Network(input_shape=3, layers=[dbdask.Dense(2)], loss="softmax")
    interrupting = threading.Thread(target=interrupt_where_one_reads, args=(client,))
    with watched(client) as lags:
        interrupting.start()
        result = getattr(dbdask, algorithm)(model, hanging, client=client, progress=False)
    interrupting.join()
    assert result.status.reason == "interrupted"
    assert len(lags) == 4
    assert max(lags.values()) < LONGEST, lags
    assert_nothing_left(client)
    assert_workers_run_tasks(client)


STOPS = {
    "Ctrl-C": lambda run: signal.raise_signal(signal.SIGINT),
    "callback": lambda run: run.request_stop("callback"),
}


@pytest.mark.parametrize(
    ("algorithm", "stop"),
    [
        ("downpour", "Ctrl-C"),
        ("sandblaster", "callback"),
        pytest.param("downpour", "callback", marks=pytest.mark.slow),
        pytest.param("sandblaster", "Ctrl-C", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:the run did not end:dbdask.TrainingWarning")
def test_a_run_that_is_stopped_waits_for_no_validation_that_hangs(
    threads_client, hanging, readable, algorithm, stop, monkeypatch, caplog
):
    """The validation holds the thread of a worker, and training waits behind it."""
    model = dbdask.Network(input_shape=3, layers=[dbdask.Dense(2)], loss="softmax")
    runs, stopped = [], []
    release = training.release
    monkeypatch.setattr(training, "make_shards", _noted(training.make_shards, runs))

    def act():
        wait_until(lambda: any(threads_client.run(waits_for_a_read).values()), seconds=120)
        stopped.append(time.monotonic())
        STOPS[stop](runs[0])

    async def released(run):
        stopped.append(time.monotonic())
        await release(run)

    monkeypatch.setattr(training, "release", released)
    acting = threading.Thread(target=act)
    acting.start()
    amount = (
        {"epochs": 10_000} if algorithm == "downpour" else {"iterations": 10_000, "tolerance": 0.0}
    )
    with caplog.at_level("WARNING", "dbdask"):
        result = getattr(dbdask, algorithm)(
            model, readable, client=threads_client, validation=hanging, progress=False, **amount
        )
    acting.join()
    assert result.status.reason in ("interrupted", "callback", "precision")
    assert stopped[1] - stopped[0] < SOON + LONG_READ_SECONDS
    assert "a validation ends without a score: it waits for variable 'x'" in caplog.text
    assert "validation_loss" not in result.history
    assert_nothing_left(threads_client)
    assert_workers_run_tasks(threads_client)


def _noted(method, called):
    async def note(run, *arguments):
        called.append(run)
        return await method(run, *arguments)

    return note


def test_a_context_is_closed_while_its_reader_reads(threads_client, hanging):
    """The worker's loop closes it; a read that hangs is not waited for."""
    job = pickle.dumps(_Job(hanging.worker_side()))
    worker = next(iter(threads_client.cluster.workers.values()))

    def read():
        reader = open_context("run", job).reader("train")
        portions = hanging.cut(CHUNK, CHUNK).contiguous()
        return [len(batch.inputs) for p in portions for batch in reader.minibatches(p, CHUNK)]

    reading = threads_client.submit(read, workers=[worker.address], pure=False)

    async def close():
        context = None
        while context is None or not context.readers or not _waits(context):
            await asyncio.sleep(0.01)
            context = _context_of(worker)
        began = time.monotonic()
        close_context("run", worker)
        return time.monotonic() - began

    assert threads_client.sync(close) < 1
    with pytest.raises(Exception, match="chunk c/3/0|the reader is closed"):
        reading.result(10)
    reading.release()  # the traceback of its error may hold it


def test_a_context_is_closed_while_its_job_is_unpickled(threads_client):
    """Unpickling may import for a minute: no lock that closing takes is held meanwhile."""
    worker = next(iter(threads_client.cluster.workers.values()))
    _Slow.begun.clear()
    _Slow.may_end.clear()

    def open_it():
        return type(open_context("slow", pickle.dumps(_Slow())).job).__name__

    opening = threads_client.submit(open_it, workers=[worker.address], pure=False)
    assert _Slow.begun.wait(120)

    async def close():
        began = time.monotonic()
        close_context("slow", worker)
        return time.monotonic() - began

    try:
        assert threads_client.sync(close) < 1
    finally:
        _Slow.may_end.set()
    assert opening.result(10) == "_Slow"
    opening.release()


class _Job:
    def __init__(self, train):
        self.train = train


class _Slow:
    begun, may_end = threading.Event(), threading.Event()

    def __setstate__(self, state):
        self.begun.set()
        self.may_end.wait(120)

    def __getstate__(self):
        return {"something": 1}


def _context_of(worker):
    return context_module._contexts.get(worker, {}).get("run")


def _waits(context):
    since = [s for reader in context.readers.values() for s in reader._reads._waited_for.values()]
    return bool(since) and time.monotonic() - min(since) > 0.3
