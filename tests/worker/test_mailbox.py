"""The mailbox of a worker: what is taken, what is dropped, in which order attempts are admitted."""

import asyncio
import random
import threading

import numpy as np
import pytest

from dbdask.rpc.transport import Request
from dbdask.schedule.gangs import Member
from dbdask.worker.mailbox import Address, GangEnded, Mailbox

GANG = 3
WORKERS = ("tcp://a", "tcp://b")
HERE = Address(GANG, 0, (0, 7), 0, 1, "forward", 1)


def joined(gang=GANG):
    mailbox = Mailbox()
    mailbox.join(gang, 0)
    return mailbox


def deliver(mailbox, address, value=1.0, mark=False):
    values = np.full(2, value, np.float32)
    return mailbox.answer(Request("deliver", None, (tuple(address), mark, (2,), values)))


def never():
    raise AssertionError("nothing is to be asked")


def taken(mailbox, address):
    """What came to an address, or None."""
    into = np.full(2, np.nan, np.float32)
    mailbox.expect({address: into})
    return None if np.isnan(into).any() else into[0]


def test_a_message_is_taken_whether_it_comes_before_or_after_it_is_expected():
    mailbox = joined()
    early, late = HERE, HERE._replace(boundary=2)
    assert deliver(mailbox, early, 4.0, mark=True)
    wanted = {address: np.empty(2, np.float32) for address in (early, late)}
    mailbox.expect(wanted)
    sender = threading.Thread(target=deliver, args=(mailbox, late, 5.0))
    sender.start()
    marks = mailbox.await_all(wanted, never, 60.0)
    sender.join()
    assert marks == {early: True, late: False}
    assert [values[0] for values in wanted.values()] == [4.0, 5.0]


def test_values_are_copied_as_they_come():
    mailbox, values = joined(), np.ones(2, np.float32)
    request = Request("deliver", None, (tuple(HERE), False, (2,), None))
    assert mailbox.answer(request, values)
    values[:] = 9.0
    assert taken(mailbox, HERE) == 1.0


@pytest.mark.parametrize(
    "other",
    [
        {"gang": GANG - 1},
        {"gang": GANG + 1},
        {"attempt": 1},
        {"step": 0},
    ],
)
def test_a_message_of_another_gang_or_of_what_is_over_is_dropped(other):
    mailbox = joined()
    with mailbox.admitted(Member(GANG, 0, 0, WORKERS), never, 60.0):
        pass
    with mailbox.admitted(Member(GANG, 1, 0, WORKERS), never, 60.0):
        pass
    now = HERE._replace(attempt=2, step=1)
    with mailbox.admitted(Member(GANG, 2, 0, WORKERS), never, 60.0):
        mailbox.begin_step(GANG, 1)
        assert deliver(mailbox, now)
        assert not deliver(mailbox, now._replace(**other))


@pytest.mark.parametrize(
    "other",
    [
        {"portion": (0, 8)},
        {"portion": (1, 7)},
        {"step": 1},
        {"boundary": 2},
        {"direction": "backward"},
        {"sender": 2},
        {"attempt": 1},
    ],
)
def test_no_message_is_taken_for_another(other):
    mailbox = joined()
    assert deliver(mailbox, HERE._replace(**other))
    assert taken(mailbox, HERE) is None


def test_the_last_step_of_a_gang_that_has_ended_changes_nothing_of_the_next_gang():
    mailbox = joined()
    with pytest.raises(GangEnded), mailbox.admitted(Member(GANG, 0, 0, WORKERS), never, 60.0):
        mailbox.begin_step(GANG, 0)
        mailbox.end(GANG)
        mailbox.join(GANG + 1, 0)
        begin = Address(GANG + 1, 0, (0, 8), -1, 0, "begin", 0)
        assert deliver(mailbox, begin)
        with pytest.raises(GangEnded):
            mailbox.expect({HERE: np.empty(2, np.float32)})
        mailbox.begin_step(GANG, 58)
    assert taken(mailbox, begin) == 1.0
    assert deliver(mailbox, begin._replace(step=0))


def test_a_task_that_runs_again_after_its_attempt_is_over_ends():
    mailbox, member = joined(), Member(GANG, 0, 0, WORKERS)
    with mailbox.admitted(member, never, 60.0):
        pass
    with pytest.raises(GangEnded, match="is over"), mailbox.admitted(member, never, 60.0):
        raise AssertionError("it is not admitted")
    with mailbox.admitted(Member(GANG, 1, 0, WORKERS), never, 60.0):  # the gang goes on
        pass


def test_a_repeat_changes_nothing():
    mailbox = joined()
    assert deliver(mailbox, HERE, 1.0) and deliver(mailbox, HERE, 2.0)
    assert taken(mailbox, HERE) == 1.0
    mailbox.begin_step(GANG, 1)
    assert not deliver(mailbox, HERE, 3.0)


def test_an_array_that_is_no_longer_waited_for_is_not_written_to():
    mailbox, into = joined(), np.zeros(2, np.float32)
    mailbox.expect({HERE: into})
    mailbox.end(GANG)
    assert not deliver(mailbox, HERE, 5.0)
    mailbox.join(GANG + 1, 0)
    assert not deliver(mailbox, HERE, 5.0) and not into.any()


# Rule 22: the order of attempts


@pytest.mark.parametrize("seed", range(5))
def test_attempts_are_admitted_in_one_order_whatever_the_order_in_which_they_come(seed):
    mailbox, count, order, lock = joined(), 6, [], threading.Lock()
    inside = []

    def attempt(number):
        with mailbox.admitted(Member(GANG, number, 0, WORKERS), never, 60.0):
            with lock:
                inside.append(number)
                assert len(inside) == 1
                order.append(number)
            with lock:
                inside.remove(number)

    numbers = list(range(count))
    random.Random(seed).shuffle(numbers)
    threads = [threading.Thread(target=attempt, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert order == list(range(count))


def test_an_attempt_that_fails_ends_the_gang():
    mailbox = joined()
    with pytest.raises(KeyError), mailbox.admitted(Member(GANG, 0, 0, WORKERS), never, 60.0):
        raise KeyError("mine")
    assert not asyncio.run(mailbox.may_send(GANG, 0))
    with pytest.raises(GangEnded), mailbox.admitted(Member(GANG, 1, 0, WORKERS), never, 60.0):
        pass


# Rule 26: waits end by themselves


ENDS = {
    "the run says so": lambda mailbox: mailbox.end(GANG),
    "a newer gang": lambda mailbox: mailbox.join(GANG + 1, 0),
    "its generation": lambda mailbox: mailbox.end_generation(0),
    "the run is over": lambda mailbox: mailbox.close(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("wait", ["message", "turn"])
def test_a_wait_ends_with_its_gang(end, wait):
    mailbox, waiting, ended = joined(), threading.Event(), []

    def ask():
        waiting.set()

    def work():
        try:
            if wait == "message":
                mailbox.expect(wanted)
                mailbox.await_all(wanted, ask, 0.01)
            else:
                with mailbox.admitted(Member(GANG, 5, 0, WORKERS), ask, 0.01):
                    ended.append("admitted")
        except GangEnded as error:
            ended.append(str(error))

    wanted = {HERE: np.empty(2, np.float32)}
    thread = threading.Thread(target=work)
    thread.start()
    assert waiting.wait(60)
    end(mailbox)
    thread.join(60)
    assert ended == [f"gang {GANG} has ended"]


def test_a_deadline_asks_and_a_busy_peer_is_waited_for():
    mailbox, asked = joined(), []

    def ask():
        asked.append(0)
        if len(asked) == 3:
            deliver(mailbox, HERE, 7.0)

    wanted = {HERE: np.empty(2, np.float32)}
    mailbox.expect(wanted)
    mailbox.await_all(wanted, ask, 0.0)
    assert len(asked) == 3 and wanted[HERE][0] == 7.0


@pytest.mark.parametrize("came", [True, False])
def test_a_peer_that_has_left_is_not_waited_for_unless_its_message_came(came):
    mailbox = joined()

    def ask():
        if came:  # after the deadline, and before the answer
            deliver(mailbox, HERE)
        raise GangEnded("part 1 has left")

    wanted = {HERE: np.empty(2, np.float32)}
    mailbox.expect(wanted)
    if came:
        assert mailbox.await_all(wanted, ask, 0.0) == {HERE: False}
    else:
        with pytest.raises(GangEnded, match="part 1 has left"):
            mailbox.await_all(wanted, ask, 0.0)


def test_peers_are_told_whether_messages_of_an_attempt_may_still_come():
    mailbox = joined()

    def may_send(gang, attempt):
        return asyncio.run(mailbox.may_send(gang, attempt))

    assert may_send(GANG, 0) and may_send(GANG, 4)
    assert not may_send(GANG - 1, 0) and not may_send(GANG + 1, 0)
    with mailbox.admitted(Member(GANG, 0, 0, WORKERS), never, 60.0):
        assert may_send(GANG, 0)
    assert not may_send(GANG, 0) and may_send(GANG, 1)
