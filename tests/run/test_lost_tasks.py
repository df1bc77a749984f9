"""Tasks that Dask loses: one message is swallowed, and every worker goes on answering."""

import asyncio
import inspect
import threading
import time
from functools import partial

import dask
import numpy as np
import pytest
from asking import workers_of
from counting import CountingModel
from distributed import Client, LocalCluster
from test_downpour import assert_nothing_left, counted, labelled, network, write_store
from test_giving_up import outstanding, portion, report
from test_leaving import wait_until
from test_roster import Cluster, live, no_answer
from test_workforce import workforce

import dbdask
from dbdask.errors import WorkerError
from dbdask.rpc import tasks
from dbdask.rpc.tasks import Whereabouts, whereabouts
from dbdask.run import lost_tasks

ROWS = 1200
AT_WORK = Whereabouts("processing", "executing")
NOWHERE = Whereabouts("processing", "unknown")
SILENT = None  # one of those who were asked did not say


# With Dask


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("lost") / "store.zarr", ROWS)


@pytest.fixture
def cluster():
    with (
        dask.config.set({"dbdask.silence": "300ms"}),
        LocalCluster(
            processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client


class Swallow:
    """A handler of messages that takes the first about a task of one kind for itself."""

    swallowed = 0

    def __init__(self, kind):
        self.kind = kind

    def takes(self, message):
        keys = [message.get("key", ""), *message.get("keys", ())]
        is_mine = any(str(key).startswith(self.kind) for key in keys) and not self.swallowed
        self.swallowed += is_mine
        return is_mine

    def instead_of(self, handlers, op):
        deliver = handlers[op]

        def handle(*arguments, **message):
            return None if self.takes(message) else deliver(*arguments, **message)

        async def handle_in_turn(*arguments, **message):
            return None if self.takes(message) else await deliver(*arguments, **message)

        handlers[op] = handle_in_turn if inspect.iscoroutinefunction(deliver) else handle


def swallow_graph(cluster, client, swallow):
    swallow.instead_of(cluster.scheduler.stream_handlers, "update-graph")


def swallow_order(cluster, client, swallow):
    for worker in cluster.workers.values():
        swallow.instead_of(worker.stream_handlers, "compute-task")


def swallow_result(cluster, client, swallow):
    swallow.instead_of(cluster.scheduler.stream_handlers, "task-finished")


def swallow_notice(cluster, client, swallow):
    swallow.instead_of(client._stream_handlers, "key-in-memory")


LOSSES = [swallow_graph, swallow_order, swallow_result, swallow_notice]


def mostly_slow(kept):
    """One loss, and the others in the long suite: work of every kind is searched for alike."""
    return [pytest.param(lose, marks=() if lose is kept else pytest.mark.slow) for lose in LOSSES]


@pytest.mark.parametrize("lose", LOSSES)
def test_a_portion_that_is_lost_is_trained_on_by_another_task(cluster, store, lose, caplog):
    swallow = Swallow("dbdask-portion-")
    lose(*cluster, swallow)
    _, client = cluster
    result = dbdask.downpour(
        CountingModel(ROWS),
        counted(store),
        client=client,
        optimizer=dbdask.sgd(20.0),
        batch_size=20,
        epochs=3,
        shards=2,
        progress=False,
    )
    assert swallow.swallowed == 1
    np.testing.assert_array_equal(result.parameters["count"].values, 3)
    is_done_again = lose in (swallow_order, swallow_result)  # else the scheduler sets it right
    assert ("because Dask lost its task" in caplog.text) == is_done_again
    assert_nothing_left(client)


@pytest.mark.parametrize("lose", mostly_slow(swallow_result))
def test_a_bundle_that_is_lost_is_computed_by_another_task(cluster, store, lose):
    swallow = Swallow("dbdask-bundle-")
    lose(*cluster, swallow)
    _, client = cluster
    model, settings = network(), {"iterations": 3, "shards": 2, "progress": False, "seed": 1}
    result = dbdask.sandblaster(model, labelled(store), client=client, **settings)
    assert swallow.swallowed == 1
    again = dbdask.sandblaster(model, labelled(store), client=client, **settings)
    for name, values in result.parameters.data_vars.items():
        np.testing.assert_allclose(values, again.parameters[name], rtol=1e-4, atol=1e-5)
    assert_nothing_left(client)


@pytest.mark.parametrize("lose", mostly_slow(swallow_order))
def test_a_validation_that_is_lost_is_made_by_another_task(cluster, store, lose):
    swallow = Swallow("dbdask-validation-")
    lose(*cluster, swallow)
    _, client = cluster
    result = dbdask.downpour(
        network(),
        labelled(store),
        client=client,
        optimizer=dbdask.sgd(0.1),
        validation=labelled(store),
        batch_size=20,
        epochs=2,
        progress=False,
    )
    assert swallow.swallowed == 1
    assert np.isfinite(result.history["validation_loss"].values[-1])
    assert_nothing_left(client)


# As the workforce sees them


class Answers:
    """What is found of tasks, one look after the other; the last goes on for ever."""

    def __init__(self, monkeypatch, *found):
        self.found, self.looks = list(found), 0
        monkeypatch.setattr(lost_tasks, "whereabouts", self.whereabouts)

    async def whereabouts(self, client, worker, keys):
        self.looks += 1
        found = self.found.pop(0) if len(self.found) > 1 else self.found[0]
        return {} if found is SILENT else dict.fromkeys(keys, found)


def held(cluster, number, key):
    """A portion that worker w has been given just now."""
    out = outstanding(portion(number), "w")
    out.since = out.looked = cluster.now
    out.key = key
    return out


async def wait_long(cluster, force, periods, seconds=11.0):
    """Let time pass, as long as the worker answers; returns what was given up."""
    given_up = []
    for _ in range(periods):
        cluster.now += seconds
        for _ in range(4):
            given_up += await force.watch_silence()
            await asyncio.sleep(0)
    return given_up


@pytest.mark.parametrize(
    ("found", "is_lost"),
    [
        ([AT_WORK], False),
        ([SILENT], False),  # who does not answer is judged by its pings
        ([NOWHERE, AT_WORK], False),
        ([NOWHERE, AT_WORK, NOWHERE, AT_WORK], False),
        ([Whereabouts("waiting")], False),
        ([Whereabouts("queued")], False),
        ([Whereabouts("no-worker")], False),
        ([NOWHERE], True),
        ([NOWHERE, SILENT, NOWHERE, AT_WORK], True),
        ([AT_WORK, NOWHERE, NOWHERE], True),
        ([Whereabouts("processing", "memory")], True),
    ],
)
def test_only_what_nobody_is_at_work_on_for_two_looks_is_lost(monkeypatch, found, is_lost):
    cluster = Cluster(monkeypatch, "w")
    Answers(monkeypatch, *found)

    async def story():
        force = workforce(cluster)
        await force.refresh(first=True)
        force.outstanding = [held(cluster, 0, "task")]
        given_up = await wait_long(cluster, force, 5)
        assert given_up == ([portion(0)] if is_lost else [])
        assert force.late_pushes_possible == is_lost

    live(story())


def test_a_task_is_looked_for_though_its_worker_ends_others(monkeypatch):
    cluster = Cluster(monkeypatch, "w")
    Answers(monkeypatch, NOWHERE)

    async def story():
        force = workforce(cluster)
        await force.refresh(first=True)
        force.outstanding = [held(cluster, 0, "lost")]
        given_up = []
        for number in range(1, 8):
            other = outstanding(portion(number), "w", report())
            force.outstanding.append(other)
            assert [out for out, _ in await force.ended(0.0)] == [other]
            given_up += await wait_long(cluster, force, 1, seconds=4.0)
        assert given_up == [portion(0)]

    live(story())


def test_what_is_long_under_way_is_looked_for_once_a_period(monkeypatch):
    cluster, answers = Cluster(monkeypatch, "w"), Answers(monkeypatch, AT_WORK)

    async def story():
        force = workforce(cluster)
        await force.refresh(first=True)
        force.outstanding = [held(cluster, number, f"task {number}") for number in range(3)]
        await wait_long(cluster, force, 6)
        assert answers.looks == 6

    live(story())


def test_work_that_dask_loses_five_times_ends_the_run(monkeypatch):
    cluster = Cluster(monkeypatch, "w")
    Answers(monkeypatch, NOWHERE)

    async def story():
        force = workforce(cluster)
        await force.refresh(first=True)
        for number in range(4):
            force.outstanding = [held(cluster, 0, f"task {number}")]
            assert await wait_long(cluster, force, 3) == [portion(0)]
        force.outstanding = [held(cluster, 0, "task 4")]
        with pytest.raises(WorkerError, match="failed 5 times.*because Dask lost its task"):
            await wait_long(cluster, force, 3)

    live(story())


async def raising(error, *_, **__):
    raise error


def test_a_search_that_does_not_understand_the_answers_says_so_once(monkeypatch, caplog):
    """Else a new version of distributed would switch it off without a word."""
    cluster = Cluster(monkeypatch, "v", "w")
    unknown = KeyError("get_task_status"), AttributeError("state")
    monkeypatch.setattr(lost_tasks, "whereabouts", partial(raising, unknown[0]))
    monkeypatch.setattr(lost_tasks, "run_on", partial(raising, unknown[1]))

    async def story():
        force = workforce(cluster)
        await force.refresh(first=True)
        force.outstanding = [held(cluster, 0, "one"), held(cluster, 1, "two")]
        force.outstanding[1].worker = "v"
        assert await wait_long(cluster, force, 4) == []
        assert await force.waiting_for_blocks("train", 1.0) == []

    live(story())
    said = [line for line in caplog.messages if "cannot learn" in line]
    assert len(said) == 2
    assert "where tasks are" in said[0] and repr(unknown[0]) in said[0]
    assert "which reads take long" in said[1] and repr(unknown[1]) in said[1]


def test_a_search_that_finds_no_connection_says_nothing(monkeypatch, caplog):
    cluster = Cluster(monkeypatch, "w")
    monkeypatch.setattr(tasks, "scheduler_of", lambda client: client)
    monkeypatch.setattr(lost_tasks, "run_on", partial(raising, no_answer(OSError())))
    cluster.client.get_task_status = partial(raising, ConnectionError("the client is closed"))

    async def story():
        force = workforce(cluster)
        await force.refresh(first=True)
        force.outstanding = [held(cluster, 0, "one")]
        assert await wait_long(cluster, force, 4) == []

    live(story())
    assert not caplog.messages


# As client, scheduler and worker tell it


GO = threading.Event()  # in-process workers share it


def wait_to_go():
    GO.wait(60)


def not_as_it_was(keys, dask_worker):
    raise AttributeError("state")


def look(client, worker, *keys):
    return client.sync(whereabouts, client, worker, keys)


def test_a_look_finds_what_is_under_way_and_nothing_else(threads_client, monkeypatch):
    client = threads_client
    other, worker = workers_of(client)
    first, second = (client.submit(wait_to_go, pure=False, workers=[worker]) for _ in range(2))
    ended = client.submit(sum, [1, 2], pure=False, workers=[other])
    ended.result()
    keys = [first.key, second.key, ended.key, "not submitted"]
    under_way = {first.key: AT_WORK, second.key: Whereabouts("processing", "ready")}
    wait_until(lambda: look(client, worker, *keys) == under_way, 10)
    assert look(client, "tcp://127.0.0.1:9", *keys) == {}  # nobody is there
    monkeypatch.setattr(tasks, "_at_worker", not_as_it_was)
    with pytest.raises(AttributeError, match="state"):
        look(client, worker, *keys)
    monkeypatch.undo()
    GO.set()
    client.gather([first, second])
    assert look(client, worker, *keys) == {}


def test_what_waits_behind_a_large_graph_is_not_lost(threads_client, monkeypatch):
    """The question goes another way than the task, and is there before it."""
    client = threads_client
    worker = workers_of(client).popitem()[0]
    handlers = client.cluster.scheduler.stream_handlers
    deliver = handlers["update-graph"]

    async def late(**message):
        await asyncio.sleep(1.0)
        await deliver(**message)

    monkeypatch.setitem(handlers, "update-graph", late)
    future = client.submit(sum, [1, 2], pure=False, workers=[worker])
    for _ in range(3):
        assert look(client, worker, future.key) == {}
        time.sleep(0.1)
    assert future.result() == 3
