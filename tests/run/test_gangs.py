"""Gangs as units of placement, work and failure, on the client's side."""

import asyncio
import threading
import types

import dask
import pytest
from counting import missing_updates
from counting_parts import Counting, Silent, counted_pairs
from distributed import Client, LocalCluster
from test_downpour import assert_nothing_left, labelled, network, write_store
from test_giving_up import PROVIDERS, portion

import dbdask
from dbdask.errors import WorkerError
from dbdask.rpc.calls import ActorPlace
from dbdask.rpc.deadlines import DEFAULTS, deadline
from dbdask.rpc.scheduler import WorkerFacts
from dbdask.run import gangs as gangs_module
from dbdask.run.failures import MOST_ATTEMPTS
from dbdask.run.gangs import Gangs
from dbdask.run.joint_work import ByParts, JointWork
from dbdask.run.roster import REFRESH_SECONDS, Roster
from dbdask.run.run import TURN_SECONDS
from dbdask.run.workforce import Workforce
from dbdask.worker.link import ServerHandle, ShardPlace

ROWS, BATCH = 1200, 20


class Workers:
    """A roster of workers on two hosts, gangs of two of them, and what the workers were told."""

    def __init__(self, monkeypatch, *names, size=2, most=None):
        client = types.SimpleNamespace(
            rpc=None, scheduler_comm=types.SimpleNamespace(closed=lambda: False), futures={}
        )
        self.roster = Roster(client, b"", None, None, least=size)
        for name in names:
            self.come(name)
        self.ended, self.joined, self.broken = [], [], set()
        notices = types.SimpleNamespace(end_gang=lambda *what: self.ended.append(what))
        ranges = [(10 * part, 10 * part + 10) for part in range(size)] if size > 1 else ()
        self.held_by = []  # the worker of each shard, one shard a part
        self.gangs = Gangs(client, "run", b"", self.roster, notices, self.handle, ranges, most)
        self.force = Workforce(client, "run", b"", PROVIDERS, self.roster, gangs=self.gangs)
        monkeypatch.setattr(gangs_module, "run_on", self.run_on)
        monkeypatch.setattr(self.roster, "ask", lambda workers=(): set())
        self.given = []
        monkeypatch.setattr(self.force._tasks, "do", self.do)

    def handle(self):
        shards = [
            ShardPlace(10 * part, 10 * part + 10, (ActorPlace(worker, f"shard {part}"),))
            for part, worker in enumerate(self.held_by)
        ]
        return ServerHandle("run", 0, 10 * len(shards), tuple(shards))

    def come(self, name):
        self.roster.facts[name] = WorkerFacts(name, name, name[0], 0)
        self.roster._checked.add(name)

    def leave(self, name):
        del self.roster.facts[name]

    async def run_on(self, pool, worker, function, run, job, handle, gang, workers, *, seconds):
        if worker in self.broken:
            raise WorkerError("gave no answer")
        self.joined.append((gang, worker))
        return True

    async def do(self, work, function, order, worker, key):
        future = asyncio.get_running_loop().create_future()
        self.given.append((order, worker, future))
        return await future

    async def form(self):
        await self.gangs.form(out.place for out in self.force.training)

    async def give(self, number, place, taken):
        """Give a gang a portion; what comes of it is appended to `taken`."""
        parts = ByParts(lambda member: member, merged)
        self.force.give(
            portion(number),
            train_portion,
            "order",
            place,
            take=lambda report: taken.append(report) or (report.trouble if report else ""),
            take_back=lambda: taken.append("back"),
            by_parts=parts,
        )
        await asyncio.sleep(0)


def train_portion():
    """Names the tasks."""


def report(part, finished=True, trouble="", gang_ended="", ended_by=""):
    return types.SimpleNamespace(
        part=part,
        finished=finished,
        trouble=trouble,
        gang_ended=gang_ended,
        ended_by=ended_by,
        parts=[part],
    )


def merged(reports):
    whole = report(0)
    whole.parts = sorted(one.part for one in reports)
    whole.finished = all(one.finished for one in reports)
    whole.trouble = next((one.trouble for one in reports if one.trouble), "")
    return whole


def live(story):
    asyncio.run(asyncio.wait_for(story, 30))


# How gangs come and go


def test_a_worker_gets_the_part_whose_shards_it_holds(monkeypatch):
    async def story():
        workers = Workers(monkeypatch, "a1", "a2", "b1", "b2")
        workers.held_by = ["a2", "a1"]
        await workers.form()
        assert workers.gangs.places == ["a2, a1", "b1, b2"]
        members = workers.gangs.next_attempt("a2, a1")
        assert [member.workers[member.index] for member in members] == ["a2", "a1"]

    live(story())


def test_gangs_are_formed_as_workers_come_and_end_as_one_leaves(monkeypatch):
    async def story():
        workers = Workers(monkeypatch, "a1", "b1", "a2")
        await workers.form()
        assert workers.force.teams == ["a1, a2"]
        assert workers.joined == [(0, "a1"), (0, "a2")]
        workers.come("b2")
        await workers.form()
        assert workers.force.teams == ["a1, a2", "b1, b2"]
        workers.leave("a2")
        assert workers.force.teams == ["b1, b2"]
        workers.come("a3")
        await workers.form()
        assert workers.ended == [(("a1", "a2"), 0)]
        assert workers.force.teams == ["b1, b2", "a1, a3"]
        assert workers.joined[-2:] == [(2, "a1"), (2, "a3")]

    live(story())


def test_workers_of_a_gang_that_is_at_work_are_in_no_other(monkeypatch):
    async def story():
        workers, taken = Workers(monkeypatch, "a1", "a2"), []
        await workers.form()
        await workers.give(0, "a1, a2", taken)
        workers.roster.leaving.add("a2")
        workers.come("a3")
        await workers.form()
        assert not workers.force.teams and not workers.ended
        for part, (_, _, future) in enumerate(workers.given):
            future.set_result(report(part))
        await workers.force.ended(1.0)
        await workers.form()
        assert workers.force.teams == ["a1, a3"]

    live(story())


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_gangs_are_formed_than_replicas_are_wanted(monkeypatch, most):
    async def story():
        workers = Workers(monkeypatch, "a1", "a2", "a3", "a4", "b1", most=most)
        await workers.form()
        assert len(workers.force.teams) == most
        assert len(workers.force.idle_places(7)) == most

    live(story())


def test_a_worker_that_does_not_join_keeps_its_gang_from_beginning(monkeypatch):
    async def story():
        workers = Workers(monkeypatch, "a1", "a2")
        workers.broken.add("a2")
        await workers.form()
        assert not workers.force.teams
        workers.broken.clear()
        await workers.form()
        assert workers.force.teams == ["a1, a2"]
        assert workers.joined[-2:] == [(1, "a1"), (1, "a2")]

    live(story())


def test_a_worker_that_never_joins_is_done_without_or_named(monkeypatch):
    async def story():
        workers = Workers(monkeypatch, "a1", "a2")
        workers.broken.add("a1")
        await workers.form()
        assert not workers.force.teams and not workers.roster.lack
        assert "partitions=2 (a1: WorkerError('gave no answer'))" in workers.force.lack
        workers.come("a3")
        await workers.form()
        assert workers.force.teams == ["a2, a3"]
        assert workers.force.lack == ""

    live(story())


# Rule 22: numbers without a gap


def test_tasks_of_a_gang_carry_numbers_without_a_gap(monkeypatch):
    async def story():
        workers, taken = Workers(monkeypatch, "a1", "a2", "a3", "a4"), []
        await workers.form()
        for number, place in enumerate(["a1, a2", "a3, a4", "a1, a2", "a1, a2"]):
            await workers.give(number, place, taken)
        orders = [(m.gang, m.attempt, m.index, worker) for m, worker, _ in workers.given]
        assert orders == [
            (0, 0, 0, "a1"),
            (0, 0, 1, "a2"),
            (1, 0, 0, "a3"),
            (1, 0, 1, "a4"),
            (0, 1, 0, "a1"),
            (0, 1, 1, "a2"),
            (0, 2, 0, "a1"),
            (0, 2, 1, "a2"),
        ]
        assert workers.force.free_places(None)[0] == "a3, a4"

    live(story())


# The end of a gang


FAILURES = {
    "an error": (ValueError("mine"), None),
    "trouble": (report(1, finished=False, trouble="ShardLost"), "ShardLost"),
    "a task that leaves": (report(1, False, "", "it is done elsewhere", "itself"), ""),
    "a lost peer": (report(1, False, "", "part 0 is gone", "peer"), ""),
}


@pytest.mark.parametrize(("outcome", "trouble"), FAILURES.values(), ids=FAILURES)
def test_a_member_that_fails_ends_the_gang_and_all_of_its_work(monkeypatch, outcome, trouble):
    async def story():
        workers, taken, others = Workers(monkeypatch, "a1", "a2", "a3", "a4"), [], []
        await workers.form()
        await workers.give(0, "a1, a2", taken)
        await workers.give(1, "a1, a2", taken)
        await workers.give(2, "a3, a4", others)
        future = workers.given[1][2]
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
        monkeypatch.setattr(workers.force, "refresh", nothing)
        monkeypatch.setattr(workers.force, "watch_silence", nothing)
        assert await workers.force.turn(1.0) == (trouble or "")
        first, second = taken
        assert second == "back"
        assert first is None if trouble is None else not first.finished
        assert workers.ended == [(("a1", "a2"), 0)] and not others
        assert {out.place for out in workers.force.outstanding} == {"a3, a4"}
        assert workers.force.late_pushes_possible
        await workers.form()
        assert workers.joined[-2:] == [(2, "a1"), (2, "a2")]
        await workers.force.close()

    live(story())


async def nothing():
    return []


def test_work_that_is_given_up_at_one_member_is_handed_back_once(monkeypatch):
    async def story():
        workers, taken = Workers(monkeypatch, "a1", "a2"), []
        await workers.form()
        await workers.give(0, "a1, a2", taken)
        workers.force.give_up_on({"a2"})
        assert taken == ["back"] and workers.ended == [(("a1", "a2"), 0)]
        assert not workers.force.outstanding and workers.force.late_pushes_possible

    live(story())


# How long a member is missed: `benchmarks.recovery` measures it


class Patient(Workers):
    """Gangs under the deadlines as they are by default, at times that a test sets.

    A ping of a worker in `stopped` passes unanswered when `dbdask.ping` is over.
    """

    def __init__(self, monkeypatch, *names):
        super().__init__(monkeypatch, *names)
        self.now, self.stopped, self.pinged = 0.0, set(), {}
        clock = types.SimpleNamespace(seconds=lambda: self.now)
        monkeypatch.setattr(self.roster, "clock", clock)
        monkeypatch.setattr(self.roster, "ask", self.ask)
        monkeypatch.setattr(self.force, "refresh", nothing)
        monkeypatch.setattr(self.force.lost_tasks, "look", lambda *task: None)

    def ask(self, workers=()):
        for worker in workers:
            self.pinged.setdefault(worker, self.now)
        unanswered = {
            worker
            for worker in self.stopped & self.pinged.keys()
            if self.now - self.pinged[worker] >= deadline("ping")
        }
        self.roster.silent |= unanswered
        return set(workers) - self.stopped

    async def live_until(self, gangs, step):
        """Look on, every `step` seconds, until these gangs are the places; returns the time."""
        while self.gangs.places != gangs:
            self.now += step
            assert await self.force.turn(0.0) == ""
            await self.form()
            assert self.now < 100
        return self.now


LOOK = TURN_SECONDS + REFRESH_SECONDS
"""Seconds from one look at all workers to the next, at most."""


def test_a_member_that_stops_is_missed_no_longer_than_the_deadlines_say(monkeypatch):
    """The longest of all losses: no connection is closed, and nothing comes."""

    async def story():
        workers, taken = Patient(monkeypatch, "a1", "a2", "b1"), []
        await workers.form()
        await workers.give(0, "a1, a2", taken)
        workers.stopped.add("a2")
        seconds = await workers.live_until(["a1, b1"], LOOK)
        assert taken == ["back"] and workers.ended == [(("a1", "a2"), 0)]
        assert seconds <= deadline("silence") + deadline("ping") + 3 * LOOK
        assert seconds + deadline("connect") <= 30  # by which its workers have joined the new gang
        await workers.force.close()

    assert [DEFAULTS[name] for name in ("silence", "ping", "connect")] == ["10s", "10s", "5s"]
    live(story())


def test_a_member_that_was_killed_is_missed_until_the_next_look(monkeypatch):
    """The scheduler notices at once that the connection was closed, and forgets the worker."""

    async def story():
        workers, taken = Patient(monkeypatch, "a1", "a2", "b1"), []
        await workers.form()
        await workers.give(0, "a1, a2", taken)
        workers.leave("a2")
        assert await workers.live_until(["a1, b1"], LOOK) == LOOK
        assert taken == ["back"]
        await workers.force.close()

    live(story())


def test_work_is_done_when_all_members_have_reported(monkeypatch):
    async def story():
        workers, taken = Workers(monkeypatch, "a1", "a2"), []
        monkeypatch.setattr(workers.force, "refresh", nothing)
        monkeypatch.setattr(workers.force, "watch_silence", nothing)
        await workers.form()
        await workers.give(0, "a1, a2", taken)
        workers.given[1][2].set_result(report(1))
        assert await workers.force.turn(1.0) == "" and not taken
        assert not workers.force.idle_places(None)
        workers.given[0][2].set_result(report(0))
        assert await workers.force.turn(1.0) == ""
        assert [one.parts for one in taken] == [[0, 1]] and taken[0].finished
        assert workers.force.idle_places(None) == ["a1, a2"]

    live(story())


def test_what_fails_in_all_members_at_once_has_failed_once(monkeypatch):
    async def story():
        workers, taken = Workers(monkeypatch, "a1", "a2"), []
        monkeypatch.setattr(workers.force, "refresh", nothing)
        monkeypatch.setattr(workers.force, "watch_silence", nothing)
        for _ in range(MOST_ATTEMPTS - 1):
            await workers.form()
            await workers.give(0, "a1, a2", taken)
            for _, _, future in workers.given[-2:]:
                future.set_exception(ValueError("mine"))
            await asyncio.sleep(0)
            await workers.force.turn(1.0)
        assert taken == [None] * (MOST_ATTEMPTS - 1)
        await workers.form()
        await workers.give(0, "a1, a2", taken)
        workers.given[-1][2].set_result(report(1, False, "", "part 0 is gone", "peer"))
        with pytest.raises(WorkerError, match=f"failed {MOST_ATTEMPTS} times.*part 0 is gone"):
            await workers.force.turn(1.0)

    live(story())


def test_the_cause_is_counted_though_another_task_says_first_that_the_gang_has_ended(monkeypatch):
    async def story():
        workers, taken = Workers(monkeypatch, "a1", "a2"), []
        monkeypatch.setattr(workers.force, "refresh", nothing)
        monkeypatch.setattr(workers.force, "watch_silence", nothing)
        for number in range(MOST_ATTEMPTS):
            await workers.form()
            await workers.give(0, "a1, a2", taken)
            workers.given[-2][2].set_result(report(0, False, "", "it has ended", "another"))
            await asyncio.sleep(0)
            assert await workers.force.turn(1.0) == "" and len(taken) == number
            workers.given[-1][2].set_exception(ValueError("mine"))
            await asyncio.sleep(0)
            if number + 1 < MOST_ATTEMPTS:
                await workers.force.turn(1.0)
                assert len(taken) == number + 1 and len(workers.ended) == number + 1
        with pytest.raises(WorkerError, match=f"failed {MOST_ATTEMPTS} times.*mine"):
            await workers.force.turn(1.0)

    live(story())


def test_a_gang_that_has_ended_by_the_word_of_all_ends(monkeypatch):
    async def story():
        workers, taken = Workers(monkeypatch, "a1", "a2"), []
        monkeypatch.setattr(workers.force, "refresh", nothing)
        monkeypatch.setattr(workers.force, "watch_silence", nothing)
        await workers.form()
        await workers.give(0, "a1, a2", taken)
        for part, (_, _, future) in enumerate(workers.given):
            future.set_result(report(part, False, "", "it has ended", "another"))
        await asyncio.sleep(0)
        assert await workers.force.turn(1.0) == ""
        assert len(taken) == 1 and not taken[0].finished
        assert workers.ended == [(("a1", "a2"), 0)]
        assert workers.force.failures._by_portion

    live(story())


def test_what_is_done_in_the_end_has_not_failed_though_all_report_in_one_turn(monkeypatch):
    async def story():
        workers, taken = Workers(monkeypatch, "a1", "a2"), []
        monkeypatch.setattr(workers.force, "refresh", nothing)
        monkeypatch.setattr(workers.force, "watch_silence", nothing)
        for outcome in (ValueError("mine"), None):
            await workers.form()
            await workers.give(0, "a1, a2", taken)
            for part, (_, _, future) in enumerate(workers.given[-2:]):
                if outcome is None:
                    future.set_result(report(part))
                else:
                    future.set_exception(outcome)
            await asyncio.sleep(0)
            await workers.force.turn(1.0)
            assert bool(workers.force.failures._by_portion) == (outcome is not None)
        assert taken[0] is None and taken[1].parts == [0, 1]

    live(story())


@pytest.mark.parametrize("cause", ["the run", "a task that changes no work"])
def test_work_of_a_gang_that_ended_for_no_fault_of_the_work_has_not_failed(monkeypatch, cause):
    async def story():
        workers, taken = Workers(monkeypatch, "a1", "a2"), []
        monkeypatch.setattr(workers.force, "refresh", nothing)
        monkeypatch.setattr(workers.force, "watch_silence", nothing)
        await workers.form()
        for number in range(2):
            await workers.give(number, "a1, a2", taken)
        if cause == "the run":
            workers.gangs.end_all()
        else:
            workers.given[0][2].set_result(report(0, False, "", "reading was given up", "itself"))
        for order, _, future in workers.given:
            if not future.done():
                future.set_result(report(order.index, False, "", "it has ended", "another"))
        await asyncio.sleep(0)
        await workers.force.turn(1.0)
        assert len(taken) == 2 and not workers.force.failures._by_portion

    live(story())


def test_a_report_that_comes_after_the_end_counts_for_nothing():
    taken = []
    joint = JointWork(3, merged, taken.append, lambda: taken.append("back"))
    joint.take(report(0))
    joint.take(report(2, False, "", "it has ended", "itself"))
    joint.take(report(1))
    joint.take_back()
    assert len(taken) == 1 and not taken[0].finished


# Runs


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("gangs") / "store.zarr", ROWS)


def train(client, store, model=None, **options):
    settings = {"optimizer": dbdask.sgd(0.1), "batch_size": BATCH, "progress": False} | options
    return dbdask.downpour(model or network(), labelled(store), client=client, **settings)


@pytest.mark.parametrize("algorithm", [dbdask.downpour, dbdask.sandblaster])
def test_too_few_workers_are_waited_for_and_then_named(threads_client, store, algorithm):
    message = r"partitions=3 needs 3 workers to train on, and 2 can train now, and none came in 2 s"
    with dask.config.set({"dbdask.arrival": "2s"}), pytest.raises(WorkerError, match=message):
        algorithm(network(), labelled(store), client=threads_client, partitions=3, progress=False)
    assert_nothing_left(threads_client)


def test_a_worker_that_comes_completes_a_gang(store, monkeypatch):
    with (
        LocalCluster(
            processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        check_arrival, coming = Roster.check_arrival, []

        def check_and_come(roster, lack):
            if not coming:
                coming.append(threading.Thread(target=cluster.scale, args=(2,)))
                coming[0].start()
            check_arrival(roster, lack)

        monkeypatch.setattr(Roster, "check_arrival", check_and_come)
        result = train(client, store, partitions=2, replicas=1)
        assert result.status.reason == "epochs"
        assert_nothing_left(client)
        coming[0].join(60)


class Breaks(Counting):
    """Raises in the part that has the last row, so many times in all."""

    left = 0

    def __init__(self, rows, examples, is_last=True):
        super().__init__(rows, examples)
        self.is_last = is_last

    def part(self, input_shape, first, last):
        return Breaks(last - first, self.examples, last == self.rows)

    def backward(self, *arguments):
        if self.is_last and Breaks.left > 0:
            Breaks.left -= 1
            raise RuntimeError("the layer breaks")
        return super().backward(*arguments)


def count(client, store, **options):
    layers = [Breaks(4, ROWS), Silent()]
    return dbdask.downpour(
        dbdask.Network(input_shape=(2,), layers=layers, loss="squared"),
        counted_pairs(store),
        client=client,
        optimizer=dbdask.sgd(float(BATCH)),
        batch_size=BATCH,
        partitions=2,
        shards=4,
        progress=False,
        **options,
    )


def test_a_part_that_breaks_costs_its_portion_another_try_and_nothing_else(threads_client, store):
    Breaks.left = 2
    result = count(threads_client, store, epochs=2)
    assert Breaks.left == 0
    assert missing_updates(result, 2, 4, BATCH, "breaks_0_count") == 0
    assert result.history["step"].values[-1] == 2 * ROWS // BATCH
    assert_nothing_left(threads_client)


def test_a_part_that_always_breaks_ends_the_run_with_its_error(threads_client, store):
    Breaks.left = 1000
    with pytest.raises(WorkerError, match="failed 5 times.*the layer breaks"):
        count(threads_client, store)
    # The portion that waited behind it may have been tried as well, fewer times.
    assert MOST_ATTEMPTS <= 1000 - Breaks.left < 2 * MOST_ATTEMPTS
    assert_nothing_left(threads_client)


@pytest.mark.parametrize("stop", ["callback", "interrupted"])
def test_a_run_of_gangs_that_is_stopped_leaves_nothing(threads_client, store, stop):
    Breaks.left = 0

    def end(record):
        if stop == "interrupted":
            raise KeyboardInterrupt
        return True

    with pytest.warns(dbdask.TrainingWarning):
        if stop == "callback":
            result = count(threads_client, store, epochs=100, callbacks=[end])
            assert result.status.reason == stop
            counts = result.parameters["breaks_0_count"].values
            assert (counts == counts[0]).all(), "a step that counts in some parts only"
        else:
            result = count(threads_client, store, epochs=100, callbacks=[Once(end)])
            assert result.status.reason == stop
    assert_nothing_left(threads_client)


class Once:
    """A callback that is called with the first record only."""

    def __init__(self, call):
        self.call = call

    def __call__(self, record):
        call, self.call = self.call, lambda record: None
        return call(record)
