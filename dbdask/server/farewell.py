"""A worker that closes waits until its shards were fetched: a plugin on the workers with shards."""

import asyncio
from typing import Any

from distributed import Status, WorkerPlugin

from dbdask.server.deadlines import deadline

LEASE_SECONDS = 10.0
LOOK_SECONDS = 0.02


class Farewell(WorkerPlugin):
    """Holds a closing worker back while it has shards of a run, for `dbdask.hand-on` at most.

    The run sees the worker's status, makes the shards anew elsewhere from the state that this
    worker still serves, and then drops them here.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.name = plugin_name(run)

    def setup(self, worker: Any) -> None:
        """Watch from now on whether the run still has shards here."""
        self._lease = asyncio.get_running_loop().create_task(self._watch(worker))

    def _shards(self, worker: Any) -> list[str]:
        return [key for key in worker.state.actors if str(key).startswith(shard_prefix(self.run))]

    async def _watch(self, worker: Any) -> None:
        """Take the plugin away when the shards are gone without a word (the client died)."""
        while worker.status in (Status.running, Status.paused):
            await asyncio.sleep(LEASE_SECONDS)
            if not self._shards(worker):
                await forget_farewell(self.run, worker)

    async def teardown(self, worker: Any) -> None:
        """Wait, where the worker closes, until its shards have moved or the deadline has passed."""
        if worker.status in (Status.closing, Status.closing_gracefully):
            loop = asyncio.get_running_loop()
            until = loop.time() + deadline("hand-on")
            while self._shards(worker) and loop.time() < until:
                await asyncio.sleep(LOOK_SECONDS)
        self._lease.cancel()


def shard_prefix(run: str) -> str:
    """How the keys of a run's shards begin."""
    return f"dbdask-shard-{run}-"


def plugin_name(run: str) -> str:
    """The plugin's name on its worker."""
    return f"dbdask-farewell-{run}"


async def add_farewell(run: str, dask_worker: Any) -> None:
    """Let a worker wait for the shards of a run when it closes."""
    if plugin_name(run) not in dask_worker.plugins:
        await dask_worker.plugin_add(Farewell(run), name=plugin_name(run))


async def forget_farewell(run: str, dask_worker: Any) -> None:
    """Let it wait no more."""
    if plugin_name(run) in dask_worker.plugins:
        await dask_worker.plugin_remove(plugin_name(run))
