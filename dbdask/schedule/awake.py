"""A clock that counts only the time in which this process ran.

Time in which it was stopped does not show that other processes are silent.
"""

import time
from collections.abc import Callable

LOOK_SECONDS = 0.25
"""How often a wait looks at its clock."""

LONGEST_GAP = 1.0
"""Seconds between two looks beyond which the process did not run; no busy machine takes so long."""


class AwakeClock:
    """Counts the seconds since it was made, without those in which no thread could look at it.

    A process that was stopped (SIGSTOP, Ctrl-Z, a suspended laptop, a swapped node), or whose event
    loop was blocked, has heard no answer meanwhile. A process that judges others by a deadline
    looks here again and again; a gap between two looks counts as one look, so that the others keep
    the rest of the deadline to answer in.

    Parameters
    ----------
    clock
        Returns seconds; it goes on while the process is stopped.

    Examples
    --------
    >>> times = iter([10.0, 10.5, 60.5, 61.0])
    >>> clock = AwakeClock(lambda: next(times))
    >>> clock.seconds(), clock.seconds(), clock.seconds(), clock.pauses
    (0.5, 0.75, 1.25, 1)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last, self._seconds = clock(), 0.0
        self.pauses = 0
        """Gaps so far."""

    def seconds(self) -> float:
        """Look, and return the seconds so far."""
        now = self._clock()
        gap, self._last = now - self._last, now
        if gap > LONGEST_GAP:
            self.pauses += 1
            gap = LOOK_SECONDS
        self._seconds += gap
        return self._seconds
