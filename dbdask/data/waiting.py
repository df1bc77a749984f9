"""Waiting for a read: under a deadline, with a word meanwhile, and until it is given up.

A read that hangs holds its thread, and nothing can end a thread. So each read runs on a daemon
thread, and the caller waits beside it. The wait can be given up, hears Ctrl-C, and ends at the
deadline. The thread of the read goes on until its store answers, drops the answer if no caller
waits, and does not keep the process from ending.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from dbdask.daemon_threads import start_call
from dbdask.errors import DataError
from dbdask.schedule.awake import LOOK_SECONDS, AwakeClock

logger = logging.getLogger("dbdask")

READ_SECONDS = "60s"
"""How long a read may take, and a second for every `BYTES_PER_SECOND`: `dbdask.read`."""

BYTES_PER_SECOND = 20e6

WARN_SECONDS = 10.0
"""How often a read that is waited for is named."""

T = TypeVar("T")


class ReadGivenUp(Exception):
    """The reader was told to wait no more: nothing is wrong with the data."""


class Reads:
    """The reads that one reader waits for, on whichever threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waited_for: dict[Future[None], float] = {}  # and since when
        self._is_closed = False

    def give_up(self, least: float = 0.0) -> None:
        """End every wait that has taken `least` seconds, with `ReadGivenUp`; never waits."""
        now = time.monotonic()
        with self._lock:
            ended = [waiting for waiting, since in self._waited_for.items() if now - since >= least]
        for waiting in ended:
            with suppress(InvalidStateError):  # another has ended it
                waiting.set_result(None)

    def close(self) -> None:
        """End every wait, those to come as well."""
        with self._lock:
            self._is_closed = True
        self.give_up()

    @contextmanager
    def here(self) -> Iterator[None]:
        """Let the waits of this thread be of these reads."""
        before = _of_thread()
        _local.reads = self
        try:
            yield
        finally:
            _local.reads = before

    @contextmanager
    def _waiting(self) -> Iterator[Future[None]]:
        """Yield what is done if the wait is to end."""
        ending: Future[None] = Future()
        with self._lock:
            if self._is_closed:
                raise ReadGivenUp("the reader is closed")
            self._waited_for[ending] = time.monotonic()
        try:
            yield ending
        finally:
            with self._lock:
                del self._waited_for[ending]


_local = threading.local()
_others = Reads()  # of threads that read without a reader


def _of_thread() -> Reads:
    reads: Reads = getattr(_local, "reads", _others)
    return reads


class _Wait:
    """One read that is waited for."""

    def __init__(self, what: Callable[[], str]) -> None:
        self.what = what
        self.passed = self._warned = 0.0  # seconds
        self._clock = AwakeClock()

    def look(self, seconds: float) -> None:
        """Say what is waited for, now and then.

        Raises
        ------
        DataError
            `seconds` have passed.
        """
        passed = self.passed = self._clock.seconds()
        if passed > seconds:
            raise DataError(
                f"{self.what()} gave no answer in {seconds:g} s (dbdask.read): see that its store "
                "can be reached from here and is not overloaded, or set dbdask.read where it is "
                "that slow"
            )
        if passed - self._warned >= WARN_SECONDS:
            self._warned = passed
            logger.warning("%s has been waited for %.0f s", self.what(), passed)


_waits: set[_Wait] = set()
_waits_lock = threading.Lock()


def waited_for(read: Callable[[], T], what: Callable[[], str], nbytes: int = 0) -> T:
    """Return what a read returns, or raise what it raises.

    Parameters
    ----------
    read
        Runs on a thread of its own.
    what
        Names it, for messages.
    nbytes
        Bytes that it is to bring; they lengthen the deadline.

    Raises
    ------
    ReadGivenUp
        The reader was told to wait no more.
    DataError
        It did not end within `dbdask.read`.
    """
    with _of_thread()._waiting() as ending:
        _, result = start_call(read)
        if not _is_over(result, ending):
            _wait_long(result, ending, _Wait(what), nbytes)
    try:
        if not result.done():
            raise ReadGivenUp(what())
        return result.result()
    finally:
        del result  # the traceback of an error holds this frame


def _is_over(result: Future[T], ending: Future[None]) -> bool:
    """Wait for a moment, until either is done; whether one is."""
    both: list[Future[Any]] = [result, ending]
    return bool(wait(both, LOOK_SECONDS, FIRST_COMPLETED).done)


def _wait_long(result: Future[T], ending: Future[None], waiting: _Wait, nbytes: int) -> None:
    """Wait on, where others can see it."""
    seconds = deadline(nbytes)
    with _waits_lock:
        _waits.add(waiting)
    try:
        while not _is_over(result, ending):
            waiting.look(seconds)
    finally:
        with _waits_lock:
            _waits.discard(waiting)


def deadline(nbytes: int = 0) -> float:
    """Return the seconds that a read of so many bytes may take."""
    import dask.config  # here: what only computes does without Dask, and hardly a read comes by
    from dask.utils import parse_timedelta

    configured = dask.config.get("dbdask.read", READ_SECONDS)
    return float(parse_timedelta(configured)) + nbytes / BYTES_PER_SECOND


def long_reads() -> list[tuple[str, float]]:
    """Return which reads this process has waited for longer than `WARN_SECONDS`, and how long."""
    with _waits_lock:
        waits = [waiting for waiting in _waits if waiting.passed >= WARN_SECONDS]
    return [(waiting.what(), waiting.passed) for waiting in waits]
