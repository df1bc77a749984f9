"""What runs leave behind, however they end: nothing, in no process of client and workers."""

import gc
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter

import dask
import numpy as np
import pytest
import xarray as xr
from counting_parts import counted_pairs, counting_network
from forked import fork_script
from test_downpour import assert_nothing_left, counted, write_store
from test_recovery import SlowCounting, assert_workers_run_tasks
from test_sandblaster import LinearCounting

import dbdask
from dbdask.rpc.deadlines import DEFAULTS
from dbdask.worker.context import WorkerContext, _contexts
from dbdask.worker.mailbox import Mailbox
from dbdask.worker.shard import ParameterShard
from dbdask.worker.shard_state import ShardState

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    # The model that counts has no loss to lower.
    pytest.mark.filterwarnings("ignore:the run did not end.*search_failed"),
]

OURS = (ParameterShard, ShardState, WorkerContext, Mailbox)
ROWS = 1200

# Pools of Dask, Zarr and asyncio, which grow with the number of calls at once and stay.
POOLS = re.compile(r"Dask-|Dispatch|IO loop|Profile|zarr|asyncio|ThreadPoolExecutor|TCP-Executor")

MONITORED = ("/dev", "/proc")  # nannies look at their workers' memory there, on another thread


def held(dask_worker=None):
    """What a process holds that a run could have left there."""
    gc.collect()
    files = []
    for number in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the listing itself
            continue
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[-1].strip() for line in maps if len(line.split()) > 5}
    threads = (re.sub(r"\d+", "N", thread.name) for thread in threading.enumerate())
    return {
        "threads": sorted(name for name in threads if not POOLS.match(name)),
        "files": sorted(f for f in files if f.startswith("/") and not f.startswith(MONITORED)),
        "mappings": sorted(m for m in mapped if m.startswith(("/dev/shm", "/tmp", "/memfd"))),
        "scratch": sorted(os.listdir(dask_worker.local_directory)) if dask_worker else [],
        "plugins": sorted(dask_worker.plugins) if dask_worker else [],
        "contexts": [run for runs in _contexts.values() for run in runs],
        # By type: to ask an object for its class wakes what others have made lazy.
        "objects": [type(o).__name__ for o in gc.get_objects() if issubclass(type(o), OURS)],
    }


def new(before, now):
    """What a process holds now and did not hold before."""
    return [
        (kind, entry)
        for old, held_now in zip(before, now, strict=True)
        for kind in old
        for entry in Counter(held_now[kind]) - Counter(old[kind])
    ]


def looks(client):
    """What the client, with its scheduler, and each worker hold."""
    return [held(), *client.run(held).values()]


def train(client, algorithm, folder, *, endless=True, rows=ROWS, **options):
    """A run with everything that could be left: shards and copies, checkpoint, validation."""
    store = str(folder / "store.zarr")
    settings = {"client": client, "shards": 2, "shard_copies": 2, "progress": False}
    settings |= {"checkpoint": tempfile.mkdtemp(dir=folder) + "/run.zarr", "snapshot_every": "50ms"}
    settings["validation"] = counted(store).isel(row=slice(0, 100))
    examples = counted(store).isel(row=slice(0, rows))
    if algorithm == "downpour":
        settings["epochs"] = 10_000 if endless else 2
        return dbdask.downpour(SlowCounting(ROWS), examples, **settings, **options)
    if algorithm == "partitions":
        settings |= {"epochs": 10_000 if endless else 2, "partitions": 2}
        settings["validation"] = counted_pairs(store).isel(row=slice(0, 100))
        examples = counted_pairs(store).isel(row=slice(0, rows))
        return dbdask.downpour(counting_network(ROWS, 2), examples, **settings, **options)
    settings |= {"iterations": 10_000 if endless else 3, "tolerance": 0.0}
    return dbdask.sandblaster(
        LinearCounting(ROWS, 0.005 * endless), examples, **settings, **options
    )


# How a run ends


def by_itself(client, algorithm, folder):
    train(client, algorithm, folder, endless=False)


def pressing(times):
    """A callback that presses Ctrl-C so many times, once for a record."""
    left = iter(range(times))

    def press(record):
        for _ in left:
            signal.raise_signal(signal.SIGINT)

    return press


def by_ctrl_c(client, algorithm, folder):
    with pytest.warns(dbdask.TrainingWarning, match="interrupted.*resume=True"):
        result = train(client, algorithm, folder, callbacks=[pressing(1)])
    assert result.status.reason == "interrupted"


def by_ctrl_c_twice(client, algorithm, folder):
    with pytest.raises(KeyboardInterrupt):
        train(client, algorithm, folder, callbacks=[pressing(2)])


def by_a_callback_that_raises(client, algorithm, folder):
    def fail(record):
        raise RuntimeError("no disk to log to")

    with pytest.raises(RuntimeError, match="no disk to log to"):
        train(client, algorithm, folder, callbacks=[fail])


def by_bad_data(client, algorithm, folder):
    with pytest.raises(dbdask.DataError, match="row"):
        train(client, algorithm, folder, rows=ROWS + 1)


def by_sigkill_of_its_client(client, algorithm, folder):
    process = fork_script(
        f"""
        from pathlib import Path
        from distributed import Client
        from test_leaks import train
        client = Client({client.scheduler.address!r})
        say = lambda record: print("going", flush=True)
        train(client, {algorithm!r}, Path({str(folder)!r}), callbacks=[say])
        """
    )
    said = iter(process.stdout.readline, "")  # warnings are said, too
    assert "going\n" in said
    process.kill()
    process.communicate()


ENDS = [
    by_itself,
    by_ctrl_c,
    pytest.param(by_ctrl_c_twice, marks=pytest.mark.slow),
    by_a_callback_that_raises,
    pytest.param(by_bad_data, marks=pytest.mark.slow),
    by_sigkill_of_its_client,
]


@pytest.fixture(scope="module")
def client(process_client):
    """Workers that look every second whether the run lives whose shards they hold.

    What is there before the runs is no garbage of theirs, and need not be looked through.
    """
    freeze()
    process_client.run(freeze)
    with dask.config.set({"dbdask.lease": "1s"}):
        process_client.run(dask.config.set, {"dbdask.lease": "1s"})
        yield process_client
        process_client.run(dask.config.set, {"dbdask.lease": DEFAULTS["lease"]})
    process_client.run(gc.unfreeze)


def freeze():
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store whose last row, one more than the others, cannot be used."""
    folder = tmp_path_factory.mktemp("leaks")
    store = write_store(folder / "store.zarr", ROWS)
    data = xr.load_dataset(store, engine="zarr", consolidated=False)
    data = data.pad(row=(0, 1), constant_values={"index": np.nan, "zero": 0.0})
    data.drop_encoding().chunk(row=100).to_zarr(store, mode="w", consolidated=False)
    return folder


PARTITIONS = pytest.param("partitions", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["downpour", "sandblaster", PARTITIONS])
def algorithm(request, client, folder):
    """An algorithm that has run once, so that modules are imported and pools are there."""
    by_itself(client, request.param, folder)
    return request.param


@pytest.mark.parametrize("end", ENDS)
def test_a_run_leaves_nothing_in_any_process(client, folder, algorithm, end):
    before = looks(client)
    end(client, algorithm, folder)
    if end is not by_sigkill_of_its_client:
        assert_nothing_left(client)
    until = time.monotonic() + 120
    while (found := new(before, looks(client))) and time.monotonic() < until:
        time.sleep(0.1)
    assert not found
    assert_nothing_left(client)
    assert_workers_run_tasks(client)
