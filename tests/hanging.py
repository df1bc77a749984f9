"""What a test hangs in: stacks of threads say little where everything waits on event loops."""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from distributed import Client, Scheduler

SECONDS = 200.0  # of a test, before it is looked at; it fails after 240


class Watch:
    """Looks at every test that takes too long, once, from a thread of its own."""

    def __init__(self) -> None:
        self.seen = ""
        self._until: float | None = None
        self._change = threading.Condition()
        threading.Thread(target=self._look, daemon=True, name="tests-watch").start()

    @contextmanager
    def over_a_test(self) -> Iterator[None]:
        """Watch one test."""
        self._set(time.monotonic() + SECONDS)
        self.seen = ""
        try:
            yield
        finally:
            self._set(None)

    def _set(self, until: float | None) -> None:
        with self._change:
            self._until = until
            self._change.notify()

    def _look(self) -> None:
        while True:
            with self._change:
                left = None if self._until is None else self._until - time.monotonic()
                if left is None or left > 0:
                    self._change.wait(left)
                    continue
                self._until = None
            try:
                self.seen = what_hangs()
            except Exception as error:  # what hangs also changes
                self.seen = repr(error)


def what_hangs() -> str:
    """Say where every client, scheduler and worker stands."""
    lines: list[str] = []
    for client in list(Client._instances):
        lines += [f"client {client.id}", *_of_client(client)]
    for scheduler in list(Scheduler._instances):
        lines += [f"scheduler {scheduler.address}", *_of_scheduler(scheduler)]
    for client in list(Client._instances):
        lines += _of_workers(client)
    return "\n".join(lines)


def _of_client(client: Client) -> Iterator[str]:
    for key, state in list(client.futures.items()):
        yield f"  {key} is {state.status}"
    yield from _of_loop(client.loop.asyncio_loop)


def _of_loop(loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    """Where our coroutines on a loop stand, from the outermost to what it awaits."""
    for task in asyncio.all_tasks(loop):
        places = list(_places(task.get_coro()))
        if any("dbdask/" in place for place in places):
            yield f"  {task.get_name()}: " + " > ".join(places)


def _places(coroutine: object) -> Iterator[str]:
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None:
            yield _place(frame.f_code.co_filename, frame.f_lineno)
        coroutine = getattr(coroutine, "cr_await", None)


def _place(path: str, line: int | None) -> str:
    return f"{'/'.join(path.split('/')[-3:])}:{line}"


def _of_scheduler(scheduler: Scheduler) -> Iterator[str]:
    for address, worker in list(scheduler.workers.items()):
        yield f"  {address} is {worker.status.name}"
    for key, task in list(scheduler.tasks.items()):
        where = task.processing_on.address if task.processing_on else ""
        yield f"  {key} is {task.state} {where} for {task.worker_restrictions}"


def _of_workers(client: Client) -> list[str]:
    try:
        answers = client.sync(client._run, _of_worker, on_error="return", callback_timeout=10)
    except Exception as error:
        return [f"workers of {client.id}: {error!r}"]
    return [line for worker, found in answers.items() for line in (f"worker {worker}", str(found))]


def _of_worker(dask_worker: object) -> str:
    lines = [f"  {key} is {task.state}" for key, task in dask_worker.state.tasks.items()]  # type: ignore[attr-defined]
    lines += _of_loop(asyncio.get_running_loop())
    for number, frame in sys._current_frames().items():
        lines += [f"  thread {number}: {' > '.join(where)}" for where in [_stack(frame)] if where]
    return "\n".join(lines)


def _stack(frame: FrameType) -> list[str]:
    """Where a thread stands; nothing where it is not in our code."""
    places = [_place(f.filename, f.lineno) for f in traceback.extract_stack(frame)]
    return places if any("dbdask/" in place for place in places) else []
