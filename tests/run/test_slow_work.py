"""Work that hangs in the user's code: the run says which, where, and for how long."""

import asyncio
import logging
import threading

import dask
import numpy as np
import pytest
from counting import CountingModel
from test_downpour import assert_nothing_left, counted, write_store
from test_giving_up import outstanding, portion

import dbdask
from dbdask.rpc import calls, deadlines, long_waits
from dbdask.run import slow_work
from dbdask.run.slow_work import SlowWork

ROWS = 200


# As the run sees it


def heard_at(slow, held, caplog, *seconds, stopping=False):
    """How many warnings there are after a look at each time."""
    heard = []
    for second in seconds:
        slow.look(100.0 + second, held, stopping=stopping)
        heard.append(len(caplog.messages))
    return heard


def held(*numbers):
    """Portions that worker w was given at the beginning."""

    async def make():
        return [outstanding(portion(number), "w") for number in numbers]

    found = asyncio.run(make())
    for out in found:
        out.given = 100.0
    return found


def test_work_that_does_not_end_is_named_every_20_seconds(caplog):
    slow = SlowWork()
    assert heard_at(slow, held(3, 4), caplog, 0, 19) == [0, 0]
    slow, work = SlowWork(), held(3, 4)
    assert heard_at(slow, work, caplog, 0, 19, 20, 21, 39, 40) == [0, 0, 1, 1, 1, 2]
    assert "portion 3" in caplog.messages[0]
    assert "for 20 s on worker w and 1 more" in caplog.messages[0]
    assert "no work has ended for 20 s" in caplog.messages[1]
    assert "for 40 s on worker w" in caplog.messages[1]
    assert "Ctrl-C" not in caplog.text


def test_a_run_whose_work_ends_now_and_then_is_not_silent(caplog):
    slow, [slowest, *others] = SlowWork(), held(*range(9))
    for second in range(0, 120, 15):
        heard_at(slow, [slowest, *others], caplog, second, second + 14)
        others = others[1:]
    assert not caplog.messages


def test_work_after_a_time_without_any_is_not_late(caplog):
    slow = SlowWork()
    heard_at(slow, held(1), caplog, 0)
    assert heard_at(slow, [], caplog, 1) == [0]
    assert heard_at(slow, held(2), caplog, 50, 69, 70) == [0, 0, 1]


def test_a_run_that_is_to_stop_says_how_it_can_be_abandoned(caplog):
    heard_at(SlowWork(), [], caplog, 0, stopping=True)
    slow, work = SlowWork(), held(3)
    assert heard_at(slow, work, caplog, 0, 31, stopping=True) == [0, 1]
    assert caplog.messages[0].startswith("the run is to stop, and no work has ended")
    assert caplog.messages[0].endswith("a second Ctrl-C abandons the run")


# In a run


class Said(logging.Handler):
    """An event that is set when dbdask says, with these words, what it waits for."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.event, self.words = threading.Event(), ""

    def emit(self, record):
        if self.words in record.getMessage():
            self.event.set()


SAID = Said()  # in-process workers share it


@pytest.fixture
def said(monkeypatch):
    """The event; runs say soon what they wait for."""
    monkeypatch.setattr(slow_work, "WARN_SECONDS", 0.2)
    monkeypatch.setattr(long_waits, "WARN_SECONDS", 0.2)
    monkeypatch.setattr(long_waits, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(deadlines, "SAY_SECONDS", 0.05)
    SAID.event.clear()
    SAID.words = "waiting for"
    logging.getLogger("dbdask").addHandler(SAID)
    yield SAID.event
    SAID.event.set()
    logging.getLogger("dbdask").removeHandler(SAID)


def hang():
    """Wait, on the thread of a worker, until the run has said what it waits for."""
    if threading.current_thread() is not threading.main_thread():
        assert SAID.event.wait(120)


class HangsInGradient(CountingModel):
    def loss_and_gradient(self, *arguments, **named):
        hang()
        return super().loss_and_gradient(*arguments, **named)


class HangsInPrediction(CountingModel):
    def predict(self, parameters, inputs):
        hang()
        return super().predict(parameters, inputs)


class HangsInShard:
    slots = ()

    def update(self, parameters, gradient, slots, step):
        hang()
        parameters -= np.float32(20.0) * gradient


@pytest.mark.parametrize(
    ("model", "optimizer", "work"),
    [
        (HangsInGradient(ROWS), dbdask.sgd(20.0), "portion 0 of epoch 0"),
        (HangsInPrediction(ROWS), dbdask.sgd(20.0), "portion 0 of validation"),
        (CountingModel(ROWS), HangsInShard(), "portion 0 of epoch 0"),
    ],
)
def test_a_run_says_which_code_of_the_user_it_waits_for(
    threads_client, tmp_path, said, model, optimizer, work, caplog
):
    SAID.words = "no work has ended"  # a busy machine makes a run wait for other things, too
    store = write_store(tmp_path / "store.zarr", ROWS)
    result = dbdask.downpour(
        model,
        counted(store),
        client=threads_client,
        optimizer=optimizer,
        validation=counted(store),
        replicas=1,
        batch_size=20,
        progress=False,
    )
    assert said.is_set()
    np.testing.assert_array_equal(result.parameters["count"].values, 1)
    line = next(line for line in caplog.messages if "no work has ended" in line)
    assert work in line and "on worker inproc://" in line
    assert_nothing_left(threads_client)


class Actor:
    """An object of a worker, one of whose methods waits until the client has said so."""

    async def ping(self):
        return 0

    async def hold(self):
        await asyncio.to_thread(SAID.event.wait, 20)
        return SAID.event.is_set()


def test_a_client_says_which_command_to_a_shard_it_waits_for(threads_client, said, caplog):
    future = threads_client.submit(Actor, actor=True, key="held", pure=False)
    try:
        address = future.result()._address
        place = calls.ActorPlace(address, "held")
        with dask.config.set({"dbdask.answer": "10s"}):  # the warning waits for no deadline
            threads_client.sync(calls.call_actor, threads_client.rpc, place, "hold")
    finally:
        threads_client.cancel([future], force=True)
    assert f"waiting for 'hold' of held on worker {address} for " in caplog.text
