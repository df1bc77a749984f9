"""Notices of a run to its workers, outside every task."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from distributed import Client

from dbdask.rpc.calls import is_no_answer, run_on
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.scheduler import has_scheduler
from dbdask.worker.context import (
    close_context,
    end_generation,
    give_up_long_reads,
    unwant,
)
from dbdask.worker.drain_on_close import add_drain, forget_drain
from dbdask.worker.gang_notices import end_gang

logger = logging.getLogger("dbdask")


class WorkerNotices:
    """Notices of one run to the workers: what has ended there, or is not wanted any more.

    Parameters
    ----------
    client
        The Dask client; its event loop runs every method.
    run
        The run's identity.
    """

    def __init__(self, client: Client, run: str) -> None:
        self._client, self._run = client, run
        self._under_way: set[asyncio.Task[None]] = set()
        self._failed: set[tuple[str, str]] = set()  # workers, and the notices that failed there

    async def end_generation(self, workers: Sequence[str], generation: int) -> None:
        """End the calls of a generation on every worker that answers."""
        await self.send(workers, end_generation, self._run, generation)

    async def add_drain(self, worker: str) -> None:
        """Let a worker hand on its shards before it closes."""
        await self.send([worker], add_drain, self._run)

    def unwant(self, workers: Sequence[str], identities: list[tuple[int, int]]) -> None:
        """Say that bundles are done, so that their copies stop by themselves.

        Nothing waits for the answer: a worker that misses it only works in vain.
        """
        self._start(workers, unwant, self._run, identities)

    def end_gang(self, workers: Sequence[str], gang: int) -> None:
        """Say that a gang has ended. A worker that misses it learns so from its peers."""
        self._start(workers, end_gang, self._run, gang)

    def give_up_long_reads(self, workers: Sequence[str], names: Sequence[str]) -> None:
        """Say that replicas are to wait no longer for chunks that do not come."""
        self._start(workers, give_up_long_reads, self._run, names)

    async def close_contexts(self, workers: Sequence[str]) -> None:
        """Close all that the run has on the workers except its shards; stop other notices."""
        for notice in self._under_way:
            notice.cancel()
        await self.send(workers, close_context, self._run)
        await self.send(workers, forget_drain, self._run)

    def _start(
        self, workers: Sequence[str], function: Callable[..., object], *arguments: object
    ) -> None:
        notice = asyncio.ensure_future(self.send(workers, function, *arguments))
        self._under_way.add(notice)
        notice.add_done_callback(self._under_way.discard)

    async def send(
        self, workers: Sequence[str], function: Callable[..., object], *arguments: object
    ) -> None:
        """Call a function on every worker. A worker that does not answer is left out."""
        await asyncio.gather(*(self._send_one(w, function, *arguments) for w in workers))

    async def _send_one(
        self, worker: str, function: Callable[..., object], *arguments: object
    ) -> None:
        seconds = deadline("connect")
        try:
            await run_on(self._client.rpc, worker, function, *arguments, seconds=seconds)
        except Exception as error:  # no run fails because of a notice
            self._note_failure(worker, function.__name__, error)

    def _note_failure(self, worker: str, notice: str, error: Exception) -> None:
        """Log a notice that failed, once for each worker and kind of notice.

        Others judge a worker that does not answer: of it no warning is needed.
        """
        is_unheard = is_no_answer(error) or not has_scheduler(self._client)
        if is_unheard or (worker, notice) in self._failed:
            logger.debug("worker %s did not carry out %s: %r", worker, notice, error)
            return
        self._failed.add((worker, notice))
        logger.warning("worker %s did not carry out %s: %r", worker, notice, error)
