"""Checks before training: each worker opens the data and the checkpoint, and has the memory."""

import pickle
from collections.abc import Callable
from typing import TypeVar

from distributed.core import ConnectionPool

from dbdask.daemon_threads import beside_loop
from dbdask.errors import CheckpointError, WorkerError
from dbdask.rpc.calls import run_on, worker_answers
from dbdask.rpc.connections import refused_certificate
from dbdask.rpc.deadlines import deadline, while_alive
from dbdask.rpc.local_workers import import_here
from dbdask.rpc.scheduler import WorkerFacts
from dbdask.run.ownership import in_time
from dbdask.storage import checkpoint
from dbdask.version import __version__

USED = (
    "dbdask.run.preflight",
    "dbdask.worker.replica",
    "dbdask.worker.batch_replica",
    "dbdask.worker.validation",
    "dbdask.worker.batch_shard",
    "dbdask.worker.drain_on_close",
)
"""Modules of what a worker is sent. What is not imported before, its event loop has to import."""

AT_IMPORT = (
    "in a module that workers import, keep what parses arguments or calls sys.exit under "
    'if __name__ == "__main__"'
)

PROCESS_BYTES = 150 * 2**20  # a worker's process before it trains, as measured
LARGEST_WITHOUT_CHECKPOINT = 2**30  # bytes of parameters that are collected in the client

T = TypeVar("T")


class WorkerSilent(Exception):
    """A worker answered no ping while it was checked: it has stopped, or left."""


async def check_worker(
    pool: ConnectionPool, address: str, job: bytes, path: str | None, *, trains: bool = True
) -> None:
    """Let a worker open the run's checkpoint and, if it is to train, the data.

    It may take as long as the deadline `preflight` allows, while it answers pings.

    Raises
    ------
    WorkerError
        Names the worker, what it cannot do, and the remedy.
    WorkerSilent
        The worker does not answer, which says nothing of what it can do.
    """
    await while_alive(
        _check(pool, address, job, path, trains),
        lambda: worker_answers(pool, address),
        WorkerSilent(f"worker {address} answers no ping"),
        f"the check of worker {address}",
    )


async def _check(
    pool: ConnectionPool, address: str, job: bytes, path: str | None, trains: bool
) -> None:
    await _check_version(pool, address)
    trouble = await _ask(pool, address, open_all, job, path, trains)
    if trouble:
        raise WorkerError(f"worker {address} {trouble}")


async def _ask(
    pool: ConnectionPool, address: str, function: Callable[..., T], *arguments: object
) -> T:
    """Run a function on a worker; tell a broken connection from the worker's own answer."""
    try:
        answer: T = await run_on(pool, address, function, *arguments, seconds=deadline("preflight"))
    except WorkerError as error:
        if await _is_silence(pool, address, error.__cause__):
            raise WorkerSilent(str(error)) from error
        raise
    return answer


async def _is_silence(pool: ConnectionPool, address: str, cause: BaseException | None) -> bool:
    if cause is None or refused_certificate(pool, address, cause):
        return False
    return not isinstance(cause, TimeoutError) or not await worker_answers(pool, address)


async def _check_version(pool: ConnectionPool, address: str) -> None:
    """Check the worker's version of dbdask, before anything else is sent to it."""
    try:
        _ = await _ask(pool, address, import_here, USED)
        version = await _ask(pool, address, version_here)
    except (ImportError, AttributeError) as error:
        raise WorkerError(
            f"worker {address} has no dbdask, or another one than the client's {__version__} "
            f"({error}): install the same packages there as on the client"
        ) from error
    if version != __version__:
        raise WorkerError(
            f"worker {address} has dbdask {version}, the client {__version__}: "
            "install the same version on both"
        )


def version_here() -> str:
    """Return the version of dbdask on the worker that runs this."""
    return __version__


async def open_all(job: bytes, path: str | None, trains: bool) -> str:
    """Unpickle the job and open every store, on a worker; return what failed, or ''."""
    try:
        await beside_loop(_open_all, job, path, trains)
    except ImportError as error:
        return (
            f"cannot import what the run needs ({error}): "
            "install the same packages there as on the client"
        )
    except Exception as error:
        if isinstance(error.__cause__, SystemExit):
            return f"cannot take part: {error}, while it opened what the run needs ({AT_IMPORT})"
        return (
            f"cannot take part: {error} (give paths or URLs that every worker can open, "
            "or start the workers where the data is)"
        )
    return ""


def _open_all(job: bytes, path: str | None, trains: bool) -> None:
    unpickled = pickle.loads(job)
    for examples in (unpickled.train, getattr(unpickled, "validation", None)):
        if trains and examples is not None:  # a worker that only holds shards reads no data
            reader = examples.reader(prefetch=False)
            reader.open()
            reader.close()
    if path is not None:
        in_time(path, "it was opened", _open_checkpoint, path)


def _open_checkpoint(path: str) -> None:
    if not checkpoint.exists(path):
        raise CheckpointError(f"nothing is at checkpoint={path!r}, which the client has made")
    checkpoint.attributes(path)


def check_memory(
    facts: list[WorkerFacts], replica: int, shard: int, model: str, more_parts: int | None
) -> None:
    """Compare what a worker must hold with its memory limit.

    Parameters
    ----------
    facts
        The workers.
    replica, shard
        Bytes of them that a worker must hold.
    model
        The name of the model.
    more_parts
        Parts that a replica could be cut into, more than it is; None if there is no such cut.

    Raises
    ------
    ValueError
        Names the worker, the bytes it must hold, its limit, and what helps.
    """
    remedy = "give workers more memory, or use more of them with shards="
    if more_parts is not None:
        remedy = (
            "give workers more memory, use more of them with shards=, or cut a replica over "
            f"{more_parts} or more of them with partitions="
        )
    for worker in facts:
        needed = PROCESS_BYTES + replica + shard
        if worker.memory_limit and needed > worker.memory_limit:
            raise ValueError(
                f"{model} does not fit worker {worker.address}: a replica holds "
                f"{replica / 2**20:.0f} MiB, a shard {shard / 2**20:.0f} MiB, Python and its "
                f"libraries {PROCESS_BYTES / 2**20:.0f} MiB, and its memory_limit is "
                f"{worker.memory_limit / 2**20:.0f} MiB: {remedy}"
            )


def check_collectable(model: str, size: int, path: str | None) -> None:
    """Refuse a model whose parameters are too large for the client, without a checkpoint.

    Raises
    ------
    ValueError
        It is larger than 1 GiB and there is no checkpoint for the shards to write it to.
    """
    if path is None and 4 * size > LARGEST_WITHOUT_CHECKPOINT:
        raise ValueError(
            f"{model} is larger than 1 GiB: give checkpoint=, to which the shards write it"
        )
