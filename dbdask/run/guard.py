"""The guard of a run: it ends the run if the scheduler or every worker is lost."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from distributed import Client

from dbdask.errors import SchedulerLost, ShardLost, WorkerError
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.scheduler import (
    connection_of,
    count_workers,
    has_scheduler,
    is_closed,
    scheduler_of,
)
from dbdask.run.snapshots import Snapshots
from dbdask.schedule.awake import AwakeClock

MISSED_PINGS = 2  # in a row
LOOK_SECONDS = 0.5

T = TypeVar("T")


async def guarded(
    client: Client, work: Coroutine[Any, Any, T], snapshots: Snapshots, clock: AwakeClock
) -> T:
    """Await a run's work to its end, or until the cluster is lost.

    Beside the work a task looks at `clock`, by which the run judges others.

    Raises
    ------
    ShardLost
        The scheduler is gone. The error names it, says why, and how to resume the run.
    WorkerError
        Every worker has left, and no new one came.
    """
    guard = Guard(client, snapshots, clock)
    working = asyncio.ensure_future(work)
    loss = asyncio.ensure_future(guard.watch())
    try:
        await asyncio.wait({working, loss}, return_when=asyncio.FIRST_COMPLETED)
        if _is_broken_off(working):  # the connections to what dies break one after the other
            await asyncio.wait({loss}, timeout=2 * LOOK_SECONDS)
    finally:
        for task in (working, loss):
            task.cancel()
        await asyncio.wait({working, loss})
    if not working.cancelled() and working.exception() is None:
        return working.result()
    error = None if working.cancelled() else working.exception()
    cause = guard.cause_of(error) if loss.cancelled() else loss.result()
    if cause is not None:
        raise cause from error
    return working.result()


def _is_broken_off(work: "asyncio.Task[T]") -> bool:
    """Whether a run has ended with an error that may be the loss of its scheduler."""
    if not work.done() or work.cancelled():
        return False
    return isinstance(work.exception(), (OSError, SchedulerLost))


class Guard:
    """Watches that there is a scheduler, and a worker.

    A broken connection is a loss even if the client connects again: the scheduler forgets a
    client's futures with its connection, and with them the shards. A scheduler that pauses
    is waited for as long as it answers one of `MISSED_PINGS` pings in a row.
    """

    def __init__(self, client: Client, snapshots: Snapshots, clock: AwakeClock) -> None:
        self.client, self.snapshots, self.clock = client, snapshots, clock
        self.connection, self.address = connection_of(client), scheduler_of(client).address
        self.missed = 0
        self.last_seen: float | None = None  # a worker: the run itself waits for its first

    async def watch(self) -> Exception:
        """Wait until the cluster is lost, and return the error that says so."""
        asking = asyncio.ensure_future(count_workers(self.client))
        try:
            while True:
                await asyncio.wait({asking}, timeout=LOOK_SECONDS)
                self.clock.seconds()
                if asking.done():
                    self._note(asking.result())
                    await asyncio.sleep(LOOK_SECONDS)
                    asking = asyncio.ensure_future(count_workers(self.client))
                loss = self._loss()
                if loss is not None:
                    return loss
        finally:
            asking.cancel()

    def _note(self, workers: int | None) -> None:
        self.missed = self.missed + 1 if workers is None else 0
        if workers != 0:
            self.last_seen = self.clock.seconds()

    def _loss(self) -> Exception | None:
        if self._is_disconnected():
            return self._scheduler_lost("closed its connection")
        if self.missed >= MISSED_PINGS:
            silent = self.missed * deadline("ping")
            return self._scheduler_lost(f"gave no answer for {silent:g} s")
        unseen = 0.0 if self.last_seen is None else self.clock.seconds() - self.last_seen
        if unseen > deadline("arrival"):
            return WorkerError(
                f"every worker has left, and none came in {deadline('arrival'):g} s: see that "
                "workers run, or set dbdask.arrival if new ones take longer to come; "
                f"{self.snapshots.resume_hint()}"
            )
        return None

    def cause_of(self, error: BaseException | None) -> Exception | None:
        """Return the scheduler's loss, if it caused a run's error before the guard saw it."""
        if error is not None and self._is_disconnected():
            return self._scheduler_lost("closed its connection")
        return self._scheduler_lost(str(error)) if isinstance(error, SchedulerLost) else None

    def _is_disconnected(self) -> bool:
        return connection_of(self.client) is not self.connection or not has_scheduler(self.client)

    def _scheduler_lost(self, why: str) -> ShardLost:
        if is_closed(self.client):
            return client_closed(self.snapshots)
        return ShardLost(
            f"the scheduler {self.address} {why}, and without it the run cannot go on; "
            f"{self.snapshots.resume_hint(copies_help=False)}"
        )


def client_closed(snapshots: Snapshots) -> ShardLost:
    """Return the error of a run whose client was closed, by itself or with its cluster."""
    return ShardLost(
        "the client was closed while the run was under way, and without it the run cannot go on; "
        f"{snapshots.resume_hint(copies_help=False)}"
    )
