"""The table of a cut: vectors of any cut become those of any other."""

import json
from itertools import pairwise

import numpy as np
import pytest
from random_networks import drawn_cut, drawn_network

import dbdask
from dbdask.models.cut import Cut, even_cut
from dbdask.models.cut_table import CutTable, cut_table, initial_of_cut, part_ranges
from dbdask.models.part import Part


def network():
    layers = [dbdask.LocallyConnected(2, 2), dbdask.L2Pool(2), dbdask.Dense(3)]
    return dbdask.Network(input_shape=(6, 4, 1), layers=layers, loss="softmax")


def test_parameters_stand_part_by_part():
    cut = Cut(((0, 3, 5), (0, 1, 2), (0, 1, 3)))
    pieces = cut_table(network(), cut).pieces
    assert [tuple(piece) for piece in pieces] == [
        ("locallyconnected_0_weights", 0, 3, 0),  # a row has 3 positions, 2 maps, 4 elements
        ("locallyconnected_0_bias", 0, 3, 72),
        ("dense_2_weights", 0, 1, 90),
        ("dense_2_bias", 0, 1, 94),
        ("locallyconnected_0_weights", 3, 5, 95),
        ("locallyconnected_0_bias", 3, 5, 143),
        ("dense_2_weights", 1, 3, 155),
        ("dense_2_bias", 1, 3, 163),
    ]
    assert part_ranges(network(), cut) == ((0, 95), (95, 165))


def test_any_cut_becomes_any_other_and_back():
    for seed in range(40):
        rng = np.random.default_rng((1, seed))
        model = drawn_network(rng)
        whole = np.arange(model.parameter_count, dtype=np.float64)
        previous = whole
        for parts in (2, 3, 4):
            cut = drawn_cut(rng, model, parts)
            if cut is None:
                continue
            table = cut_table(model, cut)
            vector = table.to_cut(whole)
            np.testing.assert_array_equal(np.sort(vector), whole)
            np.testing.assert_array_equal(table.to_whole(vector), whole)
            again = CutTable.from_table(model.layout, json.loads(json.dumps(table.table())))
            assert again == table
            ranges = part_ranges(model, cut)
            assert ranges == tuple(Part(model, cut, part).range for part in range(parts))
            assert [a for a, _ in ranges] == [0, *(b for _, b in ranges[:-1])]
            assert ranges[-1][1] == whole.size
            np.testing.assert_array_equal(table.to_whole(vector), previous)


def test_a_slice_of_a_cut_vector_is_read_from_slices_of_the_whole():
    table = cut_table(network(), even_cut(network(), 3))
    whole = np.random.default_rng(2).normal(size=network().parameter_count)
    vector = table.to_cut(whole)
    for start, stop in [(0, 5), (7, 120), (94, 95), (10, 10), (0, 165)]:
        segments = list(table.segments(start, stop))
        found = [whole[at : at + length] for _, at, length in segments]
        np.testing.assert_array_equal(np.concatenate([*found, []]), vector[start:stop])
        assert [s.cut for s in segments] == [*np.cumsum([start, *(s.length for s in segments)])][
            : len(segments)
        ]


def test_parts_begin_with_the_numbers_of_the_whole():
    model = network()
    whole = model.initial_parameters(5, 0, model.parameter_count)
    for parts in (1, 2, 3):
        table = cut_table(model, even_cut(model, parts))
        edges = [0, 1, 50, 95, 96, model.parameter_count]
        pieces = [initial_of_cut(model, table, 5, start, stop) for start, stop in pairwise(edges)]
        vector = np.concatenate(pieces)
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, table.to_cut(whole))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "the pieces of 'dense_2_bias' must have each of its 3 rows once"),
        (lambda rows: [rows[1], *rows[1:]], "must begin at 0"),
        (lambda rows: [{**rows[0], "name": "x"}, *rows[1:]], "no parameter 'x'"),
        (
            lambda rows: [{**rows[0], "first": 1, "last": rows[0]["last"] + 1}, *rows[1:]],
            "must have each of its 5 rows once",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused(change, message):
    table = cut_table(network(), even_cut(network(), 2))
    with pytest.raises(ValueError, match=message):
        CutTable.from_table(network().layout, change(table.table()))
    with pytest.raises(ValueError, match=r"the vector must have shape \(165,\), got \(3,\)"):
        table.to_whole(np.zeros(3))
