"""Errors of users' code, kept apart from the exceptions that are signals in Python and Dask."""

import threading
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
            raise RuntimeError(f"{self.name} raised {error!r}") from error


def _is_signal(error: BaseException) -> bool:
    if isinstance(error, KeyboardInterrupt):  # Python raises it in the main thread only
        return threading.current_thread() is not threading.main_thread()
    return isinstance(error, SIGNALS) or not isinstance(error, Exception)
