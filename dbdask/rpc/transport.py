"""How a call travels from a replica to a copy of a shard, and what it carries.

A transport moves bytes and nothing else. Identities, generations, deadlines, copies and the
judgement of loss belong to `dbdask.worker.link.ServerLink` and are the same for every transport.
Two transports are here: a direct call in the same process, and Dask's connections. The third is in
`dbdask.rpc.same_host`.
"""

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Coroutine
from typing import Any, NamedTuple, Protocol

import dask.config
import numpy as np
from distributed import Worker
from distributed.core import ConnectionPool

from dbdask.arrays import Float32Array
from dbdask.rpc.calls import ActorPlace, MethodRaised, ask_actor
from dbdask.rpc.local_workers import local_actor
from dbdask.rpc.loops import start_on

LOOK_SECONDS = 0.05  # how often a wait for a lock looks whether it was cancelled

WAYS = ("in-process", "same-host", "dask")
"""The transports by name in `dask.config`, the fastest first; Dask's connections always work."""


def permitted() -> tuple[str, ...]:
    """Return the ways that `dbdask.transport` in `dask.config` permits, the fastest first.

    Raises
    ------
    ValueError
        It is neither "auto" nor one of `WAYS`.
    """
    name = dask.config.get("dbdask.transport", "auto")
    if name == "auto":
        return WAYS
    if name not in WAYS:
        names = ", ".join(map(repr, ("auto", *WAYS)))
        raise ValueError(f"dbdask.transport in dask.config must be one of {names}, got {name!r}")
    return (name,)


class Request(NamedTuple):
    """A call of a shard without its vectors: small, and pickled if it has to be."""

    method: str
    """One of the shard's `requests`."""
    generation: int | None
    """The shard refuses the request in any other generation; None is good in all."""
    arguments: tuple[Any, ...] = ()


class PendingCall(Protocol):
    """A call that was started. One thread waits for it; any thread may cancel it."""

    def wait(self, seconds: float) -> bool:
        """Wait for at most `seconds`; return whether the call has ended."""

    def result(self) -> Any:
        """Return the answer of a call that has ended.

        Raises
        ------
        MethodRaised
            The shard's method raised an error.
        OSError, KeyError, RuntimeError
            The connection broke, the shard is not there any more, or the call was cancelled.
        """

    def cancel(self) -> None:
        """End the call, and wake the thread that waits for it. Nothing if it has ended."""


class Transport(Protocol):
    """Carries the calls of one worker to one copy of a shard."""

    @property
    def is_direct(self) -> bool:
        """Whether `start` does the work itself, so that it is to be called after others."""

    def start(
        self, request: Request, sent: Float32Array | None = None, into: Float32Array | None = None
    ) -> PendingCall:
        """Start a call.

        Parameters
        ----------
        request
            The method to call, with its arguments.
        sent
            A vector, float32 (n,), that travels with the request. It must not change before the
            call has ended, and never again after a call that was cancelled.
        into
            A vector, float32 (n,), that takes the vector of the answer. It is filled when the call
            has ended, and must not be used again after a call that was cancelled.
        """

    def close(self) -> None:
        """Let go of connections, if it has any of its own. No call follows."""


class Answering(Protocol):
    """The object in the shard's process that a transport calls."""

    lock: threading.RLock
    """Held while a request is answered; the thread that holds it may call `answer`."""

    def answer(
        self, request: Request, sent: Float32Array | None = None, into: Float32Array | None = None
    ) -> Any:
        """Carry out a request on the calling thread, and return the answer.

        `sent`, which came with the request, and `into`, which takes the vector of the answer, are
        float32 (n,), or None.
        """


class DirectCall:
    """A call in the same process. It runs on the caller's thread, as soon as the lock is free."""

    def __init__(self, actor: Answering, request: Request, *vectors: Float32Array | None) -> None:
        self._actor: Answering | None = actor
        self._request, self._vectors = request, vectors
        self._answer: Any = None
        self._failure: Exception | None = None
        self._is_cancelled = False

    def wait(self, seconds: float) -> bool:
        """Wait for the lock for at most `seconds`, and do the work under it."""
        until = time.monotonic() + seconds
        while self._actor is not None and not self._is_cancelled:
            if self._actor.lock.acquire(timeout=max(0.0, min(seconds, LOOK_SECONDS))):
                self._work(self._actor)
            elif time.monotonic() >= until:
                return False
        return True

    def _work(self, actor: Answering) -> None:
        try:
            self._answer = actor.answer(self._request, *self._vectors)
        except Exception as error:
            self._failure = MethodRaised(error)
        finally:
            actor.lock.release()
            self._actor = None

    def result(self) -> Any:
        """Return the answer, or raise the shard's error."""
        if self._failure is not None:
            raise self._failure
        if self._actor is not None:
            raise ConnectionAbortedError("the call was cancelled")
        return self._answer

    def cancel(self) -> None:
        """End the wait for the lock."""
        self._is_cancelled = True


class InProcess:
    """The transport to a shard in the caller's own process: nothing is copied or sent.

    Parameters
    ----------
    worker
        The worker that holds the shard.
    key
        The key of the shard's actor.
    """

    is_direct = True

    def __init__(self, worker: Worker, key: str) -> None:
        self._worker, self._key = worker, key

    def start(
        self, request: Request, sent: Float32Array | None = None, into: Float32Array | None = None
    ) -> PendingCall:
        """Make the call at once if the shard is free, else when its answer is awaited.

        `sent` and `into` are float32 (n,), of the length of the shard.

        Raises
        ------
        KeyError
            The worker has forgotten the shard.
        """
        call = DirectCall(local_actor(self._worker, self._key), request, sent, into)
        call.wait(0.0)
        return call

    def close(self) -> None:
        """Do nothing: there is no connection."""


class DaskCall:
    """A call over Dask's connections, carried out on the event loop of the caller's worker."""

    def __init__(
        self, future: "concurrent.futures.Future[tuple[Any, Any]]", into: Float32Array | None
    ) -> None:
        self._future, self._into = future, into

    def wait(self, seconds: float) -> bool:
        """Wait for the future."""
        return bool(concurrent.futures.wait([self._future], max(0.0, seconds)).done)

    def result(self) -> Any:
        """Copy the vector that came to its place; return the rest of the answer.

        Raises
        ------
        ConnectionAbortedError
            The call was cancelled.
        """
        try:
            answer, values = self._future.result(timeout=0)
        except (concurrent.futures.CancelledError, asyncio.CancelledError) as error:
            raise ConnectionAbortedError("the call was cancelled") from error
        if self._into is not None:
            np.copyto(self._into, values)
        return answer

    def cancel(self) -> None:
        """Cancel the future."""
        self._future.cancel()


class DaskConnection:
    """The transport that always works: a message over the connections of Dask's workers."""

    is_direct = False

    def __init__(
        self, pool: ConnectionPool, loop: asyncio.AbstractEventLoop, place: ActorPlace
    ) -> None:
        self._pool, self._loop, self._place = pool, loop, place

    def start(
        self, request: Request, sent: Float32Array | None = None, into: Float32Array | None = None
    ) -> PendingCall:
        """Send the request from the event loop.

        `sent` and `into` are float32 (n,), of the length of the shard.
        """
        work: Coroutine[Any, Any, Any] = ask_actor(
            self._pool, self._place, "serve", tuple(request), sent, into is not None
        )
        return DaskCall(start_on(self._loop, work), into)

    def close(self) -> None:
        """Do nothing: the connections are those of the worker."""
