"""Parts of a network: together they have the loss, the gradient and the outputs of the whole."""

import pickle
from functools import partial

import numpy as np
import pytest
from driven import drive, poisoned
from random_networks import KINDS, drawn_cut, drawn_examples, drawn_network

import dbdask
from dbdask.models.cut import Cut, even_cut
from dbdask.models.cut_table import cut_table
from dbdask.models.exchange_cost import messages
from dbdask.models.part import Part

QUICK, SLOW = 60, 400


def whole_of(network, parameters, inputs, targets, weights):
    gradient = poisoned(parameters.size, parameters.dtype)
    loss = network.loss_and_gradient(
        parameters, inputs, targets, weights=weights, gradient=gradient
    )
    return loss, gradient


def in_parts(network, cut, parameters, inputs, targets, weights, rng=None):
    """Loss and gradient of the driven parts, in the order of the whole vector, and messages."""
    table, parts = cut_table(network, cut), [Part(network, cut, k) for k in range(cut.parts)]
    vector = table.to_cut(parameters)
    gradient = poisoned(vector.size, vector.dtype)
    losses, carried = drive(
        [
            part.loss_and_gradient(
                vector[slice(*part.range)],
                inputs,
                targets,
                weights=weights,
                gradient=gradient[slice(*part.range)],
            )
            for part in parts
        ],
        rng,
    )
    return sum(losses), table.to_whole(gradient), carried


def check_case(seed):
    """Compare one random network, in 1 to 4 parts, with the whole; return what it consists of."""
    rng = np.random.default_rng((20, seed))
    network = drawn_network(rng)
    arrays = drawn_examples(rng, network, examples=int(rng.integers(1, 5)))
    loss, gradient = whole_of(network, *arrays)
    seen = set()
    for parts in (1, 2, 3, 4):
        cut = drawn_cut(rng, network, parts)
        if cut is None:
            continue
        cut_loss, cut_gradient, carried = in_parts(network, cut, *arrays, rng)
        assert cut_loss == pytest.approx(loss, rel=1e-6, abs=1e-12), (seed, cut)
        scale = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(
            cut_gradient, gradient, rtol=1e-6, atol=1e-10 * scale, err_msg=f"{seed} {cut}"
        )
        expected = [m for m in messages(network, cut, len(arrays[1]), 8) if m[1] != "decision"]
        assert sorted(carried) == sorted(map(tuple, expected)), (seed, cut)
        seen.add(parts)
    return network, seen


def test_parts_of_random_networks_equal_the_whole():
    cases = [check_case(seed) for seed in range(QUICK)]
    kinds = {type(layer).__name__ for network, _ in cases for layer in network.layers}
    assert len(kinds) == len(KINDS)
    assert {network.loss for network, _ in cases} == {"softmax", "logistic", "squared"}
    assert sum(4 in seen for _, seen in cases) > QUICK // 2


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(SLOW // 100))
def test_parts_of_more_random_networks_equal_the_whole(hundred):
    for seed in range(QUICK + 100 * hundred, QUICK + 100 * hundred + 100):
        check_case(seed)


def speech(units=12, classes=9):
    layers = [dbdask.Dense(units, "sigmoid"), dbdask.Dense(units, "tanh"), dbdask.Dense(classes)]
    return dbdask.Network(input_shape=(7,), layers=layers, loss="softmax")


def pictures():
    layers = [
        dbdask.LocallyConnected(3, 3),
        dbdask.L2Pool(2),
        dbdask.LocalContrastNorm(3),
        dbdask.LocallyConnected(4, 2),
        dbdask.LocalContrastNorm(3),
        dbdask.Dense(6),
    ]
    return dbdask.Network(input_shape=(14, 11, 2), layers=layers, loss="logistic")


@pytest.mark.parametrize("network", [speech(), pictures()], ids=["speech", "pictures"])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_parts_predict_and_score_what_the_whole_does(network, parts):
    rng = np.random.default_rng(1)
    parameters, inputs, targets, _ = drawn_examples(rng, network, 5)
    cut = even_cut(network, parts)
    vector = cut_table(network, cut).to_cut(parameters)
    cut_parts = [Part(network, cut, k) for k in range(parts)]
    pieces, _ = drive([p.predict(vector[slice(*p.range)], inputs) for p in cut_parts], rng)
    expected = network.predict(parameters, inputs)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected, rtol=1e-10)
    losses, carried = drive(
        [p.loss_only(vector[slice(*p.range)], inputs, targets) for p in cut_parts], rng
    )
    assert sum(losses) == pytest.approx(network.loss_only(parameters, inputs, targets))
    assert {direction for _, direction, *_ in carried} <= {"forward", "loss"}


@pytest.mark.parametrize("network", [speech(), pictures()], ids=["speech", "pictures"])
def test_float32_parts_are_near_the_whole_and_send_float32(network):
    rng = np.random.default_rng(2)
    parameters, inputs, targets, weights = drawn_examples(rng, network, 8)
    arrays = parameters.astype(np.float32), inputs.astype(np.float32), targets, weights
    loss, gradient = whole_of(network, *arrays)
    cut = even_cut(network, 3)
    cut_loss, cut_gradient, carried = in_parts(network, cut, *arrays)
    assert cut_gradient.dtype == np.float32 and cut_loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(cut_gradient, gradient, atol=1e-4 * np.abs(gradient).max())
    expected = sum(m.size for m in messages(network, cut, 8) if m.direction != "decision")
    assert sum(size for *_, size in carried) == expected


def test_one_part_is_the_whole_and_sends_nothing():
    for network in (speech(), pictures()):
        arrays = drawn_examples(np.random.default_rng(3), network, 6)
        loss, gradient = whole_of(network, *arrays)
        cut_loss, cut_gradient, carried = in_parts(network, even_cut(network, 1), *arrays)
        assert cut_loss == pytest.approx(loss, rel=1e-14) and not carried
        np.testing.assert_allclose(cut_gradient, gradient, rtol=1e-12, atol=1e-14)


def test_nothing_that_is_given_is_changed():
    network, rng = pictures(), np.random.default_rng(4)
    parameters, inputs, targets, _ = drawn_examples(rng, network, 4)
    weights = rng.random(4)
    for array in (inputs, targets, weights):
        array.flags.writeable = False
    kept = inputs.copy()
    in_parts(network, even_cut(network, 2), parameters, inputs, targets, weights)
    np.testing.assert_array_equal(inputs, kept)


def test_large_outputs_overflow_in_no_part():
    network = dbdask.Network(input_shape=2, layers=[dbdask.Dense(6)], loss="softmax")
    rng = np.random.default_rng(5)
    parameters, inputs, targets, _ = drawn_examples(rng, network, 7)
    parameters[:] *= 1e4
    expected = whole_of(network, parameters, inputs, targets, None)
    found = in_parts(network, even_cut(network, 4), parameters, inputs, targets, None)
    assert np.isfinite(found[0]) and found[0] == pytest.approx(expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6, atol=1e-9)


def test_all_parts_see_one_parts_nan():
    network, rng = speech(), np.random.default_rng(6)
    parameters, inputs, targets, _ = drawn_examples(rng, network, 5)
    cut = even_cut(network, 2)
    vector = cut_table(network, cut).to_cut(parameters)
    vector[-1] = np.nan  # a bias of the second part's outputs
    parts = [Part(network, cut, k) for k in range(2)]
    losses, _ = drive([p.loss_only(vector[slice(*p.range)], inputs, targets) for p in parts])
    labels_of_first = (targets < cut.edges[-1][1]).any()
    assert labels_of_first and np.isnan(losses[0]) and np.isnan(losses[1])


def test_a_missing_target_of_weight_zero_counts_for_nothing():
    layers = [dbdask.Dense(4, "tanh"), dbdask.Dense(5)]
    network = dbdask.Network(input_shape=3, layers=layers, loss="squared")
    rng = np.random.default_rng(7)
    parameters, inputs, targets, _ = drawn_examples(rng, network, 6)
    weights = np.ones(targets.shape)
    weights[1, 2] = weights[3, 4] = 0
    targets[weights == 0] = np.nan
    loss, gradient = whole_of(network, parameters, inputs, targets, weights)
    found = in_parts(network, even_cut(network, 3), parameters, inputs, targets, weights)
    assert np.isfinite(loss) and found[0] == pytest.approx(loss)
    np.testing.assert_allclose(found[1], gradient, atol=1e-12)


class Doubled:
    """A layer of a user, which cannot be divided."""

    def output_shape(self, input_shape):
        return input_shape

    def parameters(self, input_shape):
        return [("factor", (2,))]

    def initial(self, input_shape):
        return {"factor": dbdask.Constant(1.0)}

    def forward(self, parameters, inputs):
        return inputs * parameters["factor"].sum(), (inputs,)

    def backward(self, parameters, kept, gradient, into, is_first):
        into["factor"][...] = (gradient * kept[0]).sum()
        return gradient * parameters["factor"].sum()


def test_a_layer_that_cannot_be_divided_may_be_one_parts():
    layers = [dbdask.Dense(5, "tanh"), Doubled(), dbdask.Dense(4)]
    network = dbdask.Network(input_shape=3, layers=layers, loss="softmax")
    arrays = drawn_examples(np.random.default_rng(8), network, 6)
    loss, gradient = whole_of(network, *arrays)
    cut = Cut(((0, 2, 5), (0, 0, 5), (0, 2, 4)))
    cut_loss, cut_gradient, _ = in_parts(network, cut, *arrays)
    assert cut_loss == pytest.approx(loss)
    np.testing.assert_allclose(cut_gradient, gradient, atol=1e-12)
    with pytest.raises(ValueError, match="doubled_1 cannot be cut: it has no rows_needed and part"):
        even_cut(network, 2)


class Scale:
    """A layer of a user that scales each element, and says how it is divided."""

    def output_shape(self, input_shape):
        return input_shape

    def parameters(self, input_shape):
        return [("factor", input_shape)]

    def initial(self, input_shape):
        return {"factor": dbdask.Constant(1.5)}

    def forward(self, parameters, inputs):
        return inputs * parameters["factor"], (inputs,)

    def backward(self, parameters, kept, gradient, into, is_first):
        into["factor"][...] = (gradient * kept[0]).sum(axis=0)
        return gradient * parameters["factor"]

    def rows_needed(self, input_shape, first, last):
        return first, last

    def part(self, input_shape, first, last):
        return self


@pytest.mark.parametrize("parts", [2, 3])
def test_a_layer_of_a_user_is_divided_as_it_says(parts):
    layers = [dbdask.LocallyConnected(2, 3), Scale(), dbdask.Dense(5), Scale()]
    network = dbdask.Network(input_shape=(8, 6, 1), layers=layers, loss="squared")
    arrays = drawn_examples(np.random.default_rng(9), network, 4)
    loss, gradient = whole_of(network, *arrays)
    cut_loss, cut_gradient, carried = in_parts(network, even_cut(network, parts), *arrays)
    assert cut_loss == pytest.approx(loss)
    np.testing.assert_allclose(cut_gradient, gradient, atol=1e-12)
    assert {boundary for boundary, *_ in carried} == {2}  # what is scaled crosses nothing


def test_what_a_part_of_a_layer_returns_is_looked_at():
    narrow = type("Odd", (Scale,), {"forward": lambda self, p, x: (x[:, :1], (x,))})
    network = dbdask.Network(input_shape=4, layers=[dbdask.Dense(4), narrow()], loss="squared")
    arrays = drawn_examples(np.random.default_rng(9), network, 4)
    message = r"odd_1.forward must return its outputs in shape \(4, 2\), got shape \(4, 1\)"
    with pytest.raises(dbdask.ModelError, match=message):
        in_parts(network, even_cut(network, 2), *arrays)


def test_a_part_is_small_when_pickled_and_equal():
    part = Part(pictures(), even_cut(pictures(), 3), 1)
    again = pickle.loads(pickle.dumps(part))
    assert again == part and again.range == part.range and hash(again) == hash(part)
    assert len(pickle.dumps(part)) < 12_000


def test_what_does_not_fit_is_refused():
    network = speech()
    cut = even_cut(network, 2)
    part = Part(network, cut, 0)
    inputs, labels = np.zeros((2, 7)), np.array([0, 1])
    short = partial(part.loss_and_gradient, np.zeros(3), inputs, labels, gradient=np.zeros(3))
    with pytest.raises(ValueError, match=rf"part 0 must have shape \({part.size},\), got \(3,\)"):
        drive([short()])
    with pytest.raises(ValueError, match="index must be 0 to 1, got 2"):
        Part(network, cut, 2)
    arrays = [np.zeros(network.parameter_count), inputs, labels, None]
    for place, value, error, message in [
        (1, np.zeros((2, 6)), ValueError, r"inputs must have shape \(examples, 7\)"),
        (2, np.array([0, 9]), dbdask.DataError, "labels must lie in 0 to 8.* 9 outputs"),
        (2, np.array([0.0, 1.0]), ValueError, "targets must be integer labels"),
        (3, np.ones(3), ValueError, "weights must have one element an example"),
    ]:
        changed = [*arrays[:place], value, *arrays[place + 1 :]]
        with pytest.raises(error, match=message):
            in_parts(network, cut, *changed)
