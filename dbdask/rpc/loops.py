"""The event loops of clients and workers, and starting work on one from another thread."""

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from typing import Any, TypeVar

from distributed import Client, Worker

T = TypeVar("T")


def start_on(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]
) -> concurrent.futures.Future[T]:
    """Start a coroutine on a loop from another thread."""
    return asyncio.run_coroutine_threadsafe(coroutine, loop)


def client_loop(client: Client) -> asyncio.AbstractEventLoop:
    """Return the asyncio loop on which a client talks to its cluster."""
    assert client.loop is not None
    loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop  # type: ignore[attr-defined]
    return loop


def worker_loop(worker: Worker) -> asyncio.AbstractEventLoop:
    """Return the asyncio loop on which a worker serves its calls."""
    loop: asyncio.AbstractEventLoop = worker.loop.asyncio_loop  # type: ignore[attr-defined]
    return loop
