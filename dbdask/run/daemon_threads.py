"""What may hang, beside the event loop: on threads that keep no process from ending."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class DaemonThreadRunner:
    """Does one thing after the other, each on a thread of its own.

    A thread cannot be stopped: what is waited for no longer goes on to its end, and the next
    thing begins only then. What was given up before it began is not done.
    """

    def __init__(self) -> None:
        self._last: threading.Thread | None = None

    async def do(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function beside the event loop; returns what it returns."""
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
