"""Which workers come together, as a pure function."""

import random
from itertools import chain

import pytest

from dbdask.schedule.gangs import Gang, Member, memberships


@pytest.mark.parametrize("seed", range(40))
def test_no_worker_is_in_two_gangs_and_no_gang_is_left_out(seed):
    rng = random.Random(seed)
    count, size = rng.randrange(12), rng.randrange(1, 5)
    hosts = {f"w{n}": rng.choice(["one", "two", "three"]) for n in range(count)}
    taken = {worker for worker in hosts if rng.random() < 0.3}
    found = memberships(hosts, taken, size, None)
    workers = list(chain(*found))
    assert len(set(workers)) == len(workers) and not taken.intersection(workers)
    assert set(map(len, found)) <= {size}
    free = [worker for worker in hosts if worker not in taken]
    assert len(found) == len(free) // size
    at_one_host = sum(
        sum(hosts[worker] == host for worker in free) // size for host in ("one", "two", "three")
    )
    assert sum(len({hosts[worker] for worker in gang}) == 1 for gang in found) >= at_one_host
    most = rng.randrange(4)
    assert memberships(hosts, taken, size, most) == found[:most]


def test_members_know_their_peers():
    member = Member(3, 0, 1, ("a", "b", "c"))
    assert member.parts == 3 and member.peers == (0, 2)
    assert Gang(3, ("a", "b")).name == Gang(4, ("a", "b")).name == "a, b"
