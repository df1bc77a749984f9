"""Work under way, as its workers leave and fall silent, and the wait for one that could do it."""

import asyncio
from concurrent.futures import CancelledError

import pytest
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError
from test_giving_up import PROVIDERS, outstanding, portion, report
from test_roster import Cluster, live

from dbdask.errors import RaisedInShard, ShardLost, WorkerError
from dbdask.run.failures import MOST_ATTEMPTS
from dbdask.run.workforce import Workforce


def workforce(cluster, only=None):
    return Workforce(cluster.client, "run", b"job", PROVIDERS, cluster.roster(only))


# The wait for a worker


def test_the_wait_for_a_worker_begins_when_the_last_one_leaves(monkeypatch):
    cluster = Cluster(monkeypatch, "mine", "other")

    async def story():
        force = workforce(cluster, ["mine"])
        await force.refresh(first=True)
        force.outstanding = [outstanding(portion(0), "mine")]
        cluster.now += 20.0  # a long portion
        await force.refresh()
        cluster.names.remove("mine")
        await force.refresh()
        assert await force.watch_silence()
        await force.refresh()
        assert await force.ended(0.0) == []
        cluster.now += 14.0
        await force.refresh()
        assert await force.ended(0.0) == []
        cluster.now += 1.0
        await force.refresh()
        with pytest.raises(WorkerError, match=r"workers=\['mine'\] is left .* none came in 15 s"):
            await force.ended(0.0)

    live(story())


# A run that is cancelled


def test_a_run_that_is_cancelled_as_a_call_of_it_fails_goes_no_further(monkeypatch):
    """It would ask a scheduler that is gone who is there, and wait for 30 s."""
    cluster = Cluster(monkeypatch, "w")
    caught = []

    async def story():
        force = workforce(cluster)
        await force.refresh(first=True)
        failing, pending = (asyncio.get_running_loop().create_future() for _ in range(2))

        async def run():
            try:
                await asyncio.gather(failing, pending)
            except ShardLost as error:  # and not that it was cancelled
                caught.append(error)
            await force.refresh(now=True)

        running = asyncio.ensure_future(run())
        await asyncio.sleep(0)
        failing.set_exception(ShardLost("shard 0 is gone"))
        running.cancel()
        await asyncio.wait({running})
        assert caught and running.cancelled()

    live(story())


# Work under way


def test_a_worker_is_asked_for_a_sign_of_life_however_long_portions_take(monkeypatch):
    cluster = Cluster(monkeypatch, "w")

    async def story():
        force = workforce(cluster)
        await force.refresh(first=True)
        for number in range(3):
            force.outstanding = [outstanding(portion(number), "w", report())]
            cluster.now += 30.0
            await force.ended(0.0)
        force.outstanding = [outstanding(portion(3), "w")]
        force.outstanding[0].since = cluster.now
        cluster.now += 9.0
        assert await force.watch_silence() == [] and not cluster.asked
        cluster.stopped.add("w")
        cluster.now += 1.5
        assert await force.watch_silence() == []
        await asyncio.sleep(0)
        assert await force.watch_silence() == [portion(3)] and cluster.asked == ["w"]

    live(story())


def test_a_worker_that_answers_is_not_asked_again_at_once(monkeypatch):
    cluster = Cluster(monkeypatch, "w")

    async def story():
        force = workforce(cluster)
        await force.refresh(first=True)
        force.outstanding = [outstanding(portion(0), "w")]
        force.outstanding[0].since = cluster.now
        for asked in (1, 2):
            cluster.now += 11.0
            for _ in range(4):
                assert await force.watch_silence() == []
                await asyncio.sleep(0)
            assert cluster.asked == ["w"] * asked

    live(story())


def test_work_that_is_stuck_on_paused_workers_five_times_is_named(monkeypatch):
    """A portion whose chunks fill a worker's memory pauses each worker that it is given to."""
    names = [f"w{n}" for n in range(MOST_ATTEMPTS)]
    cluster = Cluster(monkeypatch, *names)

    async def get_stuck(force, worker):
        cluster.paused = {worker}
        await force.refresh(now=True)
        first, behind = outstanding(portion(3), worker), outstanding(portion(4), worker)
        force.outstanding = [first, behind]
        for out in force.outstanding:
            out.since = cluster.now
        assert await force.watch_silence() == []  # Dask may let it go on at once
        cluster.now += 11.0
        return await force.watch_silence()

    async def story():
        force = workforce(cluster)
        await force.refresh(first=True)
        for worker in names[:-1]:
            assert await get_stuck(force, worker) == [portion(3), portion(4)]
        match = r"portion 3 .*failed 5 times.*because Dask has paused worker w4.* its memory"
        with pytest.raises(WorkerError, match=match):
            await get_stuck(force, names[-1])

    live(story())


@pytest.mark.parametrize("error", [CancelledError(), OSError("closed")])
def test_work_that_a_client_without_a_scheduler_lost_has_not_failed(monkeypatch, caplog, error):
    cluster = Cluster(monkeypatch, "w")
    cluster.client.scheduler_comm.closed = lambda: True

    async def story():
        force = workforce(cluster)
        for _ in range(6):
            force.outstanding = [outstanding(portion(0), "w", error)]
            [(_, answer)] = await force.ended(0.0)
            assert answer is None
        assert not force.failures.suspicion

    live(story())
    assert "failed" not in caplog.text


ENDS = {
    "because Dask cancelled its task: persisted or scattered data": FutureCancelledError(
        "key", "lost dependencies"
    ),
    "because Dask cancelled its task .reason: scheduler-restart.": FutureCancelledError(
        "key", "scheduler-restart"
    ),
    "because Dask cancelled its task .reason: unknown.": asyncio.CancelledError(),
    "with KeyError..mine": KeyError("mine"),
    "with CommClosedError": CommClosedError("mine"),
}


@pytest.mark.parametrize("words", ENDS)
def test_work_that_ends_in_whatever_way_five_times_is_named(monkeypatch, words):
    cluster = Cluster(monkeypatch, "w")

    async def story():
        force = workforce(cluster)
        for _ in range(MOST_ATTEMPTS - 1):
            force.outstanding = [outstanding(portion(0), "w", ENDS[words])]
            [(_, answer)] = await force.ended(0.0)
            assert answer is None
        force.outstanding = [outstanding(portion(0), "w", ENDS[words])]
        with pytest.raises(WorkerError, match=f"failed 5 times, the last time {words}"):
            await force.ended(0.0)

    live(story())


def test_an_error_that_a_shard_raised_ends_the_run_as_it_is(monkeypatch):
    cluster, mine = Cluster(monkeypatch, "w"), KeyError("mine")

    async def story():
        force = workforce(cluster)
        force.outstanding = [outstanding(portion(0), "w", RaisedInShard(mine))]
        with pytest.raises(KeyError) as caught:
            await force.ended(0.0)
        assert caught.value is mine

    live(story())
