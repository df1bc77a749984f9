"""Counted messages and bytes, and the choice between cuts (test_part compares with a drive)."""

from itertools import product

import numpy as np
import pytest
from random_networks import drawn_network

import dbdask
from dbdask.models.cut import Cut, even_cut, even_edges
from dbdask.models.exchange_cost import MESSAGE_BYTES, best_cut, exchange_cost, messages


def speech(units=2560, classes=8192):
    layers = [*[dbdask.Dense(units, "sigmoid")] * 4, dbdask.Dense(classes)]
    return dbdask.Network(input_shape=440, layers=layers, loss="softmax")


@pytest.mark.parametrize("parts", [2, 3, 4, 8])
def test_a_dense_net_sends_every_activation_to_every_part(parts):
    found = list(messages(speech(), even_cut(speech(), parts), 256))
    by_direction = {
        direction: [m.size for m in found if m.direction == direction]
        for direction in ("forward", "backward", "loss", "decision")
    }
    pairs = parts * (parts - 1)
    assert len(by_direction["forward"]) == len(by_direction["backward"]) == 4 * pairs
    everything = 4 * 2560 * 256 * 4
    assert sum(by_direction["forward"]) == sum(by_direction["backward"])
    assert sum(by_direction["forward"]) == (parts - 1) * everything
    assert (
        by_direction["loss"] == [2 * 256 * 4] * pairs and by_direction["decision"] == [16] * pairs
    )
    assert exchange_cost(speech(), even_cut(speech(), parts), 256) == (
        len(found),
        sum(m.size for m in found),
    )


def test_a_local_net_sends_the_halo_whatever_the_size_of_the_image():
    def cost(rows):
        layers = [dbdask.LocallyConnected(8, 5), dbdask.LocallyConnected(8, 5)]
        network = dbdask.Network(input_shape=(rows, 20, 3), layers=layers, loss="squared")
        return exchange_cost(network, even_cut(network, 2), 10)

    assert cost(24) == cost(44) == cost(104)
    halo = 4 * 16 * 8 * 10 * 4  # rows, columns, maps, examples, bytes
    assert cost(24).size == 2 * halo + 2 * 16


def test_one_part_sends_nothing():
    assert exchange_cost(speech(), even_cut(speech(), 1), 256) == (0, 0)


def largest_work(network, cut):
    """Multiplications of the busiest part, as the choice counts them."""
    work = np.zeros(cut.parts)
    for stage, edges in zip(network.stages, cut.edges, strict=True):
        count = 3 * sum(piece.stop - piece.start for piece in stage.pieces)
        count = count or 10 * int(np.prod(stage.output_shape))
        work += np.diff(edges) * (count // stage.output_shape[0])
    return work.max()


@pytest.mark.parametrize("parts", [2, 3])
def test_the_best_cut_is_the_best_of_all_even_ones(parts):
    differs = 0
    for seed in range(60):
        network = drawn_network(np.random.default_rng((2, seed)))
        if max(s.output_shape[0] for s in network.stages if s.pieces) < parts:
            continue
        choices = [
            {even_edges(stage.output_shape[0], parts, shift) for shift in range(parts)}
            for stage in network.stages
        ]
        if np.prod([len(edges) for edges in choices]) > 256:
            continue
        costs = []
        for edges in product(*choices):
            try:
                cost = exchange_cost(network, Cut(edges), 64)
            except ValueError:  # a part without parameters
                continue
            exchange = cost.size + MESSAGE_BYTES * cost.messages
            costs.append((largest_work(network, Cut(edges)), exchange))
        best = best_cut(network, parts, 64)
        cost = exchange_cost(network, best, 64)
        found = (largest_work(network, best), cost.size + MESSAGE_BYTES * cost.messages)
        assert found == min(costs)
        differs += best != even_cut(network, parts)
    assert differs > 5


def test_many_parts_of_a_deep_net_are_chosen_in_time():
    layers = [dbdask.LocallyConnected(2, 3), dbdask.L2Pool(2, stride=1)] * 4 + [dbdask.Dense(7)]
    network = dbdask.Network(input_shape=(60, 20, 1), layers=layers, loss="logistic")
    cut = best_cut(network, 8, 32)
    assert largest_work(network, cut) <= largest_work(network, even_cut(network, 8))
    with pytest.raises(ValueError, match="at most 58 parts"):
        best_cut(network, 59, 32)
