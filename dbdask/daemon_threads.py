"""Calls that may hang, each on a daemon thread of its own: it keeps no process alive.

The interpreter joins the threads of a pool when it exits, but no daemon thread. A thread cannot be
stopped: a call that is no longer waited for goes on to its end.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from dbdask.schedule.awake import LOOK_SECONDS, AwakeClock
from dbdask.users_code import fit_for_loops

T = TypeVar("T")

logger = logging.getLogger("dbdask")

NAME = "dbdask-call"
WARN_SECONDS = 20.0


class DeadlinePassed(TimeoutError):
    """A call has not returned in time. A `TimeoutError` of the call itself is another error."""


def start_call(
    function: Callable[..., T], *arguments: object, after: threading.Thread | None = None
) -> tuple[threading.Thread, "Future[T]"]:
    """Start a call on a daemon thread; return the thread and the future of its result.

    What it raises comes out as an `Exception`, so that nothing of it ends an event loop.

    Parameters
    ----------
    function, arguments
        The call. It is not made if the future is cancelled before it begins.
    after
        The call begins when this thread has ended.
    """
    done: Future[T] = Future()
    thread = threading.Thread(
        target=_call, args=(done, after, function, arguments), name=NAME, daemon=True
    )
    thread.start()
    return thread, done


def _call(
    done: "Future[T]",
    after: threading.Thread | None,
    function: Callable[..., T],
    arguments: tuple[object, ...],
) -> None:
    if after is not None:
        after.join()
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(function(*arguments))
    except BaseException as error:
        done.set_exception(fit_for_loops(error))
    finally:
        del done  # the traceback of an error holds this frame


def call_within(
    seconds: float, function: Callable[..., T], *arguments: object, what: str = "an answer"
) -> T:
    """Call a function on a daemon thread, and return its result if it comes within `seconds`.

    Time in which this process was suspended does not count. A warning says every `WARN_SECONDS`
    what is waited for.

    Parameters
    ----------
    seconds
        The bound.
    function, arguments
        The call.
    what
        Names what is awaited, in words that follow "waiting for".

    Raises
    ------
    DeadlinePassed
        The function has not returned.

    Examples
    --------
    >>> call_within(5.0, max, 1, 2)
    2
    """
    _, done = start_call(function, *arguments)
    clock, said = AwakeClock(), 0.0
    while not wait((done,), min(LOOK_SECONDS, seconds)).done:
        passed = clock.seconds()
        if passed >= seconds:
            raise DeadlinePassed
        if passed - said >= WARN_SECONDS:
            said = passed
            logger.warning("waiting for %s for %.0f s, %g s at most", what, passed, seconds)
    return done.result()


async def beside_loop(function: Callable[..., T], *arguments: object) -> T:
    """Call a function on a daemon thread, beside the event loop, and return its result.

    The caller bounds the wait. The event loop's own pool has few threads, which others need.

    Examples
    --------
    >>> asyncio.run(beside_loop(max, 1, 2))
    2
    """
    _, done = start_call(function, *arguments)
    return await asyncio.wrap_future(done)


class DaemonThreadRunner:
    """Makes one call after the other, each on a daemon thread of its own.

    The next call begins when the one before has ended, even if that is no longer waited for.
    """

    def __init__(self) -> None:
        self._last: threading.Thread | None = None

    async def do(self, function: Callable[..., T], *arguments: object, what: str = "") -> T:
        """Call a function beside the event loop, and return its result.

        The caller bounds the wait. If `what` names what is awaited, in words that follow "waiting
        for", a warning says it every `WARN_SECONDS`.
        """
        self._last, done = start_call(function, *arguments, after=self._last)
        awaited, began = asyncio.wrap_future(done), time.monotonic()
        try:
            while not (await asyncio.wait({awaited}, timeout=WARN_SECONDS))[0]:
                if what:
                    logger.warning("waiting for %s for %.0f s", what, time.monotonic() - began)
            return await awaited
        finally:
            awaited.cancel()
