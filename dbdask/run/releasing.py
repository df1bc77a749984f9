"""The end of a run: it releases all that it holds on the cluster."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from dbdask.daemon_threads import beside_loop
from dbdask.rpc.calls import worker_answers
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.scheduler import has_scheduler
from dbdask.run.run import Run

logger = logging.getLogger("dbdask")


async def release(run: Run) -> None:
    """End all work, and release everything that the run holds on the cluster.

    A step that fails is logged. It neither stops the other steps, nor hides the error that has
    ended the run.
    """
    steps = (
        run.workforce.close,
        run.placement.end,
        run.snapshots.give_up,
        partial(_leave_workers, run),
    )
    try:
        for step in steps:
            await _try_to_release(step)
    finally:
        run.at_rest.set()


async def _try_to_release(step: Callable[[], Awaitable[None]]) -> None:
    try:
        await step()
    except Exception as error:
        logger.warning("the run has not left the cluster in order: %r", error)


async def _leave_workers(run: Run) -> None:
    workers = await _answering(run)
    await run.server.notices.end_generation(workers, run.server.generation)
    for provider in (run.plan.provider, run.plan.validation_provider):
        if provider is not None:
            await beside_loop(provider.close)
    await run.server.release(workers)


async def _answering(run: Run) -> list[str]:
    """Return the workers that answer, so that a dead worker is waited for only once.

    If the scheduler is gone its workers end by themselves, with all that the run holds there.
    """
    if not has_scheduler(run.client):
        return []
    seconds, pool, workers = deadline("connect"), run.client.rpc, run.roster.everyone
    answers = await asyncio.gather(*(worker_answers(pool, w, seconds=seconds) for w in workers))
    return [worker for worker, answer in zip(workers, answers, strict=True) if answer]
