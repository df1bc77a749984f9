"""The stream of portions, driven by seeded schedules of loss and repetition."""

import random

import pytest

from dbdask.numbers.portions import Portion
from dbdask.verbs.stream import PortionStream


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
