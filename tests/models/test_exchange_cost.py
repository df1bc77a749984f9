"""Messages and bytes that are counted without a step; test_part compares them with a step's."""

import pytest

import dbdask
from dbdask.models.cut import even_cut
from dbdask.models.exchange_cost import agreement_messages, exchange_cost, messages


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


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_push_of_local_steps_asks_each_part_of_every_other(parts):
    found = list(agreement_messages(parts))
    assert len(found) == parts * (parts - 1)
    assert {(m.direction, m.size) for m in found} <= {("agree", 1)}
