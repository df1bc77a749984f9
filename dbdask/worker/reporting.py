"""How a training task begins and ends: its turn, and what belongs in its report."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from dbdask.data.waiting import ReadGivenUp
from dbdask.errors import RECOVERABLE
from dbdask.schedule.gangs import Member
from dbdask.worker.context import WorkerContext
from dbdask.worker.link import ServerHandle
from dbdask.worker.mailbox import GangEnded, GangLeft
from dbdask.worker.peers import turn


class Ending(Protocol):
    """The part of a report that says why a task ended early."""

    trouble: str
    gang_ended: str
    ended_by: str


@contextmanager
def reported(member: Member | None, report: Ending) -> Iterator[None]:
    """Report what ends a task early, if that is no error of the model or of the data.

    That is the loss of a shard or the end of the generation, a read that is given up, and the end
    of the gang.

    Parameters
    ----------
    member
        The task's place in a gang; None if the replica is not partitioned.
    report
        The report of the task.
    """
    try:
        yield
    except RECOVERABLE as trouble:
        report.trouble = f"{type(trouble).__name__}: {trouble}"
    except ReadGivenUp as read:  # between two steps: the work goes back as it is in the shards
        if member is not None:
            report.gang_ended, report.ended_by = str(read), GangLeft.by
    except GangEnded as end:
        report.gang_ended, report.ended_by = str(end), end.by


def turn_of(
    context: WorkerContext, handle: ServerHandle, member: Member | None
) -> AbstractContextManager[None]:
    """Wait for a task's turn in its gang, and hold it; without a gang it is always its turn."""
    if member is None:
        return nullcontext()
    return turn(member, context.mailbox, context.link(handle), context.routes)
