"""Gangs: which workers together carry one replica of a partitioned model. Pure decisions."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True)
class Gang:
    """Workers that hold the parts of one replica: worker k has part k.

    Parameters
    ----------
    number
        Names the gang in messages; a run never uses it again.
    workers
        Addresses, in the order of the parts.
    """

    number: int
    workers: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the replica's place; the same for the same workers."""
        return ", ".join(self.workers)


@dataclass(frozen=True, slots=True)
class Member:
    """One part's place in one attempt of a gang at some work.

    Parameters
    ----------
    gang
        The gang's number.
    attempt
        Which piece of the gang's work this is, from 0 on, without a gap: every worker of the gang
        admits the tasks in this order.
    index
        Which part this is.
    workers
        Addresses of all members, in the order of the parts.
    """

    gang: int
    attempt: int
    index: int
    workers: tuple[str, ...]

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return len(self.workers)

    @property
    def peers(self) -> tuple[int, ...]:
        """The other parts."""
        return tuple(part for part in range(self.parts) if part != self.index)


def memberships(
    hosts: Mapping[str, str], taken: Collection[str], size: int, most: int | None
) -> list[tuple[str, ...]]:
    """Return the workers of new gangs, formed of workers that are in none.

    Workers of one host come together where a host has enough of them; then the rest, in the order
    in which they are given.

    Parameters
    ----------
    hosts
        The workers that may train, with their hosts, in the order in which they joined.
    taken
        Those that are in a gang.
    size
        Workers of a gang.
    most
        Gangs to form at most; None for as many as possible.

    Examples
    --------
    >>> hosts = {"a": "one", "b": "two", "c": "one", "d": "two", "e": "two"}
    >>> memberships(hosts, [], 2, None)
    [('a', 'c'), ('b', 'd')]
    >>> memberships(hosts, ["a"], 2, None)
    [('b', 'd'), ('c', 'e')]
    >>> memberships(hosts, [], 3, 1), memberships(hosts, [], 6, None)
    ([('b', 'd', 'e')], [])
    """
    free: dict[str, list[str]] = defaultdict(list)
    for worker, host in hosts.items():
        if worker not in taken:
            free[host].append(worker)
    found: list[tuple[str, ...]] = []
    for workers in free.values():
        found += _whole(workers, size)
    left = {worker for workers in free.values() for worker in workers[_used(workers, size) :]}
    found += _whole([worker for worker in hosts if worker in left], size)
    return found[:most]


def seated(workers: Sequence[str], held: Sequence[Mapping[str, int]]) -> tuple[str, ...]:
    """Return a gang's workers in the order of its parts, each at the part whose shards it holds.

    A part that finds its shards in its own process sends nothing to them, and maps no memory.

    Parameters
    ----------
    workers
        The workers of the gang, one for each part.
    held
        For each part, how many of its elements each worker holds.

    Examples
    --------
    >>> seated(("a", "b", "c"), [{"b": 5}, {"d": 9}, {"a": 2, "c": 1}])
    ('b', 'c', 'a')
    """
    pairs = product(range(len(held)), workers)
    wanted = sorted(pairs, key=lambda pair: held[pair[0]].get(pair[1], 0), reverse=True)
    seats: dict[int, str] = {}
    for part, worker in wanted:
        if part not in seats and worker not in seats.values():
            seats[part] = worker
    return tuple(seats[part] for part in range(len(held)))


def _used(workers: Sequence[str], size: int) -> int:
    """Return how many of a host's workers are in gangs of that host alone."""
    return len(workers) // size * size


def _whole(workers: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Return neighbours in groups of a size; those that make no whole group are left out."""
    return [tuple(workers[first : first + size]) for first in range(0, _used(workers, size), size)]
