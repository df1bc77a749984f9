"""A task's result as the client's loop gets it: from its worker, by a question of its own."""

import asyncio
import os
import signal
import time

import pytest
from distributed import Client, LocalCluster
from distributed.client import FutureCancelledError

from dbdask.rpc import tasks
from dbdask.rpc.tasks import result_of

TURNS = 40  # of the loop, until the question is sent


@pytest.fixture(params=["threads_client", "process_client"])
def client(request):
    return request.getfixturevalue(request.param)


async def ask(client, future):
    return await result_of(client, future)


def nap(seconds, value):
    time.sleep(seconds)
    return value


def test_the_result_comes_when_the_task_has_ended(client):
    futures = [client.submit(nap, 0.05, value, pure=False) for value in (1, 2, 3)]

    async def all_of_them():
        return await asyncio.gather(*(ask(client, future) for future in futures))

    assert client.sync(all_of_them) == [1, 2, 3]


def test_the_error_of_a_task_comes_out_with_where_it_was_raised(client):
    def fail():
        raise LookupError("mine")

    future = client.submit(fail, pure=False)
    with pytest.raises(LookupError, match="mine") as caught:
        client.sync(ask, client, future)
    assert "fail" in [entry.name for entry in caught.traceback]
    future.release()  # the error's frames hold it


def test_a_task_that_is_cancelled_is_waited_for_no_longer(client):
    future = client.submit(nap, 0.2, 1, pure=False)

    async def cancelled_meanwhile():
        asking = asyncio.ensure_future(ask(client, future))
        await asyncio.sleep(0.05)
        await client.cancel([future], asynchronous=True)
        return await asking

    with pytest.raises(FutureCancelledError):
        client.sync(cancelled_meanwhile)


def test_who_stops_to_wait_leaves_the_client_able_to_gather(client):
    """A gather that is cancelled before its question is sent stays with the client for good."""
    future = client.submit(nap, 0.0, 7, pure=False)
    future.result()

    async def cancelled_after(turns):
        asking = asyncio.ensure_future(ask(client, future))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        return await client.gather(future, asynchronous=True), await ask(client, future)

    for turns in range(TURNS):
        assert client.sync(cancelled_after, turns, callback_timeout=120) == (7, 7)


def test_who_stops_to_wait_ends_nobody_elses_wait(client):
    mine, users = (client.submit(nap, 0.0, value, pure=False) for value in (1, 2))
    client.gather([mine, users])

    async def cancelled_after(turns):
        asking = asyncio.ensure_future(ask(client, mine))
        gathering = asyncio.ensure_future(client.gather(users, asynchronous=True))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        return await gathering

    for turns in range(TURNS):
        assert client.sync(cancelled_after, turns) == 2


def test_a_result_that_is_lost_with_its_worker_is_made_again(monkeypatch):
    monkeypatch.setattr(tasks, "LOOK_SECONDS", 0.05)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        future = client.submit(nap, 0.0, 5, pure=False)
        future.result()
        [[holder]] = client.who_has([future]).values()
        os.kill(client.run(os.getpid, workers=[holder])[holder], signal.SIGKILL)
        assert client.sync(ask, client, future, callback_timeout=60) == 5
