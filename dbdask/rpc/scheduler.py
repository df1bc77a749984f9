"""A client's view of its scheduler: the connection, and the workers."""

from dataclasses import dataclass
from typing import Any

from distributed import Client

from dbdask.errors import SchedulerLost
from dbdask.rpc.calls import CONNECTION_ERRORS
from dbdask.rpc.deadlines import deadline, within


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """The facts of a worker that the scheduler knows."""

    address: str
    name: str
    host: str
    memory_limit: int  # bytes; 0 if there is none
    is_closing: bool = False  # it still answers, and gets no new work
    is_paused: bool = False  # its memory is nearly full: Dask lets it begin no task for now

    def is_called(self, wanted: str) -> bool:
        """Whether `wanted` is this worker's name, host or address, as `client.submit` takes them.

        The protocol of an address may be left out.
        """
        return wanted in (self.address, self.address.split("://")[-1], self.name, self.host)


CLOSING = ("closing", "closing_gracefully")


async def workers_now(client: Client) -> dict[str, WorkerFacts]:
    """Return the workers that the scheduler knows now and that answer, by address.

    Raises
    ------
    SchedulerLost
        The scheduler gives no answer.
    """
    try:
        async with within(3 * deadline("ping")):  # the run's guard notices a lost scheduler sooner
            answer = await scheduler_of(client).identity(n_workers=-1)
    except CONNECTION_ERRORS as error:
        raise SchedulerLost(f"gives no answer: {error!r}") from error
    return {
        address: WorkerFacts(
            address,
            str(worker.get("name", "")),
            str(worker.get("host", "")),
            int(worker.get("memory_limit") or 0),
            worker.get("status") in CLOSING,
            worker.get("status") == "paused",
        )
        for address, worker in answer["workers"].items()
        if worker.get("status", "running") in ("running", "paused", *CLOSING)
    }


async def count_workers(client: Client) -> int | None:
    """Return how many workers the scheduler has; None if it does not answer in time."""
    try:
        async with within(deadline("ping")):
            return len(await scheduler_of(client).ncores(workers=None))
    except CONNECTION_ERRORS:
        return None


def scheduler_of(client: Client) -> Any:
    """Return the remote procedures of a client's scheduler.

    Raises
    ------
    ConnectionError
        The client is closed.
    """
    if client.scheduler is None:
        raise ConnectionError("the client is closed")
    return client.scheduler


def is_closed(client: Client) -> bool:
    """Whether a client is closed or closing."""
    return client.status in ("closed", "closing")


def connection_of(client: Client) -> Any:
    """Return a client's connection to its scheduler. After a break it is another object."""
    return client.scheduler_comm


def has_scheduler(client: Client) -> bool:
    """Whether a client is connected now."""
    return client.scheduler_comm is not None and not client.scheduler_comm.closed()


async def retire(client: Client, worker: str) -> bool:
    """Let the scheduler retire a worker, as `client.retire_workers` does; return whether it did."""
    retired = await scheduler_of(client).retire_workers(
        workers=[worker], close_workers=True, remove=True
    )
    return bool(retired)
