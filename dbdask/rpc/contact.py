"""Calls to actors and workers by address: with `tasks`, the inside of `distributed`.

An `Actor` waits through the scheduler's view of the world and may wait for ever; here every call
goes over a direct connection, under a deadline, and ends in the answer or in `ShardLost`.
"""

import asyncio
import concurrent.futures
import importlib
import pickle
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import cloudpickle
from distributed import Client, Status, Worker
from distributed.comm import Comm, get_address_host_port
from distributed.core import ConnectionPool, send_recv
from distributed.protocol import to_serialize
from distributed.worker import get_worker

from dbdask.errors import SchedulerLost, ShardLost, WorkerError
from dbdask.rpc.deadlines import deadline, within
from dbdask.schedule.awake import LOOK_SECONDS, AwakeClock


class ActorPlace(NamedTuple):
    """Where an actor lives: enough to call it, without depending on its task."""

    worker: str
    key: str


T = TypeVar("T")

LOST = (OSError, KeyError, asyncio.TimeoutError)
FIRST_TRY_SECONDS = 0.5
GRACE_SECONDS = 1.0  # a connection that nobody waits for any more


async def call_actor(
    pool: ConnectionPool, place: ActorPlace, method: str, *arguments: object, nbytes: int = 0
) -> Any:
    """Call a method of an actor; a passed deadline asks the actor's worker, it does not judge.

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

    Raises
    ------
    ShardLost
        The worker left, forgot the actor, or answers no ping.
    Exception
        Whatever the method raised: what it is called says nothing of the actor.
    """
    try:
        return await while_alive(
            ask_actor(pool, place, method, *arguments),
            lambda: answers_ping(pool, place),
            ShardLost(f"{place.key} on {place.worker} answers no ping"),
            nbytes=nbytes,
        )
    except MethodRaised as raised:
        failure = raised.error
    except ShardLost:
        raise
    except (*LOST, RuntimeError) as error:  # the latter of a client or worker that is closed
        raise lost(pool, place, error) from error
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


def lost(pool: ConnectionPool, place: ActorPlace, error: BaseException) -> ShardLost:
    """Return the error that says why an actor counts as lost."""
    why = refused_certificate(pool, place.worker, error) or f"is gone: {error!r}"
    return ShardLost(f"{place.key} on {place.worker} {why}")


async def while_alive(
    work: Coroutine[Any, Any, T],
    probe: Callable[[], Awaitable[bool]],
    silence: Exception,
    *,
    nbytes: int = 0,
) -> T:
    """Await work on a worker for as long as a probe gives a sign of life.

    A passed deadline asks and does not judge: what answers is busy, and is waited for.

    Parameters
    ----------
    work
        Is cancelled where its result is not wanted any more.
    probe
        Asks for a sign of life; called each time the deadline `answer` has passed.
    silence
        Raised if none came.
    nbytes
        Bytes that travel with the work or its answer; they lengthen the deadline.
    """
    working = asyncio.ensure_future(work)
    working.add_done_callback(hear_out)
    try:
        while not (await asyncio.wait({working}, timeout=deadline("answer", nbytes)))[0]:
            if not await probe() and not working.done():
                raise silence
        return working.result()
    finally:
        working.cancel()


def hear_out(work: "asyncio.Task[T]") -> None:
    """Take the error of work that nobody may wait for any more, before asyncio complains."""
    if not work.cancelled():
        work.exception()


class MethodRaised(Exception):
    """An actor's method raised the error that this one carries; the connection is well."""

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
    reply = await _talk(
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


async def _talk(pool: ConnectionPool, address: str, connecting: str, **message: object) -> Any:
    """One message and its answer over a pooled connection; `connecting` names its deadline."""
    comm = await _connect(pool, address, deadline(connecting))
    try:
        return await send_recv(comm, reply=True, **message)
    finally:
        pool.reuse(address, comm)


async def _connect(pool: ConnectionPool, address: str, seconds: float) -> Comm:
    """Return a connection; where this process paused on the way, Dask's time-out judges nobody."""
    if any(not comm.closed() for comm in pool.available.get(address, ())):
        return await pool.connect(address, timeout=seconds)
    while True:
        clock = AwakeClock(asyncio.get_running_loop().time)
        watching = asyncio.ensure_future(_watch(clock))
        try:
            return await _connect_anew(pool, address, seconds)
        except ConnectionRefusedError:
            raise
        except OSError:
            clock.seconds()
            if not clock.pauses:
                raise
        finally:
            watching.cancel()


async def _watch(clock: AwakeClock) -> None:
    """Look at a clock for as long as the wait that it measures."""
    while True:
        clock.seconds()
        await asyncio.sleep(LOOK_SECONDS)


async def _connect_anew(pool: ConnectionPool, address: str, seconds: float) -> Comm:
    """Return a new connection; Dask tries an address where nobody listens until the time is up.

    Tornado never closes a socket whose connecting is cancelled in the very turn in which it is
    connected. So nothing is cancelled at once, and Dask gets all the time there is: it cancels what
    takes longer than a fifth of it, and begins again.
    """
    connecting = asyncio.ensure_future(pool.connect(address, timeout=seconds))
    try:
        await asyncio.wait({connecting}, timeout=FIRST_TRY_SECONDS)
        if not connecting.done() and await _nobody_listens(address):
            raise ConnectionRefusedError(f"nobody listens at {address}")
        await asyncio.wait({connecting})
        return connecting.result()
    except BaseException:
        _let_end(pool, address, connecting)
        raise


def _let_end(pool: ConnectionPool, address: str, connecting: "asyncio.Task[Comm]") -> None:
    """Leave a connection that nobody waits for any more to the next who asks, if it is made."""

    def give_back(connecting: "asyncio.Task[Comm]") -> None:
        if not connecting.cancelled() and connecting.exception() is None:
            pool.reuse(address, connecting.result())

    connecting.add_done_callback(give_back)
    asyncio.get_running_loop().call_later(GRACE_SECONDS, connecting.cancel)


async def _nobody_listens(address: str) -> bool:
    """Whether a connection is refused: the process is gone, where a busy one lets it wait."""
    if not address.startswith(("tcp://", "tls://")):
        return False
    host, port = get_address_host_port(address)
    try:
        async with asyncio.timeout(FIRST_TRY_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return False


def refused_certificate(pool: ConnectionPool, address: str, error: BaseException) -> str:
    """Say what to do where a connection ended in TLS; nothing where it ended otherwise."""
    if not (address.startswith("tls://") and re.search(r"TLS cert|SSL\w*Error", repr(error))):
        return ""
    server = pool.server() if pool.server else None
    caller = getattr(server, "address", "the client")
    return (
        f"cannot be reached from {caller}, because one refuses the other's TLS certificate: "
        f"scheduler, workers and client need certificates of one authority, or --tls-ca-file "
        f"with the authorities of all ({error!r})"
    )


def unwrap(value: object) -> Any:
    """Between workers of one process a message arrives still wrapped for serialisation."""
    return getattr(value, "data", value) if type(value).__name__ == "Serialize" else value


async def answers_ping(pool: ConnectionPool, place: ActorPlace) -> bool:
    """Whether the actor's worker answers, for this actor, within the ping deadline."""
    try:
        async with within(deadline("ping")):
            await _call(pool, place, "ping", (), "ping")
    except (*LOST, RuntimeError):
        return False
    return True


async def worker_answers(
    pool: ConnectionPool, address: str, *, seconds: float | None = None
) -> bool:
    """Whether a worker answers at all within `seconds` (None: the ping deadline)."""
    seconds = deadline("ping") if seconds is None else seconds
    try:
        async with within(seconds):
            await _talk(pool, address, "ping", op="identity")
    except (*LOST, RuntimeError):
        return False
    return True


async def run_on(
    pool: ConnectionPool,
    address: str,
    function: Callable[..., Any],
    *arguments: object,
    seconds: float,
) -> Any:
    """Run a function on a worker's event loop (a coroutine function is awaited there).

    Raises
    ------
    WorkerError
        The worker does not answer within `seconds`, or cannot load the function.
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
            reply = await _talk(pool, address, "connect", **message)
    except TimeoutError as error:
        raise WorkerError(f"worker {address} gave no answer in {seconds:g} s") from error
    except LOST as error:
        why = refused_certificate(pool, address, error) or f"gave no answer: {error!r}"
        raise WorkerError(f"worker {address} {why}") from error
    if reply["status"] != "OK":
        failure = unwrap(reply["exception"])
        raise pickle.loads(failure) if isinstance(failure, bytes) else failure
    return unwrap(reply["result"])


async def import_here(names: Sequence[str]) -> None:
    """On a worker: import modules beside the event loop, which would serve nobody meanwhile."""
    for name in names:
        await asyncio.to_thread(importlib.import_module, name)


def start_on(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]
) -> concurrent.futures.Future[T]:
    """Start a coroutine on a loop from another thread."""
    return asyncio.run_coroutine_threadsafe(coroutine, loop)


def this_worker() -> Worker:
    """The worker that runs the calling task."""
    return get_worker()


def client_loop(client: Client) -> asyncio.AbstractEventLoop:
    """The asyncio loop on which a client talks to its cluster."""
    assert client.loop is not None
    loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop  # type: ignore[attr-defined]
    return loop


def worker_loop(worker: Worker) -> asyncio.AbstractEventLoop:
    """The asyncio loop on which a worker serves its calls."""
    loop: asyncio.AbstractEventLoop = worker.loop.asyncio_loop  # type: ignore[attr-defined]
    return loop


def worker_here(address: str) -> Worker | None:
    """Return the worker of an address if it runs in this very process."""
    for worker in list(Worker._instances):
        if isinstance(worker, Worker) and worker.address_safe == address:
            return worker
    return None


def held_actor(worker: Worker, key: str) -> Any:
    """Return an actor that a worker of this process holds.

    Raises
    ------
    KeyError
        The worker holds no such actor any more, or is closed.
    """
    if worker.status in (Status.closed, Status.failed):
        raise KeyError(f"worker {worker.address_safe} is closed")
    return worker.state.actors[key]


def is_registered(worker: Worker) -> bool:
    """Whether a worker is connected to its scheduler now."""
    return not worker.batched_stream.closed()


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the scheduler says of a worker."""

    address: str
    name: str
    host: str
    memory_limit: int  # bytes; 0 where there is none
    is_closing: bool = False  # it still answers, and gets nothing new
    is_paused: bool = False  # its memory is nearly full: Dask lets it begin nothing for now

    def is_called(self, wanted: str) -> bool:
        """Whether `wanted` means this worker, as in `client.submit(workers=)`."""
        return wanted in (self.address, self.name, self.host)


CLOSING = ("closing", "closing_gracefully")


async def workers_now(client: Client) -> dict[str, WorkerFacts]:
    """Return the workers that the scheduler knows now and that answer, by address.

    Raises
    ------
    SchedulerLost
        The scheduler gives no answer.
    """
    try:
        async with within(3 * deadline("ping")):  # a verb's guard is sooner
            answer = await scheduler_of(client).identity(n_workers=-1)
    except LOST as error:
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
    """Return how many workers the scheduler has; None where it does not say within the deadline."""
    try:
        async with within(deadline("ping")):
            return len(await scheduler_of(client).ncores(workers=None))
    except LOST:
        return None


def scheduler_of(client: Client) -> Any:
    """Return what a client asks its scheduler through.

    Raises
    ------
    ConnectionError
        The client is closed.
    """
    if client.scheduler is None:
        raise ConnectionError("the client is closed")
    return client.scheduler


def is_closed(client: Client) -> bool:
    """Whether somebody has closed a client, or begun to."""
    return client.status in ("closed", "closing")


def connection_of(client: Client) -> Any:
    """Return what stands for a client's connection: another one after it was broken."""
    return client.scheduler_comm


def has_scheduler(client: Client) -> bool:
    """Whether a client is connected now."""
    return client.scheduler_comm is not None and not client.scheduler_comm.closed()


async def retire(client: Client, worker: str) -> bool:
    """Have the scheduler retire a worker, as `client.retire_workers` does; False if it does not."""
    retired = await scheduler_of(client).retire_workers(
        workers=[worker], close_workers=True, remove=True
    )
    return bool(retired)


class _Listener:
    """A handler of a topic that leaves the handlers before it at work."""

    def __init__(self, handler: Callable[[Any], None], before: Any) -> None:
        self.handler, self.before = handler, before
        self.is_active = True

    def __call__(self, event: tuple[float, Any]) -> Any:
        if self.is_active:
            self.handler(event[1])
        return self.before(event) if self.before is not None else None


def listen(client: Client, topic: str, handler: Callable[[Any], None]) -> Callable[[], None]:
    """Call `handler` with every message of a topic; returns what ends it.

    A client has one handler a topic. The user's own, and those of other runs, go on.
    """
    mine = _Listener(handler, _last_active(client, topic))
    client.subscribe_topic(topic, mine)

    def stop() -> None:
        mine.is_active = False
        head = _last_active(client, topic)
        if head is not None:
            client._event_handlers[topic] = head
        elif not is_closed(client):  # `mine` stays and does nothing, for a late event
            client.unsubscribe_topic(topic)

    return stop


def _last_active(client: Client, topic: str) -> Any:
    head = client._event_handlers.get(topic)
    while isinstance(head, _Listener) and not head.is_active:
        head = head.before
    return head
