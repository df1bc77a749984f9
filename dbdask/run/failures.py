"""Which work failed, and how often: what always fails is not tried for ever."""

import logging
from typing import Protocol

from dbdask.errors import WorkerError
from dbdask.schedule.portions import Portion

logger = logging.getLogger("dbdask")

MOST_ATTEMPTS = 5


class Work(Protocol):
    """What a task works through: a portion, or a bundle of them."""

    @property
    def identity(self) -> tuple[int, int]: ...

    @property
    def portions(self) -> tuple[Portion, ...]: ...

    @property
    def name(self) -> str: ...


class Failures:
    """The failures of unfinished portions.

    They are the portions', so that the count goes on where a pass is made again in other bundles.
    """

    def __init__(self) -> None:
        self._by_portion: dict[tuple[int, int], list[str]] = {}

    @property
    def suspicion(self) -> str:
        """What is unfinished and failed more than once, in words; empty where nothing did."""
        worst = max(self._by_portion.values(), key=len, default=[])
        return worst[-1] if len(worst) > 1 else ""

    def note(self, work: Work, worker: str, how: str, error: BaseException | None = None) -> None:
        """Count a failure of some work on a worker.

        Raises
        ------
        WorkerError
            It was the `MOST_ATTEMPTS`th of one of its portions.
        """
        failures = [self._by_portion.setdefault(p.identity, []) for p in work.portions]
        count = 1 + max(len(before) for before in failures)
        words = f"{work.name} failed {count} times, the last time {how}"
        for before in failures:
            before.append(words)
        if count >= MOST_ATTEMPTS:
            raise WorkerError(words) from error
        logger.warning("%s failed on %s %s; it is tried again", work.name, worker, how)

    def forget(self, work: Work) -> None:
        """Forget those of work that is finished."""
        for portion in work.portions:
            self._by_portion.pop(portion.identity, None)
