"""Windows, groups, edges, cuts, masks and chunk borders drawn together, against a loop.

Every example is formed by hand: where its window may look, position by position.
"""

import itertools

import dask
import numpy as np
import pytest
import xarray as xr

import dbdask

QUICK, LONG = range(40), range(40, 3000, 370)


def drawn_chunks(rng, size):
    if rng.integers(0, 2):
        return int(rng.integers(1, size + 2))
    edges = np.sort([0, size, *rng.integers(0, size + 1, 4)])  # equal ones: an empty block
    return tuple(np.diff(edges).tolist())


def drawn_data(rng):
    """A dataset whose inputs and targets tell their positions, in a drawn order of dimensions."""
    along = ("t", "a", "b")[: rng.choice([1, 1, 2, 3])]
    sizes = {"t": int(rng.integers(6, 30)), "a": int(rng.integers(1, 6)), "b": 2}
    shape = [sizes[dim] for dim in along]
    number = xr.DataArray(np.arange(np.prod(shape)).reshape(shape).astype("f4"), dims=along)
    lengths = rng.integers(1, int(rng.integers(2, 8)), 60)
    grouped = str(rng.choice(along))
    names = np.repeat(rng.permutation(60), lengths)[: sizes[grouped]]
    data = xr.Dataset(
        {
            "x": number.transpose(*rng.permutation(along)),
            "y": number,
            "g": (grouped, names.astype(rng.choice(["i4", "f8", "U3"]))),
        }
    )
    return along, data, data.chunk({dim: drawn_chunks(rng, sizes[dim]) for dim in along})


def drawn_window(rng, sizes):
    window = {}
    for dim, size in sizes.items():
        first, last = sorted(rng.integers(-4, 5, 2).tolist())
        if rng.integers(0, 3) and last - first < size and max(-first, last) < size:
            window[dim] = (first, last)
    return window or None


def drawn_cuts(rng, examples, sizes):
    """Cut the examples; of each dimension the span of every position, and which are kept."""
    spans = {dim: np.zeros(size, int) for dim, size in sizes.items()}
    kept = np.ones(list(sizes.values()), bool)
    for _ in range(int(rng.integers(0, 4))):
        dim = str(rng.choice(list(sizes)))
        if rng.integers(0, 2):
            dims = list(rng.permutation(list(sizes))[: int(rng.integers(1, len(sizes) + 1))])
            mask = xr.DataArray(rng.random([sizes[d] for d in dims]) < 0.8, dims=dims)
            examples = examples.where(mask)
            full = xr.DataArray(kept, dims=list(sizes)) & mask
            kept = full.transpose(*sizes).to_numpy()
            continue
        here = np.flatnonzero(spans[dim] >= 0)
        chosen = np.flatnonzero(rng.random(len(here)) < rng.choice([0.5, 0.9, 1]))
        if rng.integers(0, 2):
            first, last = sorted(rng.integers(0, len(here) + 1, 2).tolist())
            chosen, indexer = np.arange(first, last), slice(first, last)
        else:
            indexer = chosen
        examples = examples.isel({dim: indexer})
        positions = here[chosen]
        apart = (np.diff(positions) != 1) | (np.diff(spans[dim][positions]) != 0)
        left = np.full(sizes[dim], -1)
        left[positions] = np.concatenate([[0], np.cumsum(apart)])
        spans[dim] = left
    return examples, spans, kept


def seen_along(at, first, last, allowed, edges):
    """The positions that a window sees; None where it is dropped."""
    bounds = np.flatnonzero(allowed)
    ends = bounds[[0, -1]]
    wanted = np.arange(at + first, at + last + 1)
    if edges == "drop" and (wanted.min() < ends[0] or wanted.max() > ends[1]):
        return None
    return np.clip(wanted, *ends)


def by_hand(data, along, window, groups, edges, spans, kept):
    """Windows by the number of the example in its middle."""
    found = {}
    number = data["y"].to_numpy()
    for place in itertools.product(*(np.flatnonzero(spans[dim] >= 0) for dim in along)):
        if not kept[place]:
            continue
        axes = []
        for dim, at in zip(along, place, strict=True):
            allowed = spans[dim] == spans[dim][at]
            if groups and data["g"].dims == (dim,):
                names = data["g"].to_numpy()
                allowed &= names == names[at]
            axes.append(seen_along(at, *(window or {}).get(dim, (0, 0)), allowed, edges))
        if all(seen is not None for seen in axes):
            found[int(number[place])] = number[np.ix_(*axes)]
    return found


def fed(examples, batch_size):
    found = {}
    with examples.reader(prefetch=False) as reader:
        for portion in examples.cut(3 * batch_size, batch_size).portions(0, 0):
            for batch in reader.minibatches(portion, batch_size):
                for target, window in zip(batch.targets, batch.inputs, strict=True):
                    assert int(target) not in found
                    found[int(target)] = window
    return found


def check(seed):
    rng = np.random.default_rng(seed)
    along, data, chunked = drawn_data(rng)
    sizes = {dim: data.sizes[dim] for dim in along}
    window, groups = drawn_window(rng, sizes), bool(rng.integers(0, 3))
    edges = str(rng.choice(["repeat", "drop"]))
    arguments = {"window": window, "groups": "g" if groups else None, "edges": edges}
    try:
        examples = dbdask.Examples(chunked, inputs="x", targets="y", along=along, **arguments)
        examples, spans, kept = drawn_cuts(rng, examples.for_loss("squared", 1), sizes)
    except ValueError as error:
        assert "no examples are left" in str(error) or "selects nothing" in str(error)
        return 0
    wanted = by_hand(data, along, window, groups, edges, spans, kept)
    found = fed(examples, int(rng.integers(1, 9)))
    assert sorted(found) == sorted(wanted), seed
    for number, values in found.items():
        assert np.array_equal(values.ravel(), wanted[number].ravel()), (seed, number)
    return len(found)


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def test_windows_see_what_a_loop_sees(record_property):
    record_property("drawn seeds", ["windows", QUICK.start, QUICK.stop])
    counts = [check(seed) for seed in QUICK]
    assert sum(counts) > 600 and sum(map(bool, counts)) > 25


@pytest.mark.slow
@pytest.mark.parametrize("first", LONG)
def test_windows_see_what_a_loop_sees_in_many_datasets(first, record_property):
    record_property("drawn seeds", ["windows", first, first + LONG.step])
    assert sum(check(seed) for seed in range(first, first + LONG.step)) > 6_000


def test_the_present_bounds_a_window_that_leaves_it_out():
    """An example at the end of a group, which is the end of a chunk, sees its own group."""
    names = np.repeat([7, 8, 9], [4, 4, 4])
    data = xr.Dataset({"x": ("t", np.arange(12.0)), "g": ("t", names)}).chunk(t=4)
    arguments = {"inputs": "x", "targets": "x", "along": "t", "groups": "g"}
    for window, wanted in (((1, 2), [7.0, 7.0]), ((-2, -1), [4.0, 4.0])):
        examples = dbdask.Examples(data, window={"t": window}, **arguments).for_loss("squared", 1)
        found = fed(examples, 4)
        assert found[7 if window[0] > 0 else 4].tolist() == wanted


@pytest.mark.parametrize("blocks", [(0, 5, 7), (5, 0, 0, 7), (5, 7, 0), (0, 4, 0, 8, 0)])
@pytest.mark.parametrize("edges", ["repeat", "drop"])
def test_blocks_of_length_0_change_nothing(blocks, edges):
    data = xr.Dataset({"x": ("t", np.arange(12.0)), "g": ("t", np.repeat([7, 8, 9], 4))})
    found = []
    for given in (data, data.chunk(t=blocks)):
        examples = dbdask.Examples(
            given, inputs="x", targets="x", along="t", window={"t": 3}, groups="g", edges=edges
        )
        found.append(fed(examples.for_loss("squared", 1), 4))
    assert data.chunk(t=blocks).chunks["t"] == blocks and found[0]
    np.testing.assert_equal(found[1], found[0])
