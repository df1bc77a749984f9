"""Which work failed, and how often, so that nothing is tried for ever."""

import logging
import textwrap
from concurrent.futures import CancelledError
from typing import Protocol

from dbdask.data.block_provider import why_cancelled
from dbdask.errors import StoreFailed, WorkerError
from dbdask.schedule.portions import Portion

logger = logging.getLogger("dbdask")

MOST_ATTEMPTS = 5
MOST_WORDS = 1000  # characters of another's error in one of ours
TRAIN, VALIDATION = "train", "validation"
"""The examples that work may read, as a job names them."""


class Work(Protocol):
    """The work of a task: a portion of either set of examples, or a bundle of portions."""

    @property
    def examples(self) -> str:
        """The examples that it reads: TRAIN or VALIDATION."""

    @property
    def identity(self) -> tuple[int, int]: ...

    @property
    def portions(self) -> tuple[Portion, ...]: ...

    @property
    def name(self) -> str: ...


def how_it_failed(error: BaseException) -> str:
    """Say how a task failed, in words that follow "failed"."""
    if isinstance(error, CancelledError):
        return f"because {why_cancelled(error)}"
    where = "".join(f"{note}, " for note in getattr(error, "__notes__", ()))
    return f"{where}with {textwrap.shorten(repr(error), MOST_WORDS, placeholder='...')}"


class Failures:
    """The failures of unfinished portions.

    They are counted by portion, so that the count goes on if a pass is made again in other
    bundles.
    """

    def __init__(self) -> None:
        self._by_portion: dict[tuple[str, tuple[int, int]], list[str]] = {}
        self._unread: dict[tuple[str, tuple[int, int]], str] = {}  # where a store failed last

    @property
    def cut_off(self) -> set[str]:
        """The workers for which a store failed with work that is unfinished since."""
        return set(self._unread.values())

    @property
    def suspicion(self) -> str:
        """The work that is unfinished and failed more than once, in words; '' if there is none."""
        worst = max(self._by_portion.values(), key=len, default=[])
        return worst[-1] if len(worst) > 1 else ""

    def note(self, work: Work, worker: str, how: str, error: BaseException | None = None) -> None:
        """Count a failure of some work on a worker.

        Parameters
        ----------
        work
            The work, of which every portion is suspected.
        worker
            Address of the worker.
        how
            Words that follow "failed".
        error
            The error of the task, if the task raised one.

        Raises
        ------
        WorkerError
            It was the `MOST_ATTEMPTS`th failure of one of the portions.
        StoreFailed
            So it was, because values could not be read.
        """
        failures = [self._by_portion.setdefault(name, []) for name in _names(work)]
        count = 1 + max(len(before) for before in failures)
        where = "" if worker in how else f" on worker {worker}"
        words = f"{work.name} failed {count} times, the last time {how}{where}"
        for before in failures:
            before.append(words)
        if isinstance(error, StoreFailed):
            self._unread.update(dict.fromkeys(_names(work), worker))
        if count >= MOST_ATTEMPTS and isinstance(error, StoreFailed):
            raise StoreFailed(words) from error  # whose own words name the remedy
        if count >= MOST_ATTEMPTS:
            raise WorkerError(words + _remedy(work, error)) from error
        logger.warning("%s failed on %s %s; it is tried again", work.name, worker, how)

    def forget(self, work: Work) -> None:
        """Forget the failures of work that is finished."""
        for name in _names(work):
            self._by_portion.pop(name, None)
            self._unread.pop(name, None)


def _names(work: Work) -> list[tuple[str, tuple[int, int]]]:
    return [(work.examples, portion.identity) for portion in work.portions]


def _remedy(work: Work, error: BaseException | None) -> str:
    """Say what to look at; if Dask cancelled the task, the reason has said so already."""
    if isinstance(error, CancelledError):
        return ""
    if error is None:
        return "; see the log of the worker, and whether its memory is enough"
    argument = "examples" if work.examples == TRAIN else "validation"
    return f"; dbdask.check_model(model, {argument}) tries the model on one machine"
