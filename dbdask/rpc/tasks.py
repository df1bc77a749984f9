"""Tasks as the client sees them: their end, their result, and what is known of those under way.

Like the rest of `rpc`, it touches the inside of `distributed`; no other package does.
"""

import asyncio
import uuid
from collections.abc import Collection
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from distributed import Client, Future, Worker
from distributed.utils_comm import gather_from_workers

from dbdask.errors import ShardLost, WorkerError
from dbdask.rpc.calls import CONNECTION_ERRORS, is_no_answer, run_on, unwrap
from dbdask.rpc.deadlines import deadline, within
from dbdask.rpc.portable import is_misread
from dbdask.rpc.scheduler import has_scheduler, scheduler_of
from dbdask.schedule.awake import AwakeClock

T = TypeVar("T")

LOOK_SECONDS = 0.5  # a wait that looks about looks so often
AT_WORK = ("waiting", "constrained", "ready", "executing", "long-running", "resumed")
ENDED = ("memory", "erred")
NOT_BEGUN = ("waiting", "constrained", "ready")
GONE = ("forgotten", None)
TO_TELL = (*ENDED, *GONE)
MOST_FETCHES = 20


class Whereabouts(NamedTuple):
    """In what state a task is that has not ended, in Dask's words."""

    at_scheduler: str
    at_worker: str = ""

    @property
    def is_lost(self) -> bool:
        """Whether the task yields nothing: no worker runs it, or its end reaches no client.

        The scheduler waits for a worker that does not work on it; or it knows the end, has told
        the client, and the client still does not know.
        """
        is_nowhere = self.at_scheduler == "processing" and self.at_worker not in AT_WORK
        return is_nowhere or self.at_scheduler in ENDED

    @property
    def has_not_begun(self) -> bool:
        """Whether the task waits for others: for what it depends on, or for a thread."""
        if self.at_scheduler == "processing":
            return self.at_worker in NOT_BEGUN
        return self.at_scheduler in ("waiting", "queued", "no-worker")


async def ended(future: "Future[T]") -> None:
    """Wait, on the client's loop, until a future ends, with or without success."""
    assert future._state is not None
    await future._state.wait()


def error_of(future: "Future[T]") -> BaseException | None:
    """Return what a future that has ended failed with, if it did."""
    assert future._state is not None
    failure: BaseException | None = future._state.exception
    return failure


def is_loss_of_actor(error: BaseException) -> bool:
    """Whether a future's error says that the worker of its actor is gone."""
    return isinstance(error, RuntimeError) and "Worker holding Actor was lost" in str(error)


async def place_of(client: Client, key: str) -> str | None:
    """Return the address of the worker that holds a key, if one does."""
    holders = await scheduler_of(client).who_has(keys=[key])
    return next(iter(holders.get(key, ())), None)


async def result_of(client: Client, future: "Future[T]") -> T:
    """Wait, on the client's loop, for the result of a task that returns scalars.

    It comes straight from its worker. `client.gather` makes one question of all that are asked
    together, the user's own among them: all wait for the slowest worker, a cancel of one cancels
    all, and a cancel before the question is sent leaves a client that never gathers again.

    Raises
    ------
    CancelledError
        Dask has cancelled the task: the user did, or what it depends on is lost.
    RuntimeError
        The result is there, by what the scheduler says, and cannot be had; or the task raised what
        would pass for its cancellation.
    """
    assert future._state is not None
    for _ in range(MOST_FETCHES):
        await ended(future)
        failure = error_of(future)
        if future.status == "error" and is_misread(failure):
            raise RuntimeError(f"{future.key} raised {failure!r}") from failure
        if failure is not None:
            raise failure.with_traceback(future._state.traceback)
        with suppress(TimeoutError, OSError):  # whether scheduler and worker live, others judge
            async with within(deadline("ping")):
                found = await _fetched(client, str(future.key))
            if found:
                result: T = found[0]
                return result
        await asyncio.sleep(LOOK_SECONDS)  # if it is lost, the scheduler has yet to notice
    raise RuntimeError(f"no worker hands over the result of {future.key}")


async def _fetched(client: Client, key: str) -> list[Any]:
    """Return a task's result, or nothing if the workers that held it are gone."""
    holders = await scheduler_of(client).who_has(keys=[key])
    data, _, unreadable, _ = await gather_from_workers(holders, rpc=client.rpc)
    if unreadable:
        raise RuntimeError(f"the result of {key} cannot be read")
    return [unwrap(value) for value in data.values()]


async def status_at_end(client: Client, future: "Future[T]", seconds: float) -> str:
    """Wait, on the client's loop, until a future ends; its status comes back.

    Raises
    ------
    asyncio.TimeoutError
        It did not end within `seconds`.
    ShardLost
        The worker that it is pinned to has left, or Dask has paused it.
    """
    clock = AwakeClock(asyncio.get_running_loop().time)
    waiting = asyncio.ensure_future(ended(future))
    try:
        while not (await asyncio.wait({waiting}, timeout=LOOK_SECONDS))[0]:
            if clock.seconds() > seconds:
                raise TimeoutError
            key = str(future.key)
            state = await _at_scheduler(client, key)
            if state == "no-worker":
                raise ShardLost(f"the worker that was to make {key} left, or is paused")
            if state in TO_TELL:  # the user has cancelled it, or the client missed its end
                client._send_to_scheduler({"op": "report-key", "key": key})
    finally:
        waiting.cancel()
    return str(future.status)


async def until_heard(client: Client) -> None:
    """Wait until the scheduler has taken in what the client has sent it, releases among it.

    The client sends everything over one connection and in order. So this sends a task last, which
    the scheduler then knows, and then does not know any more. The wait ends at `dbdask.connect`, or
    if there is no scheduler.
    """
    marker = client.submit(abs, 0, key=f"dbdask-marker-{uuid.uuid4().hex}", pure=False)
    key = str(marker.key)
    with suppress(TimeoutError, *CONNECTION_ERRORS):
        async with within(deadline("connect")):
            while has_scheduler(client) and await _at_scheduler(client, key) in GONE:
                await asyncio.sleep(0.01)
            marker.release()
            while has_scheduler(client) and await _at_scheduler(client, key) not in GONE:
                await asyncio.sleep(0.01)


async def is_processed(client: Client, future: "Future[T]") -> bool:
    """Whether a worker has been given a future's task, and has not ended it."""
    try:
        async with within(deadline("ping")):
            return await _at_scheduler(client, str(future.key)) == "processing"
    except CONNECTION_ERRORS:
        return False


async def whereabouts(client: Client, worker: str, keys: Collection[str]) -> dict[str, Whereabouts]:
    """Ask scheduler and worker where tasks are that the client waits for.

    Those are left out of which one of them does not say, and those that the client has not
    submitted yet, or knows the end of. What one process has told another may be on its way: only
    what they say twice is so. Where a task has ended, or is unknown, the scheduler is asked to tell
    the client so, in its turn: behind what the client has sent it.

    Raises
    ------
    Exception
        Scheduler or worker answers otherwise than a `distributed` that is known. A connection that
        fails raises nothing: nothing is found.
    """
    try:
        found = await _whereabouts(client, worker, keys)
    except OSError:  # of the scheduler
        return {}
    except WorkerError as error:
        if is_no_answer(error):
            return {}
        raise
    return found


async def _whereabouts(
    client: Client, worker: str, keys: Collection[str]
) -> dict[str, Whereabouts]:
    asked = _pending(client, keys)
    async with within(deadline("ping")):
        at_scheduler = await scheduler_of(client).get_task_status(keys=asked)
    given = [key for key in asked if at_scheduler[key] == "processing"]
    at_worker = {}
    if given:
        seconds = deadline("ping")
        at_worker = await run_on(client.rpc, worker, _at_worker, given, seconds=seconds)
    for key in _pending(client, asked):
        if at_scheduler[key] in TO_TELL:
            client._send_to_scheduler({"op": "report-key", "key": key})
    return {
        key: Whereabouts(str(at_scheduler[key]), at_worker.get(key, ""))
        for key in _pending(client, asked)
        if at_scheduler[key] not in GONE  # those may be on their way
    }


def _pending(client: Client, keys: Collection[str]) -> list[str]:
    return [key for key in keys if key in client.futures and not client.futures[key].done()]


def is_submitted(client: Client, key: str) -> bool:
    """Whether a client has submitted a task that it still holds."""
    return key in client.futures


async def _at_scheduler(client: Client, key: str) -> str | None:
    states = await scheduler_of(client).get_task_status(keys=[key])
    state: str | None = states[key]
    return state


def _at_worker(keys: Collection[str], dask_worker: Worker) -> dict[str, str]:
    tasks = dask_worker.state.tasks
    return {key: str(tasks[key].state) if key in tasks else "unknown" for key in keys}
