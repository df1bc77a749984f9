"""Where shards may live, and whether the workers can hold what the run gives them."""

import math
from collections.abc import Collection, Mapping, Sequence

from dbdask.errors import WorkerError
from dbdask.server.contact import WorkerFacts

LARGEST_WITHOUT_CHECKPOINT = 2**30  # bytes of parameters that are collected in the client


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
        Workers that are silent or leaving.

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


def most_elements(size: int, shards: int, homes: int, copies: int = 1) -> int:
    """Return the elements of the flat vector, copies counted, that the fullest worker holds.

    Examples
    --------
    >>> most_elements(10, 4, 3), most_elements(10, 4, 3, copies=2)
    (6, 9)
    """
    return math.ceil(size / shards) * math.ceil(shards * min(copies, homes) / homes)
