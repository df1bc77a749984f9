"""Every wait of the parameter server, in one place; settable in `dask.config` under `dbdask.`."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import dask.config
from dask.utils import parse_timedelta

from dbdask.rpc.long_waits import long_waits
from dbdask.schedule.awake import LOOK_SECONDS, AwakeClock

T = TypeVar("T")

DEFAULTS = {
    "connect": "5s",
    "ping": "10s",
    "answer": "5s",
    "placement": "60s",
    "preflight": "60s",
    "store": "60s",
    "owner": "30s",
    "silence": "10s",
    "portion-end": "30s",
    "arrival": "15s",
    "hand-on": "3s",
    "lease": "10s",
}
"""Bounds of waits.

connect: reaching a worker. ping: how long a ping may go unanswered before its worker is treated as
lost. answer: how long (plus the bytes at `BYTES_PER_SECOND`) a call may take before its worker is
pinged. placement: a shard's constructor. preflight: a worker opening data and checkpoint, while it
answers pings. store: writing and committing a snapshot (plus its bytes at `BYTES_PER_SECOND`),
deleting old ones; each question to a checkpoint before the run begins. owner: how long the owner of
a checkpoint may leave its entry unrenewed before it counts as dead. silence: how often the worker
of a portion is pinged. portion-end: the end of the portions in flight, after the run told them to
end. arrival: the wait for a worker, if none is left. hand-on: how long a closing worker waits for
its shards to be fetched (a nanny ends it after some 4 s). lease: how often an idle context checks
whether its run still lives. `dbdask.data.waiting` has `dbdask.read`, for a chunk of the data.
"""

dask.config.update_defaults({"dbdask": DEFAULTS})

BYTES_PER_SECOND = 20e6
SAY_SECONDS = 1.0  # between two looks whether a wait has taken long


def deadline(name: str, nbytes: int = 0) -> float:
    """Seconds that the wait called `name` may take when `nbytes` travel with it."""
    # A `dask.config.set` that was there before these defaults takes them along when it ends.
    configured = dask.config.get(f"dbdask.{name}", DEFAULTS[name])
    return float(parse_timedelta(configured)) + nbytes / BYTES_PER_SECOND


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[AwakeClock]:
    """Bound what is awaited inside, as `asyncio.timeout` does, by the time this process ran.

    Every deadline that judges another process is one of these: after a pause of one's own the
    answer may be there, unread, and the time that is left is for reading it.

    Raises
    ------
    TimeoutError
        It took longer.
    """
    loop = asyncio.get_running_loop()
    clock = AwakeClock(loop.time)
    async with asyncio.timeout(None) as timeout:
        looking: asyncio.Handle

        def look() -> None:
            nonlocal looking
            left = seconds - clock.seconds()
            if left <= 0:
                timeout.reschedule(loop.time())
            else:
                looking = loop.call_later(min(left, LOOK_SECONDS), look)

        looking = loop.call_soon(look)
        try:
            yield clock
        finally:
            looking.cancel()


async def while_alive(
    work: Coroutine[Any, Any, T],
    probe: Callable[[], Awaitable[bool]],
    silence: Exception,
    what: str,
    *,
    nbytes: int = 0,
) -> T:
    """Await work on a worker for as long as the worker answers pings.

    A passed deadline is a reason to ping, and no verdict: a worker that answers is busy. Every
    `long_waits.WARN_SECONDS` a warning says what is waited for.

    Parameters
    ----------
    work
        Is cancelled if the caller is cancelled or the worker is silent.
    probe
        Pings the worker. It is called each time the deadline `answer` has passed.
    silence
        The error that is raised if the probe gets no answer.
    what
        Names the work and its worker, in words that follow "waiting for".
    nbytes
        Bytes that travel with the work or its answer; they lengthen the deadline.

    Raises
    ------
    Exception
        `silence`, if the worker answers no ping; or the error of the work.
    """
    working = asyncio.ensure_future(work)
    working.add_done_callback(retrieve_error)
    try:
        with long_waits.waiting(what):
            while not await _has_ended(working, deadline("answer", nbytes)):
                if not await probe() and not working.done():
                    raise silence
        return working.result()
    finally:
        working.cancel()


async def _has_ended(working: "asyncio.Task[T]", seconds: float) -> bool:
    """Wait for a task for up to `seconds`; return whether it has ended."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if (await asyncio.wait({working}, timeout=min(left, SAY_SECONDS)))[0]:
            return True
        long_waits.look()
    return working.done()


def retrieve_error(work: "asyncio.Task[T]") -> None:
    """Take the error of a task: asyncio logs those that no caller has retrieved."""
    if not work.cancelled():
        work.exception()
