"""The one module that knows the inside of distributed: it fails here when distributed changes."""

import asyncio
import gc
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pytest
from distributed.comm import listen
from distributed.core import ConnectionPool
from test_leaving import wait_until
from tornado.tcpclient import _Connector

from dbdask.errors import ShardLost, WorkerError
from dbdask.rpc import contact, tasks
from dbdask.rpc.deadlines import DEFAULTS, deadline
from dbdask.rpc.transport import WAYS, permitted


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
    yield contact.ActorPlace(address, "counter")
    future.release()
    wait_until(lambda: client.sync(tasks.place_of, client, "counter") is None)


def test_an_actor_is_called_by_address_with_arrays(client, counter):
    values = np.arange(3.0)
    for times in (1, 2):
        answer = client.sync(contact.call_actor, client.rpc, counter, "add", values)
        np.testing.assert_array_equal(answer, times * values)
    assert client.sync(contact.answers_ping, client.rpc, counter)
    assert client.sync(contact.worker_answers, client.rpc, counter.worker)


def test_an_actor_that_is_not_there_is_lost_at_once(client, counter):
    nowhere = [
        contact.ActorPlace(counter.worker, "nobody"),
        contact.ActorPlace("tcp://127.0.0.1:9", "counter"),
    ]
    if counter.worker.startswith("inproc"):
        nowhere.pop()
    with dask.config.set({"dbdask.connect": "1s"}):
        check_lost(client, nowhere)


def check_lost(client, places):
    for place in places:
        began = time.monotonic()
        with pytest.raises(ShardLost, match=place.key):
            client.sync(contact.call_actor, client.rpc, place, "add", np.zeros(3))
        assert not client.sync(contact.answers_ping, client.rpc, place)
        assert time.monotonic() - began < 8  # nobody listens there: it is not tried again


def test_what_an_actor_raises_is_not_taken_for_its_loss(client, counter):
    for kind in (KeyError, OSError, TimeoutError, RuntimeError):
        with pytest.raises(kind, match="mine"):
            client.sync(contact.call_actor, client.rpc, counter, "fail", kind)
    with pytest.raises(AttributeError):
        client.sync(contact.call_actor, client.rpc, counter, "no_such_method")


async def where(word, dask_worker):
    return word, dask_worker.address


def test_a_function_runs_on_a_workers_loop(client):
    for address, facts in client.sync(contact.workers_now, client).items():
        answer = client.sync(contact.run_on, client.rpc, address, where, "here", seconds=10)
        assert tuple(answer) == ("here", address)
        assert facts.address == address and not facts.is_closing
        assert facts.is_called(address) and facts.is_called(facts.name)
    nobody = pytest.raises(WorkerError, match="gave no answer")
    with dask.config.set({"dbdask.connect": "1s"}), nobody:
        client.sync(contact.run_on, client.rpc, "tcp://127.0.0.1:9", where, "", seconds=10)


def send_until(client, number, condition):
    """Log an event until it is heard: subscribing travels by another way than events."""

    def heard():
        client.log_event("news", number)
        return condition()

    wait_until(heard)


def test_listeners_of_a_topic_leave_each_other_alone(client):
    heard = {"first": [], "second": []}
    stops = {name: contact.listen(client, "news", words.append) for name, words in heard.items()}
    send_until(client, 1, lambda: 1 in heard["first"] and 1 in heard["second"])
    stops["first"]()
    send_until(client, 2, lambda: 2 in heard["second"])
    assert 2 not in heard["first"]
    stops["second"]()
    stop = contact.listen(client, "news", heard["first"].append)
    send_until(client, 3, lambda: 3 in heard["first"])
    assert 3 not in heard["second"]
    stop()


def test_every_deadline_is_documented_and_can_be_set():
    page = (Path(__file__).parents[2] / "docs" / "failure.md").read_text()
    for name, default in DEFAULTS.items():
        number = default.removesuffix("s")
        assert f"| `{name}` | {number} s" in page, name
        assert dask.config.get(f"dbdask.{name}") == default
        with dask.config.set({f"dbdask.{name}": "1500ms"}):
            assert deadline(name) == 1.5
    assert deadline("answer", nbytes=20_000_000) == deadline("answer") + 1


def test_deadlines_outlive_a_setting_that_was_made_before_them(monkeypatch):
    """Where `dask.config.set` adds the first name under `dbdask.`, its end removes all of them."""
    monkeypatch.delitem(dask.config.config, "dbdask")
    with dask.config.set({"dbdask.ping": "3s"}):
        assert deadline("ping") == 3
    assert deadline("ping") == 10 and permitted() == WAYS


def test_a_call_that_is_given_up_fails_without_a_word(client, monkeypatch, caplog):
    """What becomes of it interests nobody: no log speaks of an exception never retrieved."""

    async def fails_when_cancelled(*arguments):
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("the connection was cut")

    async def give_up():
        monkeypatch.setattr(contact, "_call", fails_when_cancelled)
        place = contact.ActorPlace("tcp://nowhere", "nobody")
        call = asyncio.ensure_future(contact.call_actor(client.rpc, place, "ping"))
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


# Cancelling


class Scheduler:
    """Gives one answer to whatever it is asked, when the answer is there."""

    def __init__(self, answer):
        self.answer = answer

    def __getattr__(self, name):
        return self.ask

    async def ask(self, **question):
        return await self.answer


PLACE = contact.ActorPlace("tcp://127.0.0.1:9", "counter")
FUTURE = SimpleNamespace(key="key")
QUESTIONS = {
    "workers_now": lambda client: contact.workers_now(client),
    "count_workers": lambda client: contact.count_workers(client),
    "is_processed": lambda client: tasks.is_processed(client, FUTURE),
    "answers_ping": lambda client: contact.answers_ping(client.rpc, PLACE),
    "worker_answers": lambda client: contact.worker_answers(client.rpc, PLACE.worker),
    "run_on": lambda client: contact.run_on(client.rpc, PLACE.worker, where, "", seconds=10),
}
ANSWER = {"workers": {}, "key": "", "status": "OK", "result": ""}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_that_is_cancelled_as_its_answer_comes_is_cancelled(monkeypatch, question):
    """A run that went on after it was cancelled would ask a scheduler that is gone, for 30 s."""

    async def cancelled_after(turns):
        answer = asyncio.get_running_loop().create_future()
        scheduler = Scheduler(answer)
        monkeypatch.setattr(contact, "_talk", lambda *_, **message: scheduler.ask(**message))
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


# Connections


def test_a_connection_that_nobody_waits_for_is_left_to_the_next(monkeypatch):
    """A wait that ends in the very turn in which the socket is connected left it open for ever."""
    connecting, connect = [], _Connector.on_connect_done

    def connect_and_cancel(*arguments):
        connect(*arguments)
        while connecting:
            connecting.pop().cancel()

    monkeypatch.setattr(_Connector, "on_connect_done", connect_and_cancel)

    async def serve(comm):
        with suppress(OSError):
            await comm.read()

    async def story():
        async with listen("tcp://127.0.0.1:0", serve) as listener, ConnectionPool() as pool:
            address = listener.contact_address
            waiting = asyncio.ensure_future(contact._connect(pool, address, 5.0))
            connecting.append(waiting)
            await asyncio.wait({waiting})
            assert waiting.cancelled()
            until = time.monotonic() + 10
            while pool._n_connecting or pool.active:
                assert time.monotonic() < until
                await asyncio.sleep(0.01)
            assert pool.open == 1
            pool.reuse(address, await contact._connect(pool, address, 5.0))
            assert pool.open == 1

    asyncio.run(story())


def test_who_stops_to_wait_for_one_who_never_answers_gives_it_up(monkeypatch):
    monkeypatch.setattr(contact, "GRACE_SECONDS", 0.1)

    async def story():
        held = []  # and no handshake
        server = await asyncio.start_server(lambda *ends: held.append(ends), "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with server, ConnectionPool() as pool:
            asking = contact.worker_answers(pool, f"tcp://{host}:{port}", seconds=0.2)
            assert not await asking
            until = time.monotonic() + 10
            while pool._n_connecting or pool.open:
                assert time.monotonic() < until
                await asyncio.sleep(0.01)
            for _, writer in held:
                writer.close()

    asyncio.run(story())


def test_where_nobody_listens_is_known_long_before_the_deadline():
    async def story():
        async with ConnectionPool() as pool:
            began = time.monotonic()
            with pytest.raises(ConnectionRefusedError, match="nobody listens at tcp://127.0.0.1:9"):
                await contact._connect(pool, "tcp://127.0.0.1:9", 60.0)
            assert time.monotonic() - began < 30
            await asyncio.sleep(contact.GRACE_SECONDS + 0.1)
            assert not pool._n_connecting

    asyncio.run(story())
