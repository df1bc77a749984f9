"""A run on the client's event loop, watched from the user's own thread.

The run is a coroutine on the client's loop, where calls have deadlines. Callbacks, the progress
bar and Ctrl-C belong to the user's thread, so a slow callback delays no heartbeat.
"""

import queue
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from traceback import format_exception_only
from typing import Any, Protocol, TypeVar

import numpy as np
from distributed import Client, LocalCluster, default_client, get_client

from dbdask.data.block_provider import beside_task
from dbdask.metrics.call_time import CallClock
from dbdask.metrics.history import Record
from dbdask.progress import Progress
from dbdask.rpc.clients import check_client
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.local_workers import this_worker
from dbdask.rpc.loops import client_loop, start_on
from dbdask.rpc.portable import end_causes
from dbdask.run.guard import client_closed, guarded
from dbdask.run.slow_callbacks import Callback, CallbackWatch
from dbdask.run.snapshots import Snapshots
from dbdask.schedule.awake import AwakeClock

T = TypeVar("T")


class Watched(Protocol):
    """The part of a run that the user's thread uses."""

    records: "queue.SimpleQueue[Record]"
    at_rest: threading.Event  # set when nothing of the run is left on the cluster
    snapshots: Snapshots

    @property
    def clock(self) -> AwakeClock:
        """The clock by which the run judges workers."""

    def request_stop(self, reason: str) -> None: ...


@contextmanager
def client_for(client: Client | None, call: CallClock) -> Iterator[Client]:
    """Yield the given client, the current one, or one of a LocalCluster that ends with the run.

    Inside a Dask task the current client is that of its worker.

    Parameters
    ----------
    client
        The client; None takes another one.
    call
        The clock of the call, for the time that a LocalCluster takes.

    Raises
    ------
    TypeError
        It is no client, or an asynchronous one.
    ValueError
        It is closed.
    """
    client = current_client() if client is None else client
    if client is None:
        call.enter("cluster")
        with _own_cluster() as own:
            call.enter("checking")
            yield own
        return
    check_client(client)
    with beside_task():
        yield client


def current_client() -> Client | None:
    """Return the current client, inside a Dask task that of its worker; None if there is none."""
    try:
        this_worker()
    except ValueError:  # in no task
        try:
            client: Client = default_client()
            return client
        except ValueError:
            return None
    client = get_client()
    return client


@contextmanager
def _own_cluster() -> Iterator[Client]:
    with (
        LocalCluster(threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def watch(
    client: Client,
    run: Watched,
    work: Coroutine[Any, Any, T],
    callbacks: Sequence[Callback],
    progress: Progress,
) -> T:
    """Drive the work of a run to its end, and return its result.

    A callback that returns True stops the run. If a callback raises, the run stops, and the error
    is raised when the run has come to rest; if the run fails too, a note on it says so. Ctrl-C
    stops the run as a callback would; a second Ctrl-C abandons it.

    Raises
    ------
    Exception
        The error of the run, or of a callback.
    KeyboardInterrupt
        A second Ctrl-C came before the run had come to rest.
    """
    progress.begin()
    loop = client_loop(client)
    future = start_on(loop, _attempt(guarded(client, work, run.snapshots, run.clock)))
    raised: list[BaseException] = []

    def is_over() -> bool:
        return future.done() or not loop.is_running()  # a client that is closed may stop its loop

    try:
        with CallbackWatch() as watching:
            callbacks = watching.over(callbacks)
            try:
                _drain_until(is_over, run, callbacks, progress, raised)
            except KeyboardInterrupt:
                run.request_stop("interrupted")
                _drain_until(is_over, run, callbacks, progress, raised)
            _drain(run, callbacks, progress, raised, wait=0.0)
    except BaseException as error:
        for before in raised:
            _add(error, "before this error a callback raised", before)
        future.cancel()
        if loop.is_running():
            run.at_rest.wait(deadline("portion-end"))
        raise
    finally:
        progress.close()
    over = future.done() and not future.cancelled()
    result = future.result() if over else _Failure(client_closed(run.snapshots))
    if raised:
        if isinstance(result, _Failure):
            _add(raised[0], "the run failed too", result.error)
        raise raised[0]
    if isinstance(result, _Failure):
        raise result.error
    return result


def _add(error: BaseException, what: str, other: BaseException) -> None:
    """Add a note to the error that is raised, which names another error."""
    described = "".join(format_exception_only(other)).strip()
    error.add_note(f"{what}: {described}")


@dataclass
class _Failure:
    """The error of work, as a result."""

    error: Exception


async def _attempt(work: Coroutine[Any, Any, T]) -> T | _Failure:
    """Return the result of work, or its error: futures change some errors between threads."""
    try:
        return await work
    except Exception as error:
        end_causes(error)
        return _Failure(error)


def _drain_until(
    is_over: Callable[[], bool],
    run: Watched,
    callbacks: Sequence[Callback],
    progress: Progress,
    raised: list[BaseException],
) -> None:
    """Hand on records while the run works. Ctrl-C may be raised at any place in here."""
    while not is_over():
        _drain(run, callbacks, progress, raised, wait=0.2)
        progress.wait()


def _drain(
    run: Watched,
    callbacks: Sequence[Callback],
    progress: Progress,
    raised: list[BaseException],
    wait: float,
) -> None:
    """Hand every waiting record to progress and callbacks."""
    while True:
        try:
            record = run.records.get(timeout=wait) if wait else run.records.get_nowait()
        except queue.Empty:
            return
        progress.update(record)
        _call_back(run, record, callbacks, raised)


def _call_back(
    run: Watched, record: Record, callbacks: Sequence[Callback], raised: list[BaseException]
) -> None:
    for callback in callbacks:
        if raised:
            return
        try:
            if _says_stop(callback(record)):
                run.request_stop("callback")
        except Exception as error:
            raised.append(error)
            run.request_stop("callback")


def _says_stop(answer: object) -> bool:
    """Whether a callback's answer is True, of Python or NumPy; other truthy values do not count."""
    return isinstance(answer, (bool, np.bool_)) and bool(answer)
