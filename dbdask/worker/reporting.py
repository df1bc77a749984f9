"""How a training task ends: what belongs in its report, and what is an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from dbdask.data.waiting import ReadGivenUp
from dbdask.errors import RECOVERABLE
from dbdask.schedule.gangs import Member
from dbdask.worker.context import WorkerContext
from dbdask.worker.link import ServerHandle
from dbdask.worker.mailbox import GangEnded, PeerLost
from dbdask.worker.peers import turn


class Ending(Protocol):
    """The part of a report that says why a task ended early."""

    trouble: str
    gang_ended: str
    peer_lost: bool


@contextmanager
def reported(
    context: WorkerContext, handle: ServerHandle, member: Member | None, report: Ending
) -> Iterator[None]:
    """Do a task's work when its turn comes, and report what ends it early.

    The loss of a shard or the end of the generation, a read that is given up, and the end of the
    gang are reported. Only an error of the model or of the data raises.

    Parameters
    ----------
    context, handle
        The run on this worker, and its shards.
    member
        The task's place in a gang; None if the replica is not partitioned: then no task waits for
        its turn.
    report
        The report of the task.
    """
    try:
        if member is None:
            yield
        else:
            with turn(member, context.mailbox, context.link(handle), context.routes):
                yield
    except RECOVERABLE as trouble:
        report.trouble = f"{type(trouble).__name__}: {trouble}"
    except ReadGivenUp as read:  # between two steps: the work goes back as it is in the shards
        report.gang_ended = "" if member is None else str(read)
    except GangEnded as end:
        report.gang_ended, report.peer_lost = str(end), isinstance(end, PeerLost)
