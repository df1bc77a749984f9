"""Dropout in a portion that is done again after its worker was killed."""

import hashlib
import os
import signal
from pathlib import Path
from typing import NamedTuple

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

pytest.importorskip("torch")

from modules import dropping, examples

import dbdask
from dbdask.torch import TorchModel

KILLED_AT, RATE = 15, np.float32(0.1)  # in the midst of the second portion of ten steps


class Update(NamedTuple):
    """What a shard was asked to do, and by digests with which vectors."""

    process: int
    step: int
    parameters: str
    gradient: str


class Recording:
    """Gradient descent that notes what it is given, and in one update kills its process, once."""

    slots = ()

    def __init__(self, folder):
        self.notes, self.has_killed = Path(folder) / "notes", Path(folder) / "has-killed"

    def update(self, parameters, gradient, slots, step):
        noted = Update(os.getpid(), step, digest(parameters), digest(gradient))
        with open(self.notes, "a") as file:
            print(*noted, file=file)
        if step == KILLED_AT and not self.has_killed.exists():
            self.has_killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        parameters -= RATE * gradient

    def noted(self):
        """Return the updates of every worker process; the client's is where a rule is tried."""
        found = {}
        for line in self.notes.read_text().splitlines():
            process, step, *digests = line.split()
            update = Update(int(process), int(step), *digests)
            found.setdefault(update.process, []).append(update)
        del found[os.getpid()]
        return found


def digest(vector):
    return hashlib.sha256(vector.tobytes()).hexdigest()


def train(client, rule, **options):
    model = TorchModel(dropping(), "softmax")
    return dbdask.downpour(
        model,
        examples(),
        client=client,
        optimizer=rule,
        batch_size=20,
        epochs=2,
        replicas=1,
        shards=1,
        progress=False,
        **options,
    )


def vector(result):
    return np.concatenate([values.values.ravel() for values in result.parameters.values()])


@pytest.mark.slow
def test_what_is_pushed_again_after_a_kill_is_equal_to_the_bit(tmp_path, threads_client):
    """One process holds the shard and computes: another takes both up at the first snapshot."""
    rule = Recording(tmp_path)
    with (
        dask.config.set({"dbdask.arrival": "120s"}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        result = train(
            client, rule, checkpoint=str(tmp_path / "run.zarr"), snapshot_every="1h", seed=3
        )
    assert result.status.ok and result.history["lost"].values[-1] == 1
    killed, other = rule.noted().values()
    assert [update.step for update in killed] == list(range(KILLED_AT + 1))
    assert [update.step for update in other] == list(range(60))
    for before, again in zip(killed, other, strict=False):
        assert before[1:] == again[1:]
    assert len({update.gradient for update in other}) == 60
    undisturbed = train(threads_client, dbdask.sgd(float(RATE)), seed=3)
    assert np.array_equal(vector(result), vector(undisturbed))
