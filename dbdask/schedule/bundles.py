"""Load balancing of a pass: which portions a worker gets, how many, and when a backup copy runs.

These are pure functions and plain records: the clock is passed in, and a test needs no cluster.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dbdask.arrays import Int64Array
from dbdask.schedule.portions import Portion

SHARE = 0.35  # of its fair part of the remaining work, which a worker is given at once
PUSH_SHARE = 0.02  # of a bundle's work that its push may take, while there is enough work
TASK_SHARE = 0.1  # of a bundle's work that it may take to get the task there and back
BACKUP_TIMES = 1.2  # a copy runs if the original needs so many times as long


@dataclass(frozen=True)
class Bundle:
    """Portions that one task works through in store order; cut once, never cut again."""

    evaluation: int
    number: int
    portions: tuple[Portion, ...]

    @property
    def identity(self) -> tuple[int, int]:
        """The identity that makes a second copy of it harmless."""
        return self.evaluation, self.number

    @property
    def examples(self) -> str:
        """The examples that it is work on: those to train on."""
        return "train"

    @property
    def name(self) -> str:
        """Its name in errors."""
        first, last = self.portions[0].number, self.portions[-1].number
        return f"bundle {self.number} (portions {first} to {last})"


@dataclass(eq=False)
class BundleAttempt:
    """A copy of a bundle that a worker has been given."""

    bundle: Bundle
    worker: str
    since: float
    is_backup: bool = False


@dataclass
class Pace:
    """Measured speed of the workers over all passes, in seconds; the newest report counts half."""

    seconds: dict[str, float] = field(default_factory=dict)  # a portion, by worker
    push: float = 0.0  # a bundle's push
    task: float = 0.0  # getting a task there and back

    def note(self, worker: str, portions: int, working: float, pushing: float, out: float) -> None:
        """Add the report of a bundle that was out for `out` seconds."""
        now, task = working / portions, max(0.0, out - working - pushing)
        self.seconds[worker] = 0.5 * (now + self.seconds.get(worker, now))
        self.push = 0.5 * (pushing + (self.push or pushing))
        self.task = 0.5 * (task + (self.task or task))

    def of(self, worker: str) -> float | None:
        """Return the seconds that a worker takes for a portion; a new one counts as typical."""
        if worker in self.seconds:
            return self.seconds[worker]
        return statistics.median(self.seconds.values()) if self.seconds else None


def bundle_length(
    remaining: int, out: float, worker: str, workers: Sequence[str], pace: Pace
) -> int:
    """Return how many portions a worker is given.

    It is a share of the worker's fair part, by its speed, of the work that is left. So bundles
    start long and become shorter toward the end, and no worker waits long for a slow one. A bundle
    is long enough for push and task to be a small part of its work, but never exceeds the fair
    part. If no speed is known, it is one portion.

    Parameters
    ----------
    remaining
        Portions that no worker has.
    out
        Portions that workers have and still have to do.

    Examples
    --------
    >>> pace = Pace({"fast": 1.0, "slow": 5.0})
    >>> [bundle_length(60, 0, name, ["fast", "slow"], pace) for name in ("fast", "slow")]
    [18, 4]
    """
    own = pace.of(worker)
    if own is None:
        return 1
    own = max(own, 1e-9)
    speed = sum(1.0 / max(pace.of(name) or own, 1e-9) for name in workers)
    fair = (remaining + out) / own / speed
    enough = max(pace.push / PUSH_SHARE, pace.task / TASK_SHARE) / own
    least = (pace.push + pace.task) / own  # less work than it takes to hand it out is not cut up
    return max(1, min(remaining, math.ceil(max(min(max(SHARE * fair, enough), fair), least))))


def work_out(copies: Iterable[BundleAttempt], pace: Pace, now: float) -> float:
    """Return an estimate of the portions that workers have and still have to do.

    Examples
    --------
    >>> copies = [BundleAttempt(Bundle(0, 3, (None,) * 4), "a", since=0.0)]
    >>> work_out(copies, Pace({"a": 1.0}), now=1.5)
    2.5
    """
    left: dict[tuple[int, int], float] = {}
    for copy in copies:
        done = (now - copy.since) / max(pace.of(copy.worker) or 1.0, 1e-9)
        mine = max(0.0, len(copy.bundle.portions) - done)
        left[copy.bundle.identity] = min(mine, left.get(copy.bundle.identity, mine))
    return sum(left.values())


def choose_backup(
    copies: Iterable[BundleAttempt],
    worker: str,
    pace: Pace,
    now: float,
    *,
    times: float = BACKUP_TIMES,
) -> BundleAttempt | None:
    """Return the outstanding bundle that `worker`, which is free, should run a copy of, if any.

    It is the bundle that is expected to end last, if that takes `times` as long as the copy. A
    bundle within its expected time needs the rest of it; an overdue one is expected to need as
    long again as it has been out. A bundle has at most two copies.

    Examples
    --------
    >>> bundle = Bundle(0, 3, (None, None))
    >>> pace = Pace({"a": 1.0, "b": 1.0})
    >>> choose_backup([BundleAttempt(bundle, "a", since=0.0)], "b", pace, now=1.9) is None
    True
    >>> choose_backup([BundleAttempt(bundle, "a", since=0.0)], "b", pace, now=9.0).worker
    'a'
    """
    copies = list(copies)
    doubled = {copy.bundle.identity for copy in copies if copy.is_backup}
    mine = {copy.bundle.identity for copy in copies if copy.worker == worker}
    found, longest = None, 0.0
    for copy in copies:
        if copy.bundle.identity in doubled | mine:
            continue
        need = len(copy.bundle.portions) * (pace.of(worker) or 0.0) + pace.push + pace.task
        expected = len(copy.bundle.portions) * (pace.of(copy.worker) or 0.0) + pace.push + pace.task
        out = now - copy.since
        left = expected - out if out < expected else out
        if left >= times * need and left > longest:
            found, longest = copy, left
    return found


class Assignment:
    """The portions of one pass: what is left, and what a worker gets next.

    Parameters
    ----------
    evaluation
        The pass's number; never reused.
    portions
        All portions, in store order: the number of each is its place.
    owners
        Which worker had a portion last time, by portion number: it still holds the values.
    """

    def __init__(
        self, evaluation: int, portions: Sequence[Portion], owners: Mapping[int, str]
    ) -> None:
        self.evaluation = evaluation
        self._portions = portions
        self._pending = _by_owner(len(portions), owners)
        self._again: list[Bundle] = []
        self._cut = 0

    @property
    def remaining(self) -> int:
        """Portions that no worker has."""
        again = sum(len(bundle.portions) for bundle in self._again)
        return again + sum(map(len, self._pending.values()))

    def take(self, worker: str, length: int, workers: Sequence[str]) -> Bundle | None:
        """Return the worker's next bundle, or None if no portion is left.

        A bundle that failed goes out again unchanged; else a new one of at most `length` portions
        is cut. The worker gets its own portions first, then neighbours without an owner, then the
        last ones of another owner.
        """
        if self._again:
            return self._again.pop()
        self._free_without_owner(workers)
        if not any(map(len, self._pending.values())):
            return None
        run = self._next_run(worker, length, workers)
        self._cut += 1
        portions = tuple(self._portions[number] for number in run.tolist())
        return Bundle(self.evaluation, self._cut - 1, portions)

    def hand_back(self, bundle: Bundle) -> None:
        """Take back a bundle of which no copy is left; it is never cut again."""
        self._again.append(bundle)

    def _free_without_owner(self, workers: Sequence[str]) -> None:
        """Free the portions whose owner has left."""
        gone = [name for name in self._pending if name is not None and name not in workers]
        if gone:
            theirs = [self._pending.pop(name) for name in gone]
            self._pending[None] = np.sort(np.concatenate([self._pending[None], *theirs]))

    def _next_run(self, worker: str, length: int, workers: Sequence[str]) -> Int64Array:
        """Take the worker's next portions out of what is pending."""
        mine, free = self._pending.get(worker, NONE), self._pending[None]
        if len(mine):  # in its memory, whether neighbours or not
            self._pending[worker] = mine[length:]
            return mine[:length]
        if len(free):
            start = _part_of(len(free), worker, workers)
            run = _consecutive(free[start : start + length])
            self._pending[None] = np.delete(free, slice(start, start + len(run)))
            return run
        richest = max(self._pending, key=lambda name: (len(self._pending[name]), str(name)))
        theirs = self._pending[richest]
        run = _consecutive(theirs[::-1][: min(length, math.ceil(len(theirs) / 2))])
        self._pending[richest] = theirs[: len(theirs) - len(run)]
        return run[::-1]


NONE = np.zeros(0, np.int64)


def _by_owner(count: int, owners: Mapping[int, str]) -> dict[str | None, Int64Array]:
    """Return the numbers below `count`, ascending, by the worker that owns them."""
    found: dict[str | None, list[int]] = {}
    for number, owner in owners.items():
        if number < count:
            found.setdefault(owner, []).append(number)
    owned = {owner: np.sort(np.array(numbers)) for owner, numbers in found.items()}
    free = np.ones(count, bool)
    for numbers in owned.values():
        free[numbers] = False
    return {None: np.flatnonzero(free), **owned}


def _part_of(count: int, worker: str, workers: Sequence[str]) -> int:
    """Return the place at which this worker's part of the portions without an owner begins."""
    place = list(workers).index(worker) if worker in workers else 0
    return count * place // max(len(workers), 1)


def _consecutive(numbers: Int64Array) -> Int64Array:
    """Return the longest run of neighbours at the beginning of some numbers."""
    breaks = np.flatnonzero(np.abs(np.diff(numbers)) != 1)
    return numbers[: breaks[0] + 1] if len(breaks) else numbers
