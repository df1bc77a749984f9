"""The stream of portions: which portion a worker gets next. Pure bookkeeping, without Dask.

The only work for each portion of an epoch is to mark it as finished. Portions that were never
handed out are one position in the order.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dbdask.schedule.portion_marks import Finished
from dbdask.schedule.portions import Portion, Portions

Identity = tuple[int, int]  # epoch, number


class PortionStream:
    """Hands out every portion of every epoch until each is finished.

    Parameters
    ----------
    portions_of
        The portions of an epoch, in their seeded order.
    epochs
        Epochs in all.
    first_epoch, finished
        Where an earlier run stopped: its epoch, and the portions of it that are finished, as
        (epoch, number) or (epoch, first, past the last).
    """

    def __init__(
        self,
        portions_of: Callable[[int], Sequence[Portion]],
        epochs: int,
        first_epoch: int = 0,
        finished: Iterable[Sequence[int]] = (),
    ) -> None:
        self._portions_of = portions_of
        self.epochs = epochs
        self._group_of: dict[str, int] = {}
        self._next_of: dict[str, int] = {}  # the group that a worker was told to read ahead
        self._out: dict[Identity, Portion] = {}
        self._open(first_epoch, finished)

    def _open(self, epoch: int, finished: Iterable[Sequence[int]] = ()) -> None:
        self.epoch = epoch
        self._group_of.clear()
        self._next_of.clear()
        self._out.clear()
        portions = self._portions_of(epoch) if epoch < self.epochs else ()
        self._pending = _Pending(portions, _marks(len(portions), epoch, finished))

    @property
    def finished(self) -> list[tuple[int, int, int]]:
        """The finished portions of the epoch: (epoch, first, past the last) of each range."""
        return self._pending.finished.ranges(self.epoch)

    def portion(self, number: int) -> Portion:
        """Return a portion of the current epoch."""
        return self._pending.portions[number]

    def take(self, worker: str) -> Portion | None:
        """Hand a portion to a worker: of its own shuffle group, else of a group without one."""
        if not self._pending:
            return None
        group = self._choose(worker)
        portion = self._pending.pop(group)
        self._hold(self._group_of, worker, group)
        self._hold(self._next_of, worker, None)
        self._out[portion.identity] = portion
        return portion

    def following(self, worker: str) -> Portion | None:
        """Return the worker's next portion, so that it may read ahead; others get it last."""
        if not self._pending:
            return None
        group = self._choose(worker)
        self._hold(self._next_of, worker, group)
        return self._pending.first(group)

    def _hold(self, groups: dict[str, int], worker: str, group: int | None) -> None:
        """Note the group that a worker has, or reads ahead, and let go of the one before."""
        before = groups.pop(worker, None)
        if group is not None:
            groups[worker] = group
            self._pending.hold(group)
        if before is not None:
            self._pending.let_go(before)

    def _choose(self, worker: str) -> int:
        """The group of the worker's next portion: the one of least cost to read, then the first."""
        pending = self._pending
        mine, ahead = self._group_of.get(worker), self._next_of.get(worker)
        if mine is not None and pending.has(mine):
            return mine
        if ahead is not None and pending.has(ahead) and pending.holders(ahead) == 1:
            return ahead
        free = pending.first_free()
        return pending.first_of_all() if free is None else free

    def hand_back(self, portion: Portion) -> None:
        """Take an unfinished portion back; it is the next to be handed out."""
        if self._out.pop(portion.identity, None) is not None:
            self._pending.put_back(portion)

    def finish(self, portion: Portion) -> bool:
        """Note that a portion is finished; return False if it was already."""
        if portion.epoch != self.epoch:
            return False
        was_out = self._out.pop(portion.identity, None) is not None
        return self._pending.finish(portion, was_out=was_out)

    @property
    def epoch_finished(self) -> bool:
        """Whether every portion of the current epoch is finished."""
        return not self._pending and not self._out

    @property
    def done(self) -> bool:
        """Whether every epoch is finished."""
        return self.epoch >= self.epochs

    def next_epoch(self) -> None:
        """Open the next epoch and forget the portions of the one before."""
        assert self.epoch_finished
        self._open(self.epoch + 1)

    def restart(self, epoch: int, finished: Iterable[Sequence[int]]) -> None:
        """Go back to the position of a checkpoint."""
        self._open(epoch, finished)


@dataclass
class _Group:
    """A shuffle group of which a worker has been given something."""

    next: int  # the first portion that was never handed out
    stop: int  # past its last
    back: list[int] = field(default_factory=list)  # a heap of those that were handed back


class _Pending:
    """The portions without a worker, by shuffle group. A group's name is its place in the order.

    Heaps hold groups that may have a pending portion. A group without one is dropped when it
    comes to the top.
    """

    def __init__(self, portions: Sequence[Portion], finished: Finished) -> None:
        self.portions, self.finished = portions, finished
        self._first = _first_of_groups(portions)
        self._left = len(portions) - finished.count
        self._groups: dict[int, _Group] = {}  # below `_untouched`; the others are used up
        self._untouched = 0  # no group from this one on was ever looked at
        self._holders: Counter[int] = Counter()
        self._free: list[int] = []  # touched groups that no replica holds
        self._touched: list[int] = []

    def __bool__(self) -> bool:
        return self._left > 0

    def has(self, group: int) -> bool:
        """Whether a group that was touched has a pending portion."""
        known = self._groups.get(group)
        return known is not None and self._lowest(known) < known.stop

    def first(self, group: int) -> Portion:
        """Return the first pending portion of a group."""
        return self.portions[self._lowest(self._touch(group))]

    def pop(self, group: int) -> Portion:
        """Take the first pending portion of a group out."""
        known = self._touch(group)
        number = self._lowest(known)
        if known.back:
            heapq.heappop(known.back)
        else:
            known.next = number + 1
        self._left -= 1
        return self.portions[number]

    def put_back(self, portion: Portion) -> None:
        """Let a portion that was taken out be pending again, unless it is finished."""
        if portion.number in self.finished:
            return
        group = self._group_of(portion.number)
        stop = int(self._first[group + 1])
        known = self._groups.setdefault(group, _Group(stop, stop))
        heapq.heappush(known.back, portion.number)
        heapq.heappush(self._touched, group)
        if not self._holders[group]:
            heapq.heappush(self._free, group)
        self._left += 1

    def finish(self, portion: Portion, *, was_out: bool) -> bool:
        """Mark a portion, pending or out, as finished; return False if it was already."""
        is_new = self.finished.add(portion.number)
        self._left -= is_new and not was_out
        return is_new

    def hold(self, group: int) -> None:
        """Note one more holder of a group."""
        self._touch(group)
        self._holders[group] += 1

    def let_go(self, group: int) -> None:
        """Note one holder less."""
        self._holders[group] -= 1
        if self._holders[group]:
            return
        del self._holders[group]
        if self.has(group):
            heapq.heappush(self._free, group)
        else:
            self._groups.pop(group, None)

    def holders(self, group: int) -> int:
        """Return how often a group is held."""
        return self._holders[group]

    def first_free(self) -> int | None:
        """Return the first group with a pending portion that no worker holds, if there is one."""
        free = self._free
        while free and (self._holders[free[0]] or not self.has(free[0])):
            heapq.heappop(free)
        number = self.finished.first_open(int(self._first[self._untouched]))
        self._untouched = self._group_of(number)
        if free and free[0] < self._untouched:
            return free[0]
        return self._untouched if number < len(self.portions) else None

    def first_of_all(self) -> int:
        """Return the first group with a pending portion, of those that were touched."""
        while not self.has(self._touched[0]):
            heapq.heappop(self._touched)
        return self._touched[0]

    def _touch(self, group: int) -> _Group:
        if group == self._untouched and group not in self._groups:
            first, stop = self._first[group : group + 2].tolist()
            self._groups[group] = _Group(first, stop)
            self._untouched += 1
            heapq.heappush(self._touched, group)
        return self._groups[group]

    def _lowest(self, group: _Group) -> int:
        """The first pending portion of a group; where its portions end if none is."""
        while group.back and group.back[0] in self.finished:
            heapq.heappop(group.back)
        if group.back:
            return group.back[0]
        group.next = min(self.finished.first_open(group.next), group.stop)
        return group.next

    def _group_of(self, number: int) -> int:
        return int(np.searchsorted(self._first, number, side="right")) - 1


def _marks(count: int, epoch: int, finished: Iterable[Sequence[int]]) -> Finished:
    """Mark portions of an epoch that are given by number, or as ranges of numbers."""
    marks = Finished(count)
    for known, first, *stop in finished:
        if known == epoch:
            marks.add_range(first, stop[0] if stop else first + 1)
    return marks


def _first_of_groups(portions: Sequence[Portion]) -> np.ndarray:
    """Return the number of the first portion of every group, and of portions in all."""
    if isinstance(portions, Portions):
        return portions.first_of_groups
    groups = np.array([portion.group for portion in portions], np.int64)
    starts = np.flatnonzero(np.diff(groups, prepend=-1)) if len(groups) else groups
    return np.append(starts, len(groups))
