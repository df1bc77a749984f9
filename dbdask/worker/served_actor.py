"""An actor that answers calls one after the other under its lock, over any transport.

It is a plain class: Dask makes an actor of it, and a test needs no cluster.

Every access to the state happens under the lock, so no fetch sees half an update. Calls over Dask's
connections arrive in coroutines, which hand the arithmetic to the actor's own one-thread executor.
So no call waits behind another actor of the same worker, and none computes on the event loop. The
other transports call `answer` on a thread of their own.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from dbdask.daemon_threads import beside_loop
from dbdask.errors import ShardLost, Stale
from dbdask.rpc.portable import portable
from dbdask.rpc.same_host_server import ChannelServer
from dbdask.rpc.transport import Request
from dbdask.worker.commands import Answers, Commands

T = TypeVar("T")


class ServedActor:
    """Answers the requests of replicas and the commands of the client, of one generation.

    Parameters
    ----------
    length
        Elements of the vectors that travel with requests.
    generation
        Messages of another generation are refused with `Stale`.
    answers
        Answers to the last commands, which are part of the state.

    Attributes
    ----------
    lock
        Must be held to read or change the state.
    """

    requests: frozenset[str] = frozenset()
    """Methods that a `Request` may name. They run under the lock."""

    def __init__(self, length: int, generation: int, answers: Answers) -> None:
        self.length = length
        self.generation = generation
        self.lock = threading.RLock()
        self.answers = answers
        self.commands = Commands()
        self._channels = ChannelServer(self)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="dbdask-shard")

    def answer(
        self, request: Request, sent: np.ndarray | None = None, into: np.ndarray | None = None
    ) -> Any:
        """Carry out a replica's request on the calling thread, and return the answer.

        Every transport ends here. Any error that it raises can be pickled.

        Parameters
        ----------
        request
            Names one of `requests`.
        sent
            The vector that came with the request, float32 (length of the shard,). It is only read,
            and only before the answer.
        into
            Takes the vector of the answer, if there is one: float32 (length of the shard,).

        Raises
        ------
        Stale
            The request is of another generation.
        """
        vectors = [vector for vector in (sent, into) if vector is not None]
        try:
            with self.lock:
                return self._answer(request, vectors)
        except BaseException as error:
            failure = portable(error)
        raise failure  # outside `except`, so that no other error becomes its context

    def _answer(self, request: Request, vectors: Sequence[np.ndarray]) -> Any:
        if request.generation is not None:
            self._check(request.generation)
        if request.method not in self.requests:
            raise AttributeError(f"a shard answers no request {request.method!r}")
        return getattr(self, request.method)(*request.arguments, *vectors)

    def _check(self, generation: int) -> None:
        if generation != self.generation:
            raise Stale(f"generation {generation}, the shard is at {self.generation}")

    async def serve(
        self, request: tuple[str, int | None, tuple[Any, ...]], sent: np.ndarray | None, wants: bool
    ) -> tuple[Any, np.ndarray | None]:
        """Answer a request that came over Dask's connections.

        Returns the answer and, if the caller wants one, its vector. Both vectors are float32 (n,),
        of the length of the shard.
        """
        into = np.empty(self.length, np.float32) if wants else None
        return await self._serve(self.answer, Request(*request), sent, into), into

    async def _serve(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function on the actor's own thread, under the lock.

        Raises
        ------
        ShardLost
            The worker's process is ending, and its threads begin no call.
        Exception
            The error of the function, in a form that can be pickled.
        """

        def locked() -> T:
            with self.lock:
                return function(*arguments)

        try:
            work = self._executor.submit(_attempt, locked)
        except RuntimeError as error:
            raise ShardLost(f"the worker of a shard is ending: {error}") from error
        outcome = await asyncio.wrap_future(work)
        if isinstance(outcome, _Failure):
            raise outcome.error
        return outcome

    async def _beside(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that may hang on a thread that serves no calls, without the lock.

        Raises
        ------
        Exception
            The error of the function, in a form that can be pickled.
        """
        outcome: T | _Failure = await beside_loop(_attempt, partial(function, *arguments))
        if isinstance(outcome, _Failure):
            raise outcome.error
        return outcome

    async def ping(self) -> int:
        """Answer at once, even while the actor computes."""
        return self.generation

    async def open_channel(self, host: str) -> str:
        """Listen for one caller on this host; return the name of the socket.

        Raises
        ------
        OSError
            No caller of that host can share memory with this process.
        """
        return await self._beside(self._channels.listen, host)

    async def order(self, number: int, generation: int, name: str, *arguments: Any) -> Any:
        """Carry out a numbered command that is good for one generation only.

        If it comes late, a later command may have set the same thing.

        Raises
        ------
        Stale
            It comes late, and was not carried out before.
        """

        async def carry_out() -> Any:
            self._check(generation)
            return await self._carry_out_command(name, arguments)

        return await self.commands.once(self.answers, number, name, carry_out)

    async def command(self, number: int, name: str, *arguments: Any) -> Any:
        """Carry out a numbered command; a repeat gets the first answer again."""
        return await self.commands.once(
            self.answers, number, name, lambda: self._carry_out_command(name, arguments)
        )

    async def _carry_out_command(self, name: str, arguments: tuple[Any, ...]) -> Any:
        return await getattr(self, "_" + name)(*arguments)


@dataclass
class _Failure:
    error: Exception


def _attempt(function: Callable[[], T]) -> T | _Failure:
    """Return the result of a function or its error: a future would change some errors."""
    try:
        return function()
    except BaseException as error:
        return _Failure(portable(error))
