"""Making an actor on a worker: the wait for it has a deadline, and says why it ended."""

from collections.abc import Sequence
from typing import Any

from dbdask.errors import ShardLost, WorkerError
from dbdask.server.contact import error_of, is_loss_of_actor, place_of, settled
from dbdask.server.deadlines import deadline


def submit_actor(client: Any, kind: type, arguments: Sequence[Any], key: str, worker: str) -> Any:
    """Ask for an actor on a worker, before all other work there; the future keeps it alive.

    Another worker may make it where this one has left; an actor is not stolen otherwise.
    """
    return client.submit(
        kind,
        *arguments,
        actor=True,
        key=key,
        workers=[worker],
        allow_other_workers=True,
        priority=100,
    )


async def made(client: Any, future: Any, name: str) -> str:
    """Wait until an actor is made; returns its worker.

    Raises
    ------
    ShardLost
        Its worker left meanwhile.
    WorkerError
        No worker made it in time.
    """
    try:
        status = await settled(client, future, deadline("placement"))
    except TimeoutError as error:
        raise WorkerError(f"no worker made {name} within {deadline('placement'):g} s") from error
    failure = error_of(future)
    if status == "error" and failure is not None and not is_loss_of_actor(failure):
        raise failure
    address = await place_of(client, future.key)
    if status != "finished" or address is None:
        raise ShardLost(f"{name} was lost while it was made")
    return address
