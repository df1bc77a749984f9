"""A worker that closes waits until its shards were fetched: a plugin on the workers with shards."""

import asyncio
import signal
import threading
from typing import Any

from distributed import Worker, WorkerPlugin

from dbdask.rpc.deadlines import deadline
from dbdask.rpc.local_workers import (
    actor_keys,
    add_plugin,
    drop_local_actor,
    is_handler_of_dask,
    is_registered,
    is_running,
    remove_plugin,
    stay_closing,
)
from dbdask.schedule.awake import AwakeClock

LOOK_SECONDS = 0.02


class DrainOnClose(WorkerPlugin):
    """Holds a closing worker back while it has shards of a run, for `dbdask.hand-on` at most.

    The run sees the worker's status, makes the shards anew elsewhere from the state that this
    worker still serves, and then drops them here.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.name = plugin_name(run)
        self._lease: asyncio.Task[None] | None = None  # begun on the worker's loop
        self.is_dismissed = False  # the run has ended: all that is here may go

    def setup(self, worker: Worker) -> None:
        """Watch from now on whether the run still has shards here."""
        self._lease = asyncio.get_running_loop().create_task(self._watch(worker))
        close_on_signals(worker)

    def _shards(self, worker: Worker) -> list[str]:
        return actor_keys(worker, shard_prefix(self.run))

    async def _watch(self, worker: Worker) -> None:
        """Take the plugin away when the shards are gone without a notice (the client died)."""
        while is_running(worker):
            await asyncio.sleep(deadline("lease"))
            if not self._shards(worker):
                await forget_drain(self.run, worker)

    async def teardown(self, worker: Worker) -> None:
        """Wait, where the worker closes, until its shards have moved or the deadline has passed."""
        clock = AwakeClock(asyncio.get_running_loop().time)
        while self._is_awaited(worker) and clock.seconds() < deadline("hand-on"):
            stay_closing(worker)  # a scheduler that has refused to retire it tells it to run
            await asyncio.sleep(LOOK_SECONDS)
        if self._lease is not None:
            self._lease.cancel()
        for key in self._shards(worker):  # a closed worker keeps its actors, and they their threads
            drop_local_actor(worker, key)
        if not any(isinstance(plugin, DrainOnClose) for plugin in worker.plugins.values()):
            leave_signals()

    def _is_awaited(self, worker: Worker) -> bool:
        """Whether there are shards here, and a run that can make them anew elsewhere."""
        return not self.is_dismissed and is_registered(worker) and bool(self._shards(worker))


def shard_prefix(run: str) -> str:
    """How the keys of a run's shards begin."""
    return f"dbdask-shard-{run}-"


def plugin_name(run: str) -> str:
    """The plugin's name on its worker."""
    return f"dbdask-drain-{run}"


async def add_drain(run: str, dask_worker: Worker) -> None:
    """Let a worker wait for the shards of a run when it closes."""
    if plugin_name(run) not in dask_worker.plugins:
        await add_plugin(dask_worker, plugin_name(run), DrainOnClose(run))


async def forget_drain(run: str, dask_worker: Worker) -> None:
    """Let it wait no more."""
    plugin = dask_worker.plugins.get(plugin_name(run))
    if isinstance(plugin, DrainOnClose):
        plugin.is_dismissed = True
        await remove_plugin(dask_worker, plugin_name(run))


_replaced: dict[int, Any] = {}  # the handlers that were there before, by signal
_closing: "set[asyncio.Task[str | None]]" = set()


def close_on_signals(worker: Worker) -> None:
    """Let a signal close a worker that would otherwise end in the middle of everything.

    Without a nanny, `dask worker` stops its event loop at once. With one, the nanny closes its
    worker; but a batch system sends SIGTERM to the whole job, and a terminal SIGINT, so that the
    worker is gone before the nanny speaks. A second signal finds the handlers of before.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # the process is the user's own, and so are its signals
    loop = asyncio.get_running_loop()

    def close(*_: object) -> None:
        leave_signals()
        loop.call_soon_threadsafe(_begin_to_close, worker)

    handlers = {signal.SIGTERM: close, signal.SIGINT: _ignore_signal if worker.nanny else close}
    for number, handler in handlers.items():
        before = signal.getsignal(number)
        if number not in _replaced and _ends_at_once(before, bool(worker.nanny)):
            _replaced[number] = before
            signal.signal(number, handler)


def _ends_at_once(handler: Any, has_nanny: bool) -> bool:
    """Whether a handler is what `dask worker`, or the process of a nanny's worker, has."""
    function = getattr(handler, "func", handler)
    if has_nanny:
        python_own = (signal.SIG_DFL, signal.default_int_handler)
        return handler in python_own or getattr(function, "__module__", "") == "asyncio.runners"
    return is_handler_of_dask(function)


def _ignore_signal(*_: object) -> None:
    """Ctrl-C is for the nanny or for the client: they end the worker in their own way."""


def _begin_to_close(worker: Worker) -> None:
    closing = asyncio.ensure_future(worker.close(nanny=False, reason="signal"))
    _closing.add(closing)  # asyncio itself keeps no task alive


def leave_signals() -> None:
    """Put back the handlers that were there before."""
    while _replaced:
        number, handler = _replaced.popitem()
        signal.signal(number, handler)
