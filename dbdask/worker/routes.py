"""The open calls of a run on one worker, and the transport to each copy of a shard."""

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar

from distributed import Worker

from dbdask.errors import ShardLost, Stale
from dbdask.rpc.calls import ActorPlace, answers_ping, answers_yes, call_actor, shard_loss
from dbdask.rpc.local_workers import local_worker
from dbdask.rpc.loops import start_on, worker_loop
from dbdask.rpc.same_host import SameHost
from dbdask.rpc.same_host_messages import host_identity
from dbdask.rpc.transport import DaskConnection, InProcess, Transport, permitted

T = TypeVar("T")

logger = logging.getLogger("dbdask")


class Cancellable(Protocol):
    """A call of a transport, or a future, which can be cancelled."""

    def cancel(self) -> Any:
        """Cancel the call, and wake the thread that waits for it."""


class Calls:
    """The calls of one run that are under way on one worker, so that they can be ended."""

    def __init__(self) -> None:
        self._ended = -1
        self._open: dict[int, tuple[Cancellable, int]] = {}
        self._lock = threading.Lock()

    def has_ended(self, generation: int) -> bool:
        """Whether a generation has ended here."""
        return generation <= self._ended

    def check(self, generation: int) -> None:
        """Raise Stale if a generation has ended here."""
        if self.has_ended(generation):
            raise Stale(f"generation {generation} has ended")

    def add(self, call: Cancellable, generation: int) -> None:
        """Note an open call. If its generation has ended, cancel it and raise `Stale`."""
        with self._lock:
            if not self.has_ended(generation):
                self._open[id(call)] = call, generation
                return
        call.cancel()
        self.check(generation)

    def remove(self, call: Cancellable) -> None:
        """Forget a call that has ended or was given up."""
        with self._lock:
            self._open.pop(id(call), None)

    def end_generation(self, generation: int) -> None:
        """End every call of `generation` and of those before it."""
        with self._lock:
            self._ended = max(self._ended, generation)
            ended = [call for call, started in self._open.values() if started <= generation]
        for call in ended:
            call.cancel()


class Routes(Protocol):
    """How a replica's calls reach the copies of shards."""

    def transport(self, place: ActorPlace, generation: int) -> Transport:
        """Return the transport to a copy of a shard.

        Raises
        ------
        ShardLost, Stale
            The copy was lost, or the generation ended, while a transport was tried.
        """

    def answers(self, place: ActorPlace, generation: int) -> bool:
        """Return whether the worker of a copy answers a ping for it.

        Raises
        ------
        Stale
            The generation has ended meanwhile.
        """

    def asks(
        self, place: ActorPlace, generation: int, method: str, *arguments: object
    ) -> bool | None:
        """Ask an actor something that it answers with yes or no; None if it does not in time.

        Raises
        ------
        Stale
            The generation has ended meanwhile.
        """

    def lost(self, place: ActorPlace, error: BaseException) -> ShardLost:
        """Return the error that says why a copy counts as lost, after what its transport raised."""


class WorkerRoutes:
    """The routes from one worker, chosen for each copy by where it is.

    Parameters
    ----------
    worker
        The caller's worker.
    calls
        What is under way there.
    """

    def __init__(self, worker: Worker, calls: Calls) -> None:
        self._worker, self._calls = worker, calls
        self._loop = worker_loop(worker)
        self._transports: dict[tuple[ActorPlace, int], Transport] = {}
        self._choosing = threading.Lock()

    def transport(self, place: ActorPlace, generation: int) -> Transport:
        """Return the transport to a copy of a shard; it is chosen once a generation."""
        found = self._transports.get((place, generation))
        if found is None:
            with self._choosing:
                found = self._transports.get((place, generation))
                if found is None:
                    found = self._transports[place, generation] = self._choose(place, generation)
            if self._calls.has_ended(generation):  # `end_generation` may have come before it
                self.end_generation(generation)
                self._calls.check(generation)
        return found

    def _choose(self, place: ActorPlace, generation: int) -> Transport:
        here, ways = local_worker(place.worker), permitted()
        if here is not None and "in-process" in ways:
            return InProcess(here, place.key)
        over_dask = DaskConnection(self._worker.rpc, self._loop, place)
        if "same-host" in ways:
            listen = partial(self._listen, place, generation)
            try:
                transport = SameHost(listen, over_dask)
                transport.prove()
                return transport
            except OSError as error:
                logger.debug("%s is reached over Dask's connections: %s", place.worker, error)
        return over_dask

    def _listen(self, place: ActorPlace, generation: int) -> str:
        """Have a shard listen for a connection from this process; return where."""
        call = call_actor(self._worker.rpc, place, "open_channel", host_identity())
        return str(self._on_loop(call, generation))

    def shares_memory(self, places: Iterable[ActorPlace]) -> bool:
        """Whether calls of some of these copies may go through shared memory."""
        ways = permitted()
        return "same-host" in ways and not (
            "in-process" in ways and all(local_worker(place.worker) for place in places)
        )

    def answers(self, place: ActorPlace, generation: int) -> bool:
        """Ask the worker by a ping over Dask's connections, for every transport."""
        return self._on_loop(answers_ping(self._worker.rpc, place), generation)

    def asks(
        self, place: ActorPlace, generation: int, method: str, *arguments: object
    ) -> bool | None:
        """Ask over Dask's connections, for every transport."""
        asked = answers_yes(self._worker.rpc, place, method, *arguments)
        return self._on_loop(asked, generation)

    def lost(self, place: ActorPlace, error: BaseException) -> ShardLost:
        """Name the certificate if that is why."""
        return shard_loss(self._worker.rpc, place, error)

    def _on_loop(self, work: Coroutine[Any, Any, T], generation: int) -> T:
        """Run a coroutine on the worker's loop, for as long as the generation lasts."""
        future = start_on(self._loop, work)
        self._calls.add(future, generation)
        try:
            return future.result()
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise Stale(f"generation {generation} has ended") from None
        finally:
            self._calls.remove(future)

    def end_generation(self, generation: int) -> None:
        """Close the transports of `generation` and of those before it."""
        for key in list(self._transports):
            if key[1] <= generation:
                transport = self._transports.pop(key, None)
                if transport is not None:
                    transport.close()
