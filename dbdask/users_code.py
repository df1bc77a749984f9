"""Errors of users' code, kept apart from the exceptions that are signals in Python and Dask."""

import threading
import traceback as tracebacks
from concurrent.futures import CancelledError
from types import TracebackType

from dbdask.errors import RECOVERABLE

SIGNALS = (*RECOVERABLE, CancelledError, StopIteration, StopAsyncIteration)
"""Exceptions that are a signal to a run, to Dask or to asyncio, and no failure of code."""


class UsersCode:
    """A context in which a user's code runs, and in which every exception becomes an error.

    An exception that is no `Exception` would end a worker's event loop, a `CancelledError` would
    pass for a cancelled task, and a `ShardLost` for the loss of a shard. They are raised as a
    `RuntimeError` that names them; all other exceptions stay as they are.

    Parameters
    ----------
    name
        The name of the code in an error, such as "model.loss_and_gradient".

    Examples
    --------
    >>> with UsersCode("schedule"):
    ...     next(iter([]))
    Traceback (most recent call last):
    RuntimeError: schedule raised StopIteration()
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and _is_signal(error):
            raise RuntimeError(f"{self.name} raised {described(error)}") from error


def _is_signal(error: BaseException) -> bool:
    if isinstance(error, KeyboardInterrupt):  # Python raises it in the main thread only
        return threading.current_thread() is not threading.main_thread()
    return isinstance(error, SIGNALS) or not isinstance(error, Exception)


def described(error: BaseException) -> str:
    """Return an error's `repr`, or its type's name if that raises."""
    try:
        return repr(error)
    except BaseException:
        return f"{type(error).__name__}, of which no text can be had"


def fit_for_loops(error: BaseException) -> Exception:
    """Return what a call on a thread of its own raised, as an error that ends no event loop.

    There it is no signal: no Ctrl-C comes to such a thread, and no task of asyncio is cancelled on
    it. A `SystemExit` that was raised again in a coroutine would end the loop, and with it the
    worker; a `CancelledError` would pass for a cancelled task, and after a `StopIteration` a task
    would wait for ever. Dask's own subclass of `CancelledError`, for tasks that it has cancelled,
    passes for neither, and stays as it is.
    """
    is_signal = isinstance(error, StopIteration) or type(error) is CancelledError
    if isinstance(error, Exception) and not is_signal:
        return error
    failure = RuntimeError(f"{described(error)} was raised in {_place_of(error)}")
    failure.__cause__ = error
    return failure


def _place_of(error: BaseException) -> str:
    """Name the line that raised an error: the last one of a module under import, if there is one.

    A module that parses arguments ends deep in `argparse`.
    """
    frames = tracebacks.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if f.name == "<module>"), frames[-1])
    return f"{place.filename}, line {place.lineno}"
