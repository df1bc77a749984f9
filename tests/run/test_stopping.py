"""A run that is asked to stop waits for nothing that may never come."""

import threading
import time

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dbdask
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
        assert begun.wait(120)
        times.append(time.monotonic())
        runs[0].request_stop("interrupted")

    monkeypatch.setattr(training, "make_shards", made)
    monkeypatch.setattr(training, "release", released)
    stopping = threading.Thread(target=stop)
    stopping.start()
    yield times
    stopping.join()


ENDLESS = {"downpour": {"epochs": 10_000}, "sandblaster": {"iterations": 10_000, "tolerance": 0.0}}


@pytest.mark.parametrize("algorithm", ENDLESS)
@pytest.mark.parametrize("role", ["examples", "validation"])
@pytest.mark.filterwarnings("ignore:the run did not end:dbdask.TrainingWarning")
def test_a_block_that_dask_never_computes_holds_up_no_end(
    threads_client, hanging, readable, stopped, role, algorithm
):
    model = dbdask.Network(input_shape=3, layers=[dbdask.Dense(2)], loss="softmax")
    given = {"examples": readable} | {role: hanging}
    result = getattr(dbdask, algorithm)(
        model, **given, client=threads_client, progress=False, **ENDLESS[algorithm]
    )
    assert result.status.reason in ("interrupted", "precision")
    assert stopped[1] - stopped[0] < LONGEST
    assert role == "examples" or "validation_loss" not in result.history
