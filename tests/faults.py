"""Faults that clusters have, as data: what happens, to whom, and how it is brought about.

Victims are drawn by a seed. Only processes of the cluster that the test made are signalled.
"""

import asyncio
import contextlib
import ctypes
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from acting import touch
from asking import workers_of
from distributed import Client, WorkerPlugin
from routing import disturb, finish
from zarr.storage import LocalStore

from dbdask.data.stores import RegularStore
from dbdask.errors import CheckpointError
from dbdask.storage import checkpoint


def everyone(client: Client) -> list[str]:
    """Addresses of the workers, sorted."""
    return sorted(workers_of(client))


def holders(client: Client) -> list[str]:
    """Addresses of the workers that hold a shard, sorted."""
    return sorted(
        client.run_on_scheduler(
            lambda dask_scheduler: [a for a, w in dask_scheduler.workers.items() if w.actors]
        )
    )


def processes(client: Client, workers: Sequence[str]) -> list[int]:
    """Process ids of some workers."""
    return list(client.run(os.getpid, workers=list(workers)).values())


# Whom it meets: a function of the cluster and of the seed.


def a_shard_holder(client: Client, rng: random.Random) -> list[str]:
    return [rng.choice(holders(client))]


def no_shard_holder(client: Client, rng: random.Random) -> list[str]:
    return [rng.choice(sorted(set(everyone(client)) - set(holders(client))) or everyone(client))]


def anyone(client: Client, rng: random.Random) -> list[str]:
    return [rng.choice(everyone(client))]


def two_at_once(client: Client, rng: random.Random) -> list[str]:
    return rng.sample(everyone(client), 2)


def all_but_one(client: Client, rng: random.Random) -> list[str]:
    workers = everyone(client)
    return rng.sample(workers, len(workers) - 1)


def all_holders(client: Client, rng: random.Random) -> list[str]:
    return holders(client)


Victims = Callable[[Client, random.Random], list[str]]


@dataclass(frozen=True)
class Kill:
    """SIGKILL of the victims' processes; their nannies start new ones."""

    victims: Victims

    def __call__(self, client: Client, rng: random.Random) -> None:
        for process in processes(client, self.victims(client, rng)):
            os.kill(process, signal.SIGKILL)


@dataclass(frozen=True)
class Stop:
    """SIGSTOP, and SIGCONT after some seconds: silent, not dead, and then a zombie."""

    victims: Victims
    seconds: float

    def __call__(self, client: Client, rng: random.Random) -> None:
        stopped = processes(client, self.victims(client, rng))
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        threading.Timer(self.seconds, self._go_on, [stopped]).start()

    def _go_on(self, stopped: list[int]) -> None:
        for process in stopped:
            with contextlib.suppress(ProcessLookupError):  # its nanny took it for dead
                os.kill(process, signal.SIGCONT)


@dataclass(frozen=True)
class Retire:
    """The victims are asked to leave, as `client.retire_workers` does."""

    victims: Victims

    def __call__(self, client: Client, rng: random.Random) -> None:
        client.retire_workers(self.victims(client, rng))


PUSHES = ("push", "contribute")


class Mischief(WorkerPlugin):
    """Messages of replicas arrive late and out of order, twice, long after, or unanswered.

    Parameters
    ----------
    seed
        With the worker's address it decides what happens to each message.
    repeated, haunted, unanswered
        Shares of the pushes that arrive twice; that arrive once more half a second later; whose
        answer is lost when they have been applied.
    """

    name = "mischief"

    def __init__(
        self, seed: int, repeated: float = 0.0, haunted: float = 0.0, unanswered: float = 0.0
    ) -> None:
        self.seed = seed
        self.repeated, self.haunted, self.unanswered = repeated, haunted, unanswered

    def setup(self, worker) -> None:
        self.rng = random.Random(f"{self.seed} {worker.address}")
        self.stop = disturb(self.start)

    def teardown(self, worker) -> None:
        self.stop()

    def start(self, way, place, request, sent, into):
        rng = self.rng
        is_very_late = rng.random() < 0.005
        time.sleep(rng.uniform(0.0, 0.3 if is_very_late else 0.01))
        if request.method not in PUSHES:
            return way.start(request, sent, into)
        if rng.random() < self.repeated:
            finish(way.start(request, sent))
        call = way.start(request, sent, into)
        if rng.random() < self.haunted:
            haunt(way, request, sent.copy())
        if rng.random() < self.unanswered:
            finish(call)
            raise OSError("the answer was lost")
        return call


def haunt(way, request, sent) -> None:
    """Send a push once more half a second later."""

    def ghost():
        with contextlib.suppress(Exception):  # the shard has gone, or refuses it
            finish(way.start(request, sent))

    timer = threading.Timer(0.5, ghost)
    timer.daemon = True
    timer.start()


@dataclass(frozen=True)
class Disturb:
    """From now on messages between replicas and shards are disturbed."""

    repeated: float = 0.0
    haunted: float = 0.0
    unanswered: float = 0.0

    def __call__(self, client: Client, rng: random.Random) -> None:
        plugin = Mischief(rng.randrange(1000), self.repeated, self.haunted, self.unanswered)
        client.register_plugin(plugin)


@dataclass(frozen=True)
class Delete:
    """The checkpoint is deleted; once a snapshot is there again, a shard's worker may be killed."""

    kills: bool = False

    def __call__(self, client: Client, rng: random.Random, path: str) -> None:
        shutil.rmtree(path, ignore_errors=True)
        until = time.monotonic() + 120
        while not _has_snapshot(path):
            assert time.monotonic() < until, "no snapshot was written again"
            time.sleep(0.02)
        if self.kills:
            Kill(a_shard_holder)(client, rng)


def _has_snapshot(path: str) -> bool:
    try:
        return checkpoint.latest(path) is not None
    except CheckpointError:  # it is being written
        return False


@dataclass(frozen=True)
class Cancel:
    """Dask cancels every portion and bundle that is out: their work goes on, and nobody hears."""

    def __call__(self, client: Client, rng: random.Random) -> None:
        until = time.monotonic() + 120
        while not client.run_on_scheduler(_cancel_work, client_id=client.id):
            assert time.monotonic() < until, "no work was given out"


def _cancel_work(dask_scheduler, client_id: str) -> int:
    keys = [k for k in dask_scheduler.tasks if str(k).startswith(WORK)]
    dask_scheduler.client_releases_keys(keys, client_id, "test")
    return len(keys)


WORK = ("dbdask-portion-", "dbdask-bundle-")


@dataclass(frozen=True)
class PauseClient:
    """Every thread of the client's process stands still, as after SIGSTOP: one holds the GIL.

    The scheduler and the nannies of a `LocalCluster` are in that process too.
    """

    seconds: int

    def __call__(self, client: Client, rng: random.Random) -> None:
        ctypes.PyDLL(None).sleep(self.seconds)


class Holding(WorkerPlugin):
    """Folders under a path answer no question about keys as long as there is a file."""

    name = "tests-holding"

    def __init__(self, root: str, flag: str, kept: str = "") -> None:
        self.root, self.flag, self.kept = root, flag, kept

    def setup(self, worker=None) -> None:
        self.before = [(c, n, getattr(c, n)) for c, n in HELD]
        for kind, name, function in self.before:
            setattr(kind, name, self.held(function))

    def teardown(self, worker=None) -> None:
        for kind, name, function in self.before:
            setattr(kind, name, function)

    def held(self, function):
        async def wait_and_call(store, key, *arguments, **options):
            while self.kept in key and self.is_held(store):
                await asyncio.sleep(0.02)
            return await function(store, key, *arguments, **options)

        return wait_and_call

    def is_held(self, store) -> bool:
        if not str(store.root).startswith(self.root) or not os.path.exists(self.flag):
            return False
        touch(self.flag + "-felt")
        return True


HELD = ((LocalStore, "get"), (LocalStore, "set"), (RegularStore, "get"))


@dataclass(frozen=True)
class Hang:
    """A store hangs for some seconds from when a process first waits for it.

    Parameters
    ----------
    seconds
        How long.
    kept
        Is in the keys that hang: all, or those of chunks.
    kills
        Whether a worker is killed: the one that takes its place has read nothing yet.
    """

    seconds: float
    kept: str = ""
    kills: bool = False

    def __call__(self, client: Client, rng: random.Random, path: str) -> None:
        flag = f"{path}-hangs"
        plugin = Holding(path, flag, self.kept)
        touch(flag)
        client.register_plugin(plugin)
        plugin.setup()
        try:
            if self.kills:
                Kill(no_shard_holder)(client, rng)
            wait_for_file(flag + "-felt")
            time.sleep(self.seconds)
        finally:
            os.remove(flag)
            plugin.teardown()


@dataclass(frozen=True)
class Raised:
    """What raises once has done so: `RaisesOnce` brings it about."""

    def __call__(self, client: Client, rng: random.Random, path: str) -> None:
        wait_for_file(f"{path}-raised")


class RaisesOnce:
    """An optimiser or a model one method of which raises once, in whichever process is first."""

    def __init__(self, inner, method: str, path: str) -> None:
        self.inner, self.method, self.path = inner, method, f"{path}-raised"

    def __getattr__(self, name):
        if name.startswith("__") or name in ("inner", "method", "path"):
            raise AttributeError(name)
        found = getattr(self.inner, name)
        return self._once(found) if name == self.method else found

    def update(self, parameters, gradient, slots, step):
        update = self.inner.update
        if self.method == "update" and step >= LATE:
            update = self._once(update)
        return update(parameters, gradient, slots, step)

    def _once(self, function):
        def once(*arguments, **options):
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return function(*arguments, **options)
            raise ArithmeticError("raised once")

        return once


LATE = 90  # updates: after a first snapshot


def wait_for_file(path: str) -> None:
    until = time.monotonic() + 120
    while not os.path.exists(path):
        assert time.monotonic() < until, f"nothing has made {path}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Fault:
    """One row of the table: what happens, when, how often, and what a run is given against it."""

    name: str
    act: Callable[..., None]  # is given the client, a random generator, and what `of` says
    copies: int = 1
    checkpoint: bool = True
    times: int = 1
    loses: bool = False  # whether acknowledged updates may be rolled back
    chaos: bool = False  # only in the long suite
    shards: int = 2
    of: str = ""  # "checkpoint", "data": what happens is given its path
    raises: str = ""  # "update" of the optimiser, "predict" of the model in validation: once
    ends: type[Exception] | None = None  # what the run ends with; then it is resumed


def assert_felt(result, act):
    """The run has met what was done to it."""
    if isinstance(act, Kill) and act.victims in (a_shard_holder, all_holders):
        assert result.history["lost"].values[-1] >= 1
    if isinstance(act, Disturb):
        assert result.history["repeated"].values[-1] >= 1


NO_SHARD = "a worker without a shard"
TABLE = [
    Fault("kill a shard's worker", Kill(a_shard_holder), loses=True),
    Fault(
        "kill a shard's worker; copies",
        Kill(a_shard_holder),
        copies=2,
        checkpoint=False,
        chaos=True,
    ),
    Fault(f"kill {NO_SHARD}", Kill(no_shard_holder), checkpoint=False, chaos=True),
    Fault("kill two at once; copies", Kill(two_at_once), copies=2, loses=True),
    Fault("kill all but one", Kill(all_but_one), loses=True, chaos=True),
    Fault("kill all but one; copies", Kill(all_but_one), copies=2, loses=True, chaos=True),
    Fault("kill all shards' workers", Kill(all_holders), loses=True, chaos=True),
    Fault("kill anyone, three times", Kill(anyone), times=3, loses=True, chaos=True),
    Fault(
        "kill anyone, three times; copies",
        Kill(anyone),
        copies=2,
        checkpoint=False,
        times=3,
        chaos=True,
    ),
    Fault("kill one of three copies", Kill(a_shard_holder), copies=3, checkpoint=False, chaos=True),
    Fault("stop a shard's worker", Stop(a_shard_holder, 8.0), loses=True, chaos=True),
    Fault(
        "stop a shard's worker; copies",
        Stop(a_shard_holder, 6.0),
        copies=2,
        checkpoint=False,
        chaos=True,
    ),
    Fault(f"stop {NO_SHARD}", Stop(no_shard_holder, 6.0), checkpoint=False, chaos=True),
    Fault("stop briefly", Stop(anyone, 0.8), checkpoint=False, chaos=True),
    Fault("retire a shard's worker", Retire(a_shard_holder), checkpoint=False, chaos=True),
    Fault(
        "retire a shard's worker; copies",
        Retire(a_shard_holder),
        copies=2,
        checkpoint=False,
        chaos=True,
    ),
    Fault("late, repeated, haunting pushes", Disturb(0.3, 0.2), checkpoint=False, chaos=True),
    Fault(
        "late, repeated pushes; copies", Disturb(0.3, 0.2), copies=2, checkpoint=False, chaos=True
    ),
    Fault("answers lost", Disturb(0.1, 0.1, 0.01), checkpoint=False, chaos=True),
    Fault("delete the checkpoint", Delete(), times=3, chaos=True, of="checkpoint"),
    Fault(
        "delete the checkpoint, then kill a shard's worker",
        Delete(kills=True),
        loses=True,
        chaos=True,
        of="checkpoint",
    ),
    Fault("answers lost; copies", Disturb(0.1, 0.1, 0.01), copies=2, checkpoint=False),
]

# More that replicas meet, of one worker or of several.
MORE = [
    Fault("cancel what is out", Cancel(), checkpoint=False, times=3, chaos=True),
    Fault("pause the client", PauseClient(6), checkpoint=False, chaos=True),
    Fault("the checkpoint hangs", Hang(3.0), chaos=True, of="checkpoint"),
    Fault(
        "a chunk of the data hangs",
        Hang(3.0, kept="c/", kills=True),
        checkpoint=False,
        chaos=True,
        of="data",
    ),
    Fault(
        "a validation raises once",
        Raised(),
        checkpoint=False,
        chaos=True,
        of="checkpoint",
        raises="predict",
    ),
    # Its update was not applied in that shard, and was in others: the run ends with the error, and
    # goes back as a whole to the last snapshot. Nothing of a user's runs in shards of Sandblaster.
    Fault(
        "an optimiser raises once",
        Raised(),
        chaos=True,
        of="checkpoint",
        raises="update",
        ends=ArithmeticError,
    ),
]
