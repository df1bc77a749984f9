"""Errors on their way out of a worker: each can be pickled, is small, and has an end.

Dask pickles an error with its traceback, its causes and their causes. An error that is its own
cause never ends, an error of a thousand frames takes minutes, and an error whose pickling fails in
an unusual way leaves its task without an end.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from functools import wraps
from traceback import clear_frames
from types import TracebackType
from typing import ParamSpec, TypeVar

import cloudpickle
from distributed import Reschedule

from dbdask.users_code import described

MOST_ERRORS = 16  # in a chain of causes
MOST_FRAMES = 20  # at each end of a traceback
MOST_BYTES = 2**20  # of an error without its traceback
MOST_TEXT = 5000  # characters of an error that cannot be sent

MISREAD = (CancelledError, Reschedule, StopIteration, StopAsyncIteration)
"""Errors of a task that Dask, or a future, takes for something else than its failure."""

P = ParamSpec("P")
T = TypeVar("T")


def portable_errors(task: Callable[P, T]) -> Callable[P, T]:
    """Replace every error of a function that runs on a worker by an error that can be sent."""

    @wraps(task)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return task(*arguments, **options)
        except BaseException as error:
            failure = portable(error)
        raise failure  # here, where nothing becomes its context

    return run


def portable(error: BaseException) -> Exception:
    """Return an error that can be sent: the error itself, or an error that names it."""
    shorten(error)  # first: an error that was sent before is pickled with its traceback
    if isinstance(error, Exception) and not is_misread(error) and _travels(error):
        return error
    return RuntimeError(described(error)[:MOST_TEXT]).with_traceback(error.__traceback__)


def is_misread(error: BaseException | None) -> bool:
    """Whether Dask or asyncio take a task's error for something else than its failure."""
    return error is not None and (isinstance(error, MISREAD) or not isinstance(error, Exception))


def _travels(error: Exception) -> bool:
    try:
        str(error), repr(error)
        written = _Written()
        cloudpickle.Pickler(written).dump(error)
        cloudpickle.loads(written.content)
    except BaseException:  # any error that a user's own pickling raises
        return False
    return True


class _Written:
    """A file of bounded length."""

    def __init__(self) -> None:
        self.content = b""

    def write(self, part: bytes | memoryview) -> int:
        if len(self.content) + len(part) > MOST_BYTES:
            raise OverflowError(f"an error of more than {MOST_BYTES} bytes")
        self.content += bytes(part)
        return len(part)


def shorten(error: BaseException) -> None:
    """Cut an error's tracebacks, and the chain of its causes if it is long or comes round.

    The local variables of its frames are cleared: they hold whole vectors, some of which other
    processes map, for as long as Dask keeps the error.
    """
    for linked in end_causes(error):
        clear_frames(linked.__traceback__)
        linked.__traceback__ = _ends_of(linked.__traceback__)


def end_causes(error: BaseException) -> list[BaseException]:
    """Cut the chain of an error's causes where it is long or comes round; what stays comes back."""
    seen, chain = {id(error)}, [error]
    for current in chain:
        for link in ("__cause__", "__context__"):
            linked = getattr(current, link)
            if linked is None:
                continue
            if id(linked) in seen or len(seen) >= MOST_ERRORS:
                _unlink(current, link)
            else:
                seen.add(id(linked))
                chain.append(linked)
    return chain


def _unlink(error: BaseException, link: str) -> None:
    suppresses = error.__suppress_context__  # which setting a cause sets
    setattr(error, link, None)
    error.__suppress_context__ = suppresses


def _ends_of(traceback: TracebackType | None) -> TracebackType | None:
    """Leave the outermost and the innermost frames of a traceback."""
    frames = list(_frames(traceback))
    if len(frames) > 2 * MOST_FRAMES:
        frames[MOST_FRAMES - 1].tb_next = frames[-MOST_FRAMES]
    return traceback


def _frames(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next
