"""Wait for a first worker, or for one that is named.

A task that waits makes an adaptive cluster start one.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Collection, Sequence

from distributed import Client, Future, SpecCluster

from dbdask.errors import WorkerError
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.scheduler import has_scheduler, workers_now
from dbdask.rpc.tasks import until_heard
from dbdask.schedule.awake import AwakeClock

logger = logging.getLogger("dbdask")

LOOK_SECONDS = 0.25
DEMAND_SECONDS = 1.0
"""How long a task that asks for a worker keeps it busy."""

MOST_DEMANDED = 1024
"""Tasks that ask for workers at a time, at most."""


async def await_workers(client: Client) -> None:
    """Wait until the scheduler has a worker.

    An adaptive cluster starts workers for tasks that wait, so a task that does nothing waits here.

    Raises
    ------
    WorkerError
        No worker came within the deadline `arrival`.
    """
    if await workers_now(client):
        return
    logger.warning(
        "the cluster has no worker: one is waited for, up to %g s (dbdask.arrival)",
        deadline("arrival"),
    )
    clock = AwakeClock()
    [waiting] = ask_for_workers(client, 1)
    try:
        while not await workers_now(client):
            if clock.seconds() > deadline("arrival"):
                raise WorkerError(
                    "the cluster has no worker: start one (`dask worker ADDRESS`, or "
                    f"cluster.scale(2)); none came in {deadline('arrival'):g} s, set "
                    "dbdask.arrival if new ones take longer to come"
                )
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        waiting.release()


async def await_named(client: Client, argument: str, names: Sequence[str]) -> None:
    """Wait until a running worker has one of the names.

    A worker may be about to come: its cluster has just been asked for it, or its nanny restarts it.
    A name is refused at once only if the client's cluster has every worker that it is to have.

    Parameters
    ----------
    client
        The Dask client.
    argument
        What gave the names, for the error.
    names
        Names, hosts or addresses of workers.

    Raises
    ------
    WorkerError
        None has one of them within the deadline `arrival`, which begins anew with each worker that
        comes. The error says which workers there are.
    """
    await await_workers(client)
    clock, most, until = AwakeClock(), 0, -1.0
    missing = f"{argument}={list(names)} names no running worker"
    while True:
        facts = await workers_now(client)
        if any(worker.is_called(name) for worker in facts.values() for name in names):
            return
        if facts and has_every_worker(client, [worker.name for worker in facts.values()]):
            raise WorkerError(f"{missing}; there are: {', '.join(facts)}")
        if until < 0:
            allowed = f"up to {deadline('arrival'):g} s (dbdask.arrival)"
            logger.warning("%s: one is waited for, %s", missing, allowed)
        if len(facts) > most:
            most, until = len(facts), clock.seconds() + deadline("arrival")
        if clock.seconds() > until:
            raise WorkerError(
                f"{missing}, and none came in {deadline('arrival'):g} s (dbdask.arrival); there "
                f"are: {', '.join(facts) or 'none'}"
            )
        await asyncio.sleep(LOOK_SECONDS)


def has_every_worker(client: Client, names: Collection[str]) -> bool:
    """Whether it is known that no worker is on its way besides those with these names.

    A cluster that starts its workers itself knows which it is to have, unless it is adaptive. A
    client that was given an address knows nothing of what may come.
    """
    cluster = client.cluster
    if not isinstance(cluster, SpecCluster):
        return False
    adaptive = cluster._adaptive
    if adaptive is not None and adaptive.periodic_callback is not None:
        return False
    return {str(name) for name in cluster.plan} <= set(names)


def ask_for_workers(client: Client, count: int) -> "list[Future[None]]":
    """Submit tasks that wait for a worker, so that an adaptive cluster starts some.

    The caller releases them when workers are there. Each keeps a thread busy for `DEMAND_SECONDS`,
    after any other work. It is no function of this library, because the event loop of a new worker
    would have to import the library.
    """
    keys = [f"dbdask-arrival-{uuid.uuid4().hex}" for _ in range(count)]
    seconds = [DEMAND_SECONDS] * count
    tasks: list[Future[None]] = client.map(time.sleep, seconds, key=keys, pure=False, priority=-1)
    return tasks


class Demand:
    """Tasks that show an adaptive cluster that workers are wanted.

    Such a cluster starts a second worker if the tasks that wait would keep the first one busy for
    longer than its `target_duration`, which is not known here. So while one is lacking there are
    twice as many tasks at each renewal.

    Parameters
    ----------
    client
        Submits the tasks.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._tasks: list[Future[None]] = []
        self._since = 0.0
        self._was_used = False

    def keep(self, now: float, wanted: int, here: int) -> None:
        """Ask for workers; ask again if the tasks may have been done by the workers that are there.

        Parameters
        ----------
        now
            Seconds.
        wanted, here
            How many workers are wanted in all, and how many there are.
        """
        is_over = bool(here) and now - self._since >= DEMAND_SECONDS / 2
        if self._tasks and not is_over:
            return
        count = 2 * len(self._tasks) if self._tasks and here < wanted else wanted
        tasks = ask_for_workers(self._client, min(count, MOST_DEMANDED))
        self.drop()
        self._tasks, self._since, self._was_used = tasks, now, True

    def drop(self) -> None:
        """Ask for no worker any more."""
        for task in self._tasks:
            task.release()
        self._tasks = []

    async def end(self) -> None:
        """Ask for no worker any more, and wait until the scheduler knows no task of this object."""
        self.drop()
        if self._was_used and has_scheduler(self._client):
            await until_heard(self._client)
