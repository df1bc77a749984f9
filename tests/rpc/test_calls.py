"""Calls by address depend on the inside of distributed: they fail here when it changes."""

import asyncio
import gc
import time
from types import SimpleNamespace

import dask
import numpy as np
import pytest
from test_leaving import wait_until

from dbdask.errors import ShardLost, WorkerError
from dbdask.rpc import calls, scheduler, tasks


class Counter:
    """An actor whose methods are coroutines, as those of a shard."""

    def __init__(self):
        self.total = np.zeros(3)

    async def ping(self):
        return 0

    async def add(self, values):
        self.total = self.total + values
        return self.total

    async def fail(self, kind):
        raise kind("mine")


@pytest.fixture(params=["threads_client", "process_client"])
def client(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def counter(client):
    future = client.submit(Counter, actor=True, key="counter", pure=False)
    future.result()
    address = client.sync(tasks.place_of, client, "counter")
    yield calls.ActorPlace(address, "counter")
    future.release()
    wait_until(lambda: client.sync(tasks.place_of, client, "counter") is None)


def test_an_actor_is_called_by_address_with_arrays(client, counter):
    values = np.arange(3.0)
    for times in (1, 2):
        answer = client.sync(calls.call_actor, client.rpc, counter, "add", values)
        np.testing.assert_array_equal(answer, times * values)
    assert client.sync(calls.answers_ping, client.rpc, counter)
    assert client.sync(calls.worker_answers, client.rpc, counter.worker)


def test_an_actor_that_is_not_there_is_lost_at_once(client, counter):
    nowhere = [
        calls.ActorPlace(counter.worker, "nobody"),
        calls.ActorPlace("tcp://127.0.0.1:9", "counter"),
    ]
    if counter.worker.startswith("inproc"):
        nowhere.pop()
    with dask.config.set({"dbdask.connect": "1s"}):
        check_lost(client, nowhere)


def check_lost(client, places):
    for place in places:
        began = time.monotonic()
        with pytest.raises(ShardLost, match=place.key):
            client.sync(calls.call_actor, client.rpc, place, "add", np.zeros(3))
        assert not client.sync(calls.answers_ping, client.rpc, place)
        assert time.monotonic() - began < 8  # nobody listens there: it is not tried again


def test_what_an_actor_raises_is_not_taken_for_its_loss(client, counter):
    for kind in (KeyError, OSError, TimeoutError, RuntimeError):
        with pytest.raises(kind, match="mine"):
            client.sync(calls.call_actor, client.rpc, counter, "fail", kind)
    with pytest.raises(AttributeError):
        client.sync(calls.call_actor, client.rpc, counter, "no_such_method")


async def where(word, dask_worker):
    return word, dask_worker.address


def test_a_function_runs_on_a_workers_loop(client):
    for address, facts in client.sync(scheduler.workers_now, client).items():
        answer = client.sync(calls.run_on, client.rpc, address, where, "here", seconds=60)
        assert tuple(answer) == ("here", address)
        assert facts.address == address and not facts.is_closing
        assert facts.is_called(address) and facts.is_called(facts.name)
    nobody = pytest.raises(WorkerError, match="gave no answer")
    with dask.config.set({"dbdask.connect": "1s"}), nobody:
        client.sync(calls.run_on, client.rpc, "tcp://127.0.0.1:9", where, "", seconds=60)


def test_a_call_that_is_given_up_fails_without_a_word(client, monkeypatch, caplog):
    """What becomes of it interests nobody: no log speaks of an exception never retrieved."""

    async def fails_when_cancelled(*arguments):
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("the connection was cut")

    async def give_up():
        monkeypatch.setattr(calls, "_call", fails_when_cancelled)
        place = calls.ActorPlace("tcp://nowhere", "nobody")
        call = asyncio.ensure_future(calls.call_actor(client.rpc, place, "ping"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        del call
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()

    with caplog.at_level("ERROR", logger="asyncio"):
        client.sync(give_up)
    assert not [record for record in caplog.records if "never retrieved" in record.message]


class Scheduler:
    """Gives one answer to whatever it is asked, when the answer is there."""

    def __init__(self, answer):
        self.answer = answer

    def __getattr__(self, name):
        return self.ask

    async def ask(self, **question):
        return await self.answer


PLACE = calls.ActorPlace("tcp://127.0.0.1:9", "counter")
FUTURE = SimpleNamespace(key="key")
QUESTIONS = {
    "workers_now": lambda client: scheduler.workers_now(client),
    "count_workers": lambda client: scheduler.count_workers(client),
    "is_processed": lambda client: tasks.is_processed(client, FUTURE),
    "answers_ping": lambda client: calls.answers_ping(client.rpc, PLACE),
    "worker_answers": lambda client: calls.worker_answers(client.rpc, PLACE.worker),
    "run_on": lambda client: calls.run_on(client.rpc, PLACE.worker, where, "", seconds=60),
}
ANSWER = {"workers": {}, "key": "", "status": "OK", "result": ""}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_that_is_cancelled_as_its_answer_comes_is_cancelled(monkeypatch, question):
    """A run that went on after it was cancelled would ask a scheduler that is gone, for 30 s."""

    async def cancelled_after(turns):
        answer = asyncio.get_running_loop().create_future()
        scheduler = Scheduler(answer)
        monkeypatch.setattr(calls, "_ask", lambda *_, **message: scheduler.ask(**message))
        client = SimpleNamespace(scheduler=scheduler, rpc=SimpleNamespace(server=None))
        asking = asyncio.ensure_future(QUESTIONS[question](client))
        await asyncio.sleep(0.01)
        answer.set_result(ANSWER)
        for _ in range(turns):
            await asyncio.sleep(0)
        was_under_way = asking.cancel()
        await asyncio.wait({asking})
        assert asking.cancelled() == was_under_way
        return was_under_way

    under_way = [asyncio.run(cancelled_after(turns)) for turns in range(10)]
    assert under_way[0] and not under_way[-1]
