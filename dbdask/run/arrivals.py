"""Arrivals: ask a cluster without workers for one, and wait for it."""

import asyncio
import time
import uuid

from distributed import Client

from dbdask.errors import WorkerError
from dbdask.rpc.contact import workers_now
from dbdask.rpc.deadlines import deadline

LOOK_SECONDS = 0.25


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
    since = time.monotonic()
    waiting = client.submit(_do_nothing, key=f"dbdask-arrival-{uuid.uuid4().hex}", pure=False)
    try:
        while not await workers_now(client):
            if time.monotonic() - since > deadline("arrival"):
                raise WorkerError(
                    "the cluster has no worker: start one (`dask worker ADDRESS`, or "
                    f"cluster.scale(2)); none came in {deadline('arrival'):g} s, set "
                    "dbdask.arrival where new ones take longer to come"
                )
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        waiting.release()


def _do_nothing() -> None:
    pass
