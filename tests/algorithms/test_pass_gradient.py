"""The gradient of a pass is that of one process, whatever is cut, killed, copied or stopped."""

import os
import random
import signal
import time

import dask
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from faults import everyone, processes
from test_downpour import assert_nothing_left, labelled, network, write_store
from test_leaving import wait_until
from test_sandblaster import objective

import dbdask
from dbdask.storage import checkpoint
from dbdask.worker.context import contexts_on

WORKERS, L2 = 4, 1e-3


class Slow:
    """The network, taking its time; one process gets a signal in its first minibatch.

    The others wait in theirs for the file at `struck`, which it makes just before: so the signal
    comes in the middle of the pass, however busy the machine is.
    """

    loss = "softmax"

    def __init__(self, seconds, struck=None, process=0, number=0):
        self.seconds, self.network = seconds, network()
        self.struck, self.process, self.number = struck, process, number
        self.layout, self.output_shape = self.network.layout, self.network.output_shape
        self.initial_parameters = self.network.initial_parameters
        self.predict = self.network.predict

    def loss_and_gradient(self, *arguments, **options):
        for _ in range(int(self.seconds / 0.001)):  # so that a stopped process is late
            time.sleep(0.001)
        if self.struck is not None and not self.struck.exists():
            self._strike_or_wait()
        return self.network.loss_and_gradient(*arguments, **options)

    def _strike_or_wait(self):
        if os.getpid() == self.process:
            self.struck.touch()
            os.kill(self.process, self.number)
        wait_until(self.struck.exists)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("pass") / "store.zarr")


@pytest.fixture(scope="module")
def client():
    with (
        dask.config.set({"dbdask.lease": "2s"}),  # workers read it where they start
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def marks_of(workers, what):
    """The short suite has several workers, and one that is killed."""
    if what == "stop":
        return [pytest.mark.chaos]
    return [] if (workers, what) in ((2, None), (4, "kill")) else [pytest.mark.slow]


CASES = [
    pytest.param(workers, seed, what, marks=marks_of(workers, what))
    for workers, whats in ((1, [None]), (2, [None, "kill"]), (4, [None, "kill", "stop"]))
    for seed, what in enumerate(whats)
]


@pytest.mark.parametrize(("workers", "seed", "what"), CASES)
def test_the_gradient_of_a_pass_is_that_of_one_process(
    client, store, tmp_path, workers, seed, what
):
    wait_until(lambda: len(everyone(client)) == WORKERS)
    portion_size = random.Random(f"{workers} {seed}").randint(7, 150)
    path = str(tmp_path / "run.zarr")
    eligible_workers = everyone(client)[:workers]
    (process,) = processes(client, eligible_workers[-1:])  # without a shard, where there are others
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}.get(what)
    model = Slow(0.02, tmp_path / "struck", process, number) if what else Slow(0.0)
    try:
        result = dbdask.sandblaster(
            model,
            labelled(store),
            client=client,
            l2=L2,
            portion_size=portion_size,
            workers=eligible_workers,
            shard_workers=eligible_workers[:1],
            shards=3,
            tolerance=1e9,
            checkpoint=path,
            progress=False,
        )
        assert what != "stop" or psutil.Process(process).status() == psutil.STATUS_STOPPED
    finally:
        if what == "stop":
            os.kill(process, signal.SIGCONT)
    assert result.status.reason == "tolerance"
    assert what != "kill" or eligible_workers[-1] not in everyone(client)
    assert what != "stop" or result.history["backups_won"].values[-1] >= 1  # not given up as silent
    group, size = checkpoint.latest(path).group, network().parameter_count
    x, found = (checkpoint.read_slice(path, group, n, 0, size) for n in ("parameters", "gradient"))
    np.testing.assert_allclose(found, objective(store, L2)(x)[1], atol=3e-7)
    # A worker that was stopped while the run ended finds that out by itself.
    wait_until(lambda: not any(client.run(contexts_on).values()))
    assert_nothing_left(client)
