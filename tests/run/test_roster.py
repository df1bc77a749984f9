"""Who may work and who may hold shards, as workers stop, leave, come back and are refused."""

import asyncio
import logging
import types

import dask
import pytest

from dbdask.errors import WorkerError
from dbdask.rpc import arrivals
from dbdask.rpc.arrivals import DEMAND_SECONDS, MOST_DEMANDED
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.scheduler import WorkerFacts
from dbdask.run import preflight
from dbdask.run import roster as roster_module
from dbdask.run import shard_placement as places
from dbdask.run.preflight import WorkerSilent
from dbdask.run.roster import Roster
from dbdask.run.shard_placement import ShardPlacement, eligible_workers
from dbdask.schedule.awake import AwakeClock

SHORT = {"dbdask.answer": "20ms", "dbdask.ping": "100ms"}


class Cluster:
    """Workers by name, as a roster sees them; time passes when a test says so, or it waits.

    `checked` holds what became of each check: a worker's `outcomes` are used up one by one, an
    exception is raised, an event is waited for.
    """

    def __init__(self, monkeypatch, *names):
        self.names, self.stopped, self.now = list(names), set(), 1000.0
        self.paused = set()
        self.outcomes, self.checked = {}, []
        self.client = types.SimpleNamespace(
            rpc=None,
            futures={},
            scheduler_comm=types.SimpleNamespace(closed=lambda: False),
            map=self.map,
        )
        self.asked = []
        self.demand = self.submitted = 0
        self.clock = types.SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(arrivals, "until_heard", self.until_heard)
        monkeypatch.setattr(roster_module, "time", self.clock)
        monkeypatch.setattr(roster_module, "REFRESH_SECONDS", 0.0)
        monkeypatch.setattr(roster_module, "workers_now", self.workers_now)
        monkeypatch.setattr(roster_module, "worker_answers", self.answers)
        monkeypatch.setattr(preflight, "worker_answers", self.answers)
        monkeypatch.setattr(preflight, "run_on", self.run_on)

    def roster(self, only=None, holders=None):
        clock = types.SimpleNamespace(seconds=lambda: self.now)
        return Roster(self.client, b"job", None, only, holders, clock=clock)

    def map(self, function, seconds, **options):
        """What waits for workers; `demand` is how many such tasks are held."""
        self.demand += len(seconds)
        self.submitted += len(seconds)

        def release():
            self.demand -= 1

        return [types.SimpleNamespace(release=release) for _ in seconds]

    async def until_heard(self, client):
        assert client is self.client

    async def workers_now(self, client):
        self.now += 0.1
        return {
            name: WorkerFacts(name, name, "here", 0, is_paused=name in self.paused)
            for name in self.names
        }

    async def answers(self, pool, name, **rest):
        self.asked.append(name)
        return name in self.names and name not in self.stopped

    async def run_on(self, pool, name, function, *arguments, seconds):
        if function is preflight.import_here:
            return None
        if function is preflight.version_here:
            return preflight.version_here()
        self.checked.append((name, arguments[-1]))
        outcome = (self.outcomes.get(name) or [""]).pop(0)
        if isinstance(outcome, asyncio.Event):
            await outcome.wait()
            return ""
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def no_answer(cause):
    error = WorkerError("gave no answer")
    error.__cause__ = cause
    return error


def eligible(roster, wanted=None):
    return eligible_workers(roster.facts, wanted, roster.away)


def live(coroutine):
    with dask.config.set(SHORT):
        asyncio.run(asyncio.wait_for(coroutine, 20))


async def until(roster, condition):
    """Look on, as a run does, until something is so."""
    while not condition():
        await roster.refresh()
        roster.ask()
        await asyncio.sleep(0)


def test_while_there_is_no_worker_or_one_is_checked_a_task_wants_it(monkeypatch):
    """An adaptive cluster starts workers for tasks, and takes away those that have none."""
    cluster = Cluster(monkeypatch, "first")

    async def story():
        roster = cluster.roster()
        await roster.refresh(first=True)
        roster.note_lack(roster.lack)
        assert cluster.demand == 0
        is_checked = asyncio.Event()
        cluster.outcomes["second"] = [is_checked]
        for names in ([], ["second"], ["second"]):
            cluster.names = names
            await roster.refresh(now=True)
            roster.note_lack(roster.lack)
            roster.note_lack(roster.lack)
            assert cluster.demand == 1
        asked = cluster.submitted
        cluster.now += 1.0  # the task has ended, and the check has not
        roster.note_lack(roster.lack)
        assert (cluster.demand, cluster.submitted) == (1, asked + 1)
        is_checked.set()
        await until(roster, lambda: roster.workers == ["second"])
        roster.note_lack(roster.lack)
        assert cluster.demand == 0
        cluster.names = []
        await roster.refresh(now=True)
        roster.note_lack(roster.lack)
        assert cluster.demand == 1
        await roster.close()
        assert cluster.demand == 0

    live(story())


def test_for_a_replica_of_several_workers_ever_more_tasks_want_them(monkeypatch):
    """An adaptive cluster starts a second worker only for much work that waits."""
    cluster = Cluster(monkeypatch, "first")

    async def story():
        roster = cluster.roster()
        roster.least = 3
        await until(roster, lambda: roster.workers == ["first"])
        seen = []
        for _ in range(12):
            roster.note_lack(roster.lack)
            roster.note_lack(roster.lack)  # at once: the tasks that there are have not ended
            seen.append(cluster.demand)
            cluster.now += DEMAND_SECONDS
        assert seen[:4] == [3, 6, 12, 24] and seen[-2:] == [MOST_DEMANDED] * 2
        cluster.names = ["first", "second", "third"]
        await until(roster, lambda: len(roster.workers) == 3)
        roster.note_lack(roster.lack)
        assert cluster.demand == 0
        cluster.names = []
        await roster.refresh(now=True)
        for _ in range(3):
            roster.note_lack(roster.lack)
            cluster.now += DEMAND_SECONDS
            assert cluster.demand == 3

    live(story())


def test_the_wait_for_a_gang_begins_anew_with_each_worker_that_comes(monkeypatch):
    cluster, seconds = Cluster(monkeypatch), deadline("arrival") - 1

    async def story():
        roster = cluster.roster()
        roster.least = 3
        for count in (0, 1, 2):
            cluster.names = list("abc")[:count]
            await until(roster, lambda count=count: len(roster.workers) == count)
            roster.check_arrival(roster.lack)
            cluster.now += seconds
            roster.check_arrival(roster.lack)
        cluster.names = ["a"]  # one that goes and comes again is no progress
        await until(roster, lambda: len(roster.workers) == 1)
        cluster.names = ["a", "d"]
        await until(roster, lambda: len(roster.workers) == 2)
        roster.check_arrival(roster.lack)
        cluster.now += 2.0
        with pytest.raises(WorkerError, match="partitions=3 needs 3 workers .* 2 can train now"):
            roster.check_arrival(roster.lack)

    live(story())


# Checks of workers that stop or leave


def test_workers_that_die_of_their_check_do_not_keep_the_run_waiting(monkeypatch):
    cluster = Cluster(monkeypatch, "w0")

    async def dies(pool, name, *rest, **options):
        cluster.now += 1.0
        cluster.names = [f"w{len(cluster.checked)}"]  # what its nanny starts
        cluster.checked.append(name)
        raise no_answer(OSError("closed"))

    monkeypatch.setattr(preflight, "run_on", dies)
    match = r"none came in 15 s \(w0 left while it was checked, w1 left.*dbdask\.arrival"
    with pytest.raises(WorkerError, match=match):
        live(cluster.roster().refresh(first=True))
    assert len(cluster.checked) < 90


def test_workers_that_were_restarted_during_their_checks_come_back_and_are_waited_for(monkeypatch):
    """On a busy machine a new worker imports for longer than `dbdask.arrival`."""
    cluster = Cluster(monkeypatch, "old")
    is_checked = asyncio.Event()
    cluster.outcomes = {"old": [no_answer(OSError("closed"))], "new": [is_checked]}

    async def story():
        roster = cluster.roster()
        cluster.names = ["old"]
        await roster.refresh()
        cluster.names = ["new"]
        await until(roster, lambda: roster._left == {"old"})
        cluster.names = []  # restarted once more
        for _ in range(2):
            await roster.refresh(now=True)
            roster.check_arrival(roster.lack)
            cluster.now += 10.0
        cluster.names = ["new"]
        await roster.refresh(now=True)
        for _ in range(3):
            roster.check_arrival(roster.lack)
            cluster.now += 14.0
            await roster.refresh(now=True)
        is_checked.set()
        await until(roster, lambda: roster.workers == ["new"])
        await roster.close()

    live(story())


def test_a_run_begins_without_a_stopped_worker_and_checks_it_when_it_answers(monkeypatch, caplog):
    cluster = Cluster(monkeypatch, "well", "stopped")
    cluster.stopped.add("stopped")
    cluster.outcomes["stopped"] = [asyncio.Event()]  # it answers nothing

    async def story():
        roster = cluster.roster()
        with caplog.at_level(logging.WARNING, "dbdask"):
            await roster.refresh(first=True)
        assert "worker stopped is silent" in caplog.text
        assert roster.workers == eligible(roster) == ["well"]
        await until(roster, lambda: cluster.asked.count("stopped") > 3)
        assert roster.workers == ["well"]
        cluster.stopped.clear()
        await until(roster, lambda: roster.workers == eligible(roster) == ["well", "stopped"])
        await roster.close()

    live(story())


def test_a_slow_worker_is_waited_for_as_long_as_it_answers(monkeypatch):
    cluster = Cluster(monkeypatch, "slow")
    opened = asyncio.Event()
    cluster.outcomes["slow"] = [opened]

    async def story():
        roster = cluster.roster()
        start = asyncio.ensure_future(roster.refresh(first=True))
        while cluster.asked.count("slow") < 3:
            await asyncio.sleep(0.01)
        assert not start.done()
        opened.set()
        await start
        assert roster.workers == ["slow"]

    live(story())


@pytest.mark.parametrize("answers", [True, False])
def test_a_passed_deadline_refuses_only_who_answers(monkeypatch, answers):
    cluster = Cluster(monkeypatch, "w")
    cluster.outcomes["w"] = [no_answer(TimeoutError())]
    cluster.stopped = set() if answers else {"w"}
    check = preflight.check_worker(None, "w", b"", None)
    with pytest.raises(WorkerError if answers else WorkerSilent):
        live(check)


def test_an_error_names_the_silent_where_nobody_else_is_there(monkeypatch):
    cluster = Cluster(monkeypatch, "a", "b")
    cluster.stopped = {"a", "b"}
    cluster.outcomes = {name: [asyncio.Event()] for name in "ab"}
    match = r"no worker is left .* 15 s \(a answers no ping, b answers no.*dbdask\.arrival"
    with pytest.raises(WorkerError, match=match):
        live(cluster.roster().refresh(first=True))


def test_a_worker_that_leaves_during_its_check_is_done_without(monkeypatch):
    cluster = Cluster(monkeypatch, "well", "leaving")

    async def story():
        roster = cluster.roster()
        run_on = cluster.run_on

        async def leave(pool, name, *rest, **options):
            if name == "leaving":
                cluster.names.remove("leaving")
                raise no_answer(OSError("closed"))
            return await run_on(pool, name, *rest, **options)

        monkeypatch.setattr(preflight, "run_on", leave)
        await roster.refresh(first=True)
        assert roster.workers == ["well"] and not roster.silent

    live(story())


def test_the_start_waits_for_another_where_the_last_one_leaves_during_its_check(monkeypatch):
    cluster = Cluster(monkeypatch, "last")

    async def story():
        roster = cluster.roster()
        run_on = cluster.run_on

        async def leave(pool, name, *rest, **options):
            if name == "last":
                cluster.names.clear()
                asyncio.get_running_loop().call_later(0.05, cluster.names.append, "new")
                raise no_answer(OSError("closed"))
            return await run_on(pool, name, *rest, **options)

        monkeypatch.setattr(preflight, "run_on", leave)
        with dask.config.set({"dbdask.arrival": "1h"}):  # of the cluster's clock
            await roster.refresh(first=True)
        assert roster.workers == ["new"]

    live(story())


def test_an_error_names_the_shard_workers_where_all_are_silent(monkeypatch):
    cluster = Cluster(monkeypatch, "trains", "holds")
    cluster.stopped = {"holds"}
    cluster.outcomes["holds"] = [asyncio.Event()]
    match = r"no worker of shard_workers=\['holds'\] is left .*\(holds answers no ping\)"
    with pytest.raises(WorkerError, match=match):
        live(cluster.roster(["trains"], ["holds"]).refresh(first=True))


@pytest.mark.parametrize(("only", "holders"), [(["1"], None), (None, ["1"])])
def test_the_start_waits_for_a_named_worker_that_is_not_there(monkeypatch, only, holders):
    cluster = Cluster(monkeypatch, "0")

    async def story():
        roster = cluster.roster(only, holders)
        asyncio.get_running_loop().call_later(0.05, cluster.names.append, "1")
        with dask.config.set({"dbdask.arrival": "1h"}):  # of the cluster's clock
            await roster.refresh(first=True)
        assert "1" in roster.workers

    live(story())


# Homes of shards


def test_shards_come_to_no_worker_that_is_refused_or_not_checked_yet(monkeypatch, caplog):
    cluster = Cluster(monkeypatch, "first")

    async def story():
        roster = cluster.roster()
        await roster.refresh(first=True)
        opened = asyncio.Event()
        cluster.names += ["unable", "slow"]
        cluster.outcomes = {"unable": ["cannot take part: no store"], "slow": [opened]}
        await roster.refresh()
        assert eligible(roster) == roster.workers == ["first"]
        await until(roster, lambda: "unable takes no part" in caplog.text)
        assert eligible(roster) == roster.workers == ["first"]
        opened.set()
        await until(roster, lambda: eligible(roster) == roster.workers == ["first", "slow"])

    live(story())
    assert cluster.checked.count(("unable", True)) == 1


def test_workers_that_only_hold_shards_are_checked_without_the_data_and_get_no_portions(
    monkeypatch,
):
    cluster = Cluster(monkeypatch, "trains", "holds", "neither")

    async def story():
        roster = cluster.roster(["trains"], ["holds"])
        await roster.refresh(first=True)
        assert sorted(cluster.checked) == [("holds", False), ("trains", True)]
        assert roster.workers == ["trains"] and eligible(roster, ["holds"]) == ["holds"]

    live(story())


@pytest.mark.parametrize("holders", [None, ["holds"]])
def test_a_shard_worker_that_cannot_take_part_is_an_error_at_the_start(monkeypatch, holders):
    cluster = Cluster(monkeypatch, "trains", "holds")
    cluster.outcomes["holds"] = ["cannot take part: nothing is at checkpoint='run.zarr'"]
    with pytest.raises(WorkerError, match=r"worker holds cannot take part: nothing is at check"):
        live(cluster.roster(["trains"], holders).refresh(first=True))


def test_who_was_asked_to_leave_waits_for_the_check_of_a_successor(monkeypatch):
    cluster = Cluster(monkeypatch, "old")

    async def story():
        roster = cluster.roster()
        await roster.refresh(first=True)
        server = types.SimpleNamespace(
            workers=["old"],
            can_leave=lambda going, among: bool(set(among) - going),
        )
        workforce = types.SimpleNamespace(roster=roster)
        placement = ShardPlacement(None, server, workforce, None, None, None)
        placement._hear({"action": "retire-workers", "could-not-retire": ["old"]})
        assert placement.must_move  # to be told that it cannot
        opened = asyncio.Event()
        cluster.names.append("new")
        cluster.outcomes["new"] = [opened]
        await roster.refresh()
        assert not placement.must_move
        opened.set()
        await until(roster, lambda: "new" in roster.workers)
        assert placement.must_move

    live(story())


# Pings


def test_who_is_known_to_be_silent_is_not_waited_for_again(monkeypatch):
    """Each look would cost the deadline of a ping, and a recovery looks more than once."""

    async def live():
        cluster = Cluster(monkeypatch, "a", "b")
        roster = cluster.roster()
        await roster.refresh(first=True)
        cluster.stopped = {"b"}
        await roster.ask_everyone()
        assert roster.silent == {"b"}
        never = asyncio.Event()

        async def answers(pool, name, **rest):
            if name == "b":
                await never.wait()
            return True

        monkeypatch.setattr(roster_module, "worker_answers", answers)
        async with asyncio.timeout(30):
            await roster.ask_everyone()
        assert roster.silent == {"b"}
        never.set()
        await asyncio.gather(*roster._asking.values())
        await roster.ask_everyone()
        assert not roster.silent

    asyncio.run(live())


def test_a_newcomer_in_its_check_is_waited_for_as_a_home(monkeypatch):
    """Longer than the deadline of `arrival`, as at the start of a run."""
    looks = []

    async def refresh():
        looks.append(0)
        if len(looks) == 5:
            roster.is_hopeful, roster.workers, roster.away = False, ["new"], set()
            roster.lack = ""

    async def watch_silence():
        return []

    new = WorkerFacts("new", "new", "here", 0)
    roster = types.SimpleNamespace(
        is_hopeful=True,
        workers=[],
        useful=0,
        lack="no worker is left to train on",
        facts={"new": new},
        away={"new"},
        closing=set(),
        only=None,
        clock=AwakeClock(),
    )
    workforce = types.SimpleNamespace(refresh=refresh, watch_silence=watch_silence, roster=roster)
    snapshots = types.SimpleNamespace(resume_hint=lambda: "")
    placement = ShardPlacement(None, None, workforce, snapshots, None, None)
    monkeypatch.setattr(places, "TURN_SECONDS", 0.0)
    with dask.config.set({"dbdask.arrival": "0s"}):
        asyncio.run(placement.wait())
        roster.workers, roster.away = [], {"new"}
        roster.lack = "no worker is left to train on"
        with pytest.raises(WorkerError, match="no worker is left to go on with"):
            asyncio.run(placement.wait())
    assert len(looks) >= 5


def test_a_named_home_that_comes_back_is_waited_for(monkeypatch, caplog):
    cluster = Cluster(monkeypatch, "0", "1")
    monkeypatch.setattr(places, "TURN_SECONDS", 0.0)

    async def story():
        roster = cluster.roster(["0"], ["1"])
        await roster.refresh(first=True)

        async def refresh():
            await roster.refresh()
            cluster.now += 1.0

        async def watch_silence():
            return []

        workforce = types.SimpleNamespace(
            refresh=refresh, watch_silence=watch_silence, roster=roster
        )
        snapshots = types.SimpleNamespace(resume_hint=lambda: "resume=True goes on")
        placement = ShardPlacement(None, None, workforce, snapshots, None, ["1"])
        cluster.names.remove("1")  # its nanny starts it again
        await roster.refresh(now=True)
        assert placement.eligible() == []
        asyncio.get_running_loop().call_later(0.05, cluster.names.append, "1")
        with dask.config.set({"dbdask.arrival": "100 days"}):  # of the cluster's clock
            await placement.wait()
        assert placement.eligible() == ["1"]
        assert caplog.text.count("no worker of shard_workers=['1'] is left to hold shards") == 1
        cluster.names.remove("1")
        roster._checked.discard("1")
        await roster.refresh(now=True)
        lasting = r"no worker of shard_workers=\['1'\] is left.* none came in 15 s.*resume=True"
        with pytest.raises(WorkerError, match=lasting):
            await placement.wait()

    live(story())
