"""Waits that take long are named, all of them together and now and then."""

import asyncio
import logging

import dask
import pytest

from dbdask.errors import ShardLost
from dbdask.rpc import deadlines, long_waits
from dbdask.rpc.deadlines import while_alive
from dbdask.rpc.long_waits import LongWaits


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def lines_at(clock, waits, caplog, *seconds):
    """How many warnings there are after a look at each time."""
    heard = []
    for second in seconds:
        clock.now = 100.0 + second
        waits.look()
        heard.append(len(caplog.messages))
    return heard


def test_a_wait_is_named_every_20_seconds(clock, caplog):
    waits = LongWaits(clock)
    with waits.waiting("'pause' of shard 0 on worker w"):
        assert lines_at(clock, waits, caplog, 1, 19, 20, 21, 39, 40, 41) == [0, 0, 1, 1, 1, 2, 2]
    assert "waiting for 'pause' of shard 0 on worker w for 20 s" in caplog.messages[0]
    assert "on worker w for 40 s" in caplog.messages[1]
    assert lines_at(clock, waits, caplog, 200) == [2]


def test_many_waits_make_one_line_and_a_new_one_no_other(clock, caplog):
    waits = LongWaits(clock)
    with (
        waits.waiting("a"),
        waits.waiting("b"),
        waits.waiting("c"),
        waits.waiting("d"),
    ):
        assert lines_at(clock, waits, caplog, 16) == [0]
        with waits.waiting("late"):
            assert lines_at(clock, waits, caplog, 20, 30, 37, 40) == [1, 1, 1, 2]
    [first, second] = caplog.messages
    assert "a for 20 s, for b for 20 s, for c for 20 s, and for 1 more;" in first
    assert "and for 2 more;" in second


def test_short_waits_one_after_the_other_are_not_a_long_one(clock, caplog):
    waits = LongWaits(clock)
    for second in range(0, 200, 15):
        with waits.waiting("short"):
            lines_at(clock, waits, caplog, second, second + 14)
    assert not caplog.messages


def test_work_on_a_worker_is_named_while_the_worker_answers(monkeypatch):
    monkeypatch.setattr(long_waits, "WARN_SECONDS", 0.02)
    monkeypatch.setattr(long_waits, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(deadlines, "SAY_SECONDS", 0.01)
    said = []

    async def live():
        is_said = asyncio.Event()

        class Listening(logging.Handler):
            def emit(self, record):
                said.append(record)
                is_said.set()

        handler = Listening(logging.WARNING)
        logging.getLogger("dbdask").addHandler(handler)
        try:
            return await asyncio.wait_for(while_alive(is_said.wait(), answers, LOST, "w"), 20)
        finally:
            logging.getLogger("dbdask").removeHandler(handler)

    async def answers():
        return True

    with dask.config.set({"dbdask.answer": "10s"}):  # the warning waits for no deadline
        assert asyncio.run(live())
    assert "waiting for w for " in said[0].getMessage()


LOST = ShardLost("silent")
