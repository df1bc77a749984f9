"""Waiting for a store that may hang: only so long, and on a thread that keeps no process alive."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from dbdask.schedule.awake import LOOK_SECONDS, AwakeClock


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
    done: Future[Any] = Future()

    def call() -> None:
        try:
            done.set_result(function(*arguments))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=call, name="dbdask-store", daemon=True).start()
    clock = AwakeClock()  # what this process slept through says nothing of the store
    while not wait((done,), min(LOOK_SECONDS, seconds)).done:
        if clock.seconds() >= seconds:
            raise TimeoutError
    return done.result()
