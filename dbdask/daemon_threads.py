"""Calls that may hang, each on a daemon thread of its own: it keeps no process alive.

The interpreter joins the threads of a pool when it exits, but no daemon thread. A thread cannot be
stopped: a call that is no longer waited for goes on to its end.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from dbdask.schedule.awake import LOOK_SECONDS, AwakeClock

T = TypeVar("T")

NAME = "dbdask-call"


def start_call(
    function: Callable[..., T], *arguments: object, after: threading.Thread | None = None
) -> tuple[threading.Thread, "Future[T]"]:
    """Start a call on a daemon thread; return the thread and the future of its result.

    Parameters
    ----------
    function, arguments
        The call. It is not made if the future is cancelled before it begins.
    after
        The call begins when this thread has ended.
    """
    done: Future[T] = Future()

    def call() -> None:
        nonlocal after
        if after is not None:
            after.join()
            after = None  # else each thread would keep all those before it
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(function(*arguments))
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=call, name=NAME, daemon=True)
    thread.start()
    return thread, done


def call_within(seconds: float, function: Callable[..., T], *arguments: object) -> T:
    """Call a function on a daemon thread, and return its result if it comes within `seconds`.

    Time in which this process was suspended does not count.

    Raises
    ------
    TimeoutError
        The function has not returned.

    Examples
    --------
    >>> call_within(5.0, max, 1, 2)
    2
    """
    _, done = start_call(function, *arguments)
    clock = AwakeClock()
    while not wait((done,), min(LOOK_SECONDS, seconds)).done:
        if clock.seconds() >= seconds:
            raise TimeoutError
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

    async def do(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function beside the event loop, and return its result."""
        self._last, done = start_call(function, *arguments, after=self._last)
        return await asyncio.wrap_future(done)
