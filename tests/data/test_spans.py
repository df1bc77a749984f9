"""Runs of positions, lengths of blocks and packed masks against arrays of every position."""

import pickle

import numpy as np
import pytest

from dbdask.data import masks, selection
from dbdask.data.masks import Mask
from dbdask.data.selection import CentreRuns, Spans, block_rows
from dbdask.schedule.lengths import Lengths
from dbdask.schedule.portions import Grid


def drawn_spans(rng):
    """Some runs, and all their positions."""
    runs, at = [], int(rng.integers(0, 4))
    for _ in range(int(rng.integers(1, 7))):
        step, count = int(rng.integers(1, 4)), int(rng.integers(1, 6))
        runs.append((at, at + (count - 1) * step + 1, step))
        at = runs[-1][1] + int(rng.integers(0, 4))
    spans = Spans(*np.array(runs, np.int64).T)
    return spans, np.concatenate([np.arange(*run) for run in runs])


def runs_of(spans):
    return [
        np.arange(*run).tolist() for run in zip(spans.starts, spans.stops, spans.steps, strict=True)
    ]


@pytest.mark.parametrize("seed", range(60))
def test_spans_are_what_their_positions_are(seed):
    rng = np.random.default_rng(seed)
    spans, every = drawn_spans(rng)
    assert spans.count == len(every) and spans.positions().tolist() == every.tolist()
    asked = np.arange(-2, every[-1] + 4)
    assert spans.rank(asked).tolist() == np.searchsorted(every, asked).tolist()
    for _ in range(20):
        first, last = sorted(rng.integers(0, len(every) + 1, 2).tolist())
        step = int(rng.integers(1, 4))
        assert spans.part(first, last).positions().tolist() == every[first:last].tolist()
        assert (
            spans.every(first, last, step).positions().tolist() == every[first:last:step].tolist()
        )
        start, stop = sorted(rng.integers(-1, every[-1] + 3, 2).tolist())
        inside = every[(every >= start) & (every < stop)]
        assert spans.between(start, stop).positions().tolist() == inside.tolist()
        chosen = np.flatnonzero(rng.random(len(every)) < 0.5)
        assert spans.take(chosen).positions().tolist() == every[chosen].tolist()
        bounds = np.unique(rng.integers(0, len(every) + 1, 6))
        begins, ends = bounds[:-1:2], bounds[1::2]
        picked = [every[a:b] for a, b in zip(begins, ends, strict=False)]
        wanted = np.concatenate([np.zeros(0, int), *picked]).tolist()
        assert spans.pick(begins[: len(ends)], ends).positions().tolist() == wanted
    assert pickle.loads(pickle.dumps(spans)) == spans


def test_what_was_cut_apart_stays_apart():
    spans = Spans.of([(0, 4), (4, 8), (10, 12)])
    assert runs_of(spans.part(2, 9)) == [[2, 3], [4, 5, 6, 7], [10]]
    assert runs_of(spans.take(np.array([2, 3, 4, 5, 7, 8]))) == [[2, 3], [4, 5], [7], [10]]
    assert runs_of(spans.pick(np.array([1, 6]), np.array([6, 9]))) == [
        [1, 2, 3],
        [4, 5],
        [6, 7],
        [10],
    ]
    whole, run = spans.cut_at(np.array([5, 6, 9]))
    assert runs_of(whole) == [[0, 1, 2, 3], [4], [5], [6, 7], [10], [11]]
    assert run.tolist() == [0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "given",
    [(), (0,), (5,), (4, 4, 2), (4, 4, 4), (2, 4), (3, 0, 3), (0, 4, 4), (4, 4, 0), (1,) * 9],
)
def test_lengths_read_as_the_tuple(given):
    lengths = Lengths(given)
    assert list(lengths) == list(given) and len(lengths) == len(given)
    assert lengths == given and hash(lengths) == hash(given)
    assert lengths != (*given, 1)
    assert lengths.edges.tolist() == [sum(given[:n]) for n in range(len(given) + 1)]
    assert [lengths.edge(n) for n in range(len(given) + 1)] == lengths.edges.tolist()
    assert lengths[1:] == given[1:] and pickle.loads(pickle.dumps(lengths)) == lengths
    batches = list(lengths.batches(6))
    assert [n for a, b in batches for n in range(a, b)] == list(range(len(given)))
    assert all(b - a == 1 or sum(given[a:b]) <= 6 for a, b in batches)
    if given in ((5,), (4, 4, 2), (4, 4, 4), (1,) * 9):
        assert Lengths.regular(sum(given), max(given)) == lengths


def test_a_grid_of_many_regular_blocks_takes_no_memory_for_each():
    grid = Grid(("t", "x"), [Lengths.regular(10**13, 1000), Lengths.regular(7, 3)])
    assert grid.block_count == 3 * 10**10
    assert grid.box(3 * 10**10 - 1) == (slice(10**13 - 1000, 10**13), slice(6, 7))
    assert len(pickle.dumps(grid)) < 1000
    assert grid == Grid(("t", "x"), [Lengths.regular(10**13, 1000), (3, 3, 1)])
    assert hash(Grid(("t",), ((4, 2),))) == hash(Grid(("t",), [Lengths.regular(6, 4)]))


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(masks, "TILE", 16)
    monkeypatch.setattr(selection, "PIECE", 12)


def drawn_mask(rng, sizes):
    """A mask of one to three arrays over some dimensions, and its values over all."""
    every, mask = np.ones(list(sizes.values()), bool), None
    for _ in range(int(rng.integers(1, 4))):
        dims = [str(d) for d in rng.permutation(list(sizes))[: int(rng.integers(1, 4))]]
        values = rng.random([sizes[dim] for dim in dims]) < rng.choice([0.2, 0.8, 1])
        order = [dims.index(dim) for dim in sizes if dim in dims]
        shape = [sizes[dim] if dim in dims else 1 for dim in sizes]
        every &= values.transpose(order).reshape(shape)
        mask = Mask.of(dims, values) if mask is None else mask & Mask.of(dims, values)
    return mask, every


@pytest.mark.parametrize("seed", range(30))
def test_masks_are_read_box_by_box(small_tiles, seed):
    rng = np.random.default_rng(seed)
    sizes = dict(zip("abc", rng.integers(1, 14, 3).tolist(), strict=True))
    mask, every = drawn_mask(rng, sizes)
    mask = pickle.loads(pickle.dumps(mask))
    for _ in range(5):
        at = [np.unique(rng.integers(0, n, 5)) for n in sizes.values()]
        held = np.broadcast_to(mask.over(list(sizes), at), [len(one) for one in at])
        assert (held == every[np.ix_(*at)]).all()
    own = {"b": np.unique(rng.integers(0, sizes["b"], 4))}
    spared = {dim: Spans.of([(0, 2), (5, sizes[dim])]) for dim in "ac" if dim in mask.dims}
    rest = {dim: spans.positions() for dim, spans in spared.items()}
    rest = {dim: at[at < sizes[dim]] for dim, at in rest.items()}
    spared = {dim: Spans.of([(0, sizes[dim])]).take(at) for dim, at in rest.items()}
    axes = [rest.get("a", np.arange(1)), own["b"], rest.get("c", np.arange(1))]
    assert (mask.any_over(own, spared) == every[np.ix_(*axes)].any(axis=(0, 2))).all()


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_blocks_are_counted_a_piece_at_a_time(small_tiles, seed):
    rng = np.random.default_rng(seed)
    along, lengths, chosen = [], [], []
    for _ in range(3):
        spans, positions = drawn_spans(rng)
        size = int(positions[-1]) + 1 + int(rng.integers(0, 3))
        cuts = np.unique([0, size, *rng.integers(0, size, 3)])
        along.append(CentreRuns(spans, spans.starts, spans.stops))
        lengths.append(np.diff(cuts).tolist())
        chosen.append(np.isin(np.arange(size), positions))
    grid = Grid("abc", lengths)
    sizes = {dim: sum(n) for dim, n in zip("abc", lengths, strict=True)}
    mask, every = drawn_mask(rng, sizes)
    selected = chosen[0][:, None, None] & chosen[1][:, None] & chosen[2]
    for given, held in ((None, selected), (mask, selected & every)):
        wanted = [int(held[grid.box(block)].sum()) for block in range(grid.block_count)]
        assert block_rows(grid, along, given).tolist() == wanted


def test_a_mask_of_runs_is_small_and_a_block_unpacks_few_tiles(monkeypatch):
    values = np.arange(3_000_000) % 1_000_000 < 900_000
    mask = Mask.of(["t"], values)
    assert len(pickle.dumps(mask)) < 5000
    unpacked = []
    unpack = masks._unpack
    monkeypatch.setattr(masks, "_unpack", lambda *given: unpacked.append(1) or unpack(*given))
    assert mask.over(["t"], [np.arange(1_850_000, 1_950_000)]).sum() == 50_000
    assert len(unpacked) <= 2
