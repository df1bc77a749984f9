"""The ledger against a set of everything that was ever admitted."""

import random

import pytest

from dbdask.schedule.ledger import Ledger, ShardProgress, furthest, uneven


def test_every_step_is_admitted_once_whatever_is_repeated():
    rng = random.Random(3)
    sent = [(0, portion, step) for portion in range(4) for step in range(20)]
    repeats = [identity for identity in sent for _ in range(rng.randint(1, 3))]
    ledger, admitted = Ledger(), []
    for identity in repeats:  # each portion's steps in order, repeats next to the original
        if ledger.admit(*identity):
            admitted.append(identity)
        late = rng.choice(sent)
        if late[2] <= ledger.last(*late[:2]):
            assert not ledger.admit(*late)
    assert admitted == sent


def test_a_push_of_a_closed_epoch_is_never_admitted():
    ledger = Ledger()
    ledger.admit(0, 0, 5)
    ledger.close_before(1)
    assert not ledger.admit(0, 0, 6)
    assert not ledger.admit(0, 9, 0)
    assert ledger.admit(1, 0, 0)


def test_rows_bring_a_ledger_back():
    ledger = Ledger()
    for identity in ((2, 1, 4), (2, 0, 7), (3, 0, 0)):
        ledger.admit(*identity)
    ledger.close_before(2)
    again = Ledger.from_rows(ledger.rows(), 2)
    assert again.rows() == ledger.rows() == [(2, 0, 7, 1, 1), (2, 1, 4, 1, 1), (3, 0, 0, 1, 1)]
    assert not again.admit(1, 0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_the_furthest_standing_has_what_any_shard_has_and_counts_its_updates(seed):
    """Three shards admit the same pushes in order, each as far as it came."""
    rng = random.Random(seed)
    pushes = [(1, portion, step) for portion in range(4) for step in range(1, 12, 2)]
    shards = []
    for _ in range(3):
        ledger, applied = Ledger.from_rows([(0, 7, 3, 4)], 0), 100
        for portion in range(4):
            mine = [push for push in pushes if push[1] == portion][: rng.randrange(7)]
            applied += sum(ledger.admit(*push) for push in mine)
        shards.append(ShardProgress(ledger.rows(), applied))
    everything = [each(shard.rows) for shard in shards]
    together = furthest(shards, first_epoch=1)
    for portion in range(4):
        steps = [rows[1, portion][0] for rows in everything if (1, portion) in rows]
        found = each(together.rows).get((1, portion), (None, 0))
        assert found[0] == (max(steps) if steps else None)
    assert together.applied == 100 + sum(updates for _, updates in each(together.rows).values())
    apart = {
        identity
        for identity in [(1, portion) for portion in range(4)]
        if len({rows.get(identity, (-1, 0))[0] for rows in everything}) > 1
    }
    assert uneven(shards, first_epoch=1) == apart


def each(rows):
    """Step and updates of every portion."""
    return {
        (row.epoch, portion): (row.step, row.updates)
        for row in rows
        for portion in range(row.portion, row.portion + row.portions)
    }


def test_portions_alike_are_one_row_and_rows_of_old_checkpoints_still_load():
    ledger = Ledger()
    for portion in range(5000):
        for step in range(3 if portion % 1000 else 2):
            ledger.admit(4, portion, step)
    rows = ledger.rows()
    assert rows[:2] == [(4, 0, 1, 2, 1), (4, 1, 2, 3, 999)] and len(rows) == 10
    before = [(4, portion, *numbers) for (_, portion), numbers in each(rows).items()]
    assert Ledger.from_rows(before, 4).rows() == rows == ledger.copy().rows()
