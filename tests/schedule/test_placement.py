"""Placement of copies, by a property that any answer must have."""

import random

import pytest

from dbdask.schedule.placement import missing_copies


@pytest.mark.parametrize("seed", range(50))
def test_every_shard_gets_its_copies_on_different_workers_and_loads_are_even(seed):
    rng = random.Random(seed)
    workers = [f"w{n}" for n in range(rng.randint(1, 6))]
    shards, copies = rng.randint(1, 7), rng.randint(1, 3)
    chosen = missing_copies([[] for _ in range(shards)], copies, workers)
    held = {shard: [w for s, w in chosen if s == shard] for shard in range(shards)}
    for names in held.values():
        assert len(set(names)) == len(names) == min(copies, len(workers))
    loads = [sum(name == worker for _, name in chosen) for worker in workers]
    assert max(loads) - min(loads) <= 1
    firsts = [names[0] for names in held.values()]
    assert max(map(firsts.count, workers)) - min(map(firsts.count, workers)) <= 1


def test_only_what_is_missing_is_made_and_nothing_is_made_twice_on_a_worker():
    assert missing_copies([["a", "b"], ["b"]], 2, ["a", "b", "c"]) == [(1, "c")]
    assert missing_copies([["a"], ["a"]], 2, ["a"]) == []
    assert missing_copies([["gone"], []], 1, ["a"]) == [(1, "a")]
