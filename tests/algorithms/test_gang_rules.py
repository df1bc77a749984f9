"""Rules of gangs in whole runs, each against the interleaving that breaks a run without it."""

import asyncio
import threading

import numpy as np
import pytest
from routing import disturb
from test_downpour import assert_nothing_left, flat, write_store
from test_partitions import train

import dbdask
from dbdask.run.submitting import TaskSubmitter
from dbdask.worker.mailbox import Mailbox
from dbdask.worker.peers import Peers
from dbdask.worker.replica import _Replica

ROWS = 600


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("rules") / "store.zarr", ROWS)


# Rule 22: one order of attempts on all workers


def test_tasks_that_dask_begins_in_two_orders_are_admitted_in_one(
    threads_client, store, monkeypatch
):
    """On workers of one thread, each of two attempts would wait for the other."""
    do, later, admitted = TaskSubmitter.do, {}, []

    async def second_first(tasks, work, function, order, worker, key):
        member = order.member
        event = later.setdefault(member.gang, asyncio.Event())
        if member.index == 1 and member.attempt == 0:
            await event.wait()  # until its worker has been given the next attempt
        doing = asyncio.ensure_future(do(tasks, work, function, order, worker, key))
        if member.index == 1 and member.attempt == 1:
            while key not in tasks.client.futures:
                await asyncio.sleep(0)
            event.set()
        try:
            return await doing
        finally:
            doing.cancel()

    plain = Mailbox.begin_step

    def note(mailbox, gang, step):
        with mailbox.lock:
            admitted.append((id(mailbox), mailbox._now[0]))
        plain(mailbox, gang, step)

    monkeypatch.setattr(TaskSubmitter, "do", second_first)
    monkeypatch.setattr(Mailbox, "begin_step", note)
    result = train(threads_client, store, partitions=2, epochs=1)
    assert result.status.reason == "epochs"
    assert all(event.is_set() for event in later.values()) and later
    for mailbox in {mailbox for mailbox, _ in admitted}:
        attempts = [attempt for which, attempt in admitted if which == mailbox]
        assert attempts == sorted(attempts)
    assert_nothing_left(threads_client)


def test_two_runs_do_not_wait_for_each_other_s_threads(threads_client, store, monkeypatch):
    """One run holds the thread of one worker, the other run that of the other worker."""
    do, given, runs = TaskSubmitter.do, {}, []

    async def crossed(tasks, work, function, order, worker, key):
        member = order.member
        if order.run not in runs:
            runs.append(order.run)
        place = runs.index(order.run), member.index
        waits_for = {(0, 1): (1, 1), (1, 0): (0, 0)}.get(place)
        if member.gang == member.attempt == 0 and waits_for is not None:
            await given.setdefault(waits_for, asyncio.Event()).wait()
        doing = asyncio.ensure_future(do(tasks, work, function, order, worker, key))
        try:
            while key not in tasks.client.futures and not doing.done():
                await asyncio.sleep(0)
            given.setdefault(place, asyncio.Event()).set()
            return await doing
        finally:
            doing.cancel()

    monkeypatch.setattr(TaskSubmitter, "do", crossed)
    results = []

    def run():
        results.append(train(threads_client, store, partitions=2, replicas=1))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [result.status.reason for result in results] == ["epochs", "epochs"]
    assert set(given) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    np.testing.assert_array_equal(*map(flat, results))
    assert_nothing_left(threads_client)


# Rule 24: all parts push a step, or none does


class Spoilt(dbdask.Dense):
    """Its last unit's gradient is not finite where the first input of an example is large.

    So in a cut network one part alone has it.
    """

    is_last = True

    def part(self, input_shape, first, last):
        part = Spoilt(last - first, self.activation)
        object.__setattr__(part, "is_last", self.is_last and last == self.units)
        return part

    def backward(self, parameters, kept, gradient, into, is_first):
        inputs = kept[0]
        below = super().backward(parameters, kept, gradient, into, is_first)
        if self.is_last and inputs[:, 0].max() > 2.2:
            into["bias"][-1] = np.nan
        return below


def spoilt():
    layers = [Spoilt(8, "tanh"), dbdask.Dense(3)]
    return dbdask.Network(input_shape=(6,), layers=layers, loss="softmax")


def test_what_is_bad_in_one_part_counts_in_none(threads_client, store):
    options = {"model": spoilt(), "replicas": 1, "max_refused": 1000}
    whole = train(threads_client, store, **options)
    parts = train(threads_client, store, partitions=2, **options)
    refused = whole.history["refused"].values[-1]
    assert 0 < refused < ROWS // 20
    assert parts.history["refused"].values[-1] == refused
    np.testing.assert_allclose(flat(parts), flat(whole), atol=1e-5)


# Rule 25: no part goes on before all shards of all parts have a step


class Held:
    """A call whose end is noted when its caller learns of it; some are held up for a while."""

    def __init__(self, call, known, go_on):
        self.call, self.known, self.go_on = call, known, go_on

    def wait(self, seconds):
        if self.go_on is not None:
            self.go_on.wait(0.2)  # as long as another part might need to run ahead
        ended = self.call.wait(seconds)
        if ended:
            self.known()
        return ended

    def result(self):
        return self.call.result()

    def cancel(self):
        self.call.cancel()


@pytest.mark.parametrize(("n_fetch", "n_push"), [(1, 1), (8, 2)])
def test_no_part_pushes_a_step_before_all_parts_have_pushed_the_one_before(
    threads_client, store, request, n_fetch, n_push
):
    lock, pushed, known, ahead = threading.Lock(), {}, {}, []
    run_ahead = threading.Event()

    def start(way, place, call, sent, into):
        if call.method != "push":
            return way.start(call, sent, into)
        _, portion, step = call.arguments[0]
        with lock:
            before = step - n_push
            if before >= 0 and known.get((portion, before), set()) != {0, 1}:
                ahead.append((portion, step, place))
                run_ahead.set()
            part = pushed.setdefault(place.key, len(pushed))

        def note():
            with lock:
                known.setdefault((portion, step), set()).add(part)

        slow = part == 1 and portion == 0 and step < 6
        return Held(way.start(call, sent, into), note, run_ahead if slow else None)

    request.addfinalizer(disturb(start))
    paces = {"n_fetch": n_fetch, "n_push": n_push}
    train(threads_client, store, partitions=2, replicas=1, shards=2, **paces)
    assert not ahead and len(known) > 10 and len(pushed) == 2


# A pause is agreed upon: parts hear of it from their own shards, at different steps


def test_parts_that_hear_of_a_pause_at_different_steps_stop_at_one(
    threads_client, store, monkeypatch
):
    options = {"partitions": 2, "replicas": 1}
    unbroken = train(threads_client, store, **options)
    marks, exchange, await_push = [], Peers.exchange, _Replica._await_push

    def note(peers, wanted):
        exchange(peers, wanted)
        if wanted.direction == "decision":
            place = peers.member.gang, peers.member.attempt, peers._step
            marks.append((place, peers.member.index, peers.mark, peers.is_marked))

    def await_and_hear(replica):
        await_push(replica)
        replica.paused = replica.step >= (4, 7)[replica.share.index]

    monkeypatch.setattr(Peers, "exchange", note)
    monkeypatch.setattr(_Replica, "_await_push", await_and_hear)
    broken = train(threads_client, store, **options)
    by_place = {}
    for place, part, own, agreed in marks:
        by_place.setdefault(place, {})[part] = own, agreed
    assert all(len(parts) == 2 for parts in by_place.values())
    assert all(len({agreed for _, agreed in parts.values()}) == 1 for parts in by_place.values())
    assert {0: (True, True), 1: (False, True)} in by_place.values()
    np.testing.assert_array_equal(flat(unbroken), flat(broken))
