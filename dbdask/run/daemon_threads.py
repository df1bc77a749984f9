"""Calls that may hang, on daemon threads beside the event loop."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class DaemonThreadRunner:
    """Makes one call after the other, each on a daemon thread of its own.

    A thread cannot be stopped. A call that is no longer waited for goes on to its end, and the
    next call begins only then. A call that was cancelled before it began is not made.
    """

    def __init__(self) -> None:
        self._last: threading.Thread | None = None

    async def do(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function beside the event loop, and return its result."""
        done: Future[T] = Future()
        thread = threading.Thread(
            target=_do,
            args=(done, self._last, function, arguments),
            name="dbdask-aside",
            daemon=True,  # the interpreter joins the threads of a pool at its exit
        )
        self._last = thread
        thread.start()
        return await asyncio.wrap_future(done)


def _do(
    done: "Future[T]",
    before: threading.Thread | None,
    function: Callable[..., T],
    arguments: tuple[object, ...],
) -> None:
    if before is not None:
        before.join()
    if not done.set_running_or_notify_cancel():
        return
    try:
        done.set_result(function(*arguments))
    except BaseException as error:
        done.set_exception(error)
