"""Wait for a first worker. A task that waits makes an adaptive cluster start one."""

import asyncio
import logging
import time
import uuid

from distributed import Client, Future

from dbdask.errors import WorkerError
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.scheduler import workers_now
from dbdask.schedule.awake import AwakeClock

logger = logging.getLogger("dbdask")

LOOK_SECONDS = 0.25
DEMAND_SECONDS = 1.0
"""How long a task that asks for a worker keeps it busy."""


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
    waiting = ask_for_worker(client)
    try:
        while not await workers_now(client):
            if clock.seconds() > deadline("arrival"):
                raise WorkerError(
                    "the cluster has no worker: start one (`dask worker ADDRESS`, or "
                    f"cluster.scale(2)); none came in {deadline('arrival'):g} s, set "
                    "dbdask.arrival where new ones take longer to come"
                )
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        waiting.release()


def ask_for_worker(client: Client) -> "Future[None]":
    """Submit a task that waits for a worker, so that an adaptive cluster starts one.

    The caller releases it when a worker is there. The task keeps its worker busy for
    `DEMAND_SECONDS`. It is no function of this library, because the event loop of a new worker
    would have to import the library.
    """
    key = f"dbdask-arrival-{uuid.uuid4().hex}"
    return client.submit(time.sleep, DEMAND_SECONDS, key=key, pure=False)
