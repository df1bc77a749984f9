"""Every fault of the table, against the counting model: each example counts as often as it says."""

import random
import threading

import dask
import pytest
from acting import SlowUntil, touch
from counting import CountingModel, missing_updates
from distributed import Client, LocalCluster
from faults import MORE, TABLE, RaisesOnce, Stop, assert_felt, everyone
from lag import no_loop_waits
from test_downpour import assert_nothing_left, counted, write_store
from test_leaving import wait_until
from test_recovery import assert_workers_run_tasks

import dbdask

ROWS, BATCH, WORKERS = 1200, 20, 4
EPOCHS, LONG_EPOCHS = 6, 12
SHORT = {"dbdask.silence": "500ms", "dbdask.ping": "2s", "dbdask.answer": "1s"}
CASES = [
    pytest.param(fault, marks=pytest.mark.chaos if fault.chaos else (), id=fault.name)
    for fault in TABLE + MORE
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("faults") / "store.zarr", ROWS)


@pytest.fixture(params=["auto", pytest.param("dask", marks=pytest.mark.chaos)])
def client(request):
    """Workers that share memory, as they do by themselves; or that use Dask's connections alone."""
    with (
        dask.config.set(SHORT | {"dbdask.transport": request.param}),
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
        no_loop_waits(client),
    ):
        yield client


class Trouble:
    """A callback that lets a fault happen some records apart, each on a thread of its own.

    When all has happened it makes the file at `until`: the run is slow so long.
    """

    def __init__(self, client, fault, seed, until, apart=8, path=None, data=None):
        self.client, self.fault, self.rng = client, fault, random.Random(seed)
        self.until, self.left = until, fault.times
        self.of = [str({"checkpoint": path, "data": data}[fault.of])] if fault.of else []
        self.apart, self.records, self.happened = apart, 0, 0
        self.threads, self.errors = [], []

    def __call__(self, record):
        self.records += 1
        if self.records % self.apart == 0 and self.happened < self.fault.times:
            self.happened += 1
            self.threads.append(threading.Thread(target=self._act))
            self.threads[-1].start()

    def _act(self):
        try:
            self.fault.act(self.client, self.rng, *self.of)
        except Exception as error:
            self.errors.append(error)
        self.left -= 1
        if self.left == 0:
            touch(self.until)

    @property
    def is_over(self):
        """Whether all has happened."""
        return not any(thread.is_alive() for thread in self.threads)

    def settle(self):
        for thread in self.threads:
            thread.join(120)
        assert not self.errors, self.errors
        assert self.happened == self.fault.times


def run_through(client, store, fault, seed, path, epochs):
    """Train the counting model while a fault happens; returns the result."""
    trouble = Trouble(client, fault, seed, path + "-happened", path=path, data=store)
    model = SlowUntil(CountingModel(ROWS, fault.shards, seconds=0.005), trouble.until, 30)
    optimizer = dbdask.sgd(float(BATCH))

    def train(**options):
        return dbdask.downpour(
            RaisesOnce(model, "predict", path) if fault.raises == "predict" else model,
            counted(store),
            client=client,
            optimizer=RaisesOnce(optimizer, "update", path)
            if fault.raises == "update"
            else optimizer,
            batch_size=BATCH,
            epochs=epochs,
            shards=fault.shards,
            shard_copies=fault.copies,
            checkpoint=path if fault.checkpoint else None,
            snapshot_every="300ms",
            validation=counted(store) if fault.raises == "predict" else None,
            callbacks=[trouble],
            progress=False,
            **options,
        )

    if fault.ends is not None:
        with pytest.raises(fault.ends):
            train()
    result = train(resume=fault.ends is not None)
    was_in_time = trouble.is_over or isinstance(fault.act, Stop)  # which goes on to the SIGCONT
    trouble.settle()
    assert was_in_time, "the run was over before"
    assert_felt(result, fault.act)
    return result


@pytest.mark.parametrize("fault", CASES)
def test_each_example_counts_as_often_as_the_history_says(client, store, tmp_path, fault):
    epochs = LONG_EPOCHS if fault.chaos else EPOCHS
    result = run_through(client, store, fault, 7, str(tmp_path / "run.zarr"), epochs)
    assert result.status.reason == "epochs"
    missing = missing_updates(result, epochs, fault.shards, BATCH)
    rolled_back = int(result.history["rolled_back"].values[-1])
    print(f"{fault.name}: {missing} updates missing, {rolled_back} rolled back")
    assert missing == rolled_back
    assert fault.loses or rolled_back == 0
    assert result.history["step"].values[-1] == epochs * ROWS // BATCH
    assert result.history["examples"].values[-1] == epochs * ROWS
    assert_nothing_left(client)
    wait_until(lambda: len(everyone(client)) >= 1)
    assert_workers_run_tasks(client)
