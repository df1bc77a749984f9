"""Which workers hold the shards of a run: they are made, copied, moved, and given up if lost."""

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from distributed import Client

from dbdask.errors import WorkerError
from dbdask.rpc.deadlines import deadline
from dbdask.rpc.scheduler import WorkerFacts, retire
from dbdask.rpc.topics import listen
from dbdask.run.parameter_server import Initial, ParameterServer
from dbdask.run.snapshots import Snapshots
from dbdask.run.tally import Tally
from dbdask.run.workforce import Workforce

logger = logging.getLogger("dbdask")

TURN_SECONDS = 0.25  # between two looks for workers


def eligible_workers(
    facts: Mapping[str, WorkerFacts], wanted: Sequence[str] | None, avoided: Collection[str]
) -> list[str]:
    """List the workers that may hold shards: those named by `shard_workers`, else all.

    Parameters
    ----------
    facts
        Every running worker, by address.
    wanted
        The names of `shard_workers=`, or None.
    avoided
        Workers that are silent, paused, leaving, refused or not checked yet.

    Returns
    -------
    list of str
        Addresses; empty while no such worker runs, for instance until its nanny has started it
        again.
    """
    return [
        address
        for address, worker in facts.items()
        if address not in avoided
        and (wanted is None or any(worker.is_called(name) for name in wanted))
    ]


def most_elements(size: int, shards: int, workers: int, copies: int = 1) -> int:
    """Return the elements of the flat vector, copies counted, that the fullest worker holds.

    Examples
    --------
    >>> most_elements(10, 4, 3), most_elements(10, 4, 3, copies=2)
    (6, 9)
    """
    return math.ceil(size / shards) * math.ceil(shards * min(copies, workers) / workers)


class ShardPlacement:
    """Keeps the shards of one run on the workers that may hold them.

    Who may hold a shard (`eligible`) and who holds one (`server.holders`) drift apart as workers
    come, close, stop, and are asked to leave. `due` says whether shards can be moved or copies made
    now, and `reconcile` does it while the run is at rest.

    Dask does not retire a worker that holds an actor, and only publishes an event. The run
    listens for the event, moves the shards, and retires the worker itself. A worker that closes
    (`scale`, `--lifetime`, SIGTERM) waits a little for its shards to be fetched.

    A copy is made from another copy while nothing is applied, so the two are equal. If there are
    too few workers the run goes on with fewer copies, says so, and makes them when a worker comes.

    Parameters
    ----------
    client
        The Dask client.
    server
        The shards.
    workforce
        The workers and their work.
    snapshots
        Say in errors how to resume the run.
    tally
        Records how many copies there are.
    names
        The names of `shard_workers=`, or None.
    """

    def __init__(
        self,
        client: Client,
        server: ParameterServer,
        workforce: Workforce,
        snapshots: Snapshots,
        tally: Tally,
        names: Sequence[str] | None,
    ) -> None:
        self.client, self.server, self.workforce = client, server, workforce
        self.roster = workforce.roster
        self.snapshots, self.tally, self.names = snapshots, tally, names
        self._asked: set[str] = set()  # to leave
        self._retiring: set[asyncio.Task[None]] = set()
        self._stop_listening: Callable[[], None] = lambda: None
        self._said = 0  # copies, in the last warning

    def begin(self) -> None:
        """Listen for workers that were asked to leave and could not."""
        self._stop_listening = listen(self.client, "all", self._hear)

    async def end(self) -> None:
        """Stop listening, and wait a moment for the workers that are being retired."""
        self._stop_listening()
        retiring = list(self._retiring)
        if retiring:
            await asyncio.wait(retiring, timeout=deadline("answer"))
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)

    def _hear(self, message: dict[str, Any]) -> None:
        if message.get("action") == "retire-workers":
            refused = set(message.get("could-not-retire", ()))
            self._asked |= refused & set(self.server.workers)

    # Workers that may hold shards

    @property
    def draining(self) -> set[str]:
        """Workers that close or were asked to leave: they get no new shard."""
        return self._asked | self.roster.closing

    def eligible(self) -> list[str]:
        """List the workers that may be given shards now."""
        return eligible_workers(self.roster.facts, self.names, self.roster.away | self.draining)

    async def wait(self) -> None:
        """Wait until a worker may hold shards, and as many may train as a replica needs.

        Raises
        ------
        WorkerError
            No worker came within the deadline `arrival`, which begins anew with each that comes.
        """
        clock, most = self.roster.clock, 0
        until = clock.seconds() + deadline("arrival")
        if lack := self._lack():
            allowed = f"up to {deadline('arrival'):g} s (dbdask.arrival)"
            logger.warning("%s: one is waited for, %s", lack, allowed)
        while lack := self._lack():
            if self.roster.useful > most:
                most, until = self.roster.useful, clock.seconds() + deadline("arrival")
            if clock.seconds() > until and not self.roster.is_hopeful:
                raise WorkerError(
                    f"{lack}, and none came in {deadline('arrival'):g} s: see that workers run, or "
                    "set dbdask.arrival if new ones take longer to come; "
                    f"{self.snapshots.resume_hint()}"
                )
            await asyncio.sleep(TURN_SECONDS)
            await self.workforce.refresh()
            await self.workforce.watch_silence()

    def _lack(self) -> str:
        """Return which workers are missing to hold shards or to train, in words; '' if none is."""
        homes = bool(self.eligible())
        if homes and not self.roster.lack:
            return ""
        if not homes and self.names is not None:
            return f"no worker of shard_workers={list(self.names)} is left to hold shards"
        few = self.roster.lack if self.roster.workers or self.roster.only is not None else ""
        return few or "no worker is left to go on with"

    # Making shards

    async def place(self, count: int, initial: Initial) -> None:
        """Cut the vector into shards, and make every copy of each for the first time."""
        await self.server.place(count, initial, self.eligible())
        self._note_copies()

    async def replace(self, shards: Sequence[int], initial: Initial) -> None:
        """Make some shards anew."""
        await self.server.replace(shards, initial, self.eligible())

    async def drop_lost(self) -> None:
        """Give up the copies whose worker is gone or silent."""
        self.tally.lost += await self.server.drop_lost(self.roster.answering)

    async def add_copies(self) -> None:
        """Make the copies that are missing; the run is at rest, and every shard has one."""
        await self.server.add_copies(self.eligible())
        self._note_copies()

    def _note_copies(self) -> None:
        """Tell the history how many copies there are, and the log if they are too few."""
        server = self.server
        self.tally.shard_copies = float(server.copies) if server.wanted > 1 else math.nan
        if server.copies < server.wanted and self._said != server.copies:
            logger.warning(
                "every shard is to have %d copies, but only %d workers can hold shards: the run "
                "goes on with %d until a worker comes",
                server.wanted,
                len(self.eligible()),
                server.copies,
            )
        self._said = server.copies

    # Moving shards

    @property
    def due(self) -> bool:
        """Whether shards are to move, or copies can be made that are missing."""
        return self.must_move or self.lacks_copies

    @property
    def must_move(self) -> bool:
        """Whether a worker that leaves holds a shard that can be moved, or the request be refused.

        The request is not refused while a worker in its check may take the shard.
        """
        going = self.draining & set(self.server.workers)
        if not going or self.server.can_leave(going, self.eligible()):
            return bool(going)
        return bool(self._asked) and not self.roster.expects_workers

    @property
    def lacks_copies(self) -> bool:
        """Whether copies are missing that could be made now."""
        server = self.server
        return server.copies < server.wanted and server.lacks_copies(self.eligible())

    async def reconcile(self) -> None:
        """Move shards and make copies, without rollback; nothing may be applied meanwhile."""
        if self.must_move:
            await self._move()
        if self.lacks_copies:
            await self.server.advance()  # replicas need a new handle
            await self.add_copies()

    async def _move(self) -> None:
        """Move the shards of leaving workers, and let the workers go."""
        going, workers = self.draining, self.eligible()
        if not self.server.can_leave(going, workers):
            self._refuse()
            return
        logger.info("moving shards: %s leave", sorted(going))
        await self.server.move(going, workers)
        self._note_copies()
        asked, self._asked = self._asked, set()
        for worker in asked:
            self.roster.leaving.add(worker)
            retiring = asyncio.ensure_future(self._retire(worker))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

    async def _retire(self, worker: str) -> None:
        """Retire a worker beside training: Dask first moves its data, which may never end."""
        try:
            if await retire(self.client, worker):
                return
            why = "Dask has not moved all that it holds"
        except Exception as error:
            why = repr(error)
        logger.warning("worker %s could not be retired, and stays: %s", worker, why)
        self.roster.leaving.discard(worker)

    def _refuse(self) -> None:
        for worker in self._asked:
            logger.warning(
                "worker %s cannot leave: it holds parameter shards, and no other worker may hold "
                "them; start another one, or widen shard_workers=, and then ask it again",
                worker,
            )
        self._asked = set()
