"""Progress without a cluster: records made here, a log that is caught, a terminal that is not."""

import io
import logging
import sys
from types import SimpleNamespace

import pytest

from dbdask.metrics.history import Record
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


def unconfigured(monkeypatch):
    """Leave logging as in a program that never configured it; a fixture would be too early."""
    logger = logging.getLogger("dbdask")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger.root, "handlers", [])
    monkeypatch.setattr(logger.root, "level", logging.WARNING)
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    monkeypatch.setattr(logger, "_cache", {})
    return logger


def lines_of(stream):
    return [line.partition(" dbdask: ")[2] for line in stream.getvalue().splitlines()]


def test_a_program_that_configured_nothing_sees_the_lines(monkeypatch):
    logger, pipe = unconfigured(monkeypatch), on(io.StringIO(), monkeypatch)
    progress = Progress(None, 1000)
    progress.begin()
    assert lines_of(pipe) == ["the run begins: 1,000 examples in all"]
    show(progress, record(250, loss=0.5))
    assert lines_of(pipe)[1:] == ["25 % of the examples, epoch 1, loss 0.5"]
    assert logger.handlers == [] and logger.level == logging.NOTSET


@pytest.mark.parametrize("how", ["handler", "null", "level", "root level", "disabled"])
def test_what_a_program_configured_decides(monkeypatch, how):
    logger = unconfigured(monkeypatch)
    pipe, own = on(io.StringIO(), monkeypatch), io.StringIO()
    if how == "handler":
        logger.root.handlers.append(logging.StreamHandler(own))
        logger.level = logging.INFO
    elif how == "null":
        logger.handlers.append(logging.NullHandler())
    elif how == "level":
        logger.level = logging.ERROR
    elif how == "root level":
        logger.root.level = logging.ERROR
    else:
        monkeypatch.setattr(logger.manager, "disable", logging.INFO)
    progress = Progress(None, 1000)
    progress.begin()
    show(progress, record(250))
    assert pipe.getvalue() == ""
    wanted = ["the run begins: 1,000 examples in all", "25 % of the examples, epoch 1"]
    assert own.getvalue().splitlines() == (wanted if how == "handler" else [])


def test_a_run_without_new_records_says_that_it_works(log, monkeypatch):
    on(io.StringIO(), monkeypatch)
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("dbdask.progress.time", clock)
    progress = Progress(None, 100)
    for later in (0, 19, 20, 21, 41):
        clock.now = 100.0 + later
        progress.wait()
    assert log.messages == [
        "the run works, 20 s after it began",
        "the run works, 41 s after it began",
    ]
    for done in (10, 20, 30):
        progress.update(record(done))
    assert log.messages[2:] == []
    clock.now += 30
    progress.wait()
    progress.update(record(90))
    progress.close()
    assert [message.split(" of ")[0] for message in log.messages[2:]] == ["30 %", "90 %"]


@pytest.mark.parametrize("mode", [True, False])
def test_no_line_is_logged_where_none_is_wanted(log, monkeypatch, mode):
    on(Terminal(), monkeypatch)
    progress = Progress(mode, 100)
    progress.begin()
    progress.wait()
    show(progress, record(10))
    assert not log.messages
