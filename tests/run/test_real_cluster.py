"""Both algorithms on clusters of separate processes that leave, die and come, seen from outside."""

import asyncio
import gc
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import dask
import numpy as np
import pytest
import test_recovery
from acting import After
from asking import workers_of
from forked import read_until
from real_cluster import Authority, RealCluster, signal_group
from search_path import SEARCH_PATH
from test_downpour import assert_nothing_left, write_store
from test_leaving import addresses, shard_workers, wait_until
from test_sandblaster import assert_counted_once, count

import dbdask
from dbdask.rpc.loops import client_loop

EPOCHS = 8


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("real") / "store.zarr")


@pytest.fixture
def cluster(tmp_path):
    with RealCluster(tmp_path) as cluster:
        cluster.start_scheduler()
        yield cluster


def downpour(client, store, *, epochs=EPOCHS, **options):
    """Every example counts `epochs` times."""
    result = test_recovery.train(client, store, epochs=epochs, **options)
    np.testing.assert_array_equal(result.parameters["count"].values, epochs)
    return result


def sandblaster(client, store, *, seconds=0.05, **options):
    """A few slow passes, each of which counts every example once."""
    result = count(client, store, seconds=seconds, shards=2, **options)
    assert_counted_once(result)
    return result


ALGORITHMS = {
    "downpour": (downpour, 4),
    "sandblaster": (sandblaster, 1),
}  # records before it is hit


@pytest.fixture(params=ALGORITHMS)
def algorithm(request):
    """An algorithm, and what does something to it in mid-training."""
    train, records = ALGORITHMS[request.param]
    return train, lambda action: After(records, action)


mostly_downpour = pytest.mark.parametrize(
    "algorithm", ["downpour", pytest.param("sandblaster", marks=pytest.mark.chaos)], indirect=True
)


def kept(tmp_path):
    return {"checkpoint": str(tmp_path / "run.zarr"), "snapshot_every": "200ms"}


def test_both_algorithms_count_exactly(tmp_path, store):
    with RealCluster(tmp_path, interpreters=True) as cluster:
        cluster.start_scheduler()
        client, _ = cluster.start_workers(2)
        downpour(client, store, epochs=2)
        sandblaster(client, store, seconds=0.0)
        assert_nothing_left(client)


@pytest.mark.parametrize("missing", ["dbdask", "acting"])
def test_workers_without_what_the_run_needs_are_named_with_the_remedy(tmp_path, store, missing):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / f"{missing}.py").write_text("raise ModuleNotFoundError('not installed here')")
    environment = {"PYTHONPATH": str(bare), "PYTHONSAFEPATH": "1"}  # not the project's own folder
    with RealCluster(tmp_path, environment=environment, interpreters=True) as cluster:
        cluster.start_scheduler()
        client, _ = cluster.start_workers(1)
        named = r"worker tcp://.*\(not installed here\): install the same packages there"
        with pytest.raises(dbdask.WorkerError, match=named) as raised:
            downpour(client, store)
        assert ("has no dbdask" in str(raised.value)) == (missing == "dbdask")
        assert_client_is_idle(client)


@pytest.mark.parametrize("copies", [1, pytest.param(2, marks=pytest.mark.chaos)])
def test_named_homes_that_all_die_are_waited_for(
    cluster, store, algorithm, tmp_path, caplog, copies
):
    """What starts them again takes a while, in which no running worker has such a name."""
    train, after = algorithm
    client, (_, *homes) = cluster.start_workers(1 + copies)

    def start_again():
        for home in homes:
            cluster.kill(home)
        wait_until(lambda: "to hold shards: one is waited for" in caplog.text, 30)
        for home in homes:
            cluster.start_worker("--name", home)

    act = after(start_again)
    with dask.config.set({"dbdask.arrival": "60s"}):
        train(
            client,
            store,
            shard_workers=homes,
            shard_copies=copies,
            callbacks=[act],
            **kept(tmp_path),
        )
    act.done()
    assert_nothing_left(client)


# TLS


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "ours")


@pytest.mark.slow
def test_over_tls_nothing_but_dasks_own_connections_is_used(tmp_path, store, authority):
    with RealCluster(tmp_path, authority.security()) as cluster:
        cluster.start_scheduler()
        cluster.start_worker()
        client, _ = cluster.start_workers(1, nanny=True)
        own = dask_addresses(client)
        assert all(address.startswith("tls://") for address in own)
        ports = {int(address.rpartition(":")[2]) for address in own}
        seen = [cluster.sockets()]

        def look(record):
            seen.append(cluster.sockets())

        downpour(client, store, epochs=4, callbacks=[look])
        sandblaster(client, store, seconds=0.01, callbacks=[look])
    listening = [{s.laddr.port for s in sockets if s.status == "LISTEN"} for sockets in seen]
    assert len(seen) > 10 and ports <= listening[0]
    assert all(ports_then == listening[0] for ports_then in listening)
    open_ones = [s for sockets in seen for s in sockets if s.status == "ESTABLISHED"]
    assert len(open_ones) > 10 * len(ports)
    assert all(ports & {s.laddr.port, s.raddr.port} for s in open_ones)


def dask_addresses(client):
    workers = workers_of(client)
    nannies = (worker["nanny"] for worker in workers.values() if worker["nanny"])
    return [client.scheduler.address, *workers, *nannies]


@pytest.mark.parametrize("refusing", ["client", "worker", "other worker"])
def test_a_certificate_that_another_refuses_is_named(tmp_path, store, authority, refusing):
    """Dask lets in whom its scheduler trusts; whether the others do shows in the run."""
    theirs = Authority(tmp_path, "theirs")
    with RealCluster(tmp_path, authority.security(theirs)) as cluster:
        cluster.start_scheduler()
        strange, narrow = theirs.security(authority), authority.security()
        cluster.start_worker(security=narrow if refusing != "client" else strange)
        cluster.start_worker(security=strange if refusing == "other worker" else None)
        if refusing != "other worker":
            cluster.security = {"client": narrow, "worker": strange}[refusing]
        client = cluster.client()
        client.wait_for_workers(2, timeout=120)
        began = time.monotonic()
        names = r"tls://127.0.0.1:\d+ cannot be reached from .*TLS certificate.*--tls-ca-file"
        with pytest.raises((dbdask.WorkerError, dbdask.ShardLost), match=names):
            downpour(client, store, shards=2)
        assert time.monotonic() - began < 30


# Workers that leave


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("nanny", "flags"),
    [
        pytest.param(False, (), id="no nanny"),
        pytest.param(True, (), id="nanny"),
        pytest.param(True, ("--lifetime-restart",), id="restart"),
    ],
)
def test_a_worker_whose_lifetime_ends_hands_its_shard_on(cluster, store, nanny, flags):
    began = time.monotonic()
    client, _ = cluster.start_workers(2)
    downpour(client, store, epochs=1, shards=2)
    lifetime = 5 + 3 * (time.monotonic() - began)  # long enough to hold a shard on a busy machine
    short = cluster.start_worker("--lifetime", f"{lifetime:.0f}s", *flags, nanny=nanny)
    client.wait_for_workers(3, timeout=60)
    (worker,) = addresses_of(client, short)
    ended = []

    def look():
        assert worker in shard_workers(client)
        wait_until(lambda: worker not in addresses(client))
        ended.append(time.monotonic())

    beside = After(4, look)
    result = downpour(client, store, epochs=30, shards=3, callbacks=[beside])
    trained = time.monotonic()
    beside.done()
    assert ended[0] < trained
    assert_no_update_lost(result)
    if "--lifetime-restart" in flags:
        wait_until(lambda: addresses_of(client, short))
    else:
        assert cluster.processes[short].wait(timeout=120) == 0
    assert_nothing_left(client)


def addresses_of(client, name):
    workers = workers_of(client)
    return [address for address, worker in workers.items() if worker["name"] == name]


def name_of(client, address):
    return workers_of(client)[address]["name"]


def assert_no_update_lost(result):
    last = result.history.isel(record=-1)
    assert last["lost"] == 0 and last["rolled_back"] == 0


@mostly_downpour
@pytest.mark.parametrize("nanny", [False, True], ids=["no nanny", "nanny"])
def test_sigterm_hands_a_shard_on(cluster, store, algorithm, nanny, quick_turns):
    train, when_under_way = algorithm
    client, _ = cluster.start_workers(2 if nanny else 3, nanny=nanny)
    seconds = []

    def terminate():
        last = name_of(client, shard_workers(client)[0])
        began = time.monotonic()
        cluster.signal(last, signal.SIGTERM)
        assert cluster.processes[last].wait(timeout=120) == 0
        seconds.append(time.monotonic() - began)

    beside = when_under_way(terminate)
    result = train(client, store, callbacks=[beside])
    beside.done()
    print(f"left within {seconds[0]:.1f} s")
    assert_no_update_lost(result)
    assert_nothing_left(client)


@pytest.mark.chaos
def test_sigterm_to_all_processes_of_a_worker_hands_its_shard_on(cluster, store):
    """A batch system signals the nanny and its worker at once."""
    client, _ = cluster.start_workers(3, nanny=True)

    def terminate():
        process = cluster.processes[name_of(client, shard_workers(client)[0])]
        signal_group(process, signal.SIGTERM)
        process.wait(timeout=120)

    beside = After(4, terminate)
    result = downpour(client, store, callbacks=[beside])
    beside.done()
    assert_no_update_lost(result)


def test_ctrl_c_in_a_terminal_keeps_what_its_own_workers_have_learnt(store):
    """A terminal signals the client and the workers of its LocalCluster at once."""
    script = """
        from distributed import Client, LocalCluster
        from test_recovery import train
        if __name__ == "__main__":
            with (
                LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
                Client(cluster) as client,
            ):
                say = lambda record: print("going", flush=True)
                result = train(client, {store!r}, epochs=10_000, callbacks=[say])
                lost = result.history["lost"].values[-1]
                print(result.status.reason, lost, result.parameters["count"].values.sum() > 0)
    """
    process = start_script(script.format(store=store))
    read_until(process, "going")
    signal_group(process, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert "interrupted 0 True" in said.splitlines(), said


def start_script(script, environment=None):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ
        | {"PYTHONPATH": SEARCH_PATH, "PYTHONWARNINGS": "ignore"}
        | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )


# The scheduler


def assert_client_is_idle(client):
    """Nothing of a run goes on in this process, neither as a task nor as a thread."""

    async def ours():
        coroutines = [task.get_coro() for task in asyncio.all_tasks()]
        files = {c.__qualname__: inspect.getfile(c.cr_code) for c in coroutines}
        tasks = [name for name, file in files.items() if f"{os.sep}dbdask{os.sep}" in file]
        return tasks + [t.name for t in threading.enumerate() if "dbdask" in t.name]

    def look():
        return asyncio.run_coroutine_threadsafe(ours(), client_loop(client)).result(5)

    until = time.monotonic() + 120
    while (left := look()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


def failing(train, *arguments, match, **options):
    """Train until it fails; returns the seconds since the last record."""
    last = [0.0]

    def note(record):
        last[0] = time.monotonic()

    with pytest.raises((dbdask.ShardLost, dbdask.WorkerError), match=match):
        train(*arguments, **options | {"callbacks": [note, *options["callbacks"]]})
    return time.monotonic() - last[0]


@mostly_downpour
def test_a_killed_scheduler_is_named_and_the_run_can_be_resumed(
    cluster, store, algorithm, tmp_path
):
    train, when_under_way = algorithm
    client, _ = cluster.start_workers(2)
    seconds = failing(
        train,
        client,
        store,
        match=r"scheduler tcp://.* closed its connection.*run\.zarr', resume=True",
        callbacks=[when_under_way(lambda: cluster.kill("scheduler"))],
        **kept(tmp_path),
    )
    assert seconds < 30
    assert_client_is_idle(client)
    wait_until(lambda: not cluster.running())
    cluster.start_scheduler()
    client, _ = cluster.start_workers(2)
    result = train(client, store, resume=True, **kept(tmp_path))
    assert result.status.ok
    assert_nothing_left(client)


@mostly_downpour
def test_a_killed_scheduler_without_a_checkpoint_is_an_error_too(cluster, store, algorithm, caplog):
    train, when_under_way = algorithm
    client, _ = cluster.start_workers(2)
    seconds = failing(
        train,
        client,
        store,
        match=r"scheduler tcp://.* closed its connection.*give checkpoint=PATH",
        callbacks=[when_under_way(lambda: cluster.kill("scheduler"))],
    )
    assert seconds < 30
    assert "it is tried again" not in caplog.text  # no portion has failed
    assert_client_is_idle(client)


@pytest.mark.chaos
def test_a_scheduler_that_pauses_is_waited_for(cluster, store, algorithm):
    train, when_under_way = algorithm
    client, _ = cluster.start_workers(2)

    def pause():
        cluster.signal("scheduler", signal.SIGSTOP)
        time.sleep(3)
        cluster.signal("scheduler", signal.SIGCONT)

    with dask.config.set({"dbdask.ping": "2s"}):
        result = train(client, store, callbacks=[when_under_way(pause)])
    assert_no_update_lost(result)
    assert_nothing_left(client)


@pytest.mark.chaos
def test_a_scheduler_that_stays_silent_ends_the_run(cluster, store, algorithm, tmp_path):
    train, when_under_way = algorithm
    client, _ = cluster.start_workers(2)
    with dask.config.set({"dbdask.ping": "2s"}):
        seconds = failing(
            train,
            client,
            store,
            match=r"scheduler tcp://.* gave no answer for 4 s.*resume=True",
            callbacks=[when_under_way(lambda: cluster.signal("scheduler", signal.SIGSTOP))],
            **kept(tmp_path),
        )
    assert seconds < 30
    cluster.signal("scheduler", signal.SIGCONT)
    assert_client_is_idle(client)
    wait_until(lambda: is_clean(client))
    train(client, store, resume=True, **kept(tmp_path))


def is_clean(client):
    try:
        assert_nothing_left(client)
    except AssertionError:
        return False
    return not any(client.run(farewells).values())


def farewells(dask_worker):
    return [name for name in dask_worker.plugins if "dbdask" in name]


# The client


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["downpour", "sandblaster"])
def test_a_killed_client_leaves_nothing_on_workers_with_shards(tmp_path, store, name):
    script = """
        from distributed import Client
        from test_real_cluster import ALGORITHMS
        client = Client(scheduler_file={file!r})
        train, _ = ALGORITHMS[{name!r}]
        options = {options}
        train(client, {store!r}, callbacks=[lambda r: print("going", flush=True)], **options)
    """
    with RealCluster(tmp_path, environment={"DASK_DBDASK__LEASE": "1s"}) as cluster:
        cluster.start_scheduler()
        client, _ = cluster.start_workers(2)
        options = {"epochs": 10_000} if name == "downpour" else {"seconds": 0.2}
        file = str(cluster.address_file)
        process = start_script(script.format(file=file, name=name, options=options, store=store))
        read_until(process, "going")
        assert len(shard_workers(client)) == 2
        process.kill()
        process.communicate()
        began = time.monotonic()
        wait_until(lambda: is_clean(client), seconds=120)
        print(f"clean after {time.monotonic() - began:.1f} s")
        downpour(client, store, epochs=1)


# No worker is left


@mostly_downpour
def test_an_error_when_every_worker_is_killed(cluster, store, algorithm):
    train, when_under_way = algorithm
    client, names = cluster.start_workers(2)
    seconds = failing(
        train,
        client,
        store,
        match=r"gone.*give checkpoint=PATH",
        callbacks=[when_under_way(lambda: [cluster.kill(name) for name in names])],
    )
    assert seconds < 30
    assert_client_is_idle(client)


@pytest.mark.chaos
def test_an_error_when_every_worker_is_killed_and_none_comes(cluster, store, algorithm, tmp_path):
    train, when_under_way = algorithm
    client, names = cluster.start_workers(2)
    seconds = failing(
        train,
        client,
        store,
        match=r"none came in 15 s.*run\.zarr', resume=True",
        callbacks=[when_under_way(lambda: [cluster.kill(name) for name in names])],
        **kept(tmp_path),
    )
    assert seconds < 30  # with the deadlines as they are
    assert_client_is_idle(client)


@pytest.mark.chaos
def test_a_worker_that_joins_after_all_were_killed_goes_on(cluster, store, algorithm, tmp_path):
    train, when_under_way = algorithm
    client, names = cluster.start_workers(2)

    def replace():
        for name in names:
            cluster.kill(name)
        cluster.start_worker()

    result = train(client, store, callbacks=[when_under_way(replace)], **kept(tmp_path))
    assert result.history["lost"].values[-1] >= 2
    assert_nothing_left(client)


# Logs


async def leave_an_error(dask_worker):
    """Let a task of a worker's loop fail, and retrieve its error nowhere."""

    async def fail():
        raise ArithmeticError("nobody looks")

    failing = asyncio.ensure_future(fail())
    await asyncio.wait({failing})
    del failing
    gc.collect()


def unretrieved(cluster, client):
    """Names of the processes whose logs speak of an error that was never retrieved."""
    client.run(gc.collect)
    client.run_on_scheduler(gc.collect)
    return [name for name in cluster.processes if "never retrieved" in cluster.log(name)]


@pytest.mark.parametrize(
    "algorithm", ["downpour", pytest.param("sandblaster", marks=pytest.mark.slow)], indirect=True
)
def test_no_process_logs_an_error_that_was_never_retrieved(
    cluster, store, algorithm, quick_turns, caplog
):
    train, when_under_way = algorithm
    client, _ = cluster.start_workers(3)
    beside = when_under_way(lambda: cluster.kill(name_of(client, shard_workers(client)[0])))
    train(client, store, callbacks=[beside], shard_copies=2)
    beside.done()
    assert "recovering" in caplog.text
    assert unretrieved(cluster, client) == []
    assert "never retrieved" not in caplog.text
    chosen = min(addresses(client))
    client.run(leave_an_error, workers=[chosen])
    name = name_of(client, chosen)
    wait_until(lambda: unretrieved(cluster, client) == [name])  # the logs would show it


# Every worker is replaced


@pytest.mark.chaos
def test_every_worker_can_be_retired_in_turn(cluster, store):
    client, names = cluster.start_workers(3)
    seconds, moments, ended = [], [], []

    def replace():
        for leaving in [addresses_of(client, name)[0] for name in names]:
            new = cluster.start_worker()
            wait_until(lambda new=new: addresses_of(client, new))
            assert leaving in shard_workers(client)
            began = time.monotonic()
            client.retire_workers([leaving])
            wait_until(lambda leaving=leaving: leaving not in addresses(client))
            seconds.append(time.monotonic() - began)
        ended.append(time.monotonic())

    beside = After(4, replace)
    result = downpour(
        client,
        store,
        epochs=40,
        shards=3,
        callbacks=[beside, lambda record: moments.append(time.monotonic())],
    )
    trained = time.monotonic()
    beside.done()
    print("left within", [round(s, 1) for s in seconds], "s, longest pause", max(np.diff(moments)))
    assert len(seconds) == 3 and max(seconds) < 10
    assert ended[0] < trained and max(np.diff(moments)) < 5
    assert_no_update_lost(result)
    assert_nothing_left(client)
    wait_until(lambda: len(cluster.running()) == 4)
