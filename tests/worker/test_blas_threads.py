"""How many BLAS threads a replica gets: as many as its minibatches pay for."""

import threading
from concurrent.futures import ThreadPoolExecutor

import threadpoolctl
from distributed import Client, LocalCluster
from test_downpour import train, write_store

import dbdask
from dbdask.models.network import flops_of
from dbdask.worker.blas_limit import BlasLimit


def test_a_small_net_gets_one_thread_of_a_worker_that_has_more(tmp_path, monkeypatch):
    seen, compute = set(), dbdask.Network.loss_and_gradient
    numpys = threadpoolctl.ThreadpoolController().select(user_api="blas")

    def noted(network, *arguments, **options):
        if "Dask" in threading.current_thread().name:  # not the trial before training
            seen.update(pool["num_threads"] for pool in numpys.info())
        return compute(network, *arguments, **options)

    monkeypatch.setattr(dbdask.Network, "loss_and_gradient", noted)
    store = write_store(tmp_path / "store.zarr")
    with (
        LocalCluster(
            processes=False, n_workers=1, threads_per_worker=2, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        train(client, store, replicas=1)
        assert seen == {1}
        monkeypatch.setattr("dbdask.schedule.policies.FLOPS_PER_THREAD", 1.0)
        seen.clear()
        train(client, store, replicas=1)
        assert seen == {2}


def test_the_threads_of_before_come_back_with_the_last_replica():
    numpys, limit = threadpoolctl.ThreadpoolController().select(user_api="blas"), BlasLimit()

    def threads():
        return {pool["num_threads"] for pool in numpys.info()}

    with numpys.limit(limits=4):
        first, second, third = limit.at_most(3), limit.at_most(1), limit.at_most(2)
        first.__enter__()
        assert threads() == {3}
        second.__enter__()
        third.__enter__()
        assert threads() == {1}
        first.__exit__(None, None, None)
        assert threads() == {1}
        second.__exit__(None, None, None)
        assert threads() == {2}
        third.__exit__(None, None, None)
        assert threads() == {4}


def test_every_thread_of_a_process_can_limit():
    """Threads of a worker's pool live on after their task: threadpoolctl would heed the first."""
    numpys, limit = threadpoolctl.ThreadpoolController().select(user_api="blas"), BlasLimit()
    before, seen = [pool["num_threads"] for pool in numpys.info()], []

    def task():
        with limit.at_most(1):
            seen.extend(pool["num_threads"] for pool in numpys.info())

    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for pool in (first, second, first):
            pool.submit(task).result()
    assert set(seen) == {1}
    assert [pool["num_threads"] for pool in numpys.info()] == before


def test_work_is_counted_where_it_is_known():
    layers = [dbdask.Dense(256, "sigmoid"), dbdask.Dense(10)]
    network = dbdask.Network(input_shape=784, layers=layers, loss="softmax")
    assert flops_of(network, 128) == 6 * 203_530 * 128
    assert flops_of(object(), 128) is None

    class Own(dbdask.Dense):
        pass

    network = dbdask.Network(input_shape=784, layers=[Own(10)], loss="softmax")
    assert flops_of(network, 128) is None
