"""Notices of a run to the workers of a gang, outside every task."""

from collections.abc import Sequence

from distributed import Worker

from dbdask.errors import Stale
from dbdask.worker.context import context_on, found_context
from dbdask.worker.link import ServerHandle


async def join_gang(
    run: str,
    job: bytes,
    handle: ServerHandle,
    gang: int,
    workers: Sequence[str],
    dask_worker: Worker,
) -> bool:
    """Let a worker belong to a gang of a run; return False if the run has ended here.

    It is a coroutine: the worker's event loop runs it, on which mailboxes come and go.
    """
    try:
        context = context_on(dask_worker, run, job)
    except Stale:
        return False
    context.join(gang, workers, handle)
    return True


def end_gang(run: str, gang: int, dask_worker: Worker) -> None:
    """End a gang, and those before it, on one of its workers."""
    context = found_context(run, dask_worker)
    if context is not None:
        context.mailbox.end(gang)
