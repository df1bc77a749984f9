"""What runs leave in the processes of client and workers: nothing that grows."""

import gc
import os
import sys
import threading
import time
from collections import Counter

import pytest
from counting import CountingModel
from test_downpour import assert_nothing_left, counted, write_store
from test_sandblaster import LinearCounting

import dbdask
from dbdask.server.room import Room, _rooms
from dbdask.server.shard import ParameterShard, ShardState

OURS = (ParameterShard, ShardState, Room)


def held():
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
    return {
        "threads": sorted(t.name for t in threading.enumerate() if "dbdask" in t.name),
        "files": sorted(f for f in files if f.startswith("/") and not f.startswith("/dev")),
        "mappings": sorted(m for m in mapped if m.startswith(("/dev/shm", "/tmp", "/memfd"))),
        "rooms": [run for rooms in _rooms.values() for run in rooms],
        "objects": [type(o).__name__ for o in gc.get_objects() if isinstance(o, OURS)],
    }


def new(before, now):
    """What a process holds now and did not hold before."""
    return [
        (kind, entry)
        for old, held_now in zip(before, now, strict=True)
        for kind in old
        for entry in Counter(held_now[kind]) - Counter(old[kind])
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("verb", ["downpour", "sandblaster"])
def test_runs_leave_nothing_in_any_process(process_client, tmp_path, verb):
    store = write_store(tmp_path / "store.zarr", 1200)

    def run(number):
        options = {"client": process_client, "shards": 2, "shard_copies": 2, "progress": False}
        options |= {"checkpoint": str(tmp_path / f"{verb}-{number}.zarr"), "snapshot_every": "50ms"}
        options["validation"] = counted(store).isel(row=slice(0, 100))
        if verb == "downpour":
            dbdask.downpour(CountingModel(1200), counted(store), epochs=2, **options)
        else:
            dbdask.sandblaster(LinearCounting(1200), counted(store), iterations=3, **options)

    def looks():
        return [held(), *process_client.run(held).values()]

    run(0)
    before = looks()
    run(1)
    assert_nothing_left(process_client)
    until = time.monotonic() + 15
    while (found := new(before, looks())) and time.monotonic() < until:
        time.sleep(0.5)
    assert not found
