"""BlockProvider: values that workers cannot read for themselves reach the task that needs them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import dask.array
import numpy as np
import pytest
import xarray as xr
from asking import workers_of
from distributed import Client, LocalCluster

from dbdask.data.block_provider import BlockProvider, gather_blocks
from dbdask.data.sources import open_source
from dbdask.schedule.portions import Portion

ROWS, BLOCK, HALO = 1000, 100, 3


class Windowed:
    """Stands for examples: blocks of 100 rows, read with a halo."""

    def __init__(self, data):
        self.source = open_source(data)
        self.variables = [self.source.variable(name) for name in ("value", "index")]

    def box(self, block):
        return {"row": slice(max(0, block * BLOCK - HALO), (block + 1) * BLOCK + HALO)}

    def reads(self, block):
        return [(variable, self.box(block)) for variable in self.variables]


def data():
    value = np.random.default_rng(3).random((ROWS, 4))
    return xr.Dataset(
        {"value": (("row", "column"), value), "index": ("row", np.arange(5 * ROWS)[::5])}
    )


def given(route):
    if route == "dask":
        return data().chunk(row=70, column=2)
    if route == "derived":
        return data().chunk(row=330) * 2
    return data()


def portion(number=0, blocks=(2, 7), group=0):
    return Portion(epoch=0, number=number, group=group, blocks=blocks, start=0, stop=10, seed=())


def read_all(variables, boxes, *pieces):
    blocks = gather_blocks(pieces)
    return [variable.read(box, blocks=blocks) for box in boxes for variable in variables]


def addresses(client):
    return sorted(workers_of(client))


def train(client, examples, futures, blocks, worker):
    small = [variable.worker_side() for variable in examples.variables]
    boxes = [examples.box(block) for block in blocks]
    task = client.submit(read_all, small, boxes, *futures, workers=[worker], pure=False)
    return task.result(timeout=100)


def expected(examples, blocks):
    return [v.read(examples.box(block)) for block in blocks for v in examples.variables]


@pytest.mark.parametrize("cluster", ["threads_client", "process_client"])
@pytest.mark.parametrize("route", ["memory", "dask", "derived"])
def test_tasks_read_what_the_client_holds(request, cluster, route):
    client = request.getfixturevalue(cluster)
    examples = Windowed(given(route))
    provider = BlockProvider(examples, client)
    for worker in addresses(client):
        futures = provider.futures(portion(), workers=[worker])
        found = train(client, examples, futures, (2, 7), worker)
        for values, wanted in zip(found, expected(examples, (2, 7)), strict=True):
            assert np.array_equal(values, wanted)
    provider.close()


def test_workers_that_can_read_get_nothing(tmp_path, threads_client):
    data().to_zarr(tmp_path / "s.zarr", consolidated=False)
    lazy = xr.open_zarr(tmp_path / "s.zarr", chunks=None, consolidated=False)
    for source in (tmp_path / "s.zarr", lazy):
        examples = Windowed(source)
        examples.reads = None  # its blocks are not even looked at
        assert BlockProvider(examples, threads_client).futures(portion()) == []
        assert BlockProvider(examples, threads_client).bring([0, 1]) == []


def test_persisted_arrays(process_client):
    examples = Windowed(process_client.persist(data().chunk(row=250)))
    worker = addresses(process_client)[0]
    futures = BlockProvider(examples, process_client).futures(portion(), workers=[worker])
    found = train(process_client, examples, futures, (2, 7), worker)
    for values, wanted in zip(found, expected(Windowed(data()), (2, 7)), strict=True):
        assert np.array_equal(values, wanted)


@pytest.mark.parametrize("route", ["memory", "dask"])
def test_portions_of_a_group_share_and_the_last_drops(threads_client, route):
    provider = BlockProvider(Windowed(given(route)), threads_client)
    first = provider.futures(portion(0))
    assert [future.key for future in provider.futures(portion(1))] == [f.key for f in first]
    provider.release(portion(0))
    provider.release(portion(0))
    again = provider.futures(portion(2))
    assert [future.key for future in again] == [future.key for future in first]
    other = provider.futures(portion(3, group=1))
    assert not {future.key for future in other} & {future.key for future in first}
    provider.release(portion(1))
    provider.release(portion(2))
    fresh = provider.futures(portion(1))
    assert not {future.key for future in fresh} & {future.key for future in first}


@pytest.mark.parametrize("route", ["memory", "dask"])
def test_asking_again_brings_afresh(threads_client, route):
    examples = Windowed(given(route))
    provider = BlockProvider(examples, threads_client)
    first = provider.futures(portion(0))
    again = provider.futures(portion(0))
    assert not {future.key for future in again} & {future.key for future in first}
    threads_client.cancel(again)
    worker = addresses(threads_client)[1]
    healthy = provider.futures(portion(1), workers=[worker])
    found = train(threads_client, examples, healthy, (2, 7), worker)
    assert np.array_equal(found[0], expected(examples, (2,))[0])


@pytest.mark.parametrize("route", ["memory", "dask"])
def test_a_dead_worker_loses_nothing(route):
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        victim, survivor = addresses(client)
        examples = Windowed(given(route))
        provider = BlockProvider(examples, client)
        held = provider.futures(portion(), workers=[victim])
        train(client, examples, held, (2, 7), victim)
        worker = next(w for w in cluster.workers.values() if w.worker_address == victim)
        client.sync(worker.kill)
        futures = provider.futures(portion(), workers=[survivor])
        found = train(client, examples, futures, (2, 7), survivor)
        assert np.array_equal(found[0], expected(examples, (2,))[0])


# Functions of a module travel by name, so that tasks in threads see the same lists as the test.
computed: list[int] = []
disk_is_away: list[bool] = []


def number_block(block_info=None):
    place = block_info[None]["chunk-location"][0]
    computed.append(place)
    return np.full((10,), place, dtype="int64")


def read_from_disk(block):
    if disk_is_away:
        raise OSError("disk is away")
    return block


def test_only_the_blocks_asked_for_are_computed(threads_client):
    computed.clear()
    array = dask.array.map_blocks(
        number_block, chunks=((10,) * 100,), dtype="int64", meta=np.empty(0, int)
    )
    examples = Windowed(xr.Dataset({"value": ("row", array), "index": ("row", np.arange(1000))}))
    futures = BlockProvider(examples, threads_client).futures(portion(blocks=(4,)))
    found = train(threads_client, examples, futures, (4,), addresses(threads_client)[0])
    assert found[0].tolist() == [row // 10 for row in range(397, 503)]
    assert sorted(computed) == list(range(39, 51))


def test_release_does_not_wait_for_what_travels(threads_client):
    examples, began, go_on = Windowed(data()), threading.Event(), threading.Event()
    provider = BlockProvider(examples, threads_client)
    reads = examples.reads

    def slow(block):
        began.set()
        assert go_on.wait(120)
        return reads(block)

    examples.reads = slow
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(provider.futures, portion(0))
        assert began.wait(120)
        second = pool.submit(provider.futures, portion(1))
        provider.release(portion(0, group=5))
        go_on.set()
        assert [f.key for f in first.result(10)] == [f.key for f in second.result(10)]


@pytest.fixture
def own_client():
    """A cluster of its own: a scheduler keeps the names of tasks that failed."""
    with (
        LocalCluster(
            processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_blocks_that_fail_raise_in_the_task_and_may_be_asked_for_again(own_client):
    raw = data().chunk(row=500)
    broken = raw["value"].data.map_blocks(read_from_disk, dtype="float64", meta=np.empty((0, 0)))
    examples = Windowed(raw.assign(value=(("row", "column"), broken)))
    provider = BlockProvider(examples, own_client)
    worker = addresses(own_client)[0]
    disk_is_away.append(True)
    futures = provider.futures(portion())
    with pytest.raises(OSError, match="disk is away"):
        train(own_client, examples, futures, (2, 7), worker)
    disk_is_away.clear()
    futures = provider.futures(portion())
    found = train(own_client, examples, futures, (2, 7), worker)
    assert np.array_equal(found[0], expected(Windowed(data()), (2,))[0])
