"""A callback that does not return: the run says so, where it stands, and for how long."""

import logging
import threading

import pytest
from counting import CountingModel
from test_downpour import assert_nothing_left, counted, write_store

import dbdask
from dbdask.run import slow_callbacks
from dbdask.run.slow_callbacks import CallbackWatch

ROWS = 200


def test_a_callback_that_does_not_return_is_named_now_and_then_with_its_place(caplog):
    watching, heard = CallbackWatch(), []

    def stuck(record):
        for now in (0, 19, 21, 35, 42):
            watching.look(now)
            heard.append(len(caplog.messages))
        return "returned"

    [callback] = watching.over([stuck])
    assert callback(None) == "returned"
    assert heard == [0, 0, 1, 1, 2]
    for line, seconds in zip(caplog.messages, (21, 42), strict=True):
        assert f"stuck has taken {seconds} s" in line
        assert "test_slow_callbacks.py" in line and "(stuck)" in line


def test_many_callbacks_that_return_are_not_one_that_does_not(caplog):
    watching, times = CallbackWatch(), iter(range(0, 1000, 15))
    [callback] = watching.over([lambda record: watching.look(next(times))])
    for _ in range(20):
        callback(None)
        watching.look(next(times))
    assert not caplog.messages


@pytest.fixture
def is_said(monkeypatch):
    """An event that is set where the run says something of a callback, as it soon does."""
    monkeypatch.setattr(slow_callbacks, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(slow_callbacks, "WARN_SECONDS", 0.1)
    said = threading.Event()

    class Listening(logging.Handler):
        def emit(self, record):
            if "the callback" in record.getMessage():
                said.set()

    handler = Listening(logging.WARNING)
    logging.getLogger("dbdask").addHandler(handler)
    yield said
    logging.getLogger("dbdask").removeHandler(handler)


def test_a_run_says_which_callback_keeps_it_from_ending(threads_client, tmp_path, is_said, caplog):
    """The error comes out on the thread that the callback holds."""

    def stuck(record):
        assert is_said.wait(120)

    store = write_store(tmp_path / "store.zarr", ROWS)
    dbdask.downpour(
        CountingModel(ROWS),
        counted(store),
        client=threads_client,
        optimizer=dbdask.sgd(20.0),
        batch_size=20,
        callbacks=[stuck],
        progress=False,
    )
    assert "stuck has taken" in caplog.text and "cannot end before" in caplog.text
    assert_nothing_left(threads_client)
