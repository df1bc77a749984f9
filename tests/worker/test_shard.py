"""The shard as a plain class: no cluster, only an event loop."""

import asyncio
import pickle
import threading

import numpy as np
import pytest

from dbdask.errors import Stale
from dbdask.models.layers import Dense
from dbdask.models.layout import Layout, Parameter
from dbdask.models.network import Network
from dbdask.optim.optimizers import adagrad, sgd
from dbdask.rpc.transport import Request
from dbdask.storage import checkpoint
from dbdask.worker.initial import FromModel, FromSnapshot
from dbdask.worker.shard import ParameterShard

NETWORK = Network(input_shape=(3,), layers=[Dense(4)], loss="squared")


def make_shard(optimizer=None, start=0, stop=16):
    initial = FromModel(pickle.dumps(NETWORK), seed=5)
    return ParameterShard(start, stop, optimizer or sgd(1.0), 0, initial)


def run(coroutine):
    return asyncio.run(coroutine)


def fetch(shard):
    """The parameters and their version, as a replica sees them."""
    values = np.empty(shard.stop - shard.start, np.float32)
    return values, shard.answer(Request("fetch", shard.generation), None, values)


def push(shard, identity, gradient, fetched=0, generation=0, into=None):
    return shard.answer(Request("push", generation, (identity, fetched)), gradient, into)


def test_a_shard_starts_with_its_slice_of_the_model():
    whole = NETWORK.initial_parameters(5, 0, 16)
    values, version = fetch(make_shard(start=4, stop=11))
    np.testing.assert_array_equal(values, whole[4:11])
    assert version == 0


def test_a_repeated_push_changes_nothing_and_is_acknowledged():
    shard = make_shard()
    before, version = fetch(shard)
    first = push(shard, (0, 0, 0), np.ones(16, np.float32), version)
    second = push(shard, (0, 0, 0), np.ones(16, np.float32), version)
    np.testing.assert_allclose(fetch(shard)[0], before - 1)
    assert first.staleness == 0 and second.staleness == -1
    assert first.version == second.version == 1


def test_an_update_that_raises_was_not_applied():
    rates = [0.5, np.nan, 0.5]
    shard = make_shard(sgd(lambda step: rates.pop(0)))
    before, version = fetch(shard)
    ones = np.ones(16, np.float32)
    push(shard, (0, 0, 0), ones, version)
    with pytest.raises(ValueError, match="learning_rate"):
        push(shard, (0, 0, 1), ones, version)
    assert shard.answer(Request("progress", 0, (0, 0))).last_step == 0
    repeat = push(shard, (0, 0, 1), ones, version)
    assert repeat.version == 2 and repeat.staleness >= 0
    np.testing.assert_allclose(fetch(shard)[0], before - 1, rtol=1e-6)


def test_staleness_counts_the_updates_between_a_fetch_and_its_push():
    shard = make_shard()
    _, fetched = fetch(shard)
    zeros = np.zeros(16, np.float32)
    for portion in range(3):
        push(shard, (0, portion, 0), zeros, fetched)
    assert push(shard, (0, 9, 0), zeros, fetched).staleness == 3


def test_a_push_can_bring_the_parameters_along():
    shard, values = make_shard(), np.empty(16, np.float32)
    acknowledgement = push(shard, (0, 0, 0), np.ones(16, np.float32), into=values)
    fetched, version = fetch(shard)
    np.testing.assert_array_equal(values, fetched)
    assert version == acknowledgement.version == 1


def test_over_dask_the_answer_brings_a_vector_if_one_is_wanted():
    async def scenario():
        shard, ones = make_shard(), np.ones(16, np.float32)
        answers = []
        for step, wants in enumerate([True, False]):
            request = Request("push", 0, ((0, 0, step), 0))
            answers.append(await shard.serve(tuple(request), ones, wants))
        return shard, *answers

    shard, (first, values), (second, nothing) = run(scenario())
    assert (first.version, second.version) == (1, 2) and nothing is None
    np.testing.assert_allclose(values, fetch(shard)[0] + 1, atol=1e-6)


def test_what_is_fetched_shares_no_memory_with_the_shard():
    shard = make_shard()
    values, version = fetch(shard)
    kept = values.copy()
    push(shard, (0, 0, 0), np.ones(16, np.float32), version)
    np.testing.assert_array_equal(values, kept)


def test_only_requests_are_answered():
    shard = make_shard()
    for name in ("_update", "command", "state"):
        with pytest.raises(AttributeError, match="answers no request"):
            shard.answer(Request(name, 0))


def test_no_fetch_is_torn_whoever_calls():
    """Threads call beside what comes over Dask: each fetch sees all of an update or nothing."""
    size, updates = 200_000, 50
    shard = ParameterShard(0, size, sgd(1.0), 0, FromModel(pickle.dumps(Zeros(size)), seed=0))
    minus, torn = np.full(size, -1, np.float32), []

    def pushes(portion):
        into = np.empty(size, np.float32)
        for step in range(updates):
            push(shard, (0, portion, step), minus, into=into)
            torn.append(np.ptp(into) != 0)

    async def fetches():
        for step in range(updates):
            asked = Request("push", 0, ((0, 9, step), 0))
            _, values = await shard.serve(tuple(asked), minus, True)
            torn.append(np.ptp(values) != 0)

    threads = [threading.Thread(target=pushes, args=[portion]) for portion in range(3)]
    for thread in threads:
        thread.start()
    run(fetches())
    for thread in threads:
        thread.join()
    assert len(torn) == 4 * updates and not any(torn)
    np.testing.assert_array_equal(fetch(shard)[0], 4 * updates)


class Zeros:
    """A model of `size` zeros."""

    def __init__(self, size):
        self.layout = Layout((Parameter("x", (size,), ("element",)),))

    def initial_parameters(self, seed, start, stop):
        return np.zeros(stop - start, np.float32)


def test_a_message_of_another_generation_is_refused_and_applies_nothing():
    shard = make_shard()
    before, version = fetch(shard)
    run(shard.command(1, "advance", 1))
    with pytest.raises(Stale):
        push(shard, (0, 0, 0), np.ones(16, np.float32), version)
    with pytest.raises(Stale):
        shard.answer(Request("fetch", 0), None, np.empty(16, np.float32))
    np.testing.assert_array_equal(before, fetch(shard)[0])


def test_a_command_that_comes_twice_is_done_once():
    shard = make_shard()
    push(shard, (0, 0, 0), np.zeros(16, np.float32))
    first = run(shard.order(7, 0, "copy", 3, True))
    push(shard, (0, 0, 1), np.ones(16, np.float32))
    again = run(shard.order(7, 0, "copy", 3, True))
    assert (first, again, shard.state.copies[3].applied) == (1, 1, 1)


def test_pausing_is_told_with_the_next_acknowledgement():
    shard, zeros = make_shard(), np.zeros(16, np.float32)
    run(shard.order(1, 0, "pause", True))
    assert push(shard, (0, 0, 0), zeros).pause
    assert shard.answer(Request("progress", 0, (0, 0))) == (0, True)
    run(shard.order(2, 0, "pause", False))
    assert not push(shard, (0, 0, 1), zeros).pause


@pytest.mark.parametrize("again", [1, 3, 5])
def test_a_snapshot_comes_back_to_the_bit_on_another_number_of_shards(tmp_path, again):
    from dbdask.models.layout import cut

    path, optimizer = str(tmp_path / "run.zarr"), adagrad(0.1)
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=16).astype(np.float32)

    async def write():
        checkpoint.create(path, {})
        slices = cut(16, 2)
        group = checkpoint.name_of(1, 0, "run")
        checkpoint.begin(path, group, ["parameters", "accumulator"], 16, slices[0][1])
        wanted = []
        for start, stop in slices:
            shard = make_shard(optimizer, start, stop)
            push(shard, (0, 0, 0), gradient[start:stop])
            await shard.order(1, 0, "copy", 1, True)
            await shard.write(path, group, 1)
            wanted.append(await shard.whole_state())
        assert checkpoint.latest(path) is None
        checkpoint.commit(path, group, {"applied": 1})
        return wanted, group

    wanted, group = run(write())
    source = FromSnapshot(path, group, 1, ((0, 0, 0, 1),), 0)
    shards = [ParameterShard(a, b, optimizer, 0, source) for a, b in cut(16, again)]
    for name in ("parameters", "accumulator"):
        before = np.concatenate([state.vectors[name] for state in wanted])
        after = np.concatenate([shard.state.vectors[name] for shard in shards])
        np.testing.assert_array_equal(before, after)
    assert push(shards[0], (0, 0, 0), gradient[: shards[0].stop]).staleness == -1


# A store that hangs


MANY = 40  # more than an event loop's pool has threads

HANGING = {
    "write": lambda shard: shard.write("run.zarr", "0", 1),
    "write_vectors": lambda shard: shard.write_vectors("run.zarr", "0", ["parameters"]),
    "restore_best": lambda shard: shard._restore_best("run.zarr", "0", True),
}


@pytest.fixture
def store_hangs(monkeypatch):
    """The threads that wait for a store, and the event that lets it answer them."""
    over, threads = threading.Event(), []

    def hang(*_):
        threads.append(threading.current_thread())
        over.wait()

    monkeypatch.setattr(checkpoint, "write_slice", hang)
    monkeypatch.setattr(checkpoint, "read_slice", hang)
    yield threads, over
    over.set()


@pytest.mark.parametrize("what", HANGING)
def test_a_store_that_hangs_holds_up_no_other_call_and_no_end_of_the_process(store_hangs, what):
    threads, over = store_hangs

    async def story():
        shard = make_shard()
        await shard.command(1, "copy", 1, False)
        hung = [asyncio.ensure_future(HANGING[what](shard)) for _ in range(MANY)]
        while len(threads) < MANY:
            await asyncio.sleep(0.001)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 5), 10) == 5
        pushed, _ = await asyncio.wait_for(shard.serve(PUSH, np.ones(16, np.float32), False), 10)
        assert pushed.version == 1
        assert (await asyncio.wait_for(shard.command(2, "pause", True), 10)).applied == 1
        assert all(thread.daemon for thread in threads)
        for call in hung:
            call.cancel()
        await asyncio.wait(hung)

    async def ending():
        try:
            await asyncio.wait_for(story(), 30)
        finally:
            over.set()  # a loop waits for the threads of its pool

    run(ending())


PUSH = ("push", 0, ((0, 0, 0), 0))


def test_what_a_store_raises_to_a_shard_can_be_sent(monkeypatch):
    error = ValueError("mine")
    error.__cause__ = error  # pickling it would have no end

    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoint, "write_slice", fail)
    with pytest.raises(ValueError, match="mine") as raised:
        run(HANGING["write_vectors"](make_shard()))
    assert raised.value.__cause__ is None
