"""The state of a run on one worker: the opened examples, the model, buffers, and calls under way.

A context belongs to a (worker, run) pair, never to a module, because in-process workers share
modules. It is closed by the run; when the client dies instead, the context notices that the shards
are gone and closes itself.
"""

import asyncio
import pickle
import threading
import weakref
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from distributed import Worker

from dbdask.arrays import Float32Array
from dbdask.data.feed import Reader
from dbdask.errors import Stale
from dbdask.models.cut_table import cut_table
from dbdask.models.network import Network, flops_of
from dbdask.models.part import Part
from dbdask.rpc.calls import ActorPlace, answers_ping
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.local_workers import (
    add_local_actor,
    drop_local_actor,
    memory_limit,
    this_worker,
    threads_of,
)
from dbdask.rpc.loops import worker_loop
from dbdask.schedule.policies import blas_threads, cache_bytes
from dbdask.users_code import UsersCode
from dbdask.worker.accrual import LocalRule
from dbdask.worker.blas_limit import blas_limit
from dbdask.worker.job import Job
from dbdask.worker.kept_heap import kept_heap
from dbdask.worker.link import ServerHandle, ServerLink
from dbdask.worker.mailbox import Mailbox, mailbox_key
from dbdask.worker.pass_points import PassPoints
from dbdask.worker.pauses import make_room_in_pauses
from dbdask.worker.routes import Calls, WorkerRoutes
from dbdask.worker.vector_pool import VectorPool

_contexts: weakref.WeakKeyDictionary[Worker, dict[str, "WorkerContext"]] = (
    weakref.WeakKeyDictionary()
)
_ended: weakref.WeakKeyDictionary[Worker, deque[str]] = weakref.WeakKeyDictionary()
_contexts_lock = threading.Lock()

Place = tuple[int, int, int, int, int]
"""Where a replica stopped: generation, epoch, portion, next step; and which part of it."""

LONG_READ_SECONDS = 1.0  # a read that a run which is to stop does not wait for

REMEMBERED_RUNS = 256  # ended runs whose late tasks a worker refuses


@dataclass
class ReplicaSlot:
    """The state of a replica that its worker keeps from one portion to the next."""

    rule: LocalRule | None = None  # of its own steps, with their state
    part: int = 0  # of which part the rule is
    ended: float | None = None  # when its last task ended, by `perf_counter`


class WorkerContext:
    """One run on one worker."""

    def __init__(self, worker: Worker, run: str, job: bytes) -> None:
        self.worker = worker
        self.run = run
        self._pickled = job
        self._job: Job | None = None
        self._job_lock = threading.Lock()
        self.calls = Calls()
        self.routes = WorkerRoutes(worker, self.calls)
        self.handle: ServerHandle | None = None
        self.closed = False
        self.readers: dict[str, Reader] = {}
        self.copies: dict[int, np.ndarray] = {}
        self.unwanted: set[tuple[int, int]] = set()  # bundles that another worker has finished
        self._copies_lock = threading.Lock()
        self._pool = VectorPool()
        self._points = PassPoints(self._pool)
        self.mailbox = Mailbox()
        self._peers: tuple[ActorPlace, ...] = ()  # mailboxes of the other members of the gang
        self._parts: dict[int, Part] = {}
        self._stashed: tuple[Place, np.ndarray, list[int]] | None = None
        self._running = 0
        self._slots: list[ReplicaSlot] = []  # of replicas that are between two portions
        self._condition = threading.Condition()
        self._watching: list[asyncio.Task[None]] = []  # on the worker's loop
        self._until_closed = ExitStack()
        limit = memory_limit(worker)
        self._until_closed.enter_context(kept_heap.kept(limit))  # between two portions, too
        worker_loop(worker).call_soon_threadsafe(self._begin_watching)

    @property
    def job(self) -> Job:
        """The job of the run's replicas, opened once, on the thread of the first task.

        Opening may take long (it imports the model's library): no lock that the event loop takes
        is held meanwhile.
        """
        with self._job_lock:
            if self._job is None:
                with UsersCode("unpickling the model or the data"):
                    self._job = pickle.loads(self._pickled)
                blas_limit.look_again()
            return self._job

    def _begin_watching(self) -> None:
        watches = self._watch_lease(), make_room_in_pauses(self.worker, self._make_room)
        self._watching = [asyncio.ensure_future(watch) for watch in watches]

    def _end_watching(self) -> None:
        for task in self._watching:
            task.cancel()

    def _make_room(self, keep_less: bool) -> None:
        """Drop what is kept for later tasks; once a pause, keep less from then on."""
        for reader in list(self.readers.values()):
            reader.make_room(keep_less)
        self._pool.clear()
        kept_heap.give_back()

    async def _watch_lease(self) -> None:
        """Close the context when it idles and no shard of its run answers (the client died)."""
        while not self.closed:
            await asyncio.sleep(deadline("lease"))
            handle = self.handle
            if self._running or handle is None or self.closed:
                continue
            pool = self.worker.rpc
            alive = [await answers_ping(pool, c) for shard in handle.shards for c in shard.copies]
            if not any(alive) and handle is self.handle:
                _close(self.run, self.worker)  # not for good: the run may be recovering

    def link(self, handle: ServerHandle) -> ServerLink:
        """Return blocking calls on the shards of a handle."""
        if self.handle is None or handle.generation > self.handle.generation:
            self._see_places(handle)
        return ServerLink(handle, self.routes, self.calls)

    def _see_places(self, handle: ServerHandle) -> None:
        """Note where vectors may go from here."""
        places = [copy for shard in handle.shards for copy in shard.copies]
        self._pool.shares_memory = self.routes.shares_memory([*places, *self._peers])
        self.handle = handle

    def join(self, gang: int, workers: Sequence[str], handle: ServerHandle) -> None:
        """Belong to a gang from now on, and take the messages of its members."""
        key = mailbox_key(self.run)
        add_local_actor(self.worker, key, self.mailbox)
        self._peers = tuple(ActorPlace(worker, key) for worker in workers)
        self.mailbox.join(gang, handle.generation)
        if self.handle is None or handle.generation >= self.handle.generation:
            self._see_places(handle)

    def part(self, index: int) -> Part:
        """Return a part of the model, made once."""
        if index not in self._parts:
            assert self.job.cut is not None and isinstance(self.job.model, Network)
            self._parts[index] = Part(self.job.model, self.job.cut, index)
        return self._parts[index]

    @contextmanager
    def replica_slot(self, replicas: int) -> Iterator[ReplicaSlot]:
        """Hold one of the worker's `replicas` places, with its share of the worker's threads."""
        with self._condition:
            self._condition.wait_for(lambda: self._running < replicas or self.closed)
            self._running += 1
            slot = self._slots.pop() if self._slots else ReplicaSlot()
        try:
            with blas_limit.at_most(self._blas_threads(replicas)):
                yield slot
        finally:
            with self._condition:
                self._running -= 1
                if not self.closed:
                    self._slots.append(slot)
                self._condition.notify()

    def _blas_threads(self, replicas: int) -> int:
        share = max(1, threads_of(self.worker) // replicas)
        flops, parts = flops_of(self.job.model, self.job.batch_size), self.job.cut
        if flops is not None and parts is not None:
            flops //= parts.parts
        return blas_threads(share, flops)

    def buffer(self, size: int) -> np.ndarray:
        """Take a vector, float32 (size,), out of the pool; its content is arbitrary."""
        return self._pool.take(size)

    def give_back(self, *vectors: np.ndarray) -> None:
        """Return buffers, float32 (size,), that no call reads any more.

        The buffer of a call that was given up is never returned.
        """
        self._pool.give_back(*vectors)

    def stash(self, place: Place, local: np.ndarray, fetched: list[int]) -> None:
        """Keep the parameters, float32 (parameters,), with which a replica stopped.

        The context keeps one such vector, the newest.
        """
        self.resume(None)
        with self._condition:
            self._stashed = place, local, fetched

    def resume(self, place: Place | None) -> tuple[np.ndarray, list[int]] | None:
        """Return the parameters with which a replica stopped at this place, if they are kept.

        They are float32 (parameters,), with the version of each shard at the replica's last fetch.
        """
        with self._condition:
            stashed, self._stashed = self._stashed, None
            if stashed is None:
                return None
            if stashed[0] == place:
                return stashed[1], stashed[2]
        self._pool.give_back(stashed[1])
        return None

    def reader(self, name: str) -> Reader:
        """Return the reader of the job's examples called `name`, opened once.

        Raises
        ------
        Stale
            The context is closed.
        """
        examples = getattr(self.job, name)
        with self._condition:
            if self.closed:
                raise Stale(f"run {self.run} has ended")
            if name not in self.readers:
                budget = cache_bytes(name, memory_limit(self.worker))
                self.readers[name] = examples.reader(budget)
            return self.readers[name]

    def give_up_reads(self, names: Collection[str], least: float = 0.0) -> None:
        """End the waits for chunks of the named examples that were read for `least` seconds."""
        for name in names:
            reader = self.readers.get(name)
            if reader is not None:
                reader.give_up_reads(least)

    def copy_of(self, handle: ServerHandle, number: int) -> np.ndarray:
        """Return a snapshot copy's parameters, float32 (parameters,), fetched once a worker."""
        with self._copies_lock:
            if number not in self.copies:
                link, vector = self.link(handle), self.buffer(handle.size)
                link.fetch_copy(number, 0, vector)
                self.copies = {number: self._in_order_of_model(vector)}
            return self.copies[number]

    def read_copy(self, handle: ServerHandle, number: int, start: int, stop: int) -> Float32Array:
        """Fetch a slice of a snapshot copy, in the order of the model: float32 (stop - start,)."""
        link, values = self.link(handle), np.empty(stop - start, np.float32)
        model, cut = self.job.model, self.job.cut
        segments: Iterable[tuple[int, int, int]] = [(0, 0, handle.size)]
        if cut is not None:
            assert isinstance(model, Network)
            segments = cut_table(model, cut).segments()
        for place, whole, length in segments:
            first, last = max(start, whole), min(stop, whole + length)
            if first < last:
                into = values[first - start : last - start]
                link.fetch_copy(number, place + first - whole, into)
        return values

    def _in_order_of_model(self, vector: np.ndarray) -> np.ndarray:
        """Return a whole vector of the shards in the order of the model's own layout."""
        model, cut = self.job.model, self.job.cut
        if cut is None:
            return vector
        assert isinstance(model, Network)
        whole = cut_table(model, cut).to_whole(vector)
        self.give_back(vector)
        return whole

    @contextmanager
    def point(
        self, handle: ServerHandle, evaluation: int, name: str, part: int = 0
    ) -> Iterator[np.ndarray]:
        """Hold the vector at which a pass evaluates, float32 (n,), fetched once a worker.

        `handle` names the shards of the part, whose vector this is.
        """
        link = self.link(handle)
        with self._points.hold(
            evaluation, part, handle.size, partial(link.fetch_vector, name)
        ) as vector:
            yield vector

    def end_generation(self, generation: int) -> None:
        """End the calls of a generation, and of those before it, that are under way here."""
        self.mailbox.end_generation(generation)
        self.calls.end_generation(generation)
        self.routes.end_generation(generation)

    def close(self) -> None:
        """End the calls, let waiting tasks go, and drop what the run held here; never waits."""
        with self._condition:
            self.closed = True
            readers, self.readers = self.readers, {}
        worker_loop(self.worker).call_soon_threadsafe(self._end_watching)
        self.end_generation(1 << 62)
        with self._condition:
            self._condition.notify_all()
        for reader in readers.values():
            reader.close()
        self.mailbox.close()
        drop_local_actor(self.worker, mailbox_key(self.run))
        self._pool.clear()
        self._points.clear()
        self.copies, self._slots = {}, []
        self._stashed = None
        self._until_closed.close()


def open_context(run: str, job: bytes) -> WorkerContext:
    """Return the context of a run on the worker that runs the calling task.

    Raises
    ------
    Stale
        The run has ended here: a task that comes late must not open its context again.
    """
    return context_on(this_worker(), run, job)


def context_on(worker: Worker, run: str, job: bytes) -> WorkerContext:
    """Return the context of a run on a worker, as `open_context` does.

    Raises
    ------
    Stale
        The run has ended on this worker.
    """
    with _contexts_lock:
        if run in _ended.get(worker, ()):
            raise Stale(f"run {run} has ended")
        contexts = _contexts.setdefault(worker, {})
        if run not in contexts:
            contexts[run] = WorkerContext(worker, run, job)
        return contexts[run]


def close_context(run: str, dask_worker: Worker) -> None:
    """Close the context of a run on a worker for good: the run has ended."""
    with _contexts_lock:
        _ended.setdefault(dask_worker, deque(maxlen=REMEMBERED_RUNS)).append(run)
    _close(run, dask_worker)


def _close(run: str, dask_worker: Worker) -> None:
    with _contexts_lock:
        context = _contexts.get(dask_worker, {}).pop(run, None)
    if context is not None:
        context.close()


def end_generation(run: str, generation: int, dask_worker: Worker) -> None:
    """End the calls of a generation, and the reads, that are under way on a worker."""
    context = found_context(run, dask_worker)
    if context is not None:
        context.end_generation(generation)
        context.give_up_reads(list(context.readers))


def give_up_long_reads(run: str, names: Collection[str], dask_worker: Worker) -> None:
    """End the waits on a worker for chunks of some examples that do not come.

    The run is to stop. `names` are those of the examples, as a job has them.
    """
    context = found_context(run, dask_worker)
    if context is not None:
        context.give_up_reads(names, LONG_READ_SECONDS)


def unwant(run: str, identities: list[tuple[int, int]], dask_worker: Worker) -> None:
    """Let tasks on a worker know which bundles are done: they stop between two minibatches."""
    context = found_context(run, dask_worker)
    if context is not None:
        newest = max(evaluation for evaluation, _ in identities)
        kept = {identity for identity in context.unwanted if identity[0] >= newest - 2}
        context.unwanted = kept | {(evaluation, bundle) for evaluation, bundle in identities}


def found_context(run: str, dask_worker: Worker) -> WorkerContext | None:
    """Return the context of a run on a worker, if there is one."""
    return _contexts.get(dask_worker, {}).get(run)


def contexts_on(dask_worker: Worker) -> list[str]:
    """List the runs that hold a context on a worker (tests look for leaks with it)."""
    return list(_contexts.get(dask_worker, {}))
