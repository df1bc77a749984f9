"""Labels and groups are compared in their own dtype: none is rounded, cut or taken for another."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from seeing import seen

from dbdask.data.description import describe
from dbdask.data.examples import Examples
from dbdask.data.flags import declared_classes
from dbdask.data.labels import MISSING, UNKNOWN, Classes, as_classes
from dbdask.errors import DataError

BIG = 2**53


def with_labels(labels, **attributes):
    labels = xr.Variable("n", labels, attributes)
    return xr.Dataset({"x": ("n", np.arange(float(len(labels)))), "y": labels})


def objects(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


LABELS = {
    "float days": np.array([20240101.0, 20240102.0, 20240103.0]),
    "neighbours in int64": np.array([BIG, BIG + 1, BIG + 2]),
    "neighbours in uint64": np.array([2**64 - 1, 2**64 - 2, 2**63], np.uint64),
    "bytes": np.array([200, 255, 0], np.uint8),
    "signed bytes": np.array([-66, -128, 127], np.int8),
    "half floats": np.array([1.5, 2.0, 0.25], np.float16),
    "single floats": np.array([0.1, 16777216.0, -3.0], np.float32),
    "booleans": np.array([True, False, True]),
    "text": np.array(["a", "", "A"]),
    "text objects": objects(["a", "a\0", " a"]),
    "ascii": np.array([b"x", b"y", b"xy"]),
    "integer objects": objects([2**70, 3, 2**70 + 1]),
    "strings": np.array(["sea", "ice", "land"], np.dtypes.StringDType()),
}


def plain(value):
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize("chunks", [None, {"n": 5}])
@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_found_and_told_apart(kind, chunks):
    different = LABELS[kind]
    data = with_labels(different[np.arange(12) % 3])
    data = data if chunks is None else data.chunk(chunks)
    examples = Examples(data, inputs="x", targets="y", along="n")
    wanted = sorted({plain(label) for label in different.tolist()})
    found = examples.find_classes()
    assert found == wanted
    if kind == "text objects":
        assert len(found) == 3
    codes = seen(examples.with_classes(found))[1]
    assert codes.tolist() == [wanted.index(plain(label)) for label in data.y.values.tolist()]


@pytest.mark.parametrize("kind", [name for name in LABELS if name != "integer objects"])
def test_neighbours_in_time_form_groups_by_their_own_value(kind):
    groups = np.repeat(LABELS[kind][:2], 6)
    data = with_labels(groups).rename(y="g")
    described = Examples(
        data, inputs="x", along="n", groups="g", window={"n": (-1, 0)}, edges="drop"
    )
    whole = ~np.isnan(seen(described)[0]).any(axis=1)
    assert whole.nonzero()[0].tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]


GROUPS = {
    "dates": pd.date_range("2000", periods=4).to_numpy(),
    "durations": np.array([1, 2, 3, 4], "m8[h]").astype("m8[ns]"),
    "periods": objects(list(pd.period_range("2000", periods=4, freq="M"))),
    "zoned times": objects(list(pd.date_range("2000", periods=4, tz="Asia/Tokyo"))),
    "tuples": objects([("a", 1), ("a", 2), ("b", 1), ("b", 2)]),
    "mixed": objects([1, "1", "a", 2]),
}


@pytest.mark.parametrize("chunks", [None, {"n": 5}])
@pytest.mark.parametrize("kind", GROUPS)
def test_groups_may_be_anything_that_compares(kind, chunks):
    four = GROUPS[kind]
    data = xr.Dataset({"x": ("n", np.arange(12.0)), "g": ("n", np.repeat(four, 3))})
    data = data if chunks is None else data.chunk(chunks)
    described = Examples(data, inputs="x", along="n", groups="g", window={"n": 2 * 2 + 1})
    wanted = [
        [max(n - n % 3, min(n - n % 3 + 2, n + step)) for step in range(-2, 3)] for n in range(12)
    ]
    assert seen(described)[0].tolist() == wanted
    assert [len(part) for part in described.split(0.5, seed=1)] == [6, 6]


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA, pd.NaT])
def test_a_missing_group_is_named_whatever_its_kind(gap):
    data = xr.Dataset({"x": ("n", np.arange(4.0)), "g": ("n", objects(["a", "a", gap, "b"]))})
    described = Examples(data, inputs="x", along="n", groups="g")
    for act in (lambda: seen(described), lambda: described.split(0.5, seed=0)):
        with pytest.raises(DataError, match="groups: 'g' is missing at n=2"):
            act()


@pytest.mark.parametrize(
    "values, name",
    [
        (pd.date_range("2000", periods=4).to_numpy(), r"datetime64\[us\]|datetime64\[ns\]"),
        (np.array([1, 2, 3, 4], "m8[s]"), r"timedelta64\[s\]"),
        (objects(list(pd.period_range("2000", periods=4, freq="D"))), "of Period"),
        (objects([(1, 2), (3, 4), (1, 2), (3, 4)]), "of tuple"),
        (objects([pd.Timestamp("2000", tz="UTC")] * 4), "of Timestamp"),
    ],
)
@pytest.mark.parametrize("classes", [None, [0, 1]])
def test_what_can_be_no_label_is_refused_by_name(values, name, classes):
    data = with_labels(values)
    with pytest.raises(
        TypeError, match=rf"targets: variable 'y' has dtype .*({name}).*astype\(str"
    ):
        Examples(data, inputs="x", targets="y", along="n", classes=classes)
    with pytest.raises(TypeError, match=rf"inputs: variable 'y' has dtype .*({name})"):
        Examples(data, inputs="y", along="n")


def test_missing_text_is_missing_and_empty_text_is_a_label():
    data = with_labels(objects(["", "a", None, np.nan, "a", pd.NA]))
    examples = Examples(data, inputs="x", targets="y", along="n", missing="drop")
    assert examples.find_classes() == ["", "a"]
    with pytest.warns(UserWarning, match="3 of 6 examples"):
        report = examples.with_classes(["", "a"]).check()
    assert report.class_counts == {0: 1, 1: 2}


def test_a_label_beyond_the_outputs_does_not_come_round():
    data = with_labels(np.array([254, 255, 0, 1], np.uint8))
    examples = Examples(data, inputs="x", targets="y", along="n")
    assert seen(examples.for_loss("softmax", 256))[1].tolist() == [254, 255, 0, 1]
    with pytest.raises(DataError, match=r"'y' at n=1 is 255, which is not a whole number"):
        seen(examples.for_loss("softmax", 255))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u8", "i8", "f2", "f4", "f8", "?", object])
def test_encoding_equals_a_comparison_in_python(dtype):
    rng = np.random.default_rng(8)
    pool = [0, 1, 2, 100, 127, 128, 255, BIG, BIG + 1, 2**63 - 1, 2**63, 2**64 - 1, -1, 0.5, 1.5]
    for _ in range(200):
        labels = tuple(pool[n] for n in rng.choice(len(pool), rng.integers(1, 8), replace=False))
        held = [one for one in pool if _holds(dtype, one)]
        values = np.array([held[n] for n in rng.integers(0, len(held), 20)], dtype)
        wanted = [labels.index(v) if v in labels else UNKNOWN for v in values.tolist()]
        assert Classes(labels).encode(values, None).tolist() == wanted
        count = int(rng.choice([1, 2, 128, 255, 256]))
        wanted = [int(v) if v == int(v) and 0 <= v < count else UNKNOWN for v in values.tolist()]
        assert Classes(count=count).encode(values, None).tolist() == wanted


def _holds(dtype, value):
    if dtype is object:
        return True
    if dtype == "f2" and value > 65504:
        return False
    try:
        return (
            np.array([value]).astype(dtype)[0].item() == value
            and (np.dtype(dtype).kind in "f" or value == int(value))
            and (
                np.dtype(dtype).kind not in "iu"
                or (np.iinfo(dtype).min <= value <= np.iinfo(dtype).max)
            )
        )
    except (OverflowError, ValueError):
        return False


def test_missing_and_unknown_are_told_apart():
    values = np.array([1.0, np.nan, 3.0])
    assert Classes((1,)).encode(values, None).tolist() == [0, MISSING, UNKNOWN]
    assert Classes((1,)).rule() == "the one class 1"


@pytest.mark.parametrize(
    "given",
    [
        [BIG + 1, 0.5],
        [2**64 - 1, -1],
        [True, False],
        ["a", ""],
        [b"a", "b"],
        np.array([2**64 - 1, 0], np.uint64),
        pd.Index(["a", "b"]),
        pd.Categorical(["b", "a"]),
        xr.DataArray([3, 4]),
        (n for n in (1, 2)),
        np.array([1.0, 2.0], np.float32),
    ],
)
def test_classes_are_taken_as_they_are(given):
    again = list(given) if not hasattr(given, "__next__") else [1, 2]
    wanted = [plain(one.item() if hasattr(one, "item") else one) for one in again]
    classes = as_classes(given if not hasattr(given, "__next__") else (n for n in again))
    assert list(classes.labels) == wanted
    assert all(type(label) in (int, float, str, bool) for label in classes.labels)
    assert Classes.from_json(classes.to_json()) == classes


@pytest.mark.parametrize(
    "given, said",
    [
        ([1, 1.0], "unique, got 1 twice"),
        ([1, True], "unique"),
        ([1, "1"], "all numbers or all text"),
        ([None], "numbers or text, got None"),
        ([np.nan], "got nan"),
        ([], "at least one"),
        ([np.datetime64("2000")], "numbers or text"),
    ],
)
def test_classes_that_are_none_are_named(given, said):
    with pytest.raises(ValueError, match=said):
        as_classes(given)


def test_many_classes_cost_what_they_are():
    # A look-up of each among all others takes minutes for as many.
    names = [f"species {number}" for number in range(200_000)]
    classes = as_classes(names)
    codes = classes.encode(np.array(names[::-1], object), None)
    assert codes[0] == len(names) - 1 and codes[-1] == 0


FLAGS = [
    ([0, 10, -66, -46], "u1", [0, 10, 190, 210]),
    (np.array([0, 10, -66], "i1"), "u1", [0, 10, 190]),
    ([0, 190], "i1", [0, -66]),
    ([0, 190], "u1", [0, 190]),
    ([-1, 0], "u2", [65535, 0]),
    ("0b, 1b", "i1", [0, 1]),
    ("0, 1, 2", "i4", [0, 1, 2]),
    ("0 1 2", None, [0, 1, 2]),
    ("0.5, 1.5", None, [0.5, 1.5]),
    (["0b", "1b"], "i1", [0, 1]),
    ([1.0, 2.0], "i2", [1, 2]),
    (3, "i2", [3]),
    ([70000], "i2", [70000]),
]


@pytest.mark.parametrize("given, dtype, wanted", FLAGS)
def test_flags_are_compared_with_what_is_shown(given, dtype, wanted):
    found = declared_classes({"flag_values": given}, None if dtype is None else np.dtype(dtype))
    assert list(found.labels) == wanted and found.meanings is None


@pytest.mark.parametrize(
    "attributes",
    [
        {"flag_values": "east, west"},
        {"flag_values": [1, 1]},
        {"flag_values": [[1, 2], [2, 3]]},
        {"flag_values": [1, 2], "flag_masks": [1, 2]},
        {"flag_values": [None, 1]},
        {"flag_values": [np.nan, 1]},
    ],
)
def test_flags_that_cannot_be_decided_are_named_where_classes_are_wanted(attributes):
    data = with_labels(np.arange(4) % 3, **attributes)
    examples = Examples(data, inputs="x", targets="y", along="n")
    with pytest.raises(ValueError, match=r"classes: the attribute flag_.* give the labels with"):
        examples.for_loss("softmax", 3)
    assert seen(examples.for_loss("squared", 1))[1].tolist() == [0, 1, 2, 0]
    given = Examples(data, inputs="x", targets="y", along="n", classes=[0, 1, 2])
    assert seen(given.for_loss("softmax", 3))[1].tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("meanings", ["sea ice", "sea", ["sea", "ice"], 5, None, "a b c d"])
def test_meanings_of_another_number_are_left_alone(meanings):
    found = declared_classes({"flag_values": [1, 2], "flag_meanings": meanings}, None)
    fits = meanings in ("sea ice", ["sea", "ice"])
    assert found.meanings == (("sea", "ice") if fits else None)


def test_text_with_flags_is_text():
    data = with_labels(np.array(["1", "2", "1"]), flag_values=[1, 2])
    assert Examples(data, inputs="x", targets="y", along="n").find_classes() == ["1", "2"]


def test_a_description_keeps_labels_as_they_are():
    data = with_labels(np.array([2**64 - 1, 2**63], np.uint64))
    examples = Examples(data, inputs="x", targets="y", along="n", classes=[2**64 - 1, 2**63])
    again = Examples.from_description(examples.description(), data)
    assert Examples.from_description(examples.description()).output_classes == [2**64 - 1, 2**63]
    assert again.recipe.targets is None
    assert describe(examples.recipe)["classes"]["labels"] == [2**64 - 1, 2**63]


KINDS_TOGETHER = {
    "flags and integers": ([True, False, 2, 2, 3, 3], [0, 1, 2, 3]),
    "flags and floats": ([1.5, 1.5, True, True, 0.0, 1], [0, 1, 1.5]),
    "flags and gaps": ([True, False, None, True, None, True], [0, 1]),
    "flags alone": ([True, False, True, True, False, True], [0, 1]),
    "flags, integers and gaps": ([True, None, 2, 2, None, False], [0, 1, 2]),
    "flags and large integers": ([True, True, 2**70, 2**70, -1, -1], [-1, 1, 2**70]),
    "decimals and integers": ([Decimal("0.5"), Decimal(2), 2, 2, 7, 7], [0.5, 2, 7]),
    "text and bytes": ([b"a", b"b", "c", "c", "a", None], ["a", "b", "c"]),
}


@pytest.mark.parametrize("cut", [None, 1, 2, 3, 6])
@pytest.mark.parametrize("kind", KINDS_TOGETHER)
def test_labels_of_some_kinds_together_are_one_kind_however_they_are_cut(kind, cut):
    values, wanted = KINDS_TOGETHER[kind]
    data = with_labels(objects(values))
    data = data if cut is None else data.chunk(n=cut)
    examples = Examples(data, inputs="x", targets="y", along="n", missing="drop")
    found = examples.find_classes()
    assert found == wanted and list(map(type, found)) == list(map(type, wanted))
    codes = [np.nan if v is None else wanted.index(plain(v)) for v in values]
    np.testing.assert_array_equal(seen(examples.with_classes(found))[1], codes)


@pytest.mark.parametrize("values", [[1, 1, "a", "a"], [True, True, "a", "a"], ["a", "a", 0.5, 1]])
@pytest.mark.parametrize("cut", [None, 2, 4])
def test_labels_of_numbers_and_text_are_refused_however_they_are_cut(values, cut):
    data = with_labels(objects(values))
    data = data if cut is None else data.chunk(n=cut)
    with pytest.raises((TypeError, DataError), match="'y'.* (numbers|text)"):
        Examples(data, inputs="x", targets="y", along="n").find_classes()
