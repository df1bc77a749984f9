"""The shard as a plain class: no cluster, only an event loop."""

import asyncio
import pickle

import numpy as np
import pytest

from dbdask.errors import Stale
from dbdask.models.layers import Dense
from dbdask.models.network import Network
from dbdask.optim.optimizers import adagrad, sgd
from dbdask.storage import checkpoint
from dbdask.worker.initial import FromModel, FromSnapshot
from dbdask.worker.shard import ParameterShard

NETWORK = Network(input_shape=(3,), layers=[Dense(4)], loss="squared")


def make_shard(optimizer=None, start=0, stop=16):
    initial = FromModel(pickle.dumps(NETWORK), seed=5)
    return ParameterShard(start, stop, optimizer or sgd(1.0), 0, initial)


def run(coroutine):
    return asyncio.run(coroutine)


def test_a_shard_starts_with_its_slice_of_the_model():
    whole = NETWORK.initial_parameters(5, 0, 16)
    values, version = run(make_shard(start=4, stop=11).fetch(0))
    np.testing.assert_array_equal(values, whole[4:11])
    assert version == 0


def test_a_repeated_push_changes_nothing_and_is_acknowledged():
    async def scenario():
        shard = make_shard()
        before, version = await shard.fetch(0)
        first, _ = await shard.push(0, (0, 0, 0), np.ones(16, np.float32), version)
        second, _ = await shard.push(0, (0, 0, 0), np.ones(16, np.float32), version)
        after, _ = await shard.fetch(0)
        return before, first, second, after

    before, first, second, after = run(scenario())
    np.testing.assert_allclose(after, before - 1)
    assert first.staleness == 0 and second.staleness == -1
    assert first.version == second.version == 1


def test_an_update_that_raises_was_not_applied():
    rates = [0.5, np.nan, 0.5]

    async def scenario():
        shard = make_shard(sgd(lambda step: rates.pop(0)))
        before, version = await shard.fetch(0)
        ones = np.ones(16, np.float32)
        await shard.push(0, (0, 0, 0), ones, version)
        with pytest.raises(ValueError, match="learning_rate"):
            await shard.push(0, (0, 0, 1), ones, version)
        standing = await shard.progress(0, 0, 0)
        repeat, _ = await shard.push(0, (0, 0, 1), ones, version)
        return before, standing, repeat, (await shard.fetch(0))[0]

    before, standing, repeat, after = run(scenario())
    np.testing.assert_allclose(after, before - 1, rtol=1e-6)
    assert standing.last_step == 0 and repeat.version == 2 and repeat.staleness >= 0


def test_staleness_counts_the_updates_between_a_fetch_and_its_push():
    async def scenario():
        shard = make_shard()
        _, fetched = await shard.fetch(0)
        zeros = np.zeros(16, np.float32)
        for portion in range(3):
            await shard.push(0, (0, portion, 0), zeros, fetched)
        return (await shard.push(0, (0, 9, 0), zeros, fetched))[0]

    assert run(scenario()).staleness == 3


def test_a_push_can_bring_the_parameters_along():
    async def scenario():
        shard = make_shard()
        _, version = await shard.fetch(0)
        acknowledgement, values = await shard.push(
            0, (0, 0, 0), np.ones(16, np.float32), version, True
        )
        return acknowledgement.version, values, await shard.fetch(0)

    version, values, (fetched, fetched_version) = run(scenario())
    np.testing.assert_array_equal(values, fetched)
    assert version == fetched_version == 1


def test_a_fetch_is_a_copy():
    async def scenario():
        shard = make_shard()
        values, version = await shard.fetch(0)
        kept = values.copy()
        await shard.push(0, (0, 0, 0), np.ones(16, np.float32), version)
        return values, kept

    values, kept = run(scenario())
    np.testing.assert_array_equal(values, kept)


def test_a_message_of_another_generation_is_refused_and_applies_nothing():
    async def scenario():
        shard = make_shard()
        before, version = await shard.fetch(0)
        await shard.command(1, "advance", 1)
        with pytest.raises(Stale):
            await shard.push(0, (0, 0, 0), np.ones(16, np.float32), version)
        with pytest.raises(Stale):
            await shard.fetch(0)
        after, _ = await shard.fetch(1)
        return before, after

    before, after = run(scenario())
    np.testing.assert_array_equal(before, after)


def test_a_command_that_comes_twice_is_done_once():
    async def scenario():
        shard = make_shard()
        await shard.push(0, (0, 0, 0), np.zeros(16, np.float32), 0)
        first = await shard.order(7, 0, "copy", 3, True)
        await shard.push(0, (0, 0, 1), np.ones(16, np.float32), 0)
        again = await shard.order(7, 0, "copy", 3, True)
        return first, again, shard.state.copies[3].applied

    assert run(scenario()) == (1, 1, 1)


def test_pausing_is_told_with_the_next_acknowledgement():
    async def scenario():
        shard = make_shard()
        await shard.order(1, 0, "pause", True)
        told, _ = await shard.push(0, (0, 0, 0), np.zeros(16, np.float32), 0)
        asked = await shard.progress(0, 0, 0)
        await shard.order(2, 0, "pause", False)
        later, _ = await shard.push(0, (0, 0, 1), np.zeros(16, np.float32), 0)
        return told.pause, asked, later.pause

    told, asked, later = run(scenario())
    assert told and asked == (0, True) and not later


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
            await shard.push(0, (0, 0, 0), gradient[start:stop], 0)
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
    repeat, _ = run(shards[0].push(0, (0, 0, 0), gradient[: shards[0].stop], 0))
    assert repeat.staleness == -1
