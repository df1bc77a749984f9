"""Work that takes long: a run in which no work ends says what it waits for, and where."""

import logging
from collections.abc import Sequence
from typing import Any

from dbdask.run.outstanding import Outstanding

logger = logging.getLogger("dbdask")

WARN_SECONDS = 20.0


class SlowWork:
    """Says every `WARN_SECONDS` which work is under way, if none has ended for so long.

    A model that hangs in its own code, or an optimiser that does so in a shard, holds a task
    whose worker answers. Nothing judges such a task, because it may only be slow.
    """

    def __init__(self) -> None:
        self._held: frozenset[Outstanding[Any]] = frozenset()  # at the last look
        self._heard = 0.0  # when some work was last seen to end, or a warning was given

    def look(self, now: float, held: Sequence[Outstanding[Any]], *, stopping: bool) -> None:
        """Look whether some work has ended, and warn if it is due.

        Parameters
        ----------
        now
            The time in seconds.
        held
            The work under way.
        stopping
            Whether the run is to stop, and only waits for this work.
        """
        before, self._held = self._held, frozenset(held)
        if not before or not before <= self._held:
            self._heard = now
        elif now - self._heard >= WARN_SECONDS:
            _warn(now, now - self._heard, held, stopping)
            self._heard = now


def _warn(now: float, quiet: float, held: Sequence[Outstanding[Any]], stopping: bool) -> None:
    longest = min(held, key=lambda out: out.given)
    more = f" and {len(held) - 1} more" if len(held) > 1 else ""
    logger.warning(
        "%sno work has ended for %.0f s: waiting for %s, for %.0f s on worker %s%s%s",
        "the run is to stop, and " if stopping else "",
        quiet,
        longest.work.name,
        now - longest.given,
        longest.worker,
        more,
        "; a second Ctrl-C abandons the run" if stopping else "",
    )
