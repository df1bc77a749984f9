"""The ledger against a set of everything that was ever admitted."""

import random

from dbdask.numbers.ledger import Ledger


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
    again = Ledger.from_rows(ledger.rows(), ledger.first_open_epoch)
    assert again.rows() == ledger.rows() == [(2, 0, 7, 1), (2, 1, 4, 1), (3, 0, 0, 1)]
    assert not again.admit(1, 0, 0)
