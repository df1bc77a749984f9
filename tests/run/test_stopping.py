"""A run that is asked to stop waits for nothing that may never come."""

import asyncio
import threading
import time
import types

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from test_giving_up import portion

import dbdask
from dbdask.algorithms.barrier import Barrier
from dbdask.run import training

ROWS, CHUNK, BAD = 240, 20, 7
LONGEST = 20.0
"""Seconds in which a busy machine stops a run; a block that hangs has no end."""


begun, over = threading.Event(), threading.Event()


def hang(block, block_info=None):
    """Compute a block; that of `BAD` begins, and does not end before `over`."""
    if block_info[0]["chunk-location"][0] == BAD:
        begun.set()
        over.wait()
    return block


@pytest.fixture
def hanging():
    """A dask-backed Dataset with a block whose task begins, and never ends, in this process."""
    begun.clear()
    over.clear()
    x = np.random.default_rng(0).normal(size=(ROWS, 3))
    blocks = da.from_array(x, chunks=(CHUNK, 3)).map_blocks(hang, dtype=x.dtype)
    data = xr.Dataset({"x": (("row", "f"), blocks), "y": ("row", np.arange(ROWS) % 2)})
    yield dbdask.Examples(data, inputs="x", targets="y", along="row")
    over.set()


@pytest.fixture
def readable():
    """Examples in memory."""
    x = np.random.default_rng(0).normal(size=(ROWS, 3))
    data = xr.Dataset({"x": (("row", "f"), x), "y": ("row", np.arange(ROWS) % 2)})
    return dbdask.Examples(data, inputs="x", targets="y", along="row")


@pytest.fixture
def stopped(monkeypatch):
    """When the run was asked to stop, because a block hangs, and when it began to release all."""
    runs, times = [], []
    make, release = training.make_shards, training.release

    async def made(run, count):
        runs.append(run)
        await make(run, count)

    async def released(run):
        times.append(time.monotonic())
        await release(run)

    def stop():
        assert begun.wait(30)
        times.append(time.monotonic())
        runs[0].request_stop("interrupted")

    monkeypatch.setattr(training, "make_shards", made)
    monkeypatch.setattr(training, "release", released)
    stopping = threading.Thread(target=stop)
    stopping.start()
    yield times
    stopping.join()


ENDLESS = {"downpour": {"epochs": 10_000}, "sandblaster": {"iterations": 10_000, "tolerance": 0.0}}


@pytest.mark.parametrize("verb", ENDLESS)
@pytest.mark.parametrize("role", ["examples", "validation"])
@pytest.mark.filterwarnings("ignore:the run did not end:dbdask.TrainingWarning")
def test_a_block_that_dask_never_computes_holds_up_no_end(
    threads_client, hanging, readable, stopped, role, verb
):
    model = dbdask.Network(input_shape=3, layers=[dbdask.Dense(2)], loss="softmax")
    given = {"examples": readable} | {role: hanging}
    result = getattr(dbdask, verb)(
        model, **given, client=threads_client, progress=False, **ENDLESS[verb]
    )
    assert result.status.reason in ("interrupted", "precision")
    assert stopped[1] - stopped[0] < LONGEST
    assert role == "examples" or "validation_loss" not in result.history


def test_a_run_that_waits_for_a_model_that_hangs_says_so_every_half_minute(caplog):
    now, heard = [0.0], []
    out = types.SimpleNamespace(work=portion(3), worker="w")

    async def take_in():
        now[0] += 10.0
        heard.append(len(caplog.messages))
        if now[0] == 100.0:
            force.training.clear()

    async def nothing_waits():
        return []

    force = types.SimpleNamespace(
        training=[out],
        give_up_unsubmitted=list,
        give_up_unbegun=nothing_waits,
    )
    run = types.SimpleNamespace(
        workforce=force,
        clock=types.SimpleNamespace(seconds=lambda: now[0]),
        stop_reason="interrupted",
        give_up_long_reads=lambda: None,
        take_in=take_in,
    )
    asyncio.run(Barrier(None, None)._empty(run, may_give_up_reads=True))
    assert heard == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert "waited for 40 s" in caplog.messages[0] and "portion 3" in caplog.messages[0]
