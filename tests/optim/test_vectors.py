"""Commands on named vectors: the same on one array and on slices of it."""

from itertools import pairwise

import numpy as np
import pytest

from dbdask.optim.vectors import (
    Add,
    Combine,
    Copy,
    Dot,
    Fill,
    Gram,
    Largest,
    Multiply,
    Scale,
    carry_out,
    merge_answers,
)

SIZE = 150_000  # more than two blocks


def vectors(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=SIZE).astype(dtype) for name in ("a", "b", "parameters")}


COMMANDS = (
    Copy("c", "a"),
    Scale("c", 3.0),
    Add("c", -2.0, "b"),
    Multiply("c", "b"),
    Fill("d", 0.5),
    Combine("d", {"d": 2.0, "a": 1.0, "b": 0.0}),
    Dot("c", "d"),
    Gram(("a", "c"), ("a", "b", "c")),
    Largest("c"),
)


def test_commands_do_what_numpy_does():
    held = vectors(np.float64)
    answers = carry_out(COMMANDS, held)
    a, b = vectors(np.float64)["a"], vectors(np.float64)["b"]
    c, d = (3 * a - 2 * b) * b, 1.0 + a
    np.testing.assert_allclose(held["c"], c, rtol=1e-13)
    np.testing.assert_allclose(held["d"], d, rtol=1e-13)
    assert answers[6] == pytest.approx(c @ d, rel=1e-12)
    np.testing.assert_allclose(answers[7], [[a @ a, a @ b, a @ c], [c @ a, c @ b, c @ c]])
    assert answers[8] == np.abs(c).max()
    assert answers[:6] == [None] * 6


@pytest.mark.parametrize("cuts", [(), (1,), (70_000, 140_000)])
def test_slices_together_answer_as_the_whole(cuts):
    whole = vectors()
    expected = carry_out(COMMANDS, whole)
    edges = [0, *cuts, SIZE]
    slices = [{name: v[i:j].copy() for name, v in vectors().items()} for i, j in pairwise(edges)]
    merged = merge_answers(COMMANDS, [carry_out(COMMANDS, one) for one in slices])
    for name in "cd":
        np.testing.assert_array_equal(np.concatenate([one[name] for one in slices]), whole[name])
    np.testing.assert_allclose(merged[7], expected[7], rtol=1e-12)
    assert merged[6] == pytest.approx(expected[6], rel=1e-12)
    assert merged[8] == expected[8]


def test_products_of_float32_are_formed_in_float64():
    ones = {"parameters": np.full(2**25, 0.1, np.float32)}
    (dot,) = carry_out([Dot("parameters", "parameters")], ones)
    assert dot == pytest.approx(2**25 * float(np.float32(0.1)) ** 2, rel=1e-12)


def test_what_is_not_a_number_is_not_overlooked():
    (largest,) = carry_out([Largest("parameters")], {"parameters": np.array([1.0, np.nan, -2.0])})
    assert np.isnan(largest)
    command = Largest("parameters")
    assert np.isnan(command.merge([1.0, float("nan")]))


def conjugate_gradients(multiply, run, iterations):
    """Solve A x = b on commands: `multiply` puts A p into "q"; x, r, p, q are named vectors."""
    run(Fill("x", 0.0), Copy("r", "b"), Copy("p", "b"))
    (square,) = run(Dot("r", "r"))
    for _ in range(iterations):
        multiply()
        (curvature,) = run(Dot("p", "q"))
        alpha = square / curvature
        *_, after = run(Add("x", alpha, "p"), Add("r", -alpha, "q"), Dot("r", "r"))
        run(Scale("p", after / square), Add("p", 1.0, "r"))
        square = after
    return square


def test_conjugate_gradients_are_written_on_commands():
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(30, 30))
    matrix = factor @ factor.T + 10 * np.eye(30)
    held = {"parameters": np.zeros(30), "b": rng.normal(size=30)}

    def multiply():
        held["q"] = matrix @ held["p"]

    def run(*commands):
        return [answer for answer in carry_out(commands, held) if answer is not None]

    conjugate_gradients(multiply, run, 30)
    np.testing.assert_allclose(held["x"], np.linalg.solve(matrix, held["b"]), rtol=1e-8)
