"""Making an actor on a worker: the wait for it has a deadline, and says why it ended."""

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
    """Ask for an actor on a worker and no other, before all other work there.

    The future keeps it alive. Where others might make it, Dask would let one that is idle steal
    it, and keep it for ever in the books of this one, which could then never be retired.
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
    """Release the future of an actor that nobody wants any more, once no worker is making it.

    Dask keeps an actor that is released before in the books of its worker: it would never let
    that worker retire.
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
    """Wait until an actor of `nbytes` is made; returns its worker.

    Raises
    ------
    ShardLost
        Its worker left meanwhile, or gives no sign of life.
    WorkerError
        No worker made it in time.
    """
    seconds = deadline("placement", nbytes)
    silence = ShardLost(f"{name} was not made: worker {worker} gives no sign of life")
    try:
        status = await while_alive(
            status_at_end(client, future, seconds),
            lambda: worker_answers(client.rpc, worker),
            silence,
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
