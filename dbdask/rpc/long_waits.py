"""Waits that take long: a process says what it waits for, so that no run is silent."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger("dbdask")

WARN_SECONDS = 20.0
LEAST_SECONDS = 5.0
"""A wait that is shorter is not named beside a long one: it is likely to end by itself."""

MOST_NAMED = 3


class _Wait:
    """One wait, and when a warning last spoke of the waits."""

    def __init__(self, what: str, since: float) -> None:
        self.what = what
        self.since = self.said = since


class LongWaits:
    """The waits of a process that are under way.

    One warning speaks of all of them, so a hundred shards that wait for the same thing make one
    line every `WARN_SECONDS`.

    Parameters
    ----------
    clock
        Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # of worker and client threads, if they share a process
        self._waits: list[_Wait] = []  # the longest first

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Note a wait for as long as the block takes; `what` names the work and its worker."""
        wait = _Wait(what, self._clock())
        with self._lock:
            self._waits.append(wait)
        try:
            yield
        finally:
            with self._lock:
                self._waits.remove(wait)

    def look(self) -> None:
        """Say what is waited for, if no warning has spoken of some wait for `WARN_SECONDS`."""
        now = self._clock()
        with self._lock:
            if all(now - wait.said < WARN_SECONDS for wait in self._waits):
                return
            for wait in self._waits:
                wait.said = now
            long = [wait for wait in self._waits if now - wait.since >= LEAST_SECONDS]
            words = [f"{wait.what} for {now - wait.since:.0f} s" for wait in long[:MOST_NAMED]]
            more = len(long) - len(words)
        also = f", and for {more} more" if more else ""
        logger.warning(
            "waiting for %s%s; a worker that answers pings is busy, and is waited for",
            ", for ".join(words),
            also,
        )


long_waits = LongWaits()
"""The waits of this process."""
