"""What a pass costs: fetches, reads, round trips, and bytes that come to the client."""

import pickle
import threading
from collections import Counter

import numpy as np
import pytest
from distributed import Client, LocalCluster, get_worker
from routing import disturb
from test_downpour import labelled, write_store
from test_pass import LONGEST, SHARDS, count
from test_sandblaster import ROWS

import dbdask
from dbdask.algorithms import gradient_pass
from dbdask.algorithms.sandblaster_method import Sandblaster
from dbdask.data import feed
from dbdask.data.stores import RegularStore
from dbdask.run import shard_calls
from dbdask.run.submitting import TaskSubmitter
from dbdask.worker.context import WorkerContext


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("cost") / "store.zarr")


def evaluations_of(result):
    return int(result.history["evaluations"].values[-1])


def test_a_worker_fetches_the_parameters_once_an_evaluation(
    threads_client, store, monkeypatch, request
):
    tasks, fetches = Counter(), Counter()
    point = WorkerContext.point

    def held(context, handle, evaluation, name, part):
        tasks[context.worker.address, evaluation] += 1
        return point(context, handle, evaluation, name, part)

    def counted(way, place, asked, sent, into):
        if asked.method == "fetch_vector":
            fetches[get_worker().address, place.key] += 1
        return way.start(asked, sent, into)

    monkeypatch.setattr(WorkerContext, "point", held)
    request.addfinalizer(disturb(counted))
    evaluations = evaluations_of(count(threads_client, store))
    assert max(tasks.values()) > 1
    of_worker = Counter(worker for worker, _ in tasks)
    assert {evaluation for _, evaluation in tasks} == set(range(evaluations))
    assert len({key for _, key in fetches}) == SHARDS
    assert fetches == {at: of_worker[at[0]] for at in fetches}
    assert {worker for worker, _ in fetches} == set(of_worker)


def test_tasks_that_begin_at_once_share_one_fetch(store, monkeypatch, request):
    fetches, entered, both = [], [], threading.Event()
    point = WorkerContext.point

    def held(context, handle, evaluation, name, part):
        entered.append(evaluation)
        if entered.count(0) == 2:
            both.set()
        return point(context, handle, evaluation, name, part)

    def held_call(way, place, asked, sent, into):
        if asked.method == "fetch_vector":
            fetches.append(place.key)
            both.wait(LONGEST)
        return way.start(asked, sent, into)

    monkeypatch.setattr(WorkerContext, "point", held)
    request.addfinalizer(disturb(held_call))
    monkeypatch.setattr(gradient_pass, "bundle_length", lambda *_: 1)
    with (
        LocalCluster(
            processes=False, n_workers=1, threads_per_worker=2, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        evaluations = evaluations_of(count(client, store, replicas=2))
    assert both.is_set() and set(Counter(fetches).values()) == {evaluations}


def test_a_lone_replica_reads_nothing_after_its_first_pass(threads_client, store, monkeypatch):
    reads, until = [], []
    get, evaluate = RegularStore.get, Sandblaster._evaluate

    async def noted_get(storage, key, *more, **options):
        reads.append(key)
        return await get(storage, key, *more, **options)

    async def noted_evaluate(method, run, request):
        answer = await evaluate(method, run, request)
        until.append(len(reads))
        return answer

    monkeypatch.setattr(RegularStore, "get", noted_get)
    monkeypatch.setattr(Sandblaster, "_evaluate", noted_evaluate)
    count(threads_client, store, replicas=1)
    chunks = {key for key in reads[: until[0]] if key.startswith("index/c/")}
    assert len(chunks) == ROWS // 100
    assert len(until) >= 3 and until == [until[0]] * len(until)


def test_no_worker_reads_a_block_twice_in_a_run(threads_client, store, monkeypatch):
    read, reads = feed.read_block, Counter()
    blocks = set()

    def noted(recipe, number, *more):
        reads[id(recipe), number] += 1  # each worker has a recipe of its own
        blocks.add(number)
        return read(recipe, number, *more)

    monkeypatch.setattr(feed, "read_block", noted)
    assert evaluations_of(count(threads_client, store)) >= 3
    assert len(blocks) == ROWS // 100
    assert set(reads.values()) == {1}


WIDE, MOST_BYTES = 3000, 6000


def test_an_iteration_is_two_rounds_beside_its_search_and_no_vector_comes_to_the_client(
    threads_client, store, monkeypatch
):
    log = []  # (method, arguments, answer), and a None where a point is accepted
    carried = []  # what else goes through the client: orders, and the reports on them
    call, note, do = shard_calls.call_actor, Sandblaster._note_point, TaskSubmitter.do

    async def noted_call(pool, place, method, *arguments, **named):
        answer = await call(pool, place, method, *arguments, **named)
        log.append((method, arguments, answer))
        return answer

    def noted_point(method, run):
        log.append(None)
        note(method, run)

    async def noted_do(tasks, work, function, order, *more):
        report = await do(tasks, work, function, order, *more)
        carried.append((order, tasks.job, report))
        return report

    monkeypatch.setattr(shard_calls, "call_actor", noted_call)
    monkeypatch.setattr(Sandblaster, "_note_point", noted_point)
    monkeypatch.setattr(TaskSubmitter, "do", noted_do)
    model = dbdask.Network(
        input_shape=(6,), layers=[dbdask.Dense(WIDE, "tanh"), dbdask.Dense(3)], loss="softmax"
    )
    result = dbdask.sandblaster(
        model,
        labelled(store),
        client=threads_client,
        shards=SHARDS,
        iterations=6,
        tolerance=0.0,
        progress=False,
    )
    between, of_shard = [[]], Counter()
    for entry in log:
        if entry is None:
            between.append([])
        elif entry[0] in ("command", "order"):
            number, name = entry[1][0], entry[1][1 if entry[0] == "command" else 2]
            of_shard[number] += 1
            if of_shard[number] == 1:
                between[-1].append(name)
    assert set(of_shard.values()) == {SHARDS}
    passes = result.history["evaluations"].values.astype(int)
    assert len(passes) == 7
    a_pass = ["open_pass", "close_pass"]
    assert between[0] == a_pass
    for tried, commands in zip(np.diff(passes), between[1:-1], strict=True):
        assert commands == ["carry_out", *(a_pass * tried), "carry_out"]
    assert between[-1] == []
    assert 4 * model.parameter_count / SHARDS > 9 * MOST_BYTES
    assert [entry[0] for entry in log[-SHARDS:]] == ["read"] * SHARDS  # the result comes home
    assert max(len(pickle.dumps(each)) for each in log[:-SHARDS] + carried) < MOST_BYTES
