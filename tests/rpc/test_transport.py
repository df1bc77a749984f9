"""The seam between replicas and shards, used from outside: a transport that delays and drops."""

import contextlib
import gc
import pickle
import random
import threading
import time
import weakref

import dask
import numpy as np
import pytest
from counting import CountingModel
from routing import finish

from dbdask.errors import RECOVERABLE, RaisedInShard, ShardLost, Stale
from dbdask.optim.optimizers import sgd
from dbdask.rpc import transport
from dbdask.rpc.calls import ActorPlace, MethodRaised
from dbdask.rpc.transport import DirectCall, Request
from dbdask.worker.initial import FromModel
from dbdask.worker.link import ServerHandle, ServerLink, ShardPlace
from dbdask.worker.routes import Calls
from dbdask.worker.shard import ParameterShard

SIZE, SHARDS, COPIES = 12, 3, 2
REPLICAS, PORTIONS, STEPS = 3, 4, 8


class Wire:
    """A transport to a shard in this process, over a wire that is not to be relied on.

    Parameters
    ----------
    shard
        What it leads to.
    seed
        Decides what happens to each message.
    dropped, unanswered, repeated, late
        Shares of the messages that get lost, whose answers get lost, that arrive twice, and that
        arrive once more long after.
    """

    is_direct = False

    def __init__(self, shard, seed, dropped=0.0, unanswered=0.0, repeated=0.0, late=0.0):
        self.shard, self.rng, self.lock = shard, random.Random(seed), threading.Lock()
        self.shares = dropped, unanswered, repeated, late
        self.timers = []

    def start(self, request, sent=None, into=None):
        sent = None if sent is None else sent.copy()
        with self.lock:
            dropped, unanswered, repeated, late = (self.rng.random() < s for s in self.shares)
            delay = self.rng.uniform(0.0, 0.002)
        call = OnWire(into)
        if not dropped:
            taken = None if into is None else into.copy()
            deliver = [self.shard, request, sent, taken]
            times = [delay] * (1 + repeated) + [delay + 0.05] * late
            for position, seconds in enumerate(times):
                answers = None if unanswered or position else call
                self.timers.append(threading.Timer(seconds, self._deliver, [*deliver, answers]))
                self.timers[-1].start()
        return call

    def _deliver(self, shard, request, sent, taken, call):
        try:
            answer = shard.answer(request, sent, taken), None
        except Exception as error:
            answer = None, MethodRaised(error)
        if call is not None:
            call.end(answer, taken)


class OnWire:
    """A call of `Wire`."""

    def __init__(self, into):
        self.into, self.ended, self.answer = into, threading.Event(), None

    def end(self, answer, taken):
        if self.answer is None:
            self.answer, self.taken = answer, taken
            self.ended.set()

    def wait(self, seconds):
        return self.ended.wait(seconds)

    def result(self):
        answer, failure = self.answer
        if failure is not None:
            raise failure
        if self.into is not None:
            np.copyto(self.into, self.taken)
        return answer

    def cancel(self):
        self.end((None, ConnectionAbortedError("cancelled")), None)


class Wires:
    """The routes to shards of this process; `silent` are places whose worker answers no ping."""

    def __init__(self, ways):
        self.ways, self.pings, self.silent = ways, [], set()

    def transport(self, place, generation):
        return self.ways[place]

    def answers(self, place, generation):
        self.pings.append(place)
        return place not in self.silent

    def lost(self, place, error):
        return ShardLost(f"{place.key}: {error!r}")


def make_shard(start=0, stop=SIZE, model=None):
    return ParameterShard(
        start, stop, sgd(1.0), 0, FromModel(pickle.dumps(model or CountingModel(SIZE)), 0)
    )


@pytest.fixture
def short_deadlines():
    with dask.config.set({"dbdask.answer": "20ms"}):
        yield


def make_server(copies=COPIES):
    """Shards, each in some copies, and their handle."""
    held, places = {}, []
    for number in range(SHARDS):
        start, stop = number * SIZE // SHARDS, (number + 1) * SIZE // SHARDS
        keys = [ActorPlace(f"worker {copy}", f"shard {number}") for copy in range(copies)]
        held |= {key: make_shard(start, stop) for key in keys}
        places.append(ShardPlace(start, stop, tuple(keys)))
    return held, ServerHandle("run", 0, SIZE, tuple(places))


def train(link, portion):
    """What a replica does with a portion, as long as trouble comes."""
    local, minus, tries = np.empty(SIZE, np.float32), np.full(SIZE, -1, np.float32), 0
    while True:
        tries += 1
        try:
            first = min(progress.last_step for progress in link.progress(0, portion)) + 1
            fetched = link.wait(link.start_fetch(local))
            for step in range(first, STEPS):
                exchange = link.start_push((0, portion, step), minus, fetched, local)
                fetched = [a.version for a in link.wait(exchange)]
            return tries
        except ShardLost:  # this task is over; the portion is given out again
            local, minus = np.empty(SIZE, np.float32), np.full(SIZE, -1, np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_each_push_counts_once_whatever_the_transport_does(short_deadlines, seed):
    held, handle = make_server()
    faults = {"dropped": 0.02, "unanswered": 0.03, "repeated": 0.2, "late": 0.1}
    wires = Wires({p: Wire(s, f"{seed} {p}", **faults) for p, s in held.items()})
    wires.silent = set(held)  # a message that got no answer in time is not waited for
    calls, tries, left = Calls(), [], list(range(PORTIONS * REPLICAS))

    def replica():
        while left:
            tries.append(train(ServerLink(handle, wires, calls), left.pop()))

    threads = [threading.Thread(target=replica) for _ in range(REPLICAS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for way in wires.ways.values():
        for timer in way.timers:
            timer.join()
    for shard in held.values():
        np.testing.assert_array_equal(
            shard.state.vectors["parameters"], PORTIONS * REPLICAS * STEPS
        )
        assert shard.state.applied == PORTIONS * REPLICAS * STEPS
    assert len(tries) == PORTIONS * REPLICAS and sum(tries) > len(tries)


def test_a_passed_deadline_asks_and_does_not_judge(short_deadlines):
    shard, place = make_shard(), ActorPlace("worker", "shard")
    wires, calls = Wires({place: Wire(shard, 0)}), Calls()
    link = ServerLink(ServerHandle("run", 0, SIZE, (ShardPlace(0, SIZE, (place,)),)), wires, calls)
    with shard.lock:  # it is busy
        asked = threading.Thread(target=lambda: answers.append(link.progress(0, 0)))
        answers: list = []
        asked.start()
        while len(wires.pings) < 3:
            time.sleep(0.001)
        assert not answers
    asked.join()
    assert answers[0][0].last_step == -1
    wires.silent = {place}
    with shard.lock, pytest.raises(ShardLost, match="shard on worker answers no ping"):
        link.progress(0, 0)


@pytest.mark.parametrize("way", ["wire", "direct"])
def test_the_end_of_a_generation_ends_waits(way):
    shard, place = make_shard(), ActorPlace("worker", "shard")
    ways = {place: Wire(shard, 0) if way == "wire" else Direct(shard)}
    calls, ended = Calls(), []
    link = ServerLink(
        ServerHandle("run", 4, SIZE, (ShardPlace(0, SIZE, (place,)),)), Wires(ways), calls
    )

    def ask():
        with pytest.raises(Stale, match="generation 4 has ended"):
            link.progress(0, 0)
        ended.append(True)

    with shard.lock:
        asking = threading.Thread(target=ask)
        asking.start()
        while not calls._open:
            time.sleep(0.001)
        calls.end_generation(4)
        asking.join(120)
    assert ended
    with pytest.raises(Stale):
        link.progress(0, 0)
    assert not calls._open


class Direct:
    """The direct transport, to a shard that no worker holds."""

    is_direct = True

    def __init__(self, shard):
        self.shard = shard

    def start(self, request, sent=None, into=None):
        call = DirectCall(self.shard, request, sent, into)
        call.wait(0.0)
        return call


def test_what_a_shard_raises_is_told_apart_from_what_the_wire_does():
    held, handle = make_server(copies=1)
    for ways in ({p: Wire(s, 0) for p, s in held.items()}, {p: Direct(s) for p, s in held.items()}):
        link = ServerLink(handle, Wires(ways), Calls())
        with pytest.raises(RaisedInShard) as raised:
            link.wait(link.start_push((0, 0), np.ones(SIZE, np.float32), [0] * SHARDS))
        assert not isinstance(raised.value.error, RECOVERABLE)
        link = ServerLink(ServerHandle("run", 1, SIZE, handle.shards), Wires(ways), Calls())
        with pytest.raises(Stale, match="the shard is at 0"):
            link.progress(0, 0)


def test_where_one_call_fails_to_start_the_others_are_ended():
    held, handle = make_server(copies=1)
    ways = {place: Wire(shard, 0, dropped=1.0) for place, shard in held.items()}
    started = []

    class Noted(Wire):
        def start(self, *arguments):
            started.append(super().start(*arguments))
            return started[-1]

    class Broken(Wire):
        def start(self, *arguments):
            raise ConnectionResetError("cut")

    first, last = handle.shards[0].first, handle.shards[-1].first
    ways |= {first: Noted(held[first], 0, dropped=1.0), last: Broken(held[last], 0)}
    calls = Calls()
    with pytest.raises(ShardLost, match="shard 2: .*cut"):
        ServerLink(handle, Wires(ways), calls).start_fetch(np.empty(SIZE, np.float32))
    assert started[0].ended.is_set() and not calls._open


@pytest.mark.parametrize(
    "make", [lambda: ConnectionResetError("cut"), lambda: MethodRaised(Stale("late"))]
)
def test_the_vectors_of_a_call_that_fails_go_with_it(make):
    """They are as large as the parameters, and an idle worker collects no garbage."""

    class Failing:
        is_direct = False

        def start(self, request, sent=None, into=None):
            call = OnWire(into)
            call.end((None, make()), None)
            return call

    place, held = ActorPlace("worker", "shard"), []
    handle = ServerHandle("run", 0, SIZE, (ShardPlace(0, SIZE, (place,)),))
    link = ServerLink(handle, Wires({place: Failing()}), Calls())

    def fetch():
        vector = np.empty(SIZE, np.float32)
        held.append(weakref.ref(vector))
        link.wait(link.start_fetch(vector))

    gc.disable()
    try:
        with contextlib.suppress(*RECOVERABLE):
            fetch()
        assert held[0]() is None
    finally:
        gc.enable()


def test_a_direct_call_works_on_the_callers_thread_without_a_copy():
    shard = make_shard()
    into = np.empty(SIZE, np.float32)
    call = DirectCall(shard, Request("push", 0, ((0, 0, 0), 0)), np.ones(SIZE, np.float32), into)
    with shard.lock:
        other = threading.Thread(target=lambda: done.append(call.wait(0.0)))
        done: list = []
        other.start()
        other.join()
    assert done == [False]
    assert finish(call).version == 1
    np.testing.assert_array_equal(into, -1)


def test_the_transport_can_be_chosen_and_a_wrong_name_is_refused():
    assert transport.permitted() == transport.WAYS
    with dask.config.set({"dbdask.transport": "dask"}):
        assert transport.permitted() == ("dask",)
    wrong = pytest.raises(ValueError, match="dbdask.transport .* one of 'auto'.* got 'pigeon'")
    with dask.config.set({"dbdask.transport": "pigeon"}), wrong:
        transport.permitted()
