"""Calls to actors and workers by address, with their deadlines.

An `Actor` waits through the scheduler's view of the world and may wait for ever; here every call
goes over a direct connection, under a deadline, and ends in the answer or in `ShardLost`.
"""

import asyncio
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import cloudpickle
from distributed.core import ConnectionPool, send_recv
from distributed.protocol import to_serialize

from dbdask.errors import ShardLost, WorkerError
from dbdask.rpc.connections import connect, refused_certificate
from dbdask.rpc.deadlines import deadline, while_alive, within


class ActorPlace(NamedTuple):
    """Where an actor lives: enough to call it, without depending on its task."""

    worker: str
    key: str


CONNECTION_ERRORS = (OSError, KeyError, asyncio.TimeoutError)
"""The errors of a broken connection. A worker that has forgotten an actor raises `KeyError`."""


async def call_actor(
    pool: ConnectionPool,
    place: ActorPlace,
    method: str,
    *arguments: object,
    nbytes: int = 0,
    called: str = "",
) -> Any:
    """Call a method of an actor. Its worker is pinged if the answer takes long: silence is a loss.

    Parameters
    ----------
    pool
        The connection pool of the calling worker or client.
    place
        The actor's address.
    method, arguments
        What to call; arrays among the arguments travel as they are.
    nbytes
        Bytes that travel with the call or its answer; they lengthen the deadline.
    called
        What a warning calls the call if it takes long; the method's name by default.

    Raises
    ------
    ShardLost
        The worker left, forgot the actor, or answers no ping.
    Exception
        The error that the method raised, of any type: it is no sign that the actor is lost.
    """
    try:
        return await while_alive(
            ask_actor(pool, place, method, *arguments),
            lambda: answers_ping(pool, place),
            ShardLost(f"{place.key} on {place.worker} answers no ping"),
            f"{called or method!r} of {place.key} on worker {place.worker}",
            nbytes=nbytes,
        )
    except MethodRaised as raised:
        failure = raised.error
    except ShardLost:
        raise
    except (*CONNECTION_ERRORS, RuntimeError) as error:  # RuntimeError: client or worker is closed
        raise shard_loss(pool, place, error) from error
    raise failure


async def ask_actor(pool: ConnectionPool, place: ActorPlace, method: str, *arguments: Any) -> Any:
    """Call a method of an actor, without a deadline for its answer.

    Raises
    ------
    MethodRaised
        The method raised an error.
    OSError, KeyError, TimeoutError
        The worker cannot be reached, or has forgotten the actor.
    """
    return await _call(pool, place, method, arguments)


def shard_loss(pool: ConnectionPool, place: ActorPlace, error: BaseException) -> ShardLost:
    """Return the error that says why an actor counts as lost."""
    why = refused_certificate(pool, place.worker, error) or f"is gone: {error!r}"
    return ShardLost(f"{place.key} on {place.worker} {why}")


class MethodRaised(Exception):
    """An actor's method raised `error`. The connection is in order."""

    def __init__(self, error: Exception) -> None:
        super().__init__(repr(error))
        self.error = error


async def _call(
    pool: ConnectionPool,
    place: ActorPlace,
    method: str,
    arguments: tuple[object, ...],
    connecting: str = "connect",
) -> Any:
    reply = await _ask(
        pool,
        place.worker,
        connecting,
        op="actor_execute",
        actor=place.key,
        function=method,
        args=[to_serialize(argument) for argument in arguments],
        kwargs={},
    )
    if reply["status"] == "error":
        raise MethodRaised(unwrap(reply["exception"]))
    return unwrap(reply["result"])


async def _ask(pool: ConnectionPool, address: str, connecting: str, **message: object) -> Any:
    """Send a message over a pooled connection, and return its answer.

    `connecting` names the deadline for the connection.
    """
    comm = await connect(pool, address, deadline(connecting))
    try:
        return await send_recv(comm, reply=True, **message)
    finally:
        pool.reuse(address, comm)


def unwrap(value: object) -> Any:
    """Return a value from its wrapper: within one process a message is not serialised."""
    return getattr(value, "data", value) if type(value).__name__ == "Serialize" else value


async def answers_ping(pool: ConnectionPool, place: ActorPlace) -> bool:
    """Whether the actor's worker answers, for this actor, within the ping deadline."""
    return bool(await _quick_answer(pool, place, "ping"))


async def answers_yes(
    pool: ConnectionPool, place: ActorPlace, method: str, *arguments: object
) -> bool | None:
    """Whether a method of an actor answers something true; None without a timely answer."""
    answers = await _quick_answer(pool, place, method, *arguments)
    return bool(answers[0]) if answers else None


async def _quick_answer(
    pool: ConnectionPool, place: ActorPlace, method: str, *arguments: object
) -> tuple[Any, ...]:
    """Return the answer of a method, or nothing if it does not come within the ping deadline."""
    try:
        async with within(deadline("ping")):
            return (await _call(pool, place, method, arguments, "ping"),)
    except (*CONNECTION_ERRORS, RuntimeError):
        return ()


async def worker_answers(
    pool: ConnectionPool, address: str, *, seconds: float | None = None
) -> bool:
    """Whether a worker answers at all within `seconds` (None: the ping deadline)."""
    seconds = deadline("ping") if seconds is None else seconds
    try:
        async with within(seconds):
            await _ask(pool, address, "ping", op="identity")
    except (*CONNECTION_ERRORS, RuntimeError):
        return False
    return True


async def run_on(
    pool: ConnectionPool,
    address: str,
    function: Callable[..., Any],
    *arguments: object,
    seconds: float,
) -> Any:
    """Run a function on a worker's event loop, and return its result.

    If it is a coroutine function, the worker awaits it.

    Raises
    ------
    WorkerError
        The worker does not answer within `seconds`.
    Exception
        The error that the function raised, or that the worker met when it loaded the function.
    """
    message = {
        "op": "run",
        "function": cloudpickle.dumps(function),
        "args": pickle.dumps(arguments),
        "kwargs": pickle.dumps({}),
        "wait": True,
    }
    try:
        async with within(seconds):
            reply = await _ask(pool, address, "connect", **message)
    except TimeoutError as error:
        raise WorkerError(f"worker {address} gave no answer in {seconds:g} s") from error
    except CONNECTION_ERRORS as error:
        why = refused_certificate(pool, address, error) or f"gave no answer: {error!r}"
        raise WorkerError(f"worker {address} {why}") from error
    if reply["status"] != "OK":
        failure = unwrap(reply["exception"])
        raise pickle.loads(failure) if isinstance(failure, bytes) else failure
    return unwrap(reply["result"])


def is_no_answer(error: BaseException) -> bool:
    """Whether what `run_on` raised says that the worker left or did not answer."""
    return isinstance(error, WorkerError) and isinstance(error.__cause__, CONNECTION_ERRORS)
