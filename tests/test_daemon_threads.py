"""Calls on daemon threads: their order, their errors, and what is given up."""

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError

import pytest

from dbdask import daemon_threads
from dbdask.daemon_threads import DaemonThreadRunner, beside_loop, call_within, start_call


def test_what_was_given_up_before_it_began_is_not_done_and_an_error_comes_out():
    async def live():
        runner, released, done = DaemonThreadRunner(), threading.Event(), []
        first = asyncio.ensure_future(runner.do(released.wait, 30))
        second = asyncio.ensure_future(runner.do(done.append, 2))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        third = asyncio.ensure_future(runner.do(done.append, 3))
        released.set()
        assert await first
        await third
        assert done == [3]
        with pytest.raises(ZeroDivisionError):
            await runner.do(divmod, 1, 0)

    asyncio.run(live())


def test_what_hangs_keeps_no_process_from_ending():
    program = """
import asyncio, threading
from dbdask.daemon_threads import DaemonThreadRunner

async def live():
    try:
        async with asyncio.timeout(0.2):
            await DaemonThreadRunner().do(threading.Event().wait)
    except TimeoutError:
        print("given up")

asyncio.run(live())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "given up\n"), done.stderr


def test_a_call_is_waited_for_only_so_long():
    released, done = threading.Event(), threading.Event()

    def hang():
        released.wait(120)
        done.set()

    try:
        with pytest.raises(TimeoutError):
            call_within(0.01, hang)
    finally:
        released.set()
    assert done.wait(120)  # a thread goes on to its end


class Said(logging.Handler):
    """Sets an event when something is said."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.event, self.words = threading.Event(), []

    def emit(self, record):
        self.words.append(record.getMessage())
        self.event.set()


def test_a_long_call_says_what_is_waited_for(monkeypatch):
    monkeypatch.setattr(daemon_threads, "WARN_SECONDS", 0.1)
    said = Said()
    logging.getLogger("dbdask").addHandler(said)
    try:
        assert call_within(60.0, said.event.wait, 30, what="the store of run.zarr")
    finally:
        logging.getLogger("dbdask").removeHandler(said)
    assert said.words[0].startswith("waiting for the store of run.zarr for 0 s, 60 s at most")


def test_an_error_of_a_call_comes_out():
    with pytest.raises(ZeroDivisionError):
        call_within(30.0, divmod, 1, 0)


class Unspeakable(BaseException):
    def __repr__(self):
        raise SystemExit


SIGNALS = [
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    asyncio.CancelledError,
    CancelledError,
    Unspeakable,
]


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_call_ends_no_loop_and_passes_for_no_cancellation(kind):
    """On its thread it is no signal: there is no Ctrl-C, and no caller that it would end."""

    def fail():
        raise kind

    async def beside():
        words = f"{kind.__name__}.* was raised in .*test_daemon_threads.py, line "
        for waiting in (beside_loop(fail), DaemonThreadRunner().do(fail)):
            with pytest.raises(RuntimeError, match=words) as caught:
                await asyncio.wait_for(waiting, 60)
            assert isinstance(caught.value.__cause__, kind)
        return 1

    assert asyncio.run(beside()) == 1
    with pytest.raises(RuntimeError, match="was raised in"):
        call_within(60.0, fail)


def test_a_call_that_fails_leaves_no_cycle():
    """An error in a cycle keeps what its frames hold, a reader's memory say, until collected."""

    def fail():
        raise ValueError

    gc.disable()
    try:
        thread, done = start_call(fail)
        thread.join(120)
        assert isinstance(done.exception(), ValueError)
        kept = weakref.ref(done)
        del done
        assert kept() is None
    finally:
        gc.enable()
