"""A parameter shard: a slice of the flat vector that stores itself and applies its own updates.

A plain class: Dask makes an actor of it, and a test needs no cluster.

All that reads or changes the state happens under the shard's lock, one call after the other, so
that no fetch sees half an update. What comes over Dask's connections arrives in coroutines, which
hand the arithmetic to the shard's own one-thread executor: no call waits behind another actor of
the same worker, and none computes on the event loop. Other transports call `answer` on a thread of
the caller's.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dbdask.errors import ShardLost, Stale
from dbdask.optim.optimizer_checks import prepared_update
from dbdask.optim.optimizers import Optimizer
from dbdask.rpc.portable import portable
from dbdask.rpc.same_host import ChannelServer
from dbdask.rpc.transport import Request
from dbdask.schedule.ledger import Ledger, Row, ShardProgress
from dbdask.storage import checkpoint
from dbdask.users_code import UsersCode

REMEMBERED = 64  # commands whose answers are kept for a repeat


class Acknowledgement(NamedTuple):
    """What a shard answers to a push."""

    version: int  # updates applied so far
    staleness: int  # updates applied between the push's fetch and the push; -1 for a repeat
    pause: bool  # the replica hands its portion back after this push


class Progress(NamedTuple):
    """What a shard knows of a portion."""

    last_step: int
    pause: bool


@dataclass
class ShardState:
    """All that moves with a shard, so that a shard made from it answers as the first one would."""

    vectors: dict[str, np.ndarray]
    """The parameters, the optimiser's slots, and the best parameters: of one length."""
    applied: int
    """Updates so far; those that a loss took from this shard alone are counted."""
    ledger: Ledger
    """What was applied, so that a repeat is known."""
    copies: "dict[int, ShardState]" = field(default_factory=dict)
    """Snapshot copies, by number; nothing changes them."""
    answers: dict[int, Any] = field(default_factory=dict)
    """Answers to the last commands, for a repeat."""
    forgotten: int = -1
    """The newest command whose answer is kept no more."""
    contributions: Any = None
    """What the open pass of a batch method has added up."""

    def copy(self, names: Sequence[str] | None = None) -> "ShardState":
        """Return a state that shares no vector with this one, of some vectors or of all.

        Snapshot copies are shared: nothing writes into them.
        """
        return ShardState(
            {n: v.copy() for n, v in self.vectors.items() if names is None or n in names},
            self.applied,
            self.ledger.copy(),
        )

    def everything(self) -> "ShardState":
        """Return a copy with snapshot copies, remembered answers and the open pass."""
        state = self.copy()
        state.copies, state.answers = dict(self.copies), dict(self.answers)
        state.forgotten = self.forgotten
        if self.contributions is not None:
            state.contributions = self.contributions.copy()
        return state


class ParameterShard:
    """Elements `start` to `stop` of the flat vector, with their optimiser state and ledger.

    Parameters
    ----------
    start, stop
        The slice, in elements of the flat vector.
    optimizer
        The update rule, which runs here.
    generation
        Messages of another generation are refused with `Stale`.
    initial
        Makes the first state on this worker, so that no vector travels.
    trained
        Ranges of the flat vector that updates may change; None is all of it.
    buffers
        Ranges that no update changes, and of which a push brings new values.

    Attributes
    ----------
    lock
        Held by whoever reads or changes the state.
    """

    answers: frozenset[str] = frozenset({"progress", "fetch", "push", "fetch_copy"})
    """Methods that a `Request` may name. They run under the lock."""

    def __init__(
        self,
        start: int,
        stop: int,
        optimizer: Optimizer,
        generation: int,
        initial: Callable[[int, int, Optimizer], ShardState],
        trained: Sequence[tuple[int, int]] | None = None,
        buffers: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.start, self.stop = start, stop
        self.optimizer = optimizer
        self.generation = generation
        self.state = initial(start, stop, optimizer)
        self.trained = _within(trained or [(start, stop)], start, stop)
        self.buffers = _within(buffers, start, stop)
        self.pausing = False
        self.lock = threading.RLock()
        self._channels = ChannelServer(self)
        self._doing: dict[int, asyncio.Future[Any]] = {}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="dbdask-shard")

    def answer(
        self, request: Request, sent: np.ndarray | None = None, into: np.ndarray | None = None
    ) -> Any:
        """Do what a replica requests, on the calling thread; return the answer.

        Every transport ends here. An error can be sent as it is.

        Parameters
        ----------
        request
            Names one of `answers`.
        sent
            The vector that came with the request, float32 of the shard's length. It is only read,
            and only before the answer.
        into
            Takes the vector of the answer, if there is one: float32 of the shard's length.

        Raises
        ------
        Stale
            The request is of another generation.
        """
        vectors = [vector for vector in (sent, into) if vector is not None]
        try:
            with self.lock:
                return self._answer(request, vectors)
        except BaseException as error:
            failure = portable(error)
        raise failure  # here, where nothing becomes its context

    def _answer(self, request: Request, vectors: Sequence[np.ndarray]) -> Any:
        if request.generation is not None:
            self._check(request.generation)
        if request.method not in self.answers:
            raise AttributeError(f"a shard answers no request {request.method!r}")
        return getattr(self, request.method)(*request.arguments, *vectors)

    def _check(self, generation: int) -> None:
        if generation != self.generation:
            raise Stale(f"generation {generation}, the shard is at {self.generation}")

    async def serve(
        self, request: tuple[str, int | None, tuple[Any, ...]], sent: np.ndarray | None, wants: bool
    ) -> tuple[Any, np.ndarray | None]:
        """Answer a request that came over Dask's connections.

        Returns the answer and, if the caller wants one, its vector.
        """
        into = np.empty(self.stop - self.start, np.float32) if wants else None
        return await self._serve(self.answer, Request(*request), sent, into), into

    async def _serve(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function on the shard's own thread, under the lock.

        What it raises is that error, whoever called: it can be sent as it is.

        Raises
        ------
        ShardLost
            The worker's process is ending, and begins nothing more.
        """

        def locked() -> Any:
            with self.lock:
                return function(*arguments)

        try:
            work = self._executor.submit(_attempt, locked)
        except RuntimeError as error:
            raise ShardLost(f"the worker of a shard is ending: {error}") from error
        answer, failure = await asyncio.wrap_future(work)
        if failure is not None:
            raise failure
        return answer

    async def ping(self) -> int:
        """Answer at once, whatever the shard computes."""
        return self.generation

    async def open_channel(self, host: str) -> str:
        """Listen for one caller on this host; return the directory of the socket.

        Raises
        ------
        OSError
            No caller of that host can be served so.
        """
        return await asyncio.to_thread(self._channels.listen, host)

    # What replicas request

    def progress(self, epoch: int, portion: int) -> Progress:
        """Return the last step applied of a portion, and whether the run is pausing."""
        return Progress(self.state.ledger.last(epoch, portion), self.pausing)

    def fetch(self, into: np.ndarray) -> int:
        """Copy the parameters; return the number of updates in them."""
        np.copyto(into, self.state.vectors["parameters"])
        return self.state.applied

    def push(
        self,
        identity: tuple[int, int, int],
        fetched: int,
        gradient: np.ndarray,
        into: np.ndarray | None = None,
    ) -> Acknowledgement:
        """Apply a gradient once; a repeat of its identity (epoch, portion, step) changes nothing.

        `into` takes the parameters after it: a replica that fetches before every minibatch saves a
        message.
        """
        acknowledgement = self._push(identity, fetched, gradient)
        if into is not None:
            self.fetch(into)
        return acknowledgement

    def _push(
        self, identity: tuple[int, int, int], fetched: int, gradient: np.ndarray
    ) -> Acknowledgement:
        if not self.state.ledger.is_new(*identity):
            return Acknowledgement(self.state.applied, -1, self.pausing)
        staleness = max(0, self.state.applied - fetched)  # a twin may be behind the one fetched
        self._update(gradient)
        self.state.ledger.admit(*identity)  # now: an update that raises was not applied
        return Acknowledgement(self.state.applied, staleness, self.pausing)

    def fetch_copy(self, number: int, into: np.ndarray) -> None:
        """Copy the parameters of a snapshot copy."""
        np.copyto(into, self._kept(number).vectors["parameters"])

    def _update(self, gradient: np.ndarray) -> None:
        """Apply a gradient; an error of the optimiser says where it was."""
        try:
            with UsersCode("optimizer"):
                self._apply(gradient)
        except Exception as error:
            error.add_note(
                f"in the optimizer's update {self.state.applied} of parameters {self.start} to "
                f"{self.stop}"
            )
            raise

    def _apply(self, gradient: np.ndarray) -> None:
        """Let the optimiser update what is trained, and replace buffers by those of the push.

        What can fail does so before any change.
        """
        update = prepared_update(self.optimizer, self.state.applied)
        vectors = self.state.vectors
        for part in self.trained:
            slots = {name: vectors[name][part] for name in self.optimizer.slots}
            update(vectors["parameters"][part], gradient[part], slots)
        for part in self.buffers:
            vectors["parameters"][part] = gradient[part]
        self.state.applied += 1

    def _kept(self, number: int) -> ShardState:
        """Return a snapshot copy.

        Raises
        ------
        Stale
            It is not here: a recovery has dropped it, or this shard was made after it.
        """
        if number not in self.state.copies:
            raise Stale(f"copy {number} is not in this shard")
        return self.state.copies[number]

    def _vector(self, name: str) -> np.ndarray:
        """Return a vector; `Stale` where the shard was made anew without it."""
        if name not in self.state.vectors:
            raise Stale(f"vector {name!r} is not in this shard")
        return self.state.vectors[name]

    # What the verb commands; each command carries a running number and is done once

    async def order(self, number: int, generation: int, name: str, *arguments: Any) -> Any:
        """Do a command that is good for one generation: what it would set was set anew since.

        Raises
        ------
        Stale
            It comes late, and was not done before.
        """
        return await self._once(number, generation, name, arguments)

    async def command(self, number: int, name: str, *arguments: Any) -> Any:
        """Do a numbered command; a repeat gets the first answer again."""
        return await self._once(number, None, name, arguments)

    async def _once(
        self, number: int, generation: int | None, name: str, arguments: tuple[Any, ...]
    ) -> Any:
        if number in self.state.answers:
            return self.state.answers[number]
        if number not in self._doing:
            if number <= self.state.forgotten:
                raise Stale(f"command {number} ({name}) is older than those that a shard remembers")
            self._doing[number] = asyncio.ensure_future(
                self._do(number, generation, name, arguments)
            )
        return await asyncio.shield(self._doing[number])

    async def _do(
        self, number: int, generation: int | None, name: str, arguments: tuple[Any, ...]
    ) -> Any:
        try:
            if generation is not None:
                self._check(generation)
            answer = await getattr(self, "_" + name)(*arguments)
            self._remember(number, answer)
            return answer
        finally:
            del self._doing[number]

    def _remember(self, number: int, answer: Any) -> None:
        answers = self.state.answers
        answers[number] = answer
        if len(answers) > REMEMBERED:
            self.state.forgotten = min(answers)
            del answers[self.state.forgotten]

    async def _advance(self, generation: int) -> ShardProgress:
        """Enter a new generation: what is still on its way is refused."""
        self.generation = max(self.generation, generation)
        return await self._serve(self._shard_progress)

    async def _pause(self, pausing: bool) -> ShardProgress:
        """Ask replicas, by their next acknowledgement, to hand their portions back (or not)."""
        self.pausing = pausing
        return await self._serve(self._shard_progress)

    def _shard_progress(self) -> ShardProgress:
        return ShardProgress(self.state.ledger.rows(), self.state.applied)

    async def _copy(self, number: int, whole: bool) -> int:
        """Keep a copy of the parameters, or of the whole state, under a number.

        Returns the updates in it.
        """
        return await self._serve(self._take_copy, number, whole)

    def _take_copy(self, number: int, whole: bool) -> int:
        self.state.copies[number] = self.state.copy(None if whole else ["parameters"])
        return self.state.applied

    async def _keep_best(self, number: int) -> None:
        """Keep the parameters of a copy as the best so far."""
        await self._serve(self._take_best, number)

    def _take_best(self, number: int) -> None:
        self.state.vectors["best"] = self._kept(number).vectors["parameters"].copy()

    async def _restore_best(self, path: str, group: str, is_there: bool) -> None:
        """Take the best parameters of a snapshot for one's own, or forget them: it has none."""
        best, generation = None, self.generation
        if is_there:
            best = await asyncio.to_thread(
                checkpoint.read_slice, path, group, "best", self.start, self.stop
            )
            self._check(generation)  # it has read for a while
        await self._serve(self._set_best, best)

    def _set_best(self, best: np.ndarray | None) -> None:
        self.state.vectors.pop("best", None)
        if best is not None:
            self.state.vectors["best"] = best

    async def _drop(self, number: int) -> None:
        """Forget a copy."""
        await self._serve(self.state.copies.pop, number, None)

    async def _drop_all(self) -> None:
        """Forget every copy: who needed them has given up."""
        await self._serve(self.state.copies.clear)

    async def _close_epochs(self, epoch: int) -> None:
        """Forget the ledger of the epochs before `epoch`."""
        await self._serve(self.state.ledger.close_before, epoch)

    async def _assign(self, values: np.ndarray) -> None:
        """Replace the parameters."""
        await self._serve(np.copyto, self.state.vectors["parameters"], values)

    async def _adopt(self, rows: Sequence[Row], applied: int, first_open_epoch: int) -> int:
        """Take over the survivors' progress after a loss; returns the updates lost by it."""
        ledger = Ledger.from_rows(rows, first_open_epoch)
        lost: int = await self._serve(self._take_progress, ledger, applied)
        return lost

    def _take_progress(self, ledger: Ledger, applied: int) -> int:
        lost = applied - self.state.applied
        self.state.ledger, self.state.applied = ledger, applied
        return lost

    # What has no number: it changes nothing here, and a repeat writes the same bytes again

    async def write(self, path: str, group: str, number: int) -> bool:
        """Write a copy into its own chunk of a snapshot, on a thread that serves no calls.

        Returns whether the parameters are finite.
        """
        vectors = self._kept(number).vectors
        return await asyncio.to_thread(self._write, path, group, vectors)

    async def write_vectors(self, path: str, group: str, names: Sequence[str]) -> bool:
        """Write vectors as they are, without a copy: nothing may change them meanwhile.

        Returns whether the parameters are finite.
        """
        vectors = {name: self._vector(name) for name in names}
        finite: bool = await self._serve(self._write, path, group, vectors)
        return finite

    def _write(self, path: str, group: str, vectors: dict[str, np.ndarray]) -> bool:
        checkpoint.write_slice(path, group, self.start, self.stop, vectors)
        return all(is_finite(vectors["parameters"][part]) for part in self.trained)

    async def read(self, name: str) -> np.ndarray:
        """Return a copy of one vector: `parameters`, `best`, or an optimiser slot."""
        return await self._serve(lambda: self._vector(name).copy())

    async def whole_state(self) -> ShardState:
        """Return a consistent copy of everything, for a shard that takes this one's place.

        Commands under way end first: else the new shard would have done one without knowing it.
        """
        await asyncio.gather(*self._doing.values(), return_exceptions=True)
        return await self._serve(self.state.everything)


def is_finite(values: np.ndarray) -> bool:
    """Whether all of a vector is finite: without a second vector, because both pass NaN on."""
    return bool(np.isfinite(values.min(initial=0.0)) and np.isfinite(values.max(initial=0.0)))


def _attempt(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Return what a function returns, or the error that it raised: a future changes some."""
    try:
        return function(), None
    except BaseException as error:
        return None, portable(error)


def _within(ranges: Sequence[tuple[int, int]], start: int, stop: int) -> list[slice]:
    """The parts of a slice of the flat vector that ranges cover, counted from its start."""
    parts = [(max(a, start) - start, min(b, stop) - start) for a, b in ranges]
    return [slice(a, b) for a, b in parts if a < b]
