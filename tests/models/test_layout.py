"""Named arrays over one flat vector, and its cut."""

import json
import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from dbdask.models.layout import Layout, Parameter, as_layout, check_dims, cut

WEIGHTS = Parameter("weights", (2, 3), ("output", "input"))
BIAS = Parameter("bias", (2,), ("output",))
STEPS = Parameter("steps", (), (), "buffer")


def test_offsets_follow_the_order_and_a_scalar_counts_one() -> None:
    layout = Layout((WEIGHTS, STEPS, BIAS))
    assert layout.offsets == (0, 6, 7)
    assert layout.size == 9


def test_views_share_the_vectors_memory() -> None:
    vector = np.arange(8, dtype=np.float32)
    views = Layout((WEIGHTS, BIAS)).views(vector)
    assert views["weights"].tolist() == [[0, 1, 2], [3, 4, 5]]
    views["bias"][:] = -1
    assert vector[6:].tolist() == [-1, -1]


def test_views_of_another_length_name_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(8,\), got \(7,\)"):
        Layout((WEIGHTS, BIAS)).views(np.zeros(7, np.float32))


def test_the_table_is_json_and_comes_back() -> None:
    layout = Layout((WEIGHTS, BIAS, STEPS))
    table = json.loads(json.dumps(layout.table()))
    assert Layout.from_table(table) == layout
    assert [row["offset"] for row in table] == [0, 6, 8]


@pytest.mark.parametrize(
    "items",
    [
        [WEIGHTS, BIAS],
        [("weights", (2, 3), ("output", "input")), ("bias", [2], ["output"], "trained")],
        [
            SimpleNamespace(name="weights", shape=(2, 3), dims=("output", "input")),
            SimpleNamespace(name="bias", shape=(2,), dims=("output",)),
        ],
    ],
)
def test_as_layout_takes_parameters_tuples_and_likenesses(items: list) -> None:
    assert as_layout(items) == Layout((WEIGHTS, BIAS))
    assert as_layout(iter(items)) == as_layout(Layout((WEIGHTS, BIAS)))


def test_a_number_is_the_length_of_one_dimension() -> None:
    assert as_layout([("bias", 2), ("steps", np.int64(3), ("n",))]).size == 5
    assert as_layout([("bias", 2)]).parameters[0] == Parameter("bias", (2,), ("bias_0",))
    with pytest.raises(TypeError, match="shape must hold whole numbers, got 2.5"):
        as_layout([("bias", 2.5)])
    with pytest.raises(TypeError, match=r"shape must hold whole numbers, got \('x',\)"):
        as_layout([("bias", ("x",))])


def test_dims_left_out_are_named_after_the_parameter() -> None:
    assert as_layout([("filters", (2, 3))]).parameters[0].dims == ("filters_0", "filters_1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a/b", (1,), ("x",)), "without '/'"),
        (("", (1,), ("x",)), "non-empty"),
        (("a", (1, 2), ("x",)), "2 dimensions"),
        (("a", (0,), ("x",)), "at least 1"),
        (("a", (1,), ("x",), "frozen"), "'trained' or 'buffer'"),
    ],
)
def test_a_parameter_that_cannot_be_stored_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parameter(*arguments)


def test_layouts_refuse_nothing_and_doubles() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Layout(())
    with pytest.raises(ValueError, match="unique"):
        Layout((BIAS, BIAS))
    with pytest.raises(TypeError, match="sequence of parameters"):
        as_layout(3)


@pytest.mark.parametrize("size", [1, 2, 7, 10, 41_777_152])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 100])
def test_a_cut_covers_the_vector_in_slices_of_one_length(size: int, count: int) -> None:
    pieces = cut(size, count)
    assert pieces[0][0] == 0 and pieces[-1][1] == size
    assert all(a[1] == b[0] for a, b in pairwise(pieces))
    lengths = [stop - start for start, stop in pieces]
    assert len(pieces) <= count
    length = -(-size // count)
    longest = length + length // 2**22  # whole chunks
    assert all(length <= n <= longest for n in lengths[:-1]) and len(set(lengths[:-1])) <= 1
    assert 0 < lengths[-1] <= longest


@pytest.mark.parametrize(("size", "count"), [(0, 1), (4, 0)])
def test_a_cut_into_nothing_is_refused(size: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        cut(size, count)


def drawn_layout(seed: int) -> Layout:
    """A layout whose dimensions, and names, meet now and then."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(["a", "b", "c", "d"])[: rng.integers(1, 4)]
    parameters = []
    for name in names:
        count = int(rng.integers(0, 3))
        dims = tuple(str(dim) for dim in rng.choice(["a", "b", "x", "y"], count))
        parameters.append(Parameter(str(name), tuple(rng.integers(1, 3, count)), dims))
    return Layout(tuple(parameters))


@pytest.mark.filterwarnings("ignore:Duplicate dimension names")
def test_dimensions_are_refused_where_xarray_makes_no_dataset_of_them() -> None:
    verdicts = []
    for seed in range(400):
        layout = drawn_layout(seed)
        arrays = {p.name: (p.dims, np.zeros(p.shape)) for p in layout.parameters}
        try:
            xr.Dataset(arrays)
            makes_one = True
        except ValueError:
            makes_one = False
        try:
            check_dims(layout)
            assert makes_one, layout
        except ValueError as error:
            assert not makes_one, layout
            assert re.search("of one name have one length|without dimensions", str(error))
        verdicts.append(makes_one)
    assert 50 < sum(verdicts) < 350


def test_what_is_no_parameter_is_named() -> None:
    with pytest.raises(TypeError, match="an item of layout must be .*, got 'weights'"):
        as_layout(["weights"])


def test_the_lone_dimension_of_a_parameter_may_be_a_string() -> None:
    assert Parameter("w", (8,), "input").dims == ("input",)
