"""Submitting work as a Dask task, together with the blocks of data that it needs."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from distributed import Client, Future

from dbdask.daemon_threads import beside_loop
from dbdask.data.block_provider import BlockProvider
from dbdask.data.routes import Piece
from dbdask.rpc.tasks import result_of
from dbdask.run.failures import VALIDATION, Work

VALIDATION_PRIORITY = 10

R = TypeVar("R")


class TaskSubmitter:
    """Submits the tasks of one run.

    Parameters
    ----------
    client
        The Dask client; its event loop runs every method.
    job
        What every task needs, pickled.
    providers
        Bring workers the examples that they cannot read themselves, by the name of the examples.
    """

    def __init__(self, client: Client, job: bytes, providers: Mapping[str, BlockProvider]) -> None:
        self.client, self.job, self.providers = client, job, providers
        self._ended: list[Future[Any]] = []

    def close(self) -> None:
        """Let go of the tasks that have ended."""
        for future in self._ended:
            future.release()
        self._ended.clear()

    async def do(
        self, work: Work, function: Callable[..., R], order: object, worker: str, key: str
    ) -> R:
        """Run `function(order, job, *blocks)` on a worker as the task `key`; return its result.

        If the caller is cancelled the task is released, and so are its blocks. A task that has
        ended is released behind the next one: what a client sends within 10 ms after a message
        waits for their end, and the worker would wait with it.
        """
        provider = self.providers[work.examples]
        blocks: list[Future[Piece]] = []
        future: Future[R] | None = None
        try:
            if provider.has_values:
                for portion in work.portions:
                    blocks += await beside_loop(provider.futures, portion, [worker])
            future = self.client.submit(
                function,
                order,
                self.job,
                *blocks,
                key=key,
                # A validation holds a copy in every shard: its tasks overtake queued portions.
                priority=VALIDATION_PRIORITY if work.examples == VALIDATION else 0,
                # Nowhere else: Dask would steal it for a worker that is silent, and looks idle.
                workers=[worker],
            )
            self.close()
            result = await result_of(self.client, future)
            self._ended.append(future)
            future = None
            return result
        finally:
            blocks.clear()  # the traceback of an error may keep the list for ever
            if future is not None:
                future.release()
            for portion in work.portions:
                provider.release(portion)
