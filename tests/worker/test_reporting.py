"""What ends a task early is in its report; what is wrong is raised."""

from types import SimpleNamespace

import pytest

from dbdask.data.waiting import ReadGivenUp
from dbdask.errors import DataError, ShardLost, Stale
from dbdask.schedule.gangs import Member
from dbdask.worker.link import ServerHandle, ServerLink, ShardPlace
from dbdask.worker.mailbox import GangEnded, GangLeft, Mailbox, PeerLost
from dbdask.worker.reporting import reported, turn_of
from dbdask.worker.routes import Calls

MEMBER = Member(0, 0, 1, ("a", "b"))
ENDS = {
    "a shard": (ShardLost("it is gone"), ("ShardLost: it is gone", "", "")),
    "the generation": (Stale("it has ended"), ("Stale: it has ended", "", "")),
    "a read": (ReadGivenUp("a chunk"), ("", "a chunk", "itself")),
    "the gang": (GangEnded("it has ended"), ("", "it has ended", "another")),
    "a peer": (PeerLost("part 0 is gone"), ("", "part 0 is gone", "peer")),
    "the task": (GangLeft("it is done"), ("", "it is done", "itself")),
}


def report():
    return SimpleNamespace(trouble="", gang_ended="", ended_by="")


@pytest.mark.parametrize(("error", "expected"), ENDS.values(), ids=ENDS)
def test_what_ends_a_task_early_is_reported(error, expected):
    found = report()
    with reported(MEMBER, found):
        raise error
    assert (found.trouble, found.gang_ended, found.ended_by) == expected


def test_a_read_that_is_given_up_ends_no_gang_where_there_is_none():
    found = report()
    with reported(None, found):
        raise ReadGivenUp("a chunk")
    assert found == report()


def test_what_is_wrong_is_raised():
    with pytest.raises(DataError), reported(MEMBER, report()):
        raise DataError("a value")


def test_a_gang_that_ends_before_the_turn_of_a_task_is_reported():
    mailbox, handle = Mailbox(), ServerHandle("run", 0, 1, (ShardPlace(0, 1, ()),))
    context = SimpleNamespace(
        mailbox=mailbox, routes=None, link=lambda handle: ServerLink(handle, None, Calls())
    )
    mailbox.join(0, 0)
    mailbox.end(0)
    found = report()
    with reported(MEMBER, found), turn_of(context, handle, MEMBER):
        raise AssertionError("its turn never comes")
    assert found.gang_ended == "gang 0 has ended"
