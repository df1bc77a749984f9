"""Progress without a cluster: records made here, a log that is caught, a terminal that is not."""

import io
import logging
import sys
from types import SimpleNamespace

import pytest

from dbdask.numbers.history import Record
from dbdask.progress import LINE_SECONDS, Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def on(stream, monkeypatch):
    """Make it the standard error; a fixture would be too early, pytest sets it again after."""
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


@pytest.fixture(autouse=True)
def no_notebook(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO, logger="dbdask")
    return caplog


def record(examples, step=3, **values):
    return Record(seconds=1.0, epoch=1, step=step, examples=examples, **values)


def show(progress, *records):
    for each in records:
        progress.update(each)
    progress.close()


def test_elsewhere_a_line_goes_to_the_log(log, monkeypatch):
    pipe = on(io.StringIO(), monkeypatch)
    show(Progress(None, 1000), record(250, loss=0.5, validation_accuracy=0.75))
    assert log.record_tuples == [
        (
            "dbdask",
            logging.INFO,
            "25 % of the examples, epoch 1, loss 0.5, validation accuracy 0.75",
        )
    ]
    assert pipe.getvalue() == ""


def test_iterations_are_counted_by_steps(log, monkeypatch):
    on(io.StringIO(), monkeypatch)
    show(Progress(None, 20, "iterations"), record(100_000, step=5))
    assert log.messages == ["25 % of the iterations, epoch 1"]


def test_lines_are_now_and_then(log, monkeypatch):
    on(io.StringIO(), monkeypatch)
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("dbdask.progress.time", clock)
    progress = Progress(None, 100)
    for done, later in ((10, 0), (20, 1), (30, LINE_SECONDS - 0.1), (40, LINE_SECONDS)):
        clock.now = 100.0 + later
        progress.update(record(done))
    assert [message.split(" of ")[0] for message in log.messages] == ["10 %", "40 %"]


def test_a_terminal_shows_a_bar_and_the_log_nothing(log, monkeypatch):
    terminal = on(Terminal(), monkeypatch)
    show(Progress(None, 1000), record(250, loss=0.5), record(1000, loss=0.25))
    shown = terminal.getvalue()
    assert "100%" in shown and "examples" in shown
    assert not log.messages


def test_a_bar_follows_the_records_and_never_goes_back(monkeypatch):
    on(Terminal(), monkeypatch)
    progress = Progress(None, 1000)
    for done in (250, 200, 600):
        progress.update(record(done, loss=0.5))
    assert progress._bar.n == 600 and progress._bar.postfix == "epoch 1, loss 0.5"
    progress.close()


def test_true_shows_a_bar_anywhere(log, monkeypatch):
    pipe = on(io.StringIO(), monkeypatch)
    show(Progress(True, 1000), record(1000))
    assert "100%" in pipe.getvalue()
    assert not log.messages


def test_false_is_silent_anywhere(log, monkeypatch):
    terminal = on(Terminal(), monkeypatch)
    show(Progress(False, 1000), record(1000))
    assert terminal.getvalue() == "" and not log.messages
