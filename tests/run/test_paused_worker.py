"""A worker that Dask has paused for its memory: it makes room, and the run goes on."""

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster, Status

import dbdask
from dbdask.rpc.loops import worker_loop
from dbdask.schedule.policies import CACHE_BYTES
from dbdask.worker import pauses
from dbdask.worker.context import WorkerContext

ROWS = 400


@pytest.fixture
def examples(tmp_path):
    rng = np.random.default_rng(3)
    data = xr.Dataset(
        {"x": (("row", "f"), rng.normal(size=(ROWS, 3))), "y": ("row", rng.integers(0, 2, ROWS))}
    )
    data.chunk(row=40).to_zarr(tmp_path / "store.zarr", consolidated=False)
    return dbdask.Examples(tmp_path / "store.zarr", inputs="x", targets="y", along="row")


def pause(dask_worker):
    dask_worker.status = Status.paused


def resume(dask_worker):
    dask_worker.status = Status.running


def test_a_reader_makes_room_and_reads_the_same_again(examples):
    portion = next(iter(examples.cut(80, 20).portions(0, 0)))
    with examples.reader(cache_bytes=100_000) as reader:
        first = [batch.inputs.copy() for batch in reader.minibatches(portion, 20)]
        assert reader._cache and reader._held > 0
        going = reader.minibatches(portion, 20)
        again = [next(going).inputs.copy()]
        reader.make_room(keep_less=True)
        reader.make_room(keep_less=False)  # the worker is paused still
        assert not reader._cache and reader._held == 0 and reader._cache_bytes == 50_000
        again += [batch.inputs.copy() for batch in going]
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(first, [b.inputs for b in reader.minibatches(portion, 20)])


@pytest.mark.parametrize("algorithm", ["downpour", "sandblaster"])
def test_a_worker_that_is_paused_lets_go_of_what_it_keeps(examples, monkeypatch, algorithm):
    monkeypatch.setattr(pauses, "SECONDS", 0.02)
    make_room, made, records = WorkerContext._make_room, [], []

    def make_room_and_resume(self, keep_less):
        make_room(self, keep_less)
        made.append((keep_less, self.readers["train"]._cache_bytes))
        if len(made) == 3:  # Dask resumes the worker where enough was freed: on its loop
            worker_loop(self.worker).call_soon_threadsafe(resume, self.worker)

    monkeypatch.setattr(WorkerContext, "_make_room", make_room_and_resume)
    with (
        LocalCluster(
            processes=False,
            n_workers=1,
            threads_per_worker=1,
            memory_limit=0,  # Dask would resume the worker by itself
            dashboard_address=":0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):

        def pause_it(record):
            records.append(record)
            if len(records) == 2:
                client.run(pause)

        options = {"epochs": 4} if algorithm == "downpour" else {"iterations": 4, "tolerance": 0.0}
        result = getattr(dbdask, algorithm)(
            dbdask.Network(input_shape=3, layers=[dbdask.Dense(2)], loss="softmax"),
            examples,
            client=client,
            callbacks=[pause_it],
            progress=False,
            **options,
        )
    assert result.status.ok
    kept = made[0][1]
    assert 0 < kept < CACHE_BYTES and made == [(True, kept), (False, kept), (False, kept)]
