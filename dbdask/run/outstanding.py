"""Work that a worker has been given, and that has not ended."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from dbdask.run.failures import Work


class Report(Protocol):
    """The result of every task."""

    finished: bool
    trouble: str
    """Why the task ended early, if a shard or the generation was lost."""


class Joint(Protocol):
    """Work that the members of a gang do together, as one of its tasks sees it."""

    has_failed: bool
    """Whether the gang must end."""
    is_finished: bool
    """Whether all tasks have done all of the work."""

    def is_first_failure(self) -> bool:
        """Note that a task failed; return whether it is the first."""


R = TypeVar("R", bound=Report)


@dataclass(eq=False)
class Outstanding(Generic[R]):
    """Work that a worker has been given, and the two functions that hear of its end."""

    work: Work
    worker: str
    task: "asyncio.Task[R]"
    since: float
    """When the work was given, or when its worker last answered a ping."""
    take: Callable[[R | None], str]
    """Takes the report, or None if the task failed. Returns why the run must recover, or ''."""
    take_back: Callable[[], None]
    """Is called if the work is given up: it can be given out again."""
    key: str = ""
    """Of the Dask task."""
    place: str = ""
    """Where the replica works: the worker, or its gang."""
    gang: int | None = None
    """Number of the gang whose work this is a part of."""
    joint: Joint | None = None
    """The tasks of the other members of the gang for the same work."""
    given: float = field(init=False)
    """When the work was given."""
    looked: float = field(init=False)
    """When the work was given, or its task last looked for."""

    def __post_init__(self) -> None:
        self.given = self.looked = self.since
        self.place = self.place or self.worker
