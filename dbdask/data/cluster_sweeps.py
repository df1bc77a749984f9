"""Sweeps on a cluster: batches of blocks as Dask tasks, and all that may keep them from ending."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from distributed import Client, Future, get_worker
from distributed.client import ClosedClientError

from dbdask.data.block_provider import BlockProvider, gather_blocks, why_cancelled
from dbdask.data.feed import Reader
from dbdask.data.recipe import Recipe
from dbdask.data.retrying import may_pass
from dbdask.data.sources import Blocks, Piece
from dbdask.errors import DataError, SchedulerLost, StoreFailed, WorkerError
from dbdask.rpc.arrivals import await_workers
from dbdask.rpc.loops import client_loop, start_on
from dbdask.rpc.portable import portable, portable_errors
from dbdask.rpc.scheduler import count_workers, has_scheduler, is_closed
from dbdask.rpc.tasks import result_of
from dbdask.schedule.retries import pause_after

LOOK_SECONDS = 0.2  # how often the waiting thread looks whether its client's loop still runs
COUNT_SECONDS = 1.0  # how often a task that is waited for lets the workers be counted

T = TypeVar("T")

Measure = Callable[[Reader, int, Blocks | None], T]


@dataclass
class _Unread:
    """The result of a batch that could not be read on one worker."""

    error: Exception
    worker: str


@dataclass
class _Batch(Generic[T]):
    """Blocks that one task measures."""

    blocks: tuple[int, ...]
    future: Future[list[T] | _Unread] | None = None
    failures: int = 0
    failed_at: set[str] = field(default_factory=set)
    """The workers that could not read it."""


def sweep_on(
    client: Client, recipe: Recipe, measure: Measure[T], batches: Iterable[tuple[int, ...]]
) -> Iterator[T]:
    """Yield what is measured of every block of the batches, in their order.

    Two batches for each worker are under way, with the values that it cannot read itself.

    Raises
    ------
    WorkerError
        No worker came within `dbdask.arrival`, Dask has cancelled a task, or the client was closed
        or lost its scheduler.
    StoreFailed
        The store of the data failed on several workers.
    """
    recipe.check_values_are_here()
    provider = BlockProvider(recipe, client)
    sweep = _Sweep(client, provider, recipe.worker_side(), measure)
    try:
        yield from sweep.results(batches)
    except DataError:
        raise
    except Exception as error:
        why = _why_cut_off(client)
        if why:
            raise WorkerError(
                f"a pass over the data failed, because {why}: begin it again with a new client"
            ) from error
        if isinstance(error, CancelledError):
            why = why_cancelled(error)
            raise WorkerError(f"a pass over the data failed, because {why}") from error
        raise
    finally:
        sweep.release()
        provider.close()


def _why_cut_off(client: Client) -> str:
    """Say why a client can do no more, in words that follow "because"; '' if it can."""
    if is_closed(client):
        return "the client was closed while it was under way"
    return "" if has_scheduler(client) else "the scheduler is gone, or closed its connection"


class _Sweep(Generic[T]):
    """The batches of one pass that are under way."""

    def __init__(
        self, client: Client, provider: BlockProvider, recipe: Recipe, measure: Measure[T]
    ) -> None:
        self.client, self.provider, self.recipe, self.measure = client, provider, recipe, measure
        self.under_way: deque[_Batch[T]] = deque()

    def results(self, batches: Iterable[tuple[int, ...]]) -> Iterator[T]:
        """Yield the results of every block, in order."""
        _awaited(self.client, await_workers(self.client))
        ahead = 2 * max(1, len(self.client.nthreads()))
        for blocks in batches:
            batch: _Batch[T] = _Batch(blocks)
            self.under_way.append(batch)
            self._submit(batch)
            if len(self.under_way) >= ahead:
                yield from self._first()
        while self.under_way:
            yield from self._first()

    def _submit(self, batch: _Batch[T]) -> None:
        """Submit a batch, rather to workers that have not failed to read it."""
        others = None
        if batch.failed_at:
            others = [w for w in self.client.nthreads() if w not in batch.failed_at] or None
        pieces = self.provider.bring(batch.blocks)
        batch.future = self.client.submit(
            measure_batch,
            self.recipe,
            self.measure,
            batch.blocks,
            *pieces,
            workers=others,
            allow_other_workers=others is not None,
            pure=False,
        )

    def _first(self) -> list[T]:
        """Remove and return the results of the first batch; what could not be read is repeated."""
        batch = self.under_way[0]
        while True:
            found = self._attempt(batch)
            if not isinstance(found, _Unread):
                self._release(self.under_way.popleft())
                return found
            batch.failures += 1
            pause = pause_after(batch.failures)
            if pause is None:
                raise found.error
            self._release(batch)  # tracebacks of its error may still hold it
            batch.failed_at.add(found.worker)
            time.sleep(pause)
            self._submit(batch)

    def _attempt(self, batch: _Batch[T]) -> list[T] | _Unread:
        """Return the results of a batch, or `_Unread` if a read failed that may succeed later.

        An error that is raised here comes from the tasks with which Dask computes blocks. They get
        new names for the next try, and no worker is to blame.
        """
        assert batch.future is not None
        try:
            return _awaited(self.client, _result(self.client, batch.future))
        except Exception as error:
            if not may_pass(error) or _why_cut_off(self.client):
                raise
            self.provider.rename()
            return _Unread(error, "")

    def release(self) -> None:
        """Let go of all that is under way; a client that is closed has done so."""
        for batch in self.under_way:
            self._release(batch)

    def _release(self, batch: _Batch[T]) -> None:
        if batch.future is not None:
            with suppress(RuntimeError, OSError, ClosedClientError):
                batch.future.release()


async def _result(client: Client, future: Future[T]) -> T:
    """Return the result of a task; wait for a worker if all have left meanwhile."""
    waiting = asyncio.ensure_future(result_of(client, future))
    try:
        while not (await asyncio.wait({waiting}, timeout=COUNT_SECONDS))[0]:
            if not has_scheduler(client):
                raise SchedulerLost("closed its connection")
            if await count_workers(client) == 0:
                await await_workers(client)
        return waiting.result()
    finally:
        waiting.cancel()


def _awaited(client: Client, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of work on a client's loop, which may end before the work does."""
    loop = client_loop(client)
    future = start_on(loop, _outcome(work))
    try:
        while not future.done() and loop.is_running():
            wait([future], LOOK_SECONDS)
    except BaseException:
        future.cancel()
        raise
    if future.cancelled() or not future.done():
        raise SchedulerLost("its client's event loop has ended")
    result, error = future.result()
    if error is None:
        return result[0]
    try:
        raise error
    finally:
        del error, future  # the error's traceback has this frame: a circle would keep tasks alive


async def _outcome(work: Coroutine[Any, Any, T]) -> tuple[list[T], Exception | None]:
    """Return the result of work, or its error: futures change some errors between threads."""
    try:
        return [await work], None
    except Exception as error:
        return [], error


@portable_errors
def measure_batch(
    recipe: Recipe, measure: Measure[T], batch: tuple[int, ...], *pieces: Piece
) -> list[T] | _Unread:
    """Measure the blocks of a batch, on a worker."""
    blocks = gather_blocks(pieces)
    try:
        with Reader(recipe, cache_bytes=0, prefetch=False) as reader:
            return [measure(reader, block, blocks) for block in batch]
    except StoreFailed as error:
        return _Unread(portable(error), get_worker().address)
