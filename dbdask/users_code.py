"""The errors of users' code, kept apart from what Python, Dask and a run take for a signal."""

import threading
from concurrent.futures import CancelledError
from types import TracebackType

from dbdask.errors import RECOVERABLE

SIGNALS = (*RECOVERABLE, CancelledError, StopIteration, StopAsyncIteration)
"""Errors that mean something else to a run, to Dask or to asyncio than that code has failed."""


class UsersCode:
    """A context in which code of a user's runs: whatever it raises is an ordinary error.

    An exception that is none of Python's `Exception` would end a worker's event loop, a
    `CancelledError` would pass for a task that nobody wants, and a `ShardLost` for the loss of a
    shard. Those come out as a `RuntimeError` that names them, and all others as they are.

    Parameters
    ----------
    name
        The code, in an error: "model.loss_and_gradient".

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
            raise RuntimeError(f"{self.name} raised {error!r}") from error


def _is_signal(error: BaseException) -> bool:
    if isinstance(error, KeyboardInterrupt):  # that of a user comes to the main thread alone
        return threading.current_thread() is not threading.main_thread()
    return isinstance(error, SIGNALS) or not isinstance(error, Exception)
