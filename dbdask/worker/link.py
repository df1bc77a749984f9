"""A replica's side of the parameter server: where the shards are, and calls of all of them at once.

Identities, generations, deadlines, copies and the judgement of loss are here. They are the same for
every transport.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from dbdask.arrays import Float32Array
from dbdask.errors import RECOVERABLE, RaisedInShard, ShardLost, Stale
from dbdask.rpc.calls import CONNECTION_ERRORS, ActorPlace, MethodRaised
from dbdask.rpc.deadlines import BYTES_PER_SECOND, deadline
from dbdask.rpc.transport import PendingCall, Request, Transport
from dbdask.worker.routes import Calls, Routes
from dbdask.worker.shard import Acknowledgement, Progress

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """A slice of the flat vector, and the actors that hold its copies."""

    start: int
    stop: int
    copies: tuple[ActorPlace, ...]

    @property
    def first(self) -> ActorPlace:
        """The copy that is read from."""
        return self.copies[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the slice in float32."""
        return 4 * (self.stop - self.start)


@dataclass(frozen=True, slots=True)
class ServerHandle:
    """Where the shards of one generation are. It is small, and no task depends on it."""

    run: str
    generation: int
    size: int
    shards: tuple[ShardPlace, ...]

    def part(self, start: int, stop: int) -> "ServerHandle":
        """Return the shards of elements `start` to `stop`, as those of a vector of that part."""
        shards = tuple(
            ShardPlace(shard.start - start, shard.stop - start, shard.copies)
            for shard in self.shards
            if start <= shard.start and shard.stop <= stop
        )
        return ServerHandle(self.run, self.generation, stop - start, shards)


class Message(NamedTuple):
    """One call of one copy of a shard, before it is started."""

    place: ActorPlace
    request: Request
    sent: Float32Array | None = None
    into: Float32Array | None = None


class _Call:
    """A call under way, with the time at which the worker is pinged if no answer has come."""

    def __init__(self, message: Message, pending: PendingCall, seconds: float) -> None:
        self.place, self.pending = message.place, pending
        vectors = (message.sent, message.into)
        nbytes = sum(vector.nbytes for vector in vectors if vector is not None)
        self.seconds = seconds + nbytes / BYTES_PER_SECOND
        self.until = time.monotonic() + self.seconds

    def has_ended(self) -> bool:
        """Wait until the deadline; return whether the call has ended."""
        if self.pending.wait(max(0.0, self.until - time.monotonic())):
            return True
        self.until = time.monotonic() + self.seconds
        return False


class Exchange(Generic[T]):
    """Calls of several copies of shards that are under way together; `ServerLink.wait` ends them.

    The vectors of the calls must not be used before that, and never again if the calls are given
    up.
    """

    def __init__(self, calls: Sequence[_Call], combine: Callable[[list[Any]], T]) -> None:
        self.calls, self.combine = calls, combine
        self.answers: list[Any] | None = None  # in the order of the calls, once they have ended


class ServerLink:
    """Calls of all shards at once, for the thread of a task.

    Every wait ends: in the answer, in `ShardLost`, in `Stale` when the generation ended, or in
    `RaisedInShard` with the error of a shard's own method.
    Vectors are read from the first copy of each shard. A push goes to every copy, and is
    acknowledged when all of them have applied it.

    Parameters
    ----------
    handle
        Where the shards are.
    routes
        Gives the transport to each copy, and pings copies.
    calls
        Ends calls whose generation has ended.
    """

    def __init__(self, handle: ServerHandle, routes: Routes, calls: Calls) -> None:
        self.handle = handle
        self._routes, self._calls = routes, calls
        self._seconds = deadline("answer")

    def progress(self, epoch: int, portion: int) -> list[Progress]:
        """Ask every copy of every shard for the last step it applied of a portion."""
        request = self._request("progress", epoch, portion)
        copies = (copy for shard in self.handle.shards for copy in shard.copies)
        return self.wait(self.start([Message(copy, request) for copy in copies], list))

    def start_fetch(self, into: Float32Array) -> Exchange[list[int]]:
        """Start to fetch the parameters into a vector, float32 (parameters,).

        The answer is the version of each shard.
        """
        return self.start(self._reads(self._request("fetch"), into), list)

    def start_push(
        self,
        identity: tuple[int, int, int],
        gradient: Float32Array,
        fetched: Sequence[int],
        into: Float32Array | None = None,
    ) -> Exchange[list[Acknowledgement]]:
        """Start to push a gradient to every shard under its identity (epoch, portion, step).

        `gradient` is float32 (parameters,). If `into`, float32 (parameters,), is given, the answers
        bring the parameters, which saves a fetch.
        """
        messages = []
        for shard, version in zip(self.handle.shards, fetched, strict=True):
            request, part = self._request("push", identity, version), slice(shard.start, shard.stop)
            for copy in shard.copies:
                taken = into[part] if into is not None and copy is shard.first else None
                messages.append(Message(copy, request, gradient[part], taken))
        return self.start(messages, self._together)

    def _together(self, answers: list[Acknowledgement]) -> list[Acknowledgement]:
        """Return one acknowledgement for each shard, from those of all copies in order."""
        left = iter(answers)
        return [together([next(left) for _ in shard.copies]) for shard in self.handle.shards]

    def fetch_vector(self, name: str, into: Float32Array) -> None:
        """Fetch one named vector of batch shards into `into`, float32 (parameters,)."""
        self.wait(self.start(self._reads(self._request("fetch_vector", name), into), list))

    def fetch_copy(self, number: int, start: int, into: Float32Array) -> None:
        """Fetch parameters of a snapshot copy, from `start` on, into `into`, float32 (n,)."""
        messages = []
        for shard in self.handle.shards:
            first, last = max(start, shard.start), min(start + len(into), shard.stop)
            if first < last:
                # A copy outlasts its generation.
                request = Request("fetch_copy", None, (number, first - shard.start))
                part = into[first - start : last - start]
                messages.append(Message(shard.first, request, None, part))
        self.wait(self.start(messages, list))

    def contribute(self, identity: tuple[int, int], gradient: Float32Array) -> bool:
        """Add a gradient, under its identity (evaluation, bundle), to every batch shard.

        `gradient` is float32 (parameters,). Returns False if it was a repeat for any copy of any
        shard.
        """
        request = self._request("contribute", *identity)
        messages = [
            Message(copy, request, gradient[shard.start : shard.stop])
            for shard in self.handle.shards
            for copy in shard.copies
        ]
        return self.wait(self.start(messages, all))

    def _request(self, method: str, *arguments: Any) -> Request:
        return Request(method, self.handle.generation, arguments)

    def _reads(self, request: Request, into: Float32Array) -> list[Message]:
        """Return messages that bring the slices of a vector from the first copies."""
        return [
            Message(shard.first, request, None, into[shard.start : shard.stop])
            for shard in self.handle.shards
        ]

    def start(self, messages: Sequence[Message], combine: Callable[[list[Any]], T]) -> Exchange[T]:
        """Start calls; those that this thread has to carry out itself come last.

        If one cannot be started, those that were started are ended.
        """
        self._calls.check(self.handle.generation)
        transports = [self._transport_to(message.place) for message in messages]
        order = sorted(range(len(messages)), key=lambda position: transports[position].is_direct)
        started: dict[int, _Call] = {}
        try:
            for position in order:
                started[position] = self._start_one(transports[position], messages[position])
        except BaseException:
            self.give_up(Exchange(list(started.values()), combine))
            raise
        return Exchange([started[position] for position in range(len(messages))], combine)

    def _transport_to(self, place: ActorPlace) -> Transport:
        try:
            return self._routes.transport(place, self.handle.generation)
        except RuntimeError as error:  # of a worker that is closed
            self._raise_lost(place, error)

    def _start_one(self, transport: Transport, message: Message) -> _Call:
        try:
            pending = transport.start(message.request, message.sent, message.into)
        except (*CONNECTION_ERRORS, RuntimeError) as error:
            self._raise_lost(message.place, error)
        self._calls.add(pending, self.handle.generation)
        return _Call(message, pending, self._seconds)

    def wait(self, exchange: Exchange[T]) -> T:
        """Wait for calls that were started; their own deadlines bound the wait.

        Raises
        ------
        ShardLost, Stale
            A shard was lost, or the generation has ended.
        RaisedInShard
            A method of a shard raised an error.
        """
        if exchange.answers is None:
            try:
                exchange.answers = [self._answer_of(call) for call in exchange.calls]
            except BaseException:
                self.give_up(exchange)
                raise
            for call in exchange.calls:
                self._calls.remove(call.pending)
        return exchange.combine(exchange.answers)

    def give_up(self, exchange: Exchange[Any]) -> None:
        """End calls whose answers are no longer needed."""
        for call in exchange.calls:
            self._calls.remove(call.pending)
            call.pending.cancel()
            del call.pending  # it holds its error, whose traceback would lead back to it
        exchange.calls = ()

    def _answer_of(self, call: _Call) -> Any:
        """Wait for one call. If its deadline passes, ask its worker: only silence is a loss."""
        while not call.has_ended():
            alive = self._routes.answers(call.place, self.handle.generation)
            if not alive and not call.pending.wait(0.0):
                raise ShardLost(f"{call.place.key} on {call.place.worker} answers no ping")
        try:
            return call.pending.result()
        except MethodRaised as raised:
            failure = raised.with_traceback(None).error
        except (*CONNECTION_ERRORS, RuntimeError) as error:
            self._raise_lost(call.place, error)
        try:
            if isinstance(failure, RECOVERABLE):
                raise failure
            raise RaisedInShard(failure) from failure
        finally:
            del failure  # its traceback leads to this frame

    def _raise_lost(self, place: ActorPlace, error: BaseException) -> NoReturn:
        """Raise the error of a broken call: its generation has ended, or its shard is lost.

        The call keeps the connection's error. With a traceback that would be a circle, and vectors
        as large as the parameters would stay until the garbage is collected.
        """
        if isinstance(error, RECOVERABLE):
            raise error
        if self._calls.has_ended(self.handle.generation):
            raise Stale(f"generation {self.handle.generation} has ended") from error.with_traceback(
                None
            )
        raise self._routes.lost(place, error) from error.with_traceback(None)


def together(copies: list[Acknowledgement]) -> Acknowledgement:
    """Return one acknowledgement from those of a shard's copies: a repeat for one is a repeat.

    Each copy applies the updates of several replicas in its own order, as Downpour allows. So only
    the numbers of the first copy fit the parameters that were fetched from it.
    """
    first = copies[0]
    is_new = all(copy.staleness >= 0 for copy in copies[1:])
    return Acknowledgement(
        first.version, first.staleness if is_new else -1, any(copy.pause for copy in copies)
    )
