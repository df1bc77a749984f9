"""How late event loops are: what waits on one shows as its lag."""

import asyncio
import sys
import time
from contextlib import contextmanager

EVERY = 0.05


class _Lag:
    """The longest time that a loop came too late to a call."""

    def __init__(self):
        self.longest = 0.0
        self.task = asyncio.ensure_future(self._watch())

    async def _watch(self):
        while True:
            due = time.monotonic() + EVERY
            await asyncio.sleep(EVERY)
            self.longest = max(self.longest, time.monotonic() - due)


async def _begin(dask_worker):
    dask_worker._lag = _Lag()


async def _end(dask_worker):
    dask_worker._lag.task.cancel()
    return dask_worker._lag.longest


async def _begin_at_scheduler(dask_scheduler):
    await _begin(dask_scheduler)


async def _end_at_scheduler(dask_scheduler):
    return await _end(dask_scheduler)


def waits_for_a_read():
    """On a worker: whether it has waited for a chunk for a moment; imports nothing there."""
    waiting = sys.modules.get("dbdask.data.waiting")
    return bool(getattr(waiting, "_waits", ()))  # it may be half imported


@contextmanager
def watched(client):
    """Watch the loops of client, scheduler and workers; their lags are filled in at the end."""
    lags = {}

    async def begin_here():
        client._lag = _Lag()

    async def end_here():
        return await _end(client)

    client.sync(begin_here)
    client.run_on_scheduler(_begin_at_scheduler)
    client.run(_begin)
    try:
        yield lags
    finally:
        lags |= client.run(_end)
        lags["scheduler"] = client.run_on_scheduler(_end_at_scheduler)
        lags["client"] = client.sync(end_here)
