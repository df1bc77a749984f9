"""Groups: one that returns is found in whatever order chunks are read, in its own dtype."""

import re
from decimal import Decimal

import numpy as np
import pytest
import xarray as xr
import zarr
from seeing import seen

import dbdask
from dbdask.data.groups import GroupLedger
from dbdask.errors import DataError


def returns(seen):
    """Whether, among the positions that were seen, a group has another one in its midst."""
    positions = sorted(seen)
    runs = [seen[p] for n, p in enumerate(positions) if n == 0 or seen[positions[n - 1]] != seen[p]]
    return len(runs) != len(set(runs))


@pytest.mark.parametrize("seed", range(80))
def test_a_group_returns_if_another_one_is_in_its_midst(seed):
    rng = np.random.default_rng(seed)
    names = rng.permutation(1000)[: int(rng.integers(3, 40))]
    values = np.repeat(names, rng.integers(1, 5, len(names)))
    if seed % 2:  # one of them returns
        values[int(rng.integers(0, len(values)))] = rng.choice(names)
    if seed % 3 == 0:
        values = values.astype(str)
    ledger, seen = GroupLedger("g"), {}
    for _ in range(60):
        start, stop = sorted(rng.integers(0, len(values) + 1, 2).tolist())
        piece = values[start : min(stop, start + 12)]
        seen.update({start + n: value for n, value in enumerate(piece.tolist())})
        if returns(seen):
            with pytest.raises(DataError, match="'g' is .*, then .*, then .* again"):
                ledger.note(piece, start)
            return
        ledger.note(piece, start)


DTYPES = {
    "uint64": np.array([2**64 - 1, 2**64 - 2, 2**63], np.uint64),
    "int64": np.array([2**53, 2**53 + 1, -1]),
    "float64": np.array([1e17, 1e17 + 16, -0.5]),
    "text": np.array(["utterance", "b", "ba"]),
    "dates": np.array(["2020-01-01T00:00:00.000000001", "2020-01-01", "1970-01-01"], "M8[ns]"),
    "bool": np.array([True, False]),
}


@pytest.mark.parametrize("values", DTYPES.values(), ids=DTYPES)
def test_groups_are_compared_in_their_own_dtype(values):
    ledger = GroupLedger("g")
    ledger.note(np.repeat(values, 3), 0)
    ledger.note(values[:1], 2)
    with pytest.raises(DataError, match="again; equal neighbours form a group"):
        ledger.note(values[:1], 3 * len(values))


def test_a_message_shows_dates_as_dates():
    ledger = GroupLedger("day")
    days = np.array(["2020-03-01", "2020-03-02"], "M8[ns]")
    ledger.note(days, 0)
    with pytest.raises(DataError, match=r"2020-03-01T\S+, then 2020-03-02T\S+, then 2020-03-01T"):
        ledger.note(days[:1], 2)


def test_texts_of_growing_length_are_one_kind():
    ledger = GroupLedger("g")
    for n in range(12):
        ledger.note(np.array(["x" * n + "a", "x" * n + "b"]), 2 * n)
    with pytest.raises(DataError, match="'xxa' is|is 'xxa'"):
        ledger.note(np.array(["xxa"]), 50)


def test_noting_many_groups_sorts_each_a_few_times():
    ledger = GroupLedger("g")
    order = np.random.default_rng(0).permutation(400)
    for block in order.tolist():
        ledger.note(np.repeat(np.arange(50) + 50 * block, 2), 100 * block)
    assert sum(map(len, ledger._tables)) == 400 * 50
    assert len(ledger._tables) <= 15
    ledger.note(np.arange(40_000) // 2, 0)
    assert sum(map(len, ledger._tables)) == 400 * 50


def of_groups(groups, chunk):
    n = len(groups)
    data = xr.Dataset({"x": ("t", np.arange(n, dtype="f4")), "g": ("t", groups)}).chunk(t=chunk)
    return dbdask.Examples(data, inputs="x", targets="x", along="t", groups="g")


def test_a_split_reads_groups_some_chunks_at_a_time(monkeypatch):
    groups = np.repeat(np.arange(30) * 7 % 31, 11)
    whole = of_groups(groups, 1000).split(0.6, seed=3)
    monkeypatch.setattr("dbdask.data.groups.PIECE", 20)
    reads = []
    read = dbdask.data.sources.Variable.read

    def counted(self, box=None, blocks=None):
        reads.append(box["t"].stop - box["t"].start)
        return read(self, box, blocks)

    monkeypatch.setattr("dbdask.data.sources.Variable.read", counted)
    parts = of_groups(groups, 7).split(0.6, seed=3)
    assert max(reads) <= 20
    for part, other in zip(parts, whole, strict=True):
        assert part.recipe.selection == other.recipe.selection


@pytest.mark.parametrize("cut", [slice(None), slice(3, 9)])
def test_a_split_names_a_group_that_returns_or_is_missing(cut):
    groups = np.array([1, 1, 2, 2, 3, 3, 4, 3, 5, 5])
    with pytest.raises(DataError, match="'g' is 3, then 4, then 3 again"):
        of_groups(groups, 4).isel(t=cut).split(0.5, seed=0)
    gap = np.where(groups == 4, np.nan, np.repeat(np.arange(5), 2))
    with pytest.raises(DataError, match="'g' is missing at t=6; every position needs a group"):
        of_groups(gap, 4).isel(t=cut).split(0.5, seed=0)


def objects(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


MIXED = {
    "text, then numbers": ["A1", "A1", 1001, 1001, 1, 1, 1002, 1002],
    "numbers, then text": [1, 1, 0, 0, "x", "x", "y", "y"],
    "numbers that no dtype holds": [2**63, 2**63 + 1, -1, -1, 5, 5, 6, 0.5],
    "bytes, then text": [b"a", b"a", b"b", b"b", "a", "a", 1, 1],
    "decimals": [Decimal("0.1"), Decimal("0.1"), 0.1, 0.1, "x", "x", 1, 2],
    "flags and numbers": [True, True, False, False, 2, 2, "x", "x"],
    "tuples": [(1, 2), (1, 2), 1, 1, 2, 2, "x", (1,)],
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("kind", MIXED)
def test_objects_of_any_kinds_are_groups_however_they_are_cut(kind, chunk, monkeypatch):
    monkeypatch.setattr("dbdask.data.groups.PIECE", 2)
    groups = MIXED[kind]
    x = np.arange(8.0)
    data = xr.Dataset({"x": ("t", x), "g": ("t", objects(groups))}).chunk(t=chunk)
    examples = dbdask.Examples(data, inputs="x", along="t", groups="g", window={"t": (-1, 0)})
    previous = [x[max(n - 1, 0)] if groups[max(n - 1, 0)] == groups[n] else x[n] for n in range(8)]
    np.testing.assert_array_equal(seen(examples)[0], np.stack([previous, x], axis=1))
    assert sum(len(part) for part in examples.split(0.5, seed=1)) == 8
    again = data.assign(g=("t", objects([*groups[:7], groups[0]]))).chunk(t=chunk)
    returning = dbdask.Examples(again, inputs="x", along="t", groups="g")
    for read in (returning.check, lambda: returning.split(0.5, seed=1)):
        with pytest.raises(DataError, match=f"'g' is {re.escape(repr(groups[0]))}, then "):
            read()


def test_a_ledger_takes_blocks_of_different_kinds():
    blocks = [
        np.array([2**64 - 1, 2**63], np.uint64),
        np.array([-1, 2**62]),
        np.array([0.5]),
        np.array(["1", "2"]),
        np.array([3], "m8[ns]"),
        objects([(1, 2), 3]),
        np.array([True]),
    ]
    ledger, at = GroupLedger("g"), 0
    for values in blocks:
        ledger.note(values, at)
        at += len(values)
    for values in (block[:1] for block in blocks[:-1]):
        with pytest.raises(DataError, match="again"):
            ledger.note(values, at)


def test_dates_in_and_out_of_range_are_refused_by_name(tmp_path):
    group = zarr.open_group(tmp_path / "d.zarr", mode="w", zarr_format=2)
    for name, values in {"x": np.arange(6.0), "g": [1, 1, 2, 900_000, 900_000, 1]}.items():
        array = group.create_array(name, data=np.array(values), chunks=(3,), fill_value=None)
        array.attrs["_ARRAY_DIMENSIONS"] = ["t"]
    group["g"].attrs["units"] = "days since 1970-01-01"
    examples = dbdask.Examples(tmp_path / "d.zarr", inputs="x", along="t", groups="g")
    with pytest.warns(xr.SerializationWarning), pytest.raises(DataError, match="'g' has dates"):
        examples.check()
