"""Faults that clusters have, as data: what happens, to whom, and how it is brought about.

Victims are drawn by a seed. Only processes of the cluster that the test made are signalled.
"""

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asking import workers_of
from distributed import Client, WorkerPlugin
from routing import disturb, finish

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
        until = time.monotonic() + 30
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
    of: str = ""  # "checkpoint": what happens is given its path


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
