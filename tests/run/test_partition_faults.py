"""Faults that meet gangs: each example counts as often as the history says, in every part."""

import dask
import numpy as np
import pytest
from asking import workers_of
from counting import missing_updates
from counting_parts import COUNTS, SlowDense, counted_pairs, counting_network
from distributed import Client, LocalCluster
from faults import MORE, TABLE, RaisesOnce, Stop, assert_felt
from lag import no_loop_waits
from test_batch_faults import for_passes
from test_downpour import assert_nothing_left, labelled, write_store
from test_faults import SHORT, Trouble
from test_leaving import wait_until
from test_recovery import assert_workers_run_tasks
from test_sandblaster import objective

import dbdask
from dbdask.algorithms.sandblaster_method import Sandblaster
from dbdask.worker.context import contexts_on

ROWS, BATCH, EPOCHS, WORKERS = 1200, 20, 8, 4
SHARDS = 2  # each has one row of counts, which is a part
QUICK = ("kill a shard's worker",)
CASES = [
    pytest.param(fault, marks=() if fault.name in QUICK else pytest.mark.chaos, id=fault.name)
    for fault in TABLE + MORE
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("partition-faults") / "store.zarr", ROWS)


@pytest.fixture(params=["auto", pytest.param("dask", marks=pytest.mark.chaos)])
def client(request):
    with (
        dask.config.set(SHORT | {"dbdask.transport": request.param}),
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
        no_loop_waits(client),
    ):
        yield client


class RaisesInPredict(dbdask.Network):
    """A network that raises once when it predicts, as a validation does and no part."""

    path = ""

    @classmethod
    def of(cls, network, path):
        """Return such a network; the file at a path derived from `path` says that it has raised."""
        found = cls(input_shape=network.input_shape, layers=network.layers, loss=network.loss)
        object.__setattr__(found, "path", path)
        return found

    def predict(self, parameters, inputs):
        return RaisesOnce(super(), "predict", self.path).predict(parameters, inputs)


def validated(network, fault, path):
    """The network, or one that raises where the fault says so."""
    return RaisesInPredict.of(network, path) if fault.raises == "predict" else network


@pytest.mark.parametrize("fault", CASES)
def test_each_example_counts_in_every_part_as_often_as_the_history_says(
    client, store, tmp_path, fault
):
    path = str(tmp_path / "run.zarr")
    trouble = Trouble(client, fault, 7, path + "-happened", path=path, data=store)
    network = validated(counting_network(ROWS, SHARDS, trouble.until), fault, path)
    optimizer = dbdask.sgd(float(BATCH))
    if fault.raises == "update":
        optimizer = RaisesOnce(optimizer, "update", path)

    def train(resume):
        return dbdask.downpour(
            network,
            counted_pairs(store),
            client=client,
            optimizer=optimizer,
            batch_size=BATCH,
            epochs=EPOCHS,
            partitions=2,
            shards=SHARDS,
            shard_copies=fault.copies,
            validation=counted_pairs(store) if fault.raises == "predict" else None,
            checkpoint=path if fault.checkpoint else None,
            snapshot_every="300ms",
            resume=resume,
            callbacks=[trouble],
            progress=False,
        )

    if fault.ends is not None:
        with pytest.raises(fault.ends):
            train(False)
    result = train(fault.ends is not None)
    assert trouble.is_over or isinstance(fault.act, Stop), "the run was over before"
    trouble.settle()
    assert_felt(result, fault.act)
    assert result.status.reason == "epochs"
    missing = missing_updates(result, EPOCHS, SHARDS, BATCH, COUNTS)
    rolled_back = int(result.history["rolled_back"].values[-1])
    print(f"{fault.name}: {missing} updates missing, {rolled_back} rolled back")
    assert missing == rolled_back
    assert fault.loses or rolled_back == 0
    assert result.history["step"].values[-1] == EPOCHS * ROWS // BATCH
    assert result.history["examples"].values[-1] == EPOCHS * ROWS
    assert_nothing_left(client)
    wait_until(lambda: len(workers_of(client)) >= 1)
    assert_workers_run_tasks(client)


# Sandblaster: every accepted step is one of a single process

PASSES = ("kill two at once; copies",)
PASS_CASES = [
    pytest.param(fault, marks=pytest.mark.slow if fault.name in PASSES else pytest.mark.chaos)
    for fault in map(for_passes, TABLE + MORE)
    if fault.raises != "update"  # the rule by which these shards go is none of the user's
]


@pytest.fixture
def accepted(monkeypatch):
    """Every accepted step: its loss, and the parameters and the gradient, as a model has them."""
    accept, seen = Sandblaster._accept, []

    async def note(method, run):
        read = [await run.server.read(name) for name in ("parameters", "gradient")]
        loss, answer = method.point.loss, await accept(method, run)
        seen.append((loss, *map(run.plan.in_order_of_model, read)))
        return answer

    monkeypatch.setattr(Sandblaster, "_accept", note)
    return seen


@pytest.mark.parametrize("fault", PASS_CASES, ids=lambda fault: fault.name)
def test_every_step_of_parts_is_one_of_a_single_process(client, store, tmp_path, accepted, fault):
    path = str(tmp_path / "run.zarr")
    trouble = Trouble(client, fault, 7, path + "-happened", apart=2, path=path, data=store)
    layers = [SlowDense.of(8, "tanh", trouble.until), dbdask.Dense(3)]
    network = dbdask.Network(input_shape=(6,), layers=layers, loss="softmax")
    result = dbdask.sandblaster(
        validated(network, fault, path),
        labelled(store),
        client=client,
        l2=1e-3,
        portion_size=100,
        iterations=20,
        tolerance=0.0,
        partitions=2,
        shards=SHARDS,
        shard_copies=fault.copies,
        validation=labelled(store) if fault.raises == "predict" else None,
        checkpoint=path if fault.checkpoint else None,
        snapshot_every="300ms",
        callbacks=[trouble],
        progress=False,
    )
    assert trouble.is_over or isinstance(fault.act, Stop), "the run was over before"
    trouble.settle()
    assert_felt(result, fault.act)
    alone = objective(store, 1e-3)
    assert len(accepted) >= 20
    for loss, point, gradient in accepted:
        value, expected = alone(point)
        assert loss == pytest.approx(value, rel=1e-5)
        np.testing.assert_allclose(gradient, expected, atol=3e-6)
    assert fault.loses or result.history["rolled_back"].values[-1] == 0
    wait_until(lambda: not any(client.run(contexts_on).values()))
    assert_nothing_left(client)
