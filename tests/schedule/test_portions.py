"""Portions: the order is a pure function of data, seed and epoch, and loses no row."""

import numpy as np
import pytest

from dbdask.schedule.portions import Cut, Grid, Portion, suggest_portion_rows


def _cut(block_rows, portion_rows=64, mix_bytes=0, row_bytes=1):
    block_bytes = tuple(rows * row_bytes for rows in block_rows)
    return Cut(tuple(block_rows), block_bytes, portion_rows, mix_bytes)


def _covered(portions, cut):
    """Every (block, row of the block) that the portions work through, in their order."""
    covered = []
    for portion in portions:
        rows = [(b, r) for b in portion.blocks for r in range(cut.block_rows[b])]
        order = np.arange(len(rows))
        if portion.seed:
            order = np.random.default_rng(portion.seed).permutation(len(rows))
        covered += [rows[i] for i in order[portion.start : portion.stop]]
    return covered


def _all_rows(cut):
    return [(b, r) for b, rows in enumerate(cut.block_rows) for r in range(rows)]


def test_grid_boxes_tile_the_space():
    grid = Grid(("time", "lat"), ((4, 2), (3, 3, 1)))
    seen = np.zeros((6, 7), int)
    for block in range(grid.block_count):
        seen[grid.box(block)] += 1
        assert seen[grid.box(block)].size == grid.rows(block)
    assert (seen == 1).all()
    with pytest.raises(IndexError, match=r"block must be in 0\.\.5, got 6"):
        grid.box(6)


@pytest.mark.parametrize("mix_bytes", [0, 100, 10**9])
@pytest.mark.parametrize("block_rows", [(100,) * 7, (5, 0, 300, 64, 1, 0, 63)])
def test_every_row_once_in_an_epoch(block_rows, mix_bytes):
    cut = _cut(block_rows, mix_bytes=mix_bytes)
    portions = cut.portions(seed=3, epoch=2)
    assert sorted(_covered(portions, cut)) == _all_rows(cut)
    assert [p.number for p in portions] == list(range(len(portions)))
    assert sum(p.rows for p in portions) == cut.rows
    assert all(p.rows <= 64 for p in portions)


def test_store_order_is_kept():
    cut = _cut((100, 0, 30, 200))
    assert _covered(cut.contiguous(), cut) == _all_rows(cut)


def test_order_depends_on_seed_and_epoch_only():
    cut = _cut((64,) * 20)
    assert cut.portions(1, 0) == cut.portions(1, 0)
    orders = {tuple(_covered(cut.portions(s, e), cut)) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_full_minibatches_when_chunks_are_multiples():
    cut = _cut((128,) * 9, portion_rows=512)
    assert all(p.rows % 128 == 0 for p in cut.portions(0, 0))


def test_groups_mix_up_to_the_budget_and_no_further():
    cut = _cut((64,) * 40, portion_rows=64, mix_bytes=640)
    sizes = [len(p.blocks) for p in cut.portions(0, 0)]
    assert set(sizes) == {10}


def test_tiny_chunks_are_collected_up_to_a_count():
    cut = _cut((1,) * 5000, portion_rows=64, mix_bytes=10**9)
    assert max(len(p.blocks) for p in cut.portions(0, 0)) == 1024


def test_a_chunk_above_the_budget_is_its_own_group():
    cut = _cut((1000,) * 3, portion_rows=128, mix_bytes=100)
    portions = cut.portions(0, 0)
    assert {len(p.blocks) for p in portions} == {1}
    groups = [p.group for p in portions]
    assert groups == sorted(groups)


def test_small_chunks_are_collected_into_a_portion():
    cut = _cut((10,) * 100, portion_rows=64)
    assert {len(p.blocks) for p in cut.portions(0, 0)[:-1]} <= {7, 2}


def test_steps_round_up():
    portion = Portion(0, 0, 0, (0,), 10, 23, ())
    assert (portion.rows, portion.steps(4), portion.steps(13)) == (13, 4, 1)


@pytest.mark.parametrize("parameters", [10, 10**4, 10**8])
@pytest.mark.parametrize("rows", [10, 10**4, 10**7])
def test_suggested_portions_are_whole_minibatches(rows, parameters):
    suggested = suggest_portion_rows(rows, 784, parameters, 100)
    assert suggested % 100 == 0
    assert suggested >= 1600
    assert suggested * 784 <= max(1600 * 784, 32 * 2**20)


@pytest.mark.parametrize("epoch", range(3))
def test_every_group_spans_the_whole_store(epoch):
    rows = 10
    cut = Cut((rows,) * 60, (rows,) * 60, portion_rows=rows, mix_bytes=rows * 12)
    groups = {p.group: p.blocks for p in cut.portions(4, epoch)}
    assert [len(blocks) for blocks in groups.values()] == [12] * 5
    for blocks in groups.values():
        strata = sorted(block // 5 for block in blocks)
        assert strata == list(range(12))  # one block of every five neighbours


ROWS = (5, 0, 3, 8, 2, 9, 4, 4, 1, 6, 7, 3)


@pytest.mark.parametrize(
    "mix_bytes, groups",
    [
        (100, [(10, 0), (3,), (11, 9), (6, 4, 2), (7, 5), (8,)]),
        (150, [(9, 0), (5,), (10, 8, 4, 11), (2, 6, 7), (3,)]),
    ],
)
def test_a_seed_and_an_epoch_give_the_order_that_they_always_gave(mix_bytes, groups):
    portions = _cut(ROWS, portion_rows=8, mix_bytes=mix_bytes, row_bytes=10).portions(3, 1)
    assert [p.blocks for p in portions if p.start == 0] == groups
    assert [p.seed for p in portions if p.start == 0] == [(3, 1, g + 1) for g in range(len(groups))]
    assert portions[1:3] == tuple(portions)[1:3] and portions[-1] == list(portions)[-1]


def test_a_cut_is_told_from_another_as_checkpoints_of_old_have_it():
    cut = _cut(ROWS, portion_rows=8, mix_bytes=100, row_bytes=10)
    assert cut.digest == "2e0ab231621d13f1"
    assert Cut((5,), (3,), 8, 100).digest == "17ddeff8ae06d731"


def test_an_epoch_of_very_many_portions_is_opened_without_making_them():
    portions = Cut((10**11,), (4 * 10**11,), 2048).portions(0, 0)
    assert len(portions) == -(-(10**11) // 2048)
    assert (portions[-1].start, portions[-1].stop) == (len(portions) * 2048 - 2048, 10**11)
