"""Every fault of the table, against Sandblaster: each accepted step is one of a single process."""

import dataclasses
from pathlib import Path

import dask
import numpy as np
import pytest
from acting import After
from distributed import Client, LocalCluster
from faults import MORE, TABLE, Disturb, RaisesOnce, assert_felt, everyone
from lag import no_loop_waits
from test_downpour import assert_nothing_left, counted, write_store
from test_faults import Trouble
from test_leaving import wait_until
from test_recovery import assert_workers_run_tasks

import dbdask
from dbdask.algorithms.sandblaster_method import Sandblaster
from dbdask.models.layout import Layout, Parameter
from dbdask.worker.context import contexts_on

ROWS, L2, WORKERS = 1200, 1e-3, 4
SHORT = {
    "dbdask.silence": "500ms",
    "dbdask.ping": "2s",
    "dbdask.answer": "1s",
    "dbdask.lease": "2s",
}
SOONER = ("answers lost; copies",)  # in the short suite


def for_passes(fault):
    """A row of the table as it meets passes.

    One answer that is lost has a whole pass made again, and each pass has dozens of them.
    """
    chaos = fault.name not in SOONER
    act = fault.act
    if isinstance(act, Disturb) and act.unanswered:
        act = dataclasses.replace(act, unanswered=0.002)
    return dataclasses.replace(fault, act=act, chaos=chaos)


CASES = [
    pytest.param(fault, marks=pytest.mark.chaos if fault.chaos else (), id=fault.name)
    for fault in map(for_passes, TABLE + MORE)
    if fault.raises != "update"
]


class Bowl:
    """Example i pulls parameter i to 1, with a strength of its own: `strengths[i] / 2 (p - 1)^2`.

    What of an example is left out, or counts twice, shows in the gradient at its parameter. The
    strengths differ by `spread`; the more, the more steps it takes. A minibatch takes `seconds`,
    and ten times as long until there is a file at `until`.
    """

    loss = "squared"

    def __init__(self, spread, seconds, until):
        self.spread, self.seconds, self.until = spread, seconds, until
        self.layout = Layout((Parameter("height", (ROWS,), ("example",)),))

    @property
    def strengths(self):
        return np.geomspace(100.0 / self.spread, 100.0, ROWS)

    def initial_parameters(self, seed, start, stop):
        return np.zeros(stop - start, np.float32)

    def loss_and_gradient(self, parameters, inputs, targets, *, weights, seed, gradient):
        import time

        for slept in range(10 * int(self.seconds / 0.001)):  # so that a stopped process is late
            if slept >= self.seconds / 0.001 and self.until.exists():
                break
            time.sleep(0.001)
        rows = inputs.reshape(-1).astype(np.int64)
        away = parameters[rows].astype(np.float64) - 1.0
        gradient[:] = 0
        gradient[rows] = self.strengths[rows] * away
        return float((self.strengths[rows] * away**2).sum() / 2)

    def predict(self, parameters, inputs):
        return parameters[inputs.reshape(-1).astype(np.int64)][:, None]

    # In one process, in float64

    def objective(self, x):
        x = x.astype(np.float64)
        return (self.strengths * (x - 1.0) ** 2).sum() / (2 * ROWS) + L2 / 2 * float(x @ x)

    def gradient(self, x):
        x = x.astype(np.float64)
        return self.strengths * (x - 1.0) / ROWS + L2 * x

    @property
    def optimum(self):
        return self.strengths / (self.strengths + ROWS * L2)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("batch-faults") / "store.zarr", ROWS)


@pytest.fixture(params=["auto", pytest.param("dask", marks=pytest.mark.chaos)])
def cluster(request):
    """Workers that share memory, as they do by themselves; or that use Dask's connections alone."""
    with (
        dask.config.set(SHORT | {"dbdask.transport": request.param}),
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
        no_loop_waits(client),
    ):
        yield cluster, client


@pytest.fixture
def accepted(monkeypatch):
    """Every accepted step: its loss, and the parameters and the gradient that shards hold.

    A step has its loss alone if a fault falls on the reading: the history has it by then.
    """
    accept, seen = Sandblaster._accept, []

    async def note(self, run):
        step = [self.point.loss, None, None]
        seen.append(step)
        step[1:] = [await run.server.read(name) for name in ("parameters", "gradient")]
        return await accept(self, run)

    monkeypatch.setattr(Sandblaster, "_accept", note)
    return seen


def minimise(client, store, bowl, **options):
    settings = {"l2": L2, "portion_size": 100, "tolerance": 1e-6, "iterations": 200, "shards": 2}
    return dbdask.sandblaster(
        bowl, counted(store), client=client, progress=False, **(settings | options)
    )


def assert_right(result, accepted, bowl):
    """The end is the optimum, and each step on the way is one of the objective."""
    assert result.status.reason in ("tolerance", "precision"), str(result.status)
    np.testing.assert_allclose(result.parameters["height"].values, bowl.optimum, atol=1e-3)
    losses = result.history["loss"].values
    losses = losses[~np.isnan(losses)]  # a record of a validation has none
    assert set(losses) <= {loss for loss, _, _ in accepted}
    read = [step for step in accepted if step[1] is not None]
    assert len(read) > 0.8 * len(accepted)
    for loss, x, gradient in read:
        assert loss == pytest.approx(bowl.objective(x), rel=1e-6)
        np.testing.assert_allclose(gradient, bowl.gradient(x), rtol=1e-5, atol=1e-8)


def assert_all_over(client):
    """Nothing is left; a worker that was stopped while the run ended finds that out by itself."""
    wait_until(lambda: not any(client.run(contexts_on).values()))
    assert_nothing_left(client)
    assert_workers_run_tasks(client)


@pytest.mark.parametrize("fault", CASES)
def test_every_step_is_one_of_a_single_process(cluster, store, tmp_path, accepted, fault):
    _, client = cluster
    until, path = tmp_path / "happened", str(tmp_path / "run.zarr")
    apart = 8 if fault.chaos else 3
    trouble = Trouble(client, fault, 7, until, apart=apart, path=path, data=store)
    bowl = Bowl(1e4, 0.002, until) if fault.chaos else Bowl(3.0, 0.001, until)
    result = minimise(
        client,
        store,
        RaisesOnce(bowl, "predict", path) if fault.raises == "predict" else bowl,
        shards=fault.shards,
        shard_copies=fault.copies,
        checkpoint=path if fault.checkpoint else None,
        snapshot_every="300ms",
        validation=counted(store) if fault.raises == "predict" else None,
        callbacks=[trouble],
    )
    was_in_time = until.exists()
    trouble.settle()
    assert was_in_time, "the run was over before"
    print(f"{fault.name}: {len(accepted)} steps, {trouble.records} records")
    assert_right(result, accepted, bowl)
    assert fault.loses or result.history["rolled_back"].values[-1] == 0
    assert_felt(result, fault.act)
    wait_until(lambda: len(everyone(client)) >= 1)
    assert_all_over(client)


# Workers that come and go


class Going(After):
    """A callback that begins to do something at the third record; the run is slow until the end."""

    def __init__(self, action):
        super().__init__(3, lambda: action(self))
        self.replicas = []

    def __call__(self, record):
        self.replicas.append(int(record.replicas))
        super().__call__(record)

    def trains_on(self, count):
        """Wait until the run says that so many replicas train."""
        wait_until(lambda: self.replicas[-1] == count)


def minimise_while(client, store, action):
    """Minimise without a checkpoint or copies while `action` goes on beside it, to its end."""
    going = Going(action)
    bowl = Bowl(1e4, 0.02, Path(going.over))
    result = minimise(client, store, bowl, callbacks=[going])
    was_in_time = bowl.until.exists()
    going.done()
    assert was_in_time, "the run was over before"
    return result, bowl


@pytest.mark.chaos
def test_scaling_up_and_down_in_the_middle_changes_no_step(cluster, store, accepted):
    local, client = cluster

    def scale(going):
        for count in (5, 2, 4):
            local.scale(count)
            going.trains_on(count)

    result, bowl = minimise_while(client, store, scale)
    assert_right(result, accepted, bowl)
    assert result.history["lost"].values[-1] == result.history["rolled_back"].values[-1] == 0
    assert_all_over(client)


@pytest.mark.chaos
def test_each_worker_is_retired_in_turn_and_no_step_is_changed(cluster, store, accepted):
    local, client = cluster
    local.scale(3)
    wait_until(lambda: len(everyone(client)) == 3)
    first = everyone(client)

    def retire(going):
        for worker in first:
            local.scale(len(local.worker_spec) + 1)
            going.trains_on(4)
            client.retire_workers([worker])
            wait_until(lambda worker=worker: worker not in everyone(client))
            going.trains_on(3)

    result, bowl = minimise_while(client, store, retire)
    assert not set(first) & set(everyone(client))
    assert_right(result, accepted, bowl)
    assert result.history["lost"].values[-1] == result.history["rolled_back"].values[-1] == 0
    assert_all_over(client)
