"""The decision of a step: the same in all parts, from one message each way."""

import math

import numpy as np
import pytest
from driven import drive

from dbdask.models.decision import decide


def decided(losses, norms):
    parts = len(losses)
    generators = [decide(part, parts, losses[part], norms[part]) for part in range(parts)]
    return drive(generators, np.random.default_rng(1))


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_all_parts_know_the_loss_and_norm_of_all(parts):
    gradient = np.random.default_rng(parts).normal(size=40)
    pieces = np.array_split(gradient, parts)
    losses = list(np.random.default_rng(9).random(parts))
    decisions, carried = decided(losses, [float(np.linalg.norm(piece)) for piece in pieces])
    assert len(set(decisions)) == 1 and decisions[0].counts
    assert decisions[0].loss == pytest.approx(sum(losses))
    assert decisions[0].gradient_norm == pytest.approx(np.linalg.norm(gradient))
    assert len(carried) == parts * (parts - 1) and {size for *_, size in carried} <= {16}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_part_s_bad_number_is_the_decision_of_all(place, value):
    for losses, norms in [([1.0] * 3, [1.0] * 3), ([0.0] * 3, [2.0] * 3)]:
        for numbers in (losses, norms):
            numbers[place] = value
            decisions, _ = decided(losses, norms)
            assert not any(decision.counts for decision in decisions)
            numbers[place] = 1.0


def test_rounding_makes_no_two_parts_decide_differently():
    losses = [1e16, 1.0, -1e16, 1.0]
    decisions, _ = decided(losses, [1e16, 1.0, 1.0, 3.0])
    assert len(set(decisions)) == 1
