"""A process that was stopped and goes on judges nobody by the time that it slept through."""

import asyncio
import os
import signal
import time
import types
from typing import ClassVar

import pytest
from forked import fork_script, read_until
from real_cluster import RealCluster
from test_downpour import write_store

from dbdask.errors import WorkerError
from dbdask.rpc import connections, deadlines, scheduler
from dbdask.rpc.deadlines import within
from dbdask.run.guard import Guard
from dbdask.run.roster import Roster
from dbdask.run.snapshots import Snapshots
from dbdask.schedule import awake
from dbdask.schedule.awake import AwakeClock


class Time:
    """A clock that tests set."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def live(self, clock, seconds):
        """Let a process live so long: it looks at its clock now and then."""
        for _ in range(round(2 * seconds)):
            self.now += 0.5
            clock.seconds()

    def pause(self, seconds):
        """Let a process be stopped so long."""
        self.now += seconds


def test_a_clock_counts_what_the_process_lived_through():
    times = Time()
    clock = AwakeClock(times)
    times.live(clock, 5)
    times.pause(3600)
    times.live(clock, 5)
    assert 9.5 <= clock.seconds() <= 10.5
    assert clock.pauses == 1


def test_many_short_pauses_do_not_make_a_wait_endless():
    times = Time()
    clock = AwakeClock(times)
    for _ in range(100):
        times.pause(5.0)
        clock.seconds()
    assert clock.seconds() == 100 * awake.LOOK_SECONDS


def test_workers_that_a_guard_did_not_see_while_it_slept_have_not_left():
    times = Time()
    clock = AwakeClock(times)
    client = types.SimpleNamespace(
        scheduler=types.SimpleNamespace(address="tcp://there"),
        scheduler_comm=types.SimpleNamespace(closed=lambda: False),
        status="running",
    )
    guard = Guard(client, Snapshots(None, None, 1.0, None), clock)
    guard._note(2)
    times.live(clock, 10)
    times.pause(100)
    assert guard._loss() is None
    times.live(clock, 10)
    assert isinstance(guard._loss(), WorkerError)


def test_workers_that_were_on_their_way_before_a_pause_may_still_come():
    times = Time()
    clock = AwakeClock(times)
    facts = {"other": scheduler.WorkerFacts("other", "other", "here", 0)}
    roster = Roster(None, b"", None, None, facts=facts, clock=clock)
    roster.check_arrival("no worker")
    times.pause(100)
    roster.check_arrival("no worker")
    times.live(clock, 16)
    with pytest.raises(WorkerError, match="none came in 15 s"):
        roster.check_arrival("no worker")


@pytest.fixture
def quick_looks(monkeypatch):
    """What a clock takes for a pause is shorter, so that tests need not sleep."""
    monkeypatch.setattr(awake, "LONGEST_GAP", 0.2)
    monkeypatch.setattr(awake, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(deadlines, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.02)


def test_a_wait_ends_at_its_deadline():
    async def wait():
        async with within(0.05):
            await asyncio.get_running_loop().create_future()

    with pytest.raises(TimeoutError):
        asyncio.run(wait())


def test_an_answer_that_came_in_a_pause_is_read(quick_looks):
    """The process sleeps through the whole deadline; the answer takes some turns to be read."""

    async def wait():
        async with within(0.3):
            time.sleep(0.4)  # as if stopped: the loop does not run
            for _ in range(20):
                await asyncio.sleep(0)
            return "the answer"

    assert asyncio.run(wait()) == "the answer"


def test_a_connection_that_was_being_made_in_a_pause_is_made_again(quick_looks):
    tries = []

    class Pool:
        available: ClassVar = {}

        async def connect(self, address, timeout):
            tries.append(address)
            if len(tries) == 1:
                time.sleep(0.4)
                raise OSError("timed out")
            return "a connection"

    assert asyncio.run(connections.connect(Pool(), "inproc://there", 5.0)) == "a connection"
    assert len(tries) == 2


def test_a_connection_that_fails_without_a_pause_is_not_made_again():
    class Pool:
        available: ClassVar = {}

        async def connect(self, address, timeout):
            raise OSError("refused")

    with pytest.raises(OSError, match="refused"):
        asyncio.run(connections.connect(Pool(), "inproc://there", 5.0))


SHORT = {"arrival": "3s", "ping": "3s", "silence": "1s", "answer": "1s"}
PAUSE_SECONDS = 7.0  # longer than any of them, and than two pings

SCRIPT = """
    from distributed import Client
    from test_real_cluster import ALGORITHMS
    client = Client(scheduler_file={file!r})
    train, _ = ALGORITHMS[{algorithm!r}]
    result = train(client, {store!r}, callbacks=[lambda r: print("going", flush=True)], **{options})
    history = result.history
    print("ended", result.status.reason, int(history["lost"][-1]), flush=True)
"""
OPTIONS = {"downpour": {"epochs": 5}, "sandblaster": {"seconds": 0.1}}


@pytest.mark.parametrize(
    "algorithm", ["downpour", pytest.param("sandblaster", marks=pytest.mark.chaos)]
)
@pytest.mark.parametrize("who", ["client", pytest.param("all", marks=pytest.mark.chaos)])
def test_nobody_is_lost_where_processes_were_stopped_and_go_on(tmp_path, who, algorithm):
    store = write_store(tmp_path / "store.zarr")
    environment = {f"DASK_DBDASK__{name.upper()}": value for name, value in SHORT.items()}
    with RealCluster(tmp_path, environment=environment) as cluster:
        cluster.start_scheduler()
        cluster.start_workers(2)
        file = str(cluster.address_file)
        script = SCRIPT.format(
            file=file, store=store, algorithm=algorithm, options=OPTIONS[algorithm]
        )
        process = fork_script(script, environment)
        read_until(process, "going")
        groups = [process.pid]
        if who == "all":
            groups += [other.pid for other in cluster.processes.values()]
        for sign, seconds in ((signal.SIGSTOP, PAUSE_SECONDS), (signal.SIGCONT, 0.0)):
            for group in groups:
                os.killpg(group, sign)
            time.sleep(seconds)
        said, _ = process.communicate(timeout=120)
    assert next(line for line in said.splitlines() if "ended" in line).split()[2] == "0"
    for words in ("silent", "recovering", "is tried again", "takes no part"):
        assert words not in said
