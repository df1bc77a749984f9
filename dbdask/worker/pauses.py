"""What a run does while Dask has paused its worker, which begins no task until memory is free."""

import asyncio
from collections.abc import Callable

from distributed import Worker

from dbdask.daemon_threads import beside_loop
from dbdask.rpc.local_workers import is_paused

SECONDS = 0.5  # between two looks whether the worker is paused


async def make_room_in_pauses(worker: Worker, make_room: Callable[[bool], None]) -> None:
    """Call `make_room(keep_less)` beside the loop at each look at a paused worker, until cancelled.

    `keep_less` is true once a pause, at its first look. The later looks are for what the task that
    is at work has read since.
    """
    was_paused = False
    while True:
        await asyncio.sleep(SECONDS)
        is_paused_now = is_paused(worker)
        if is_paused_now:
            await beside_loop(make_room, not was_paused)
        was_paused = is_paused_now
