"""The choice between cuts: the least estimated time of all even ones."""

from itertools import chain, combinations, product

import numpy as np
import pytest
from random_networks import drawn_network

import dbdask
from dbdask.models.cut import Cut, even_cut, even_edges
from dbdask.models.cut_choice import Speed, best_cut, part_work, step_seconds
from dbdask.models.exchange_cost import exchange_cost


def even_cuts(network, parts):
    """Every even cut of a network, with every set of joined layers."""
    choices = [
        {even_edges(stage.output_shape[0], parts, shift) for shift in range(parts)}
        for stage in network.stages
    ]
    bare = [layer for layer, stage in enumerate(network.stages[:-1]) if not stage.pieces]
    joined = chain.from_iterable(combinations(bare, count) for count in range(len(bare) + 1))
    return [Cut(edges, layers) for layers in joined for edges in product(*choices)]


def seconds_of(network, cut, speed):
    """The estimate; infinite for a cut that leaves a part without parameters."""
    try:
        return step_seconds(network, cut, 64, speed)
    except ValueError as error:
        assert "has no parameters" in str(error)
        return np.inf


@pytest.mark.parametrize("first", [0, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("speed", [Speed(), Speed(message=1e-6), Speed(multiplication=1e-12)])
def test_the_best_cut_is_the_best_of_all_even_ones(parts, speed, first):
    tried = 0
    for seed in range(first, first + 30):
        network = drawn_network(np.random.default_rng((2, seed)))
        most = max(stage.output_shape[0] for stage in network.stages if stage.pieces)
        cuts = even_cuts(network, parts) if most >= parts else []
        if not 2 < len(cuts) < 70:
            continue
        best = best_cut(network, parts, 64, speed)
        least = min(seconds_of(network, cut, speed) for cut in cuts)
        assert step_seconds(network, best, 64, speed) == pytest.approx(least, rel=1e-12)
        tried += 1
    assert tried > 5


def paper_in_small():
    layers = [
        dbdask.LocallyConnected(8, 7),
        dbdask.L2Pool(2),
        dbdask.LocalContrastNorm(5),
        dbdask.LocallyConnected(16, 4),
        dbdask.L2Pool(2),
        dbdask.LocalContrastNorm(3),
        dbdask.Dense(10),
    ]
    return dbdask.Network(input_shape=(28, 28, 1), layers=layers, loss="logistic")


def test_where_messages_are_dear_layers_are_joined_and_where_work_is_they_are_not():
    network = paper_in_small()
    few = best_cut(network, 2, 128, Speed(message=1.0))
    little = best_cut(network, 2, 128, Speed(message=0.0, byte=0.0))
    # The second pool needs no rows of the other part, so joining it would save nothing.
    assert few.joined == (1, 2, 5) and little.joined == ()
    assert exchange_cost(network, few, 128).messages == 10
    assert exchange_cost(network, little, 128).messages == 20
    assert max(part_work(network, few)) > max(part_work(network, little))
    both = best_cut(network, 2, 128)
    assert step_seconds(network, both, 128) < step_seconds(network, even_cut(network, 2), 128)


def test_work_is_counted_once_for_each_part_that_does_it():
    network = paper_in_small()
    (whole,) = part_work(network, even_cut(network, 1))
    assert sum(part_work(network, even_cut(network, 2))) == whole
    joined = Cut(even_cut(network, 2).edges, (4, 5))
    shared = 50 * (4 * 4 * 16) * 2  # both parts pool and normalise all rows for Dense
    assert sum(part_work(network, joined)) == whole + shared


def test_many_parts_of_a_deep_net_are_chosen_in_time():
    layers = [dbdask.LocallyConnected(2, 3), dbdask.L2Pool(2, stride=1)] * 4 + [dbdask.Dense(7)]
    network = dbdask.Network(input_shape=(60, 20, 1), layers=layers, loss="logistic")
    cut = best_cut(network, 8, 32)
    assert step_seconds(network, cut, 32) < step_seconds(network, even_cut(network, 8), 32)
    with pytest.raises(ValueError, match="at most 58 parts"):
        best_cut(network, 59, 32)


def test_one_part_takes_the_time_of_its_work():
    network = paper_in_small()
    cut = best_cut(network, 1, 128)
    (work,) = part_work(network, cut)
    assert step_seconds(network, cut, 128, Speed(2.0, 3.0, 4.0)) == 2 * 128 * work
