"""Where shards may live, and the wait for a place where they may."""

import asyncio
import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dbdask.errors import WorkerError
from dbdask.server.contact import WorkerFacts
from dbdask.server.deadlines import deadline

TURN_SECONDS = 0.25  # between two looks for workers


def shard_homes(
    facts: Mapping[str, WorkerFacts], wanted: Sequence[str] | None, avoided: Collection[str]
) -> list[str]:
    """List the workers that may hold shards: those named by `shard_workers`, else all.

    Parameters
    ----------
    facts
        Every running worker, by address.
    wanted
        The names of `shard_workers=`, or None.
    avoided
        Workers that are silent, paused, leaving, refused or not checked yet.

    Raises
    ------
    WorkerError
        No running worker has one of the names.
    """
    named = [
        address
        for address, worker in facts.items()
        if wanted is None or any(worker.is_called(name) for name in wanted)
    ]
    if not named and wanted is not None:
        raise WorkerError(f"shard_workers={list(wanted)} names no running worker")
    return [address for address in named if address not in avoided]


def most_elements(size: int, shards: int, homes: int, copies: int = 1) -> int:
    """Return the elements of the flat vector, copies counted, that the fullest worker holds.

    Examples
    --------
    >>> most_elements(10, 4, 3), most_elements(10, 4, 3, copies=2)
    (6, 9)
    """
    return math.ceil(size / shards) * math.ceil(shards * min(copies, homes) / homes)


async def wait_for_homes(run: Any) -> None:
    """Return when there is a worker for shards and one for portions.

    Raises
    ------
    WorkerError
        None came within the deadline.
    """
    until = time.monotonic() + deadline("arrival")
    while not (run.shard_homes() and run.roster.workers):
        if time.monotonic() > until and not run.roster.is_hopeful:
            raise WorkerError(
                f"no worker is left to go on with, and none came in "
                f"{deadline('arrival'):g} s; {run.where_it_stands()}"
            )
        await asyncio.sleep(TURN_SECONDS)
        await run.workforce.refresh()
        await run.workforce.watch_silence()
