"""Waiting for a store that may hang: only so long, and on a thread that keeps no process alive."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from dbdask.schedule.awake import LOOK_SECONDS, AwakeClock

T = TypeVar("T")


def within(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on a thread of its own; returns what it returns, within so many seconds.

    A thread cannot be stopped: one that is waited for no longer goes on to its end.

    Raises
    ------
    TimeoutError
        The function has not returned.

    Examples
    --------
    >>> within(5.0, max, 1, 2)
    2
    """
    done = _begun(function, arguments)
    clock = AwakeClock()  # what this process slept through says nothing of the store
    while not wait((done,), min(LOOK_SECONDS, seconds)).done:
        if clock.seconds() >= seconds:
            raise TimeoutError
    return done.result()


async def beside_loop(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function on a thread of its own, beside the event loop; returns what it returns.

    The event loop's own pool has few threads, which others need, and the interpreter waits for
    each of them at its exit. The caller bounds the wait.

    Examples
    --------
    >>> asyncio.run(beside_loop(max, 1, 2))
    2
    """
    return await asyncio.wrap_future(_begun(function, arguments))


def _begun(function: Callable[..., T], arguments: tuple[Any, ...]) -> "Future[T]":
    """Begin a call on a daemon thread, and return the future of its result."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # who waits no longer cannot cancel it

    def call() -> None:
        try:
            done.set_result(function(*arguments))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=call, name="dbdask-store", daemon=True).start()
    return done
