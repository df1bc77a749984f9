"""The exchanges of one part of a replica with the other parts, over the transports of shards."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import numpy as np

from dbdask.arrays import FloatArray
from dbdask.errors import ShardLost
from dbdask.metrics.time_spent import Spent
from dbdask.models.exchange import Exchange, Exchanging
from dbdask.rpc.calls import ActorPlace
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.transport import Request
from dbdask.schedule.gangs import Member
from dbdask.users_code import UsersCode
from dbdask.worker.accrual import Buffers
from dbdask.worker.link import Message, ServerLink
from dbdask.worker.mailbox import Address, GangEnded, Mailbox, PeerLost, mailbox_key
from dbdask.worker.routes import Routes

FEW_BYTES = 4096
"""Values of at most so many bytes travel inside the message, others as vectors beside it."""

BEGIN = "begin"
"""The direction of the message with which the first part tells the others where to begin."""

AGREE = "agree"
"""The direction of messages in which each part tells the others whether something is fine."""

T = TypeVar("T")


class Peers:
    """A part's side of one attempt of its gang.

    Parameters
    ----------
    member
        The part's place in the gang.
    portion
        Identity of the work.
    mailbox
        Takes the messages of the other parts.
    link
        Calls of the shards, of which one is asked while a message does not come: if no shard
        answers the run has ended.
    routes
        Asks the mailboxes of the other parts.
    buffers
        Gives the vectors in which values travel.
    spent
        Counts the seconds of exchanges.

    Attributes
    ----------
    mark
        Is added to every message of a decision. In Downpour: whether a shard has asked this part
        to pause.
    is_marked
        Whether the last decision had the mark of any part. It is the same for all parts.
    """

    def __init__(
        self,
        member: Member,
        portion: tuple[int, int],
        mailbox: Mailbox,
        link: ServerLink,
        routes: Routes,
        buffers: Buffers,
        spent: Spent,
    ) -> None:
        self.member, self.portion, self.mailbox = member, portion, mailbox
        self._link, self._routes, self._buffers, self._spent = link, routes, buffers, spent
        key = mailbox_key(link.handle.run)
        self._places = [ActorPlace(worker, key) for worker in member.workers]
        self._seconds = deadline("answer")
        self._step = -1
        self.mark = self.is_marked = False

    def begin_step(self) -> None:
        """Note that the next exchanges are of the next minibatch."""
        self._step += 1
        self.mailbox.begin_step(self.member.gang, self._step)

    def begin(self, numbers: np.ndarray | None) -> np.ndarray:
        """Return the numbers of the first part, int64 of shape (3,), which it gives to all."""
        values = np.empty(3, np.int64) if numbers is None else numbers
        if numbers is None:
            self._exchange(0, BEGIN, {}, {0: values})
        else:
            self._exchange(0, BEGIN, dict.fromkeys(self.member.peers, values), {})
        return values

    def drive(self, work: Exchanging[T], name: str) -> T:
        """Carry the messages of a part's work, and return its value.

        Parameters
        ----------
        work
            Yields an `Exchange` where it needs the other parts.
        name
            What an error calls the user's code that it may run.
        """
        try:
            while True:
                with UsersCode(name):
                    wanted, ended = _advance(work)
                if wanted is None:
                    return ended[0]
                self.exchange(wanted)
        finally:
            work.close()

    def all_say(self, fine: bool) -> bool:
        """Return whether all parts say yes; each is told what every other says."""
        own = np.array([fine])
        others = {peer: np.empty_like(own) for peer in self.member.peers}
        self._exchange(0, AGREE, dict.fromkeys(self.member.peers, own), others)
        return fine and all(bool(said[0]) for said in others.values())

    def exchange(self, wanted: Exchange) -> None:
        """Send and receive what one `Exchange` asks for."""
        boundary, direction, outgoing, incoming = wanted
        marks = self._exchange(boundary, direction, outgoing, incoming)
        if direction == "decision":
            self.is_marked = self.mark or any(marks)

    def _exchange(
        self,
        boundary: int,
        direction: str,
        outgoing: dict[int, np.ndarray],
        incoming: dict[int, np.ndarray],
    ) -> list[bool]:
        """Send, then wait for what comes; return its marks.

        Every message is acknowledged before any is waited for: a mailbox takes messages at any
        time, so parts never wait for each other in a circle.
        """
        with self._spent.on("exchanging"):
            wanted = {self._address(boundary, direction, s): into for s, into in incoming.items()}
            self.mailbox.expect(wanted)
            self._send(self._address(boundary, direction, self.member.index), outgoing)
            ask = partial(self._ask, sorted(incoming))
            return list(self.mailbox.await_all(wanted, ask, self._seconds).values())

    def _address(self, boundary: int, direction: str, sender: int) -> Address:
        member = self.member
        return Address(
            member.gang, member.attempt, self.portion, self._step, boundary, direction, sender
        )

    def _send(self, address: Address, outgoing: dict[int, FloatArray]) -> None:
        """Send arrays to the parts that need them, and wait until each has them."""
        taken: list[np.ndarray] = []
        packed: dict[int, tuple[np.ndarray | None, np.ndarray | None]] = {}
        for values in outgoing.values():
            if id(values) not in packed:
                packed[id(values)] = self._packed(values, taken)
        messages = []
        for receiver, values in outgoing.items():
            few, many = packed[id(values)]
            arguments = tuple(address), self.mark, values.shape, few
            request = Request("deliver", None, arguments)
            messages.append(Message(self._places[receiver], request, many))
        if messages and not self._sent(messages):
            raise GangEnded(f"gang {address.gang} has ended at a peer")
        self._buffers.give_back(*taken)

    def _sent(self, messages: list[Message]) -> bool:
        """Send messages; return whether all were taken."""
        try:
            return self._link.wait(self._link.start(messages, all))
        except ShardLost as error:  # what is lost is no shard, but the mailbox of a peer
            raise PeerLost(f"a member of gang {self.member.gang} is gone: {error}") from error

    def _packed(
        self, values: FloatArray, taken: list[np.ndarray]
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return values as they travel: inside the message, or as a contiguous vector beside it."""
        if values.nbytes <= FEW_BYTES or values.dtype != np.float32:
            return np.array(values, order="C"), None
        # Minibatches have many sizes: a pool with a vector for each would grow without end.
        vector = self._buffers.buffer(1 << (values.size - 1).bit_length())
        taken.append(vector)
        packed = vector[: values.size]
        np.copyto(packed.reshape(values.shape), values)
        return None, packed

    def _ask(self, senders: list[int]) -> None:
        ask_peers(self.member, senders, self._link, self._routes, self.member.attempt)


ANY_ATTEMPT = 1 << 62


def ask_peers(
    member: Member,
    parts: Iterable[int],
    link: ServerLink,
    routes: Routes,
    attempt: int = ANY_ATTEMPT,
) -> None:
    """See whether peers are in the gang, and may yet send messages of an attempt: they are busy.

    Raises
    ------
    GangEnded
        A peer has left the gang, or (`PeerLost`) does not answer.
    ShardLost, Stale
        No shard answers, so that the run may have ended; or the generation has ended.
    """
    generation, shard = link.handle.generation, link.handle.shards[0].first
    if not routes.answers(shard, generation):
        raise ShardLost(f"{shard.key} on {shard.worker} answers no ping")
    for part in parts:
        place = ActorPlace(member.workers[part], mailbox_key(link.handle.run))
        says = routes.asks(place, generation, "may_send", member.gang, attempt)
        if says is False:
            raise GangEnded(f"part {part} on {place.worker} has left gang {member.gang}")
        if says is None and not routes.answers(place, generation):
            raise PeerLost(f"part {part} on {place.worker} answers no ping")


@contextmanager
def turn(member: Member, mailbox: Mailbox, link: ServerLink, routes: Routes) -> Iterator[None]:
    """Wait for the turn of a task in its gang, and hold it.

    Raises
    ------
    GangEnded, ShardLost, Stale
        As `ask_peers` does.
    """
    ask = partial(ask_peers, member, member.peers, link, routes)
    with mailbox.admitted(member, ask, deadline("answer")):
        yield


def _advance(
    work: Generator[Exchange, None, T],
) -> tuple[Exchange | None, tuple[T, ...]]:
    """Return the next exchange of some work, or its value if it has ended."""
    try:
        return next(work), ()
    except StopIteration as end:
        return None, (end.value,)
