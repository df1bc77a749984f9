"""A network that reads its parameters piece by piece predicts and scores as one that has them."""

import numpy as np
import pytest
from random_networks import drawn_examples, drawn_network
from test_own_layer import Scale

import dbdask
from dbdask.models.piecewise import PiecewiseNetwork


class Reads:
    """Reads of a vector: how many elements were held at a time, and how often each was read."""

    def __init__(self, vector):
        self.vector, self.most = vector, 0
        self.times = np.zeros(vector.size, int)

    def __call__(self, start, stop):
        self.most = max(self.most, stop - start)
        self.times[start:stop] += 1
        return self.vector[start:stop].copy()


@pytest.mark.parametrize("most", [1, 100, 10_000])
@pytest.mark.parametrize("seed", range(40))
def test_pieces_of_any_size_give_what_the_whole_gives(seed, most):
    rng = np.random.default_rng((22, seed))
    network = drawn_network(rng)
    vector, *arrays = drawn_examples(rng, network, examples=int(rng.integers(1, 5)))
    vector, reads = vector.astype(np.float32), Reads(vector.astype(np.float32))
    inputs, targets, weights = arrays
    pieces = PiecewiseNetwork(network, reads, most)
    loss = pieces.loss_only(None, inputs, targets, weights=weights)
    assert loss == pytest.approx(
        network.loss_only(vector, inputs, targets, weights=weights), rel=1e-4, abs=1e-4
    )
    wanted = network.predict(vector, inputs)
    for _ in range(2):  # what the loss kept, and what is read anew
        np.testing.assert_allclose(pieces.predict(None, inputs), wanted, rtol=1e-4, atol=1e-5)
    assert (reads.times == 2).all()
    rows = [
        (stop - start) // stage.output_shape[0]
        for stage in network.stages
        for _, start, stop, _ in stage.pieces
    ]
    assert reads.most <= max(most // 4, *rows)


def test_other_inputs_in_the_same_array_are_read_anew():
    network = dbdask.Network(input_shape=2, layers=[dbdask.Dense(1)], loss="squared")
    pieces = PiecewiseNetwork(network, Reads(np.array([1.0, 1.0, 0.0], np.float32)))
    inputs = np.ones((1, 2), np.float32)
    assert pieces.predict(None, inputs) == 2
    inputs[:] = 3
    assert pieces.predict(None, inputs) == 6


def test_a_layer_that_cannot_be_cut_is_held_whole():
    network = dbdask.Network(input_shape=3, layers=[Scale(), dbdask.Dense(2)], loss="squared")
    vector = np.arange(network.parameter_count, dtype=np.float32)
    pieces = PiecewiseNetwork(network, Reads(vector), most=1)
    inputs = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(pieces.predict(None, inputs), network.predict(vector, inputs))


def test_the_more_an_example_takes_the_fewer_go_through_at_once():
    small = dbdask.Network(input_shape=4, layers=[dbdask.Dense(4)], loss="squared")
    large = dbdask.Network(input_shape=4, layers=[dbdask.Dense(2**26)], loss="squared")
    assert PiecewiseNetwork(small, None).examples_at_once > 1000
    assert PiecewiseNetwork(large, None).examples_at_once == 1
