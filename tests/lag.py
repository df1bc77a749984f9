"""How long event loops stand still: what waits on one shows as its lag.

A loop is compared with a plain thread of its process: a busy machine, or a process that is stopped,
holds up both alike, and a call that waits on the loop holds up the loop alone.
"""

import asyncio
import sys
import threading
from contextlib import contextmanager

from distributed import WorkerPlugin

EVERY = 0.05
LONGEST = 2.0
"""Seconds that a loop may stand still; one that waits for a store or a read does so for longer."""


class Watch:
    """Watches the loop that runs: `longest` is how long a thread went on and the loop did not."""

    def __init__(self):
        self.longest = self._still = 0.0
        self._ended = threading.Event()
        self._beating = asyncio.ensure_future(self._beat())
        threading.Thread(target=self._look, daemon=True, name="tests-lag").start()

    async def _beat(self):
        while True:
            self._still = 0.0
            await asyncio.sleep(EVERY)

    def _look(self):
        while not self._ended.wait(EVERY):
            self.longest = max(self.longest, self._still)  # how late this look is counts nothing
            self._still += EVERY

    def end(self):
        """End the watch; returns its longest lag."""
        self._ended.set()
        self._beating.cancel()
        return self.longest


class WatchOnWorker(WorkerPlugin):
    """Watches the loop of every worker, and of those to come."""

    name = "tests-lag"

    async def setup(self, worker):
        self.watch = worker._lag = Watch()

    def teardown(self, worker):
        self.watch.end()


async def _lag_of(dask_worker):
    watch = getattr(dask_worker, "_lag", None)  # none yet on a worker that is being started
    return 0.0 if watch is None else watch.longest


async def _begin_at_scheduler(dask_scheduler):
    dask_scheduler._lag = Watch()


async def _end_at_scheduler(dask_scheduler):
    return dask_scheduler._lag.end()


def waits_for_a_read():
    """On a worker: whether it has waited for a chunk for a moment; imports nothing there."""
    waiting = sys.modules.get("dbdask.data.waiting")
    return bool(getattr(waiting, "_waits", ()))  # it may be half imported


@contextmanager
def watched(client):
    """Watch the loops of client, scheduler and workers; their lags are filled in at the end."""
    lags = {}

    async def begin():
        return Watch()

    async def end(watch):
        return watch.end()

    here = client.sync(begin)
    client.run_on_scheduler(_begin_at_scheduler)
    client.register_plugin(WatchOnWorker())
    try:
        yield lags
    finally:
        lags |= client.run(_lag_of)
        client.unregister_worker_plugin(WatchOnWorker.name)
        lags["scheduler"] = client.run_on_scheduler(_end_at_scheduler)
        lags["client"] = client.sync(end, here)


@contextmanager
def no_loop_waits(client):
    """Fail where the loop of a process of the cluster stands still for long meanwhile."""
    with watched(client) as lags:
        yield
    assert max(lags.values()) < LONGEST, lags
