"""Before training: each worker opens what it will need, and one that cannot is named."""

import asyncio
import pickle
from typing import Any

from dbdask import __version__
from dbdask.errors import CheckpointError, WorkerError
from dbdask.numbers import checkpoint
from dbdask.server.contact import WorkerFacts, run_on
from dbdask.server.deadlines import deadline

PROCESS_BYTES = 150 * 2**20  # a worker's process before it trains, as measured
LARGEST_WITHOUT_CHECKPOINT = 2**30  # bytes of parameters that are collected in the client


async def check_worker(pool: Any, address: str, job: bytes, path: str | None) -> None:
    """Let a worker open the run's data and checkpoint.

    Raises
    ------
    WorkerError
        Names the worker, what it cannot do, and the remedy.
    """
    await _check_version(pool, address)
    trouble = await run_on(pool, address, open_all, job, path, seconds=deadline("preflight"))
    if trouble:
        raise WorkerError(f"worker {address} {trouble}")


async def _check_version(pool: Any, address: str) -> None:
    """Before anything else is sent, which another version might not understand."""
    try:
        version = await run_on(pool, address, version_here, seconds=deadline("preflight"))
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
    """On a worker: which dbdask it has."""
    return __version__


async def open_all(job: bytes, path: str | None) -> str:
    """On a worker: unpickle the job and open every store; returns what it cannot do, if any."""
    try:
        await asyncio.to_thread(_open_all, job, path)
    except ImportError as error:
        return (
            f"cannot import what the run needs ({error}): "
            "install the same packages there as on the client"
        )
    except Exception as error:
        return (
            f"cannot take part: {error} (give paths or URLs that every worker can open, "
            "or start the workers where the data is)"
        )
    return ""


def _open_all(job: bytes, path: str | None) -> None:
    unpickled = pickle.loads(job)
    for examples in (unpickled.train, getattr(unpickled, "validation", None)):
        if examples is not None:
            reader = examples.reader(prefetch=False)
            reader.open()
            reader.close()
    if path is not None:
        if not checkpoint.exists(path):
            raise CheckpointError(f"nothing is at checkpoint={path!r}, which the client has made")
        checkpoint.attributes(path)


def check_memory(facts: list[WorkerFacts], replica: int, shard: int, model: str) -> None:
    """Compare what a worker must hold with its memory limit.

    Raises
    ------
    ValueError
        Names the worker, the bytes it must hold, and its limit.
    """
    for worker in facts:
        needed = PROCESS_BYTES + replica + shard
        if worker.memory_limit and needed > worker.memory_limit:
            raise ValueError(
                f"{model} does not fit worker {worker.address}: a replica holds "
                f"{replica / 2**20:.0f} MiB, a shard {shard / 2**20:.0f} MiB, Python and its "
                f"libraries {PROCESS_BYTES / 2**20:.0f} MiB, and its memory_limit is "
                f"{worker.memory_limit / 2**20:.0f} MiB: give workers more memory, or use more "
                "of them with shards="
            )


def check_collectable(model: str, size: int, path: str | None) -> None:
    """Refuse a model that the client would have to collect, and cannot.

    Raises
    ------
    ValueError
        It is larger than 1 GiB and there is no checkpoint for the shards to write it to.
    """
    if path is None and 4 * size > LARGEST_WITHOUT_CHECKPOINT:
        raise ValueError(
            f"{model} is larger than 1 GiB: give checkpoint=, where the shards write it"
        )
