"""Making an actor on a worker: the wait for it has a deadline, and its error says what failed."""

import asyncio
from collections.abc import Sequence

from distributed import Client, Future

from dbdask.errors import ShardLost, WorkerError
from dbdask.rpc.calls import worker_answers
from dbdask.rpc.deadlines import deadline, retrieve_error, while_alive
from dbdask.rpc.tasks import (
    LOOK_SECONDS,
    error_of,
    is_loss_of_actor,
    is_processed,
    place_of,
    status_at_end,
)


def submit_actor(
    client: Client, kind: type[object], arguments: Sequence[object], key: str, worker: str
) -> "Future[object]":
    """Submit an actor to one worker, before all other work there; its future keeps it alive.

    No other worker may make it. Dask would let an idle worker steal it, and would still count it
    among the actors of this worker, which could then never be retired.
    """
    return client.submit(
        kind,
        *arguments,
        actor=True,
        key=key,
        workers=[worker],
        priority=100,
    )


_unwanted: "set[asyncio.Task[None]]" = set()


def release_when_made(client: Client, future: "Future[object]") -> "asyncio.Task[None]":
    """Release the future of an actor that is no longer needed, once no worker is making it.

    If the future is released before that, Dask still counts the actor among those of its worker,
    and never lets that worker retire.
    """

    async def release() -> None:
        while await is_processed(client, future):
            await asyncio.sleep(LOOK_SECONDS)
        future.release()

    task = asyncio.ensure_future(release())
    _unwanted.add(task)  # it may outlive its run, as long as a worker is stopped
    task.add_done_callback(_unwanted.discard)
    task.add_done_callback(retrieve_error)
    return task


async def wait_until_made(
    client: Client, future: "Future[object]", name: str, worker: str, *, nbytes: int = 0
) -> str:
    """Wait until an actor of `nbytes` is made; return the address of its worker.

    Raises
    ------
    ShardLost
        Its worker left meanwhile, or answers no ping.
    WorkerError
        No worker made it in time.
    """
    seconds = deadline("placement", nbytes)
    silence = ShardLost(f"{name} was not made: worker {worker} answers no ping")
    try:
        status = await while_alive(
            status_at_end(client, future, seconds),
            lambda: worker_answers(client.rpc, worker),
            silence,
            f"{name} to be made on worker {worker}",
        )
    except TimeoutError as error:
        raise WorkerError(f"no worker made {name} within {seconds:g} s") from error
    failure = error_of(future)
    if status == "error" and failure is not None and not is_loss_of_actor(failure):
        raise failure
    address = await place_of(client, str(future.key))
    if status != "finished" or address is None:
        raise ShardLost(f"{name} was lost while it was made")
    return address
