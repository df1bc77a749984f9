"""Validation beside training, where shards move while it is under way."""

import asyncio
import types

import pytest

from dbdask.errors import ShardLost
from dbdask.metrics.scores import Score
from dbdask.rpc.contact import ActorPlace
from dbdask.run import validating
from dbdask.run.validating import Validator
from dbdask.schedule.portions import Portion

PORTION = Portion(epoch=0, number=0, group=0, blocks=(0,), start=0, stop=10, seed=())


class Run:
    """A run whose first validation task loses its shard; they may have `moved` meanwhile."""

    def __init__(self, moved):
        self.moved, self.submitted = moved, []
        self.plan = types.SimpleNamespace(
            last=None, validate_steps=None, validation_supply=self, run="run", job=b""
        )
        shard = types.SimpleNamespace(copies=(ActorPlace("a", "shard"),))
        handle = types.SimpleNamespace(shards=(shard,))
        self.server = types.SimpleNamespace(holders=[["a"]], handle=handle)
        roster = types.SimpleNamespace(workers=["a", "b"])
        self.workforce = types.SimpleNamespace(attend=self.attend, roster=roster, client=self)

    def futures(self, portion, workers):
        return []

    def submit(self, *arguments, **options):
        self.submitted.append(options["workers"])
        return types.SimpleNamespace(release=lambda: None)

    def release(self, portion):
        pass

    async def attend(self, task, worker, key):
        await asyncio.wait({task})
        if self.moved:
            self.server.holders = [["b"]]
        return True


def score(run, monkeypatch):
    async def result_of(client, future):
        if len(run.submitted) == 1:
            raise ShardLost("it was there")
        return Score()

    monkeypatch.setattr(validating, "result_of", result_of)
    validator = Validator(run.plan, run.workforce, run.server, None, None, None)
    return asyncio.run(validator._score_portion(1, PORTION))


def test_a_portion_is_scored_again_where_shards_have_moved(monkeypatch):
    run = Run(moved=True)
    assert score(run, monkeypatch) == Score()
    assert run.submitted == [["a"], ["b"]]


def test_a_shard_that_is_lost_is_trouble(monkeypatch):
    run = Run(moved=False)
    with pytest.raises(ShardLost, match="it was there"):
        score(run, monkeypatch)
    assert run.submitted == [["a"]]
