"""Cuts of a network: edges, what crosses them, and what is no cut."""

import re

import numpy as np
import pytest
from random_networks import drawn_network

import dbdask
from dbdask.models.cut import (
    Crossing,
    Cut,
    check_cut,
    crossings,
    even_cut,
    even_edges,
    part_stage,
    part_stages,
)


def network():
    layers = [
        dbdask.LocallyConnected(2, 4, activation="tanh"),
        dbdask.L2Pool(3, stride=2),
        dbdask.LocalContrastNorm(3),
        dbdask.Dense(5, "tanh"),
        dbdask.Dense(3),
    ]
    return dbdask.Network(input_shape=(12, 10, 1), layers=layers, loss="softmax")


def test_even_edges_differ_by_one_row_at_most():
    for rows in range(1, 20):
        for parts in range(1, 8):
            for shift in range(parts):
                edges = even_edges(rows, parts, shift)
                lengths = np.diff(edges)
                assert edges[0] == 0 and edges[-1] == rows and len(lengths) == parts
                assert lengths.max() - lengths.min() <= 1


def test_what_crosses_a_cut():
    """Rows: 12 of the image, 9 of patches, 4 of pools and of contrast, then 5 and 3 units."""
    cut = even_cut(network(), 2)
    assert cut.edges == ((0, 4, 9), (0, 2, 4), (0, 2, 4), (0, 2, 5), (0, 1, 3))
    assert crossings(network(), cut) == (
        Crossing(1, 1, 0, 4, 5),  # two pools of rows 0-2 and 2-4
        # The contrast of rows 0-1 needs the values of rows 0-2, and these the mean of rows 0-3.
        Crossing(2, 1, 0, 2, 4),
        Crossing(2, 0, 1, 0, 2),
        Crossing(3, 1, 0, 2, 4),
        Crossing(3, 0, 1, 0, 2),
        Crossing(4, 1, 0, 2, 5),
        Crossing(4, 0, 1, 0, 2),
    )


@pytest.mark.parametrize("layer", range(5))
def test_rows_depend_on_the_rows_needed_and_no_others(layer):
    """A change of one row of the input changes the output's rows that say that they need it."""
    stage = network().stages[layer]
    rng = np.random.default_rng(layer)
    parameters = {p.name: rng.normal(size=p.shape) for p in stage.pieces}
    inputs = rng.normal(size=(1, *stage.input_shape))
    before, _ = stage.layer.forward(parameters, inputs)
    before = before.copy()
    rows = stage.output_shape[0]
    needed = [part_stage(stage, (row, row + 1)).needed for row in range(rows)]
    for row in range(stage.input_shape[0]):
        changed = inputs.copy()
        changed[:, row] += 1
        after, _ = stage.layer.forward(parameters, changed)
        for place in range(rows):
            is_needed = needed[place][0] <= row < needed[place][1]
            assert (after[:, place] != before[:, place]).any() == is_needed


def test_a_part_of_a_layer_gives_its_rows_of_the_outputs():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        for stage in drawn_network(rng).stages:
            parameters = {p.name: rng.normal(size=p.shape) for p in stage.pieces}
            inputs = rng.normal(size=(3, *stage.input_shape))
            whole, _ = stage.layer.forward(parameters, inputs)
            first, last = sorted(rng.choice(stage.output_shape[0] + 1, 2, replace=False))
            share = part_stage(stage, (int(first), int(last)))
            assert share.layer.output_shape(share.input_shape) == share.output_shape
            own = {name: values[first:last] for name, values in parameters.items()}
            rows, _ = share.layer.forward(own, inputs[:, slice(*share.needed)])
            np.testing.assert_allclose(rows, whole[:, first:last], atol=1e-12)


def test_a_cut_is_described():
    for cut in (even_cut(network(), 3), Cut(even_cut(network(), 3).edges, (2, 1))):
        assert Cut.from_description(cut.description()) == cut and hash(cut)


def test_nothing_crosses_above_a_joined_layer():
    """Every part computes the rows of pools and contrast that it needs for what comes next."""
    cut = Cut(even_cut(network(), 2).edges, (1,))
    # Contrast needs the pools of rows 0-4, and these the patches of rows 0-9.
    assert [c for c in crossings(network(), cut) if c.layer < 3] == [
        Crossing(1, 1, 0, 4, 9),
        Crossing(1, 0, 1, 0, 4),
    ]
    assert (
        part_stages(network(), cut, 0)[1].rows == part_stages(network(), cut, 1)[1].rows == (0, 4)
    )


@pytest.mark.parametrize("joined", [(0,), (3,), (4,), (-1,), (5,)])
def test_a_layer_with_parameters_or_the_last_one_is_not_joined(joined):
    cut = Cut(even_cut(network(), 2).edges, joined)
    message = "joined must hold layers without parameters that another one follows"
    with pytest.raises(ValueError, match=message):
        check_cut(network(), cut)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([(0, 4, 9), (0, 4)], "one more number than parts for every layer"),
        ([(0,)], "one more number than parts"),
        ([(1, 9)], "edges of layer 0 must ascend from 0 to its rows, got (1, 9)"),
        ([(0, 5, 4, 9)], "edges of layer 0 must ascend"),
        ([(0, 4, 9)], "edges must have one item for each of the 5 layers, got 1"),
        (
            [(0, 4, 9), (0, 2, 4), (0, 2, 4), (0, 2, 6), (0, 1, 3)],
            "edges of dense_3 must end with its 5 rows, got (0, 2, 6)",
        ),
        (
            [(0, 0, 9), (0, 2, 4), (0, 2, 4), (0, 0, 5), (0, 0, 3)],
            "part 0 of 2 has no parameters: there may be at most 9 parts",
        ),
    ],
)
def test_what_is_no_cut_is_refused(edges, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_cut(network(), Cut(tuple(edges)))


def test_more_parts_than_rows_are_refused():
    assert even_cut(network(), 9).parts == 9
    with pytest.raises(ValueError, match="at most 9 parts, the rows of the largest layer"):
        even_cut(network(), 10)


def test_a_network_of_single_numbers_cannot_be_cut():
    network = dbdask.Network(input_shape=(), layers=[dbdask.Dense(3)], loss="squared")
    message = r"dense_0 cannot be cut: its input and output must have an axis, got shapes \(\) and"
    with pytest.raises(ValueError, match=message):
        even_cut(network, 2)
