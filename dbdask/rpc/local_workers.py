"""The workers of this process, and the actors that they hold."""

import importlib
from collections.abc import Sequence
from typing import Any

from distributed import Status, Worker, WorkerPlugin
from distributed.worker import get_worker

from dbdask.daemon_threads import beside_loop


async def import_here(names: Sequence[str]) -> None:
    """Import modules on a worker, beside its event loop: the loop goes on to serve its calls."""
    for name in names:
        await beside_loop(importlib.import_module, name)


def this_worker() -> Worker:
    """Return the worker that runs the calling task."""
    return get_worker()


def local_worker(address: str) -> Worker | None:
    """Return the worker of an address if it runs in this process."""
    for worker in list(Worker._instances):
        if isinstance(worker, Worker) and worker.address_safe == address:
            return worker
    return None


def name_of_here() -> str:
    """Name the worker that this code runs on, or say that it runs on none."""
    try:
        return f"worker {this_worker().address}"
    except ValueError:
        return "this process"


def local_actor(worker: Worker, key: str) -> Any:
    """Return an actor that a worker of this process holds.

    Raises
    ------
    KeyError
        The worker holds no such actor any more, or is closed.
    """
    if worker.status in (Status.closed, Status.failed):
        raise KeyError(f"worker {worker.address_safe} is closed")
    return worker.state.actors[key]


def actor_keys(worker: Worker, prefix: str) -> list[str]:
    """List the keys of a worker's actors that begin with a prefix."""
    return [str(key) for key in worker.state.actors if str(key).startswith(prefix)]


def memory_limit(worker: Worker) -> int | None:
    """Return the bytes that a worker may hold; None if it has no limit."""
    limit: int | None = worker.memory_manager.memory_limit
    return limit


def memory_limit_here() -> int | None:
    """Return the limit of the worker that runs the calling task; None if there is no such limit."""
    try:
        return memory_limit(this_worker())
    except (ValueError, AttributeError):
        return None


def threads_of(worker: Worker) -> int:
    """Return how many tasks a worker runs at once."""
    return int(worker.state.nthreads)


def is_running(worker: Worker) -> bool:
    """Whether a worker runs, paused or not, and does not close."""
    return worker.status in (Status.running, Status.paused)


def is_paused(worker: Worker) -> bool:
    """Whether Dask has paused a worker, because its memory is nearly full."""
    return bool(worker.status == Status.paused)


def stay_closing(worker: Worker) -> None:
    """Let a worker that closes say so on, though its scheduler has told it to go on running."""
    if worker.status is not Status.closing:
        worker.status = Status.closing


async def add_plugin(worker: Worker, name: str, plugin: WorkerPlugin) -> None:
    """Give a worker a plugin; called on its event loop."""
    await worker.plugin_add(plugin, name=name)


async def remove_plugin(worker: Worker, name: str) -> None:
    """Take a plugin from a worker; called on its event loop."""
    await worker.plugin_remove(name)


def is_handler_of_dask(handler: object) -> bool:
    """Whether `dask worker` has set a handler of signals, to end its event loop at once."""
    return getattr(handler, "__module__", "") == "distributed._signals"


def is_registered(worker: Worker) -> bool:
    """Whether a worker is connected to its scheduler now."""
    return not worker.batched_stream.closed()


def add_local_actor(worker: Worker, key: str, actor: object) -> None:
    """Let calls by address reach an object on a worker as if Dask had made it an actor.

    The scheduler does not know of it. Called on the worker's event loop.
    """
    worker.state.actors[key] = actor


def drop_local_actor(worker: Worker, key: str) -> None:
    """Let no call reach it any more."""
    worker.state.actors.pop(key, None)
