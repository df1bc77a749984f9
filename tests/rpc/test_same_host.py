"""Calls between processes of one host: the shard works on the caller's own memory."""

import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading

import dask
import numpy as np
import pytest
from forked import fork_script, read_until
from routing import finish
from search_path import SEARCH_PATH
from test_downpour import assert_nothing_left, flat, train, write_store
from test_leaving import wait_until
from test_sandblaster import train as minimise
from test_transport import SIZE, make_shard

from dbdask.errors import Stale
from dbdask.optim.optimizers import sgd
from dbdask.rpc import same_host_messages, shared_memory
from dbdask.rpc.calls import MethodRaised
from dbdask.rpc.deadlines import DEFAULTS
from dbdask.rpc.same_host import SameHost
from dbdask.rpc.same_host_messages import (
    PACKET,
    host_identity,
    new_socket_name,
    socket_address,
)
from dbdask.rpc.same_host_server import THREADS, ChannelServer
from dbdask.rpc.shared_memory import map_vector, memory_of, shared_vector
from dbdask.rpc.transport import Request
from dbdask.worker.context import contexts_on

pytestmark = pytest.mark.skipif(
    not same_host_messages.IS_SUPPORTED, reason="this system has no memfd"
)


class NoOther:
    """Stands for Dask's connections where a test must not come to them."""

    def start(self, *arguments):
        raise AssertionError("the call went another way")


def held():
    """What this process holds of channels: descriptors, mappings, and threads."""
    gc.collect()
    files = []
    for number in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the listing itself
            continue
    with open("/proc/self/maps") as maps:
        mapped = [line for line in maps if "/memfd:dbdask" in line]
    ours = [f for f in files if f.startswith(("socket:", "/memfd:dbdask"))]
    return len(ours), len(mapped), held_threads()


ACCEPTS = "00010000"


def listening(name):
    """Whether a socket of a name in the abstract namespace accepts callers, by the kernel."""
    with open("/proc/net/unix") as sockets:
        found = [line.split() for line in sockets]
    return any(
        path == [f"@{name}"] and flags == ACCEPTS for _, _, _, flags, _, _, _, *path in found
    )


def held_threads():
    return sum(thread.name.startswith(THREADS) for thread in threading.enumerate())


@pytest.fixture
def shard():
    return make_shard()


@pytest.fixture
def way(shard):
    """The transport to the shard, over a socket within this process."""
    server = ChannelServer(shard)
    way = SameHost(lambda: server.listen(host_identity()), NoOther())
    way.prove()
    yield way
    way.close()
    server.close()
    wait_until(lambda: held_threads() == 0)


def push(way, step, gradient, into=None, portion=0, generation=0):
    return way.start(Request("push", generation, ((0, portion, step), 0)), gradient, into)


def ones():
    vector = shared_vector(SIZE)
    vector.fill(1)
    return vector


def test_a_shard_reads_and_writes_the_callers_memory(way, shard):
    gradient, local = ones(), shared_vector(SIZE)
    assert finish(push(way, 0, gradient, local)).version == 1
    np.testing.assert_array_equal(local, -1)
    gradient[:] = 3
    assert finish(push(way, 1, gradient, local)).version == 2
    np.testing.assert_array_equal(local, -4)
    assert finish(push(way, 1, gradient)).staleness == -1
    whole = shared_vector(3 * SIZE)
    whole.fill(0)
    assert finish(way.start(Request("fetch", 0), None, whole[SIZE : 2 * SIZE])) == 2
    np.testing.assert_array_equal(whole, np.repeat([0, -4, 0], SIZE))
    assert finish(way.start(Request("progress", 0, (0, 0)))).last_step == 1


def test_the_name_is_used_once_and_is_gone_when_it_is_connected(shard):
    server, names = ChannelServer(shard), []

    def listen():
        names.append(server.listen(host_identity()))
        assert listening(names[-1])
        return names[-1]

    ways = [SameHost(listen, NoOther()) for _ in range(2)]
    for way in ways:
        way.prove()
    assert len(set(names)) == 2
    assert not any(map(listening, names))
    for way in ways:
        way.close()
    server.close()


def test_what_a_shard_raises_comes_to_the_caller(way, shard):
    with pytest.raises(MethodRaised) as raised:
        finish(push(way, 0, ones(), generation=7))
    assert isinstance(raised.value.error, Stale)
    for length in (10, PACKET - 1, 3 * PACKET):
        shard.optimizer = Failing("x" * length)
        with pytest.raises(MethodRaised) as raised:
            finish(push(way, 0, ones()))
        assert raised.value.error.args == ("x" * length,)
    shard.optimizer = sgd(1.0)
    assert finish(push(way, 0, ones())).version == 1


class Failing:
    """An update rule that raises."""

    slots = ()

    def __init__(self, text):
        self.text = text

    def update(self, parameters, gradient, slots, step):
        raise ValueError(self.text)


def test_a_message_of_exactly_some_packets_arrives(way, shard):
    """The end of such a message is an empty packet."""
    overhead = len(pickle.dumps(((("progress", 0, ("",)), None, None, [], [])), 5))
    for length in range(PACKET - overhead - 16, PACKET - overhead + 1):
        with pytest.raises(MethodRaised):
            finish(way.start(Request("progress", 0, ("x" * length,))))
    assert finish(way.start(Request("progress", 0, (0, 0)))).last_step == -1


def test_callers_that_come_at_once_get_connections_of_their_own(way, shard):
    errors = []

    def replica(portion):
        gradient, local = ones(), shared_vector(SIZE)
        try:
            for step in range(50):
                finish(push(way, step, gradient, local, portion))
                assert np.ptp(local) == 0  # never torn
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=replica, args=[portion]) for portion in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    np.testing.assert_array_equal(shard.state.vectors["parameters"], -200)


def test_a_call_that_is_cancelled_wakes_its_thread_and_gives_its_connection_up(way, shard):
    before = held()
    with shard.lock:
        call = push(way, 0, ones())
        assert not call.wait(0.01)
        waited: list = []
        waiting = threading.Thread(target=lambda call=call: waited.append(call.wait(60)))
        waiting.start()
        call.cancel()
        waiting.join(120)
    assert waited == [True]
    with pytest.raises(ConnectionAbortedError):
        call.result()
    assert finish(push(way, 1, ones())).version >= 1  # over a new connection
    del call
    wait_until(lambda: held() == before)


def test_memory_that_the_caller_drops_is_dropped_by_the_shard(way):
    finish(way.start(Request("progress", 0, (0, 0))))  # the memory of the trial is dropped
    before = held()
    for step in range(5):
        finish(push(way, step, ones(), shared_vector(SIZE)))
    finish(way.start(Request("progress", 0, (0, 0))))
    assert held() == before


def test_a_shard_that_is_dropped_ends_its_connections():
    before, shard = held(), make_shard()
    way = SameHost(partial_listen(ChannelServer(shard)), NoOther())
    way.prove()
    finish(push(way, 0, ones()))
    del shard
    gc.collect()
    with pytest.raises(ConnectionError):
        finish(push(way, 1, ones()))
    way.close()
    wait_until(lambda: held() == before)


def partial_listen(server):
    return lambda: server.listen(host_identity())


def test_vectors_of_ordinary_memory_go_the_other_way(shard):
    class Other(NoOther):
        def start(self, request, sent=None, into=None):
            taken.append(sent)
            return "other"

    taken: list = []
    way = SameHost(partial_listen(ChannelServer(shard)), Other())
    ordinary = np.ones(SIZE, np.float32)
    assert push(way, 0, ordinary) == "other" and taken == [ordinary]
    way.close()


# Where it does not work


def test_another_host_is_refused(shard):
    server = ChannelServer(shard)
    for host in ("", "another"):
        with pytest.raises(OSError, match="another host"):
            server.listen(host)


def test_a_socket_of_another_user_is_refused(shard, monkeypatch):
    monkeypatch.setattr(same_host_messages, "_peer", lambda connection: os.getuid() + 1)
    with pytest.raises(OSError, match="belongs to user|memory cannot be shared|broke"):
        SameHost(partial_listen(ChannelServer(shard)), NoOther()).prove()


def test_a_stranger_that_comes_first_is_refused_and_the_caller_is_served(shard, monkeypatch):
    """The names of sockets are no secret on a host."""
    server, peer = ChannelServer(shard), same_host_messages._peer
    strange = socket_address(new_socket_name())

    def of_another_user(connection):
        """Only this connection: a thread of an earlier test may ask as well."""
        return os.getuid() + 1 if connection.getpeername() == strange.encode() else peer(connection)

    monkeypatch.setattr(same_host_messages, "_peer", of_another_user)
    name = server.listen(host_identity())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.bind(strange)
        stranger.connect(socket_address(name))
        assert stranger.recv(1) == b""
    way = SameHost(lambda: name, NoOther())
    way.prove()
    assert finish(push(way, 0, ones())).version == 1
    way.close()
    server.close()


def test_a_name_on_which_no_process_listens_is_refused():
    with pytest.raises(ConnectionRefusedError):
        SameHost(lambda: "dbdask-nowhere-at-all", NoOther()).prove()


def test_no_thread_waits_for_ever_for_a_caller_that_does_not_come(shard):
    with dask.config.set({"dbdask.connect": "50ms"}):
        name = ChannelServer(shard).listen(host_identity())
        wait_until(lambda: not listening(name) and held_threads() == 0)


def test_memory_that_could_be_cut_short_is_refused():
    descriptor = os.memfd_create("dbdask-test")
    os.ftruncate(descriptor, 4096)
    with pytest.raises(OSError, match="sealed"):
        map_vector(os.dup(descriptor))
    os.close(descriptor)
    memory, _ = memory_of(shared_vector(SIZE))
    with pytest.raises(OSError):
        os.ftruncate(memory.descriptor, 0)


def test_without_shared_memory_vectors_are_ordinary(monkeypatch):
    monkeypatch.setattr(shared_memory, "IS_SUPPORTED", False)
    vector = shared_vector(SIZE)
    assert vector.size == SIZE and memory_of(vector) is None
    assert memory_of(shared_vector(0)) is None


# Processes that are killed

PATHS = SEARCH_PATH.split(os.pathsep)

HOLDER = """
import sys, time
sys.path[:0] = {paths!r}
from dbdask.rpc.same_host_server import ChannelServer
from test_transport import make_shard
class Busy:
    slots = ()
    def update(self, parameters, gradient, slots, step):
        if step:
            print("busy", flush=True)
            time.sleep(600)
shard = make_shard()
shard.optimizer = Busy()
server = ChannelServer(shard)
for host in sys.stdin:
    print(server.listen(host.strip()), flush=True)
"""


@pytest.fixture
def holder(tmp_path):
    """A process with a shard; its temporary folder is `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(paths=PATHS)],
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONWARNINGS": "ignore"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def listen_in(holder):
    print(host_identity(), file=holder.stdin, flush=True)
    return holder.stdout.readline().strip()


def test_a_shard_that_is_killed_before_its_caller_comes_leaves_nothing(holder, tmp_path):
    name = listen_in(holder)
    assert listening(name)
    holder.kill()
    holder.wait()
    assert not listening(name) and not list(tmp_path.iterdir())
    with pytest.raises(ConnectionRefusedError):
        SameHost(lambda: name, NoOther()).prove()


def test_a_killed_shard_ends_the_call_at_once_and_leaves_nothing(holder, tmp_path):
    before = held()
    way = SameHost(lambda: listen_in(holder), NoOther())
    way.prove()
    finish(push(way, 0, ones()))
    call = push(way, 1, ones(), shared_vector(SIZE))
    assert holder.stdout.readline() == "busy\n"
    assert not call.wait(0.05)
    holder.kill()
    assert call.wait(120)
    with pytest.raises(ConnectionResetError):
        call.result()
    way.close()
    del call
    assert held() == before
    assert not list(tmp_path.iterdir())


CALLER = """
from dbdask.rpc.same_host import SameHost
from routing import finish
from test_same_host import ones, push
way = SameHost(lambda: {name!r}, None)
way.prove()
gradient = ones()
finish(push(way, 0, gradient))
print("going", flush=True)
for step in range(1, 10**9):
    finish(push(way, step, gradient))
"""


def test_a_killed_caller_ends_its_thread_and_its_mappings(shard):
    before = held()
    with dask.config.set({"dbdask.connect": "60s"}):
        name = ChannelServer(shard).listen(host_identity())
        caller = fork_script(CALLER.format(name=name))
    read_until(caller, "going")
    assert held()[1] > before[1]
    caller.kill()
    caller.communicate()
    wait_until(lambda: held() == before)
    applied = shard.state.applied
    assert applied >= 1
    np.testing.assert_array_equal(shard.state.vectors["parameters"], -applied)


# Runs


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("same_host") / "store.zarr")


@pytest.fixture(params=["in-process", "same-host", "dask"])
def chosen(request, monkeypatch):
    """A way that every call of this process takes; how many calls took it."""
    from dbdask.rpc import transport

    kinds = {
        "in-process": transport.InProcess,
        "same-host": SameHost,
        "dask": transport.DaskConnection,
    }
    taken = []
    for name, kind in kinds.items():

        def noted(way, *arguments, _name=name, _start=kind.start, **options):
            taken.append(_name)
            return _start(way, *arguments, **options)

        monkeypatch.setattr(kind, "start", noted)
    with dask.config.set({"dbdask.transport": request.param}):
        yield request.param, taken


PACES = [{}, {"n_fetch": 3, "n_push": 2}]


@pytest.fixture(scope="module")
def expected(threads_client, store):
    """What one replica makes of the store over Dask's connections."""
    with dask.config.set({"dbdask.transport": "dask"}):
        return [result_of(threads_client, store, paces) for paces in PACES]


def result_of(client, store, paces):
    result = train(client, store, replicas=1, shards=3, epochs=2, **paces)
    return flat(result), result.history["loss"].values


def test_one_replica_comes_to_the_same_bits_by_every_way(threads_client, store, chosen, expected):
    name, taken = chosen
    for paces, (parameters, losses) in zip(PACES, expected, strict=True):
        found, found_losses = result_of(threads_client, store, paces)
        np.testing.assert_array_equal(found, parameters)
        np.testing.assert_array_equal(found_losses, losses)
    assert taken.count(name) > 100 and set(taken) == {name}
    assert_nothing_left(threads_client)


@pytest.fixture(scope="module")
def minimum(threads_client, store):
    """What L-BFGS with one replica makes of the store over Dask's connections."""
    with dask.config.set({"dbdask.transport": "dask"}):
        return minimum_of(threads_client, store)


def minimum_of(client, store):
    result = minimise(client, store, replicas=1, shards=3, iterations=5, tolerance=0.0)
    return flat(result), result.history["loss"].values


def test_passes_of_one_replica_come_to_the_same_bits_by_every_way(
    threads_client, store, chosen, minimum
):
    name, taken = chosen
    found, losses = minimum_of(threads_client, store)
    np.testing.assert_array_equal(found, minimum[0])
    np.testing.assert_array_equal(losses, minimum[1])
    assert taken.count(name) > 10 and set(taken) == {name}
    assert_nothing_left(threads_client)


def test_passes_in_processes_come_to_the_same_bits(process_client, store, minimum):
    """By themselves they share memory."""
    found, losses = minimum_of(process_client, store)
    np.testing.assert_array_equal(found, minimum[0])
    np.testing.assert_array_equal(losses, minimum[1])
    wait_until(lambda: not any(process_client.run(mapped).values()))


def mapped():
    with open("/proc/self/maps") as maps:
        return sum("/memfd:dbdask" in line for line in maps)


def test_processes_share_memory_while_a_run_lasts(process_client, store, expected):
    seen = []

    def look(record):
        seen.append(max(process_client.run(mapped).values()))

    result = train(process_client, store, replicas=1, shards=3, epochs=2, callbacks=[look])
    np.testing.assert_array_equal(flat(result), expected[0][0])
    assert max(seen) > 0
    wait_until(lambda: not any(process_client.run(mapped).values()))
    wait_until(lambda: not any(process_client.run(held_threads).values()))


def test_a_run_whose_client_is_killed_leaves_no_memory(process_client, store):
    process_client.run(dask.config.set, {"dbdask.lease": "500ms"})
    process_client.run(gc.disable)  # an idle worker collects hardly any garbage
    script = fork_script(
        f"""
        import dbdask
        from distributed import Client
        from test_downpour import train
        client = Client({process_client.scheduler.address!r})
        say = lambda record: print("going", flush=True)
        train(client, {store!r}, shards=2, epochs=100_000, callbacks=[say])
        """
    )
    assert "going\n" in iter(script.stdout.readline, "")
    os.kill(script.pid, signal.SIGKILL)
    script.communicate()
    try:
        wait_until(lambda: not any(process_client.run(mapped).values()))
        wait_until(lambda: not any(process_client.run(held_threads).values()))
    except AssertionError as error:
        error.add_note(f"open contexts: {process_client.run(contexts_on)}")
        raise
    finally:
        process_client.run(gc.enable)
        process_client.run(dask.config.set, {"dbdask.lease": DEFAULTS["lease"]})
