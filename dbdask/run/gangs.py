"""The places on which a run's replicas work: workers, or gangs of workers for partitioned ones."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from distributed import Client

from dbdask.rpc.calls import is_no_answer, run_on
from dbdask.rpc.deadlines import deadline
from dbdask.run.roster import Roster
from dbdask.run.worker_notices import WorkerNotices
from dbdask.schedule.gangs import Gang, Member, memberships, seated
from dbdask.worker.gang_notices import join_gang
from dbdask.worker.link import ServerHandle

logger = logging.getLogger("dbdask")


@dataclass
class Gangs:
    """The gangs of one run. Without partitions every worker is a place by itself.

    A gang lasts until one of its members leaves, falls silent, or fails: then all of its work is
    given up, and other gangs are formed of the workers that are there. A worker belongs to one gang
    at a time.

    Parameters
    ----------
    client
        The Dask client.
    run
        The run's identity.
    job
        What every task needs, pickled.
    roster
        The workers.
    notices
        Tell workers that a gang has ended.
    handle
        Returns where the shards are now.
    ranges
        The elements of each part of a replica; none if replicas are not partitioned.
    most
        Gangs at a time, at most; None for as many as there are workers for.
    """

    client: Client
    run: str
    job: bytes
    roster: Roster
    notices: WorkerNotices
    handle: Callable[[], ServerHandle]
    ranges: Sequence[tuple[int, int]] = ()
    most: int | None = None
    _gangs: dict[str, Gang] = field(default_factory=dict)  # by name
    _attempts: dict[int, int] = field(default_factory=dict)  # begun, by number of the gang
    _members: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of all gangs ever, by name
    _numbers: int = 0
    _unjoined: dict[str, str] = field(default_factory=dict)  # why a worker has not joined a gang

    @property
    def size(self) -> int:
        """Workers of a gang: the parts of a replica."""
        return max(1, len(self.ranges))

    @property
    def lack(self) -> str:
        """Why there is no gang, for an error; '' if there is one, or no worker failed to join."""
        if self._gangs or not self._unjoined:
            return ""
        reasons = "; ".join(f"{worker}: {why}" for worker, why in sorted(self._unjoined.items()))
        return f"no {self.size} workers form a group for partitions={self.size} ({reasons})"

    @property
    def is_partitioned(self) -> bool:
        """Whether a replica needs several workers."""
        return self.size > 1

    @property
    def places(self) -> list[str]:
        """The places that may be given work now: addresses of workers, or names of gangs."""
        workers = self.roster.workers
        if not self.is_partitioned:
            return workers
        here = set(workers)
        return [name for name, gang in self._gangs.items() if here.issuperset(gang.workers)]

    def most_replicas(self, replicas: int | None) -> int | None:
        """Return how many replicas may work at a time: a gang carries one, a worker any number."""
        if replicas is None or not self.is_partitioned:
            return replicas
        return min(replicas, max(1, len(self.places)))

    def workers_of(self, place: str) -> tuple[str, ...]:
        """Return the workers of a place, also of a gang that has ended."""
        return self._members.get(place, (place,))

    def number_of(self, place: str) -> int | None:
        """Return the number of the gang at a place; None for a worker by itself."""
        gang = self._gangs.get(place)
        return None if gang is None else gang.number

    def next_attempt(self, place: str) -> tuple[Member, ...]:
        """Return the members of a gang, for its next piece of work."""
        gang = self._gangs[place]
        attempt = self._attempts[gang.number]
        self._attempts[gang.number] += 1
        return tuple(
            Member(gang.number, attempt, index, gang.workers) for index in range(self.size)
        )

    # Gangs come and go

    async def form(self, busy: Iterable[str]) -> None:
        """Form gangs of the workers that are in none; end those that cannot work any more.

        Parameters
        ----------
        busy
            The places with work under way, whose gangs keep their workers.
        """
        if not self.is_partitioned:
            return
        held = set(busy)
        for name in set(self._gangs) - set(self.places) - held:
            self.end([name])
        room = None if self.most is None else self.most - len(self._gangs)
        taken = {worker for gang in self._gangs.values() for worker in gang.workers}
        # Workers that failed to join are asked again, after those that were not asked yet.
        here = self.roster.workers
        self._unjoined = {w: why for w, why in self._unjoined.items() if w in here}
        workers = sorted(here, key=self._unjoined.__contains__)
        hosts = {worker: self.roster.facts[worker].host for worker in workers}
        new = memberships(hosts, taken, self.size, None if room is None else max(0, room))
        await asyncio.gather(*(self._form(workers) for workers in new))

    async def _form(self, workers: tuple[str, ...]) -> None:
        """Ask workers to join a new gang. The gang exists only if all of them join."""
        handle = self.handle()
        gang = Gang(self._numbers, seated(workers, held_by_part(handle, self.ranges)))
        self._numbers += 1
        joining = (self._join(gang, worker, handle) for worker in gang.workers)
        joined = await asyncio.gather(*joining)
        if all(joined):
            self._gangs[gang.name] = gang
            self._members[gang.name] = gang.workers
            self._attempts[gang.number] = 0
            logger.debug("gang %d is %s", gang.number, gang.name)

    async def _join(self, gang: Gang, worker: str, handle: ServerHandle) -> bool:
        """Ask one worker to join; the roster then checks a worker that fails to."""
        arguments = self.run, self.job, handle, gang.number, gang.workers
        try:
            joined = await run_on(
                self.client.rpc, worker, join_gang, *arguments, seconds=deadline("connect")
            )
        except Exception as error:
            level = logging.DEBUG if is_no_answer(error) else logging.WARNING
            logger.log(level, "worker %s has not joined gang %d: %r", worker, gang.number, error)
            self.roster.ask([worker])  # a silent one gets nothing more
            self._unjoined[worker] = repr(error)
            return False
        if joined:
            self._unjoined.pop(worker, None)
        else:
            self._unjoined[worker] = "the run has ended there"
        return bool(joined)

    def end(self, places: Iterable[str]) -> None:
        """End gangs: their workers are notified, and may join other gangs afterwards."""
        for place in places:
            gang = self._gangs.pop(place, None)
            if gang is not None:
                self.notices.end_gang(gang.workers, gang.number)

    def end_all(self) -> None:
        """End every gang, as the workers do when a generation ends."""
        self.end(list(self._gangs))


def held_by_part(handle: ServerHandle, ranges: Sequence[tuple[int, int]]) -> list[Counter[str]]:
    """Return how many elements of each part every worker holds in the first copies of shards."""
    held: list[Counter[str]] = []
    for start, stop in ranges:
        here = Counter[str]()
        for shard in handle.part(start, stop).shards:
            here[shard.first.worker] += shard.stop - shard.start
        held.append(here)
    return held
