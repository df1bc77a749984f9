"""The stream of portions, driven by seeded schedules of loss and repetition."""

import random

import pytest

from dbdask.algorithms.stream import PortionStream
from dbdask.schedule.portions import Portion


def portions_of(epoch):
    return tuple(Portion(epoch, n, n // 3, (n // 3,), 0, 10, (1, epoch, n // 3)) for n in range(9))


@pytest.mark.parametrize("seed", range(20))
def test_every_portion_is_finished_once_whatever_is_handed_back(seed):
    rng = random.Random(seed)
    stream = PortionStream(portions_of, epochs=3)
    finished, out = [], []
    while not stream.done:
        worker = rng.choice("abc")
        portion = stream.take(worker)
        if portion is not None:
            out.append(portion)
        rng.shuffle(out)
        for portion in [out.pop() for _ in range(rng.randint(0, len(out)))]:
            if rng.random() < 0.4:
                stream.hand_back(portion)
            elif stream.finish(portion):
                finished.append((portion.epoch, portion.number))
            else:
                raise AssertionError(f"{portion} was finished twice")
        if stream.epoch_finished:
            stream.next_epoch()
    assert sorted(finished) == [(epoch, number) for epoch in range(3) for number in range(9)]


def test_a_lone_worker_gets_the_seeded_order():
    stream = PortionStream(portions_of, epochs=1)
    assert [stream.take("a").number for _ in range(9)] == list(range(9))


def test_pieces_of_a_group_follow_each_other_on_one_worker():
    stream = PortionStream(portions_of, epochs=1)
    groups = {"a": [], "b": []}
    for _ in range(3):
        for worker, seen in groups.items():
            seen.append(stream.take(worker).group)
    assert groups == {"a": [0, 0, 0], "b": [1, 1, 1]}


def test_a_portion_that_two_workers_had_is_finished_once():
    stream = PortionStream(portions_of, epochs=1)
    portion = stream.take("a")
    stream.hand_back(portion)
    again = next(p for p in iter(lambda: stream.take("b"), None) if p == portion)
    assert stream.finish(portion)
    assert not stream.finish(again)


def test_a_stream_goes_on_where_a_checkpoint_stood():
    stream = PortionStream(portions_of, 2, first_epoch=1, finished=[(1, 0), (1, 4)])
    taken = [stream.take("a") for _ in range(7)]
    assert [portion.number for portion in taken] == [1, 2, 3, 5, 6, 7, 8]
    assert stream.take("a") is None


def test_what_a_worker_reads_ahead_goes_to_no_other_worker():
    stream = PortionStream(portions_of, epochs=1)
    first = [stream.take("a") for _ in range(3)]
    assert {portion.group for portion in first} == {0}
    assert stream.following("a").group == 1
    assert stream.take("b").group == 2
    assert stream.take("a").group == 1


class Scanned:
    """The same stream, which looks at every pending portion each time."""

    def __init__(self, portions_of, epochs, first_epoch=0, finished=()):
        self.portions_of, self.epochs, self.epoch = portions_of, epochs, first_epoch
        self.group_of, self.next_of, self.out, self.done_with = {}, {}, {}, set(finished)
        self.pending = [p for p in portions_of(first_epoch) if p.identity not in self.done_with]

    def choose(self, worker):
        mine, ahead = self.group_of.get(worker), self.next_of.get(worker)
        others = [*self.group_of.items(), *self.next_of.items()]
        taken = {group for name, group in others if name != worker}
        found = {}
        for position, portion in enumerate(self.pending):
            if portion.group == mine:
                return position
            kind = "ahead" if portion.group == ahead else "free"
            found.setdefault("taken" if portion.group in taken else kind, position)
        return next(found[kind] for kind in ("ahead", "free", "taken") if kind in found)

    def take(self, worker):
        if not self.pending:
            return None
        portion = self.pending.pop(self.choose(worker))
        self.group_of[worker] = portion.group
        self.next_of.pop(worker, None)
        self.out[portion.identity] = portion
        return portion

    def following(self, worker):
        if not self.pending:
            return None
        portion = self.pending[self.choose(worker)]
        self.next_of[worker] = portion.group
        return portion

    def hand_back(self, portion):
        if self.out.pop(portion.identity, None) and portion.identity not in self.done_with:
            self.pending = sorted([*self.pending, portion], key=lambda p: p.number)

    def finish(self, portion):
        self.pending = [p for p in self.pending if p.identity != portion.identity]
        self.out.pop(portion.identity, None)
        is_new = portion.identity not in self.done_with
        self.done_with.add(portion.identity)
        return is_new

    @property
    def epoch_finished(self):
        return not self.pending and not self.out

    def next_epoch(self):
        self.__init__(self.portions_of, self.epochs, self.epoch + 1)


def drawn_portions(rng):
    """Portions of groups of unlike lengths."""
    sizes = [rng.randint(1, 6) for _ in range(rng.randint(1, 12))]
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]

    def portions_of(epoch):
        return tuple(Portion(epoch, n, group, (), 0, 10, ()) for n, group in enumerate(groups))

    return portions_of


@pytest.mark.parametrize("seed", range(150))
def test_portions_are_handed_out_as_by_looking_at_all_that_are_pending(seed):
    """Workers come and go, read ahead, hand back, and report twice; some were finished before."""
    rng = random.Random(seed)
    portions_of = drawn_portions(rng)
    ranges = [(0, rng.randint(0, 9), rng.randint(0, 20)) for _ in range(rng.randint(0, 3))]
    numbers = {n for _, first, stop in ranges for n in range(first, stop)}
    there = [p.identity for p in portions_of(0) if p.number in numbers]
    stream = PortionStream(portions_of, 2, finished=rng.choice([ranges, there]))
    oracle = Scanned(portions_of, 2, finished=there)
    seen = []
    for _ in range(400):
        worker, act = rng.choice("abcde"), rng.random()
        if act < 0.4:
            portion = stream.take(worker)
            assert portion == oracle.take(worker)
            seen += [portion] if portion else []
        elif act < 0.65:
            assert stream.following(worker) == oracle.following(worker)
        elif seen and act < 0.8:
            portion = rng.choice(seen)
            stream.hand_back(portion)
            oracle.hand_back(portion)
        elif seen:
            portion = rng.choice(seen)
            assert stream.finish(portion) == oracle.finish(portion)
        assert stream.epoch_finished == oracle.epoch_finished
        assert [
            (epoch, n) for epoch, first, stop in stream.finished for n in range(first, stop)
        ] == sorted(oracle.done_with)
        if stream.epoch_finished and stream.epoch == 0:
            stream.next_epoch()
            oracle.next_epoch()
            seen = []
