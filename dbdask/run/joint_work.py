"""One piece of work that the members of a gang do together, each with a task of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from dbdask.schedule.gangs import Member


class PartReport(Protocol):
    """The report of a part's task."""

    finished: bool
    trouble: str
    gang_ended: str
    """Why the gang cannot go on, if the task has learnt so."""
    ended_by: str
    """The cause of the gang's end: "another" task, a "peer" that cannot be reached, or "itself"."""


R = TypeVar("R", bound=PartReport)


@dataclass(frozen=True)
class ByParts(Generic[R]):
    """How the members of a gang do work that one worker does otherwise."""

    order_of: Callable[[Member], object]
    """Returns the order of a member's task."""
    merge: Callable[[Sequence[R]], R]
    """Makes one report of those of several parts."""


class JointWork(Generic[R]):
    """The reports of the members' tasks, which become one.

    Parameters
    ----------
    parts
        How many tasks there are.
    merge
        Makes one report of those of several parts.
    take, take_back
        As for work of one task.

    Attributes
    ----------
    has_failed
        Whether a task failed, met trouble, or ended the gang: then the gang ends, and what the
        other tasks report counts for nothing. A task that has only learnt from another task that
        the gang has ended is not the cause: the report of the other task names the cause.
    is_finished
        Whether all tasks have done all of the work.
    """

    def __init__(
        self,
        parts: int,
        merge: Callable[[Sequence[R]], R],
        take: Callable[[R | None], str],
        take_back: Callable[[], None],
    ) -> None:
        self._parts, self._merge = parts, merge
        self._take, self._take_back = take, take_back
        self._reports: list[R] = []
        self._is_over = self._is_noted = self.has_failed = self.is_finished = False

    def is_first_failure(self) -> bool:
        """Note that a task failed; return whether it is the first: the work fails once."""
        is_first, self._is_noted = not self._is_noted, True
        return is_first

    def take(self, report: R | None) -> str:
        """Take the report of one task, or None if it failed; return why the run must recover."""
        if self._is_over:
            return ""
        if report is None:
            self._is_over = self.has_failed = True
            return self._take(None)
        self._reports.append(report)
        is_last = len(self._reports) == self._parts
        is_cause = bool(report.trouble or report.gang_ended) and report.ended_by != "another"
        if not is_cause and not is_last:
            return ""
        self._is_over = True
        self.has_failed = is_cause or any(one.gang_ended for one in self._reports)
        whole = self._merge(self._reports)
        self.is_finished = whole.finished = whole.finished and not self.has_failed
        if is_cause and report.ended_by != "peer":
            self._is_noted = True  # a run that changes is no failure of its work
        return self._take(whole)

    def take_back(self) -> None:
        """Hand the work back, once, if it is not over."""
        if not self._is_over:
            self._is_over = True
            self._take_back()
