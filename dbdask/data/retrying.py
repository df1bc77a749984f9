"""Reads that are tried again: a store that is busy or out of reach may answer a moment later.

The caller of a read waits in `data.waiting`, on another thread than the tries. So Ctrl-C and a
stop end that wait during a pause as well, and `dbdask.read` bounds all tries together.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from dbdask.schedule.retries import MOST_TRIES, pause_after
from dbdask.users_code import fit_for_loops

logger = logging.getLogger("dbdask")

SAY_SECONDS = 60.0
"""Between two warnings of one process that a store fails now and then."""

LASTING = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""Errors of a file system that do not pass by themselves."""

BUSY_STATUS = (408, 425, 429)
"""Statuses of HTTP below 500 that ask for another try."""

HTTP_FAILURES = ("ClientConnectionError", "ClientPayloadError")
"""Errors of aiohttp without a status: it is not imported here."""

T = TypeVar("T")

_said: dict[str, float] = {}  # by store, when the last warning was
_said_lock = threading.Lock()


class ReadFailed(OSError):
    """A read has failed `MOST_TRIES` times in a row, each time with an error that may pass."""


def may_pass(error: BaseException) -> bool:
    """Return whether another try of a read may succeed, as far as the type of its error tells.

    Broken connections, time-outs, input and output errors of the system, and statuses of HTTP that
    blame the server may pass. What is not there, not allowed or not decodable stays so.
    """
    if isinstance(error, (ReadFailed, *LASTING)):
        return False
    status = http_status(error)
    if status is not None:
        return status >= 500 or status in BUSY_STATUS
    return isinstance(error, OSError) or _is_of_http(error)


def is_refused(error: BaseException) -> bool:
    """Return whether a store has refused a read for want of a right."""
    return isinstance(error, PermissionError) or http_status(error) in (401, 403)


def http_status(error: BaseException) -> int | None:
    """Return the status of HTTP that an error names, if it names one."""
    for name in ("status", "status_code", "code"):  # of aiohttp, of azure, of gcsfs and urllib
        status = getattr(error, name, None)
        if isinstance(status, int) and 100 <= status < 600:
            return status
    return None


def _is_of_http(error: BaseException) -> bool:
    kinds = (kind for kind in type(error).__mro__ if kind.__module__.startswith("aiohttp."))
    return any(kind.__name__ in HTTP_FAILURES for kind in kinds)


def tried_again(read: Callable[[], T], what: str, store: object) -> T:
    """Return what a read returns; try it again, with pauses, while its error may pass.

    It sleeps between two tries, so it belongs on no event loop.

    Parameters
    ----------
    read
        The read.
    what, store
        Name what is read, and where, for messages.

    Raises
    ------
    ReadFailed
        Each of `MOST_TRIES` tries failed with an error that may pass.
    """
    failures = 0
    while True:
        try:
            return read()
        except Exception as error:
            if not may_pass(error):
                raise
            failures += 1
            pause = _pause(error, failures, what, store)
        time.sleep(pause)


async def tried_again_on_loop(read: Callable[[], Awaitable[T]], what: str, store: object) -> T:
    """As `tried_again`, on Zarr's event loop, which serves other reads during a pause."""
    failures = 0
    while True:
        try:
            return await read()
        except (SystemExit, KeyboardInterrupt) as error:  # of a user's store: it would end the loop
            raise fit_for_loops(error) from error
        except Exception as error:
            if not may_pass(error):
                raise
            failures += 1
            pause = _pause(error, failures, what, store)
        await asyncio.sleep(pause)


def _pause(error: Exception, failures: int, what: str, store: object) -> float:
    """Return how long to wait before the next try; raise ReadFailed if there is none."""
    pause = pause_after(failures)
    if pause is None:
        raise ReadFailed(
            f"{what} was tried {failures} times, the last time with {type(error).__name__}: {error}"
        ) from error
    _say(error, str(store))  # only now: a read that succeeds needs no name
    return pause


def _say(error: Exception, store: str) -> None:
    """Log that a store has failed, unless this process has said so of the store lately."""
    now = time.monotonic()
    with _said_lock:
        if now - _said.get(store, -SAY_SECONDS) < SAY_SECONDS:
            return
        _said[store] = now
    logger.warning(
        "a read of %s failed with %s: %s; each read that fails like this is tried up to %d times",
        store,
        type(error).__name__,
        error,
        MOST_TRIES,
    )


class RetryingStore(WrapperStore[Store]):
    """A store whose reads are tried again while their error may pass."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of a key, or None if it is not there.

        Raises
        ------
        ReadFailed
            Each try failed with an error that may pass.
        """
        return await tried_again_on_loop(
            lambda: self._store.get(key, prototype, byte_range), f"key {key}", self._store
        )

    async def exists(self, key: str) -> bool:
        """Return whether a key is there.

        Raises
        ------
        ReadFailed
            Each try failed with an error that may pass.
        """
        return await tried_again_on_loop(lambda: self._store.exists(key), f"key {key}", self._store)
