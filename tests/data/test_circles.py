"""Boxes that cross the seam of a circle are read in order, from as few boxes as hold them."""

import numpy as np
import pytest

from dbdask.data.circles import arcs, read_box, stored_boxes


@pytest.mark.parametrize("seed", range(200))
def test_a_box_on_circles_has_the_values_that_numpy_takes(seed):
    rng = np.random.default_rng(seed)
    dims = ("lat", "k", "lon")
    sizes = dict(zip(dims, rng.integers(1, 7, 3).tolist(), strict=True))
    array = rng.normal(size=list(sizes.values()))
    starts = {dim: int(rng.integers(1 - sizes[dim], sizes[dim])) for dim in ("lon", "lat")}
    box = {dim: slice(at, at + int(rng.integers(1, 3 * sizes[dim]))) for dim, at in starts.items()}
    read = []

    def from_store(stored):
        read.append(stored)
        assert all(0 <= cut.start < cut.stop <= sizes[dim] for dim, cut in stored.items())
        return array[tuple(stored.get(dim, slice(None)) for dim in dims)]

    found = read_box(from_store, box, dims, sizes)
    wanted = array
    for axis, dim in enumerate(dims):
        if dim in box:
            positions = np.arange(box[dim].start, box[dim].stop) % sizes[dim]
            wanted = wanted.take(positions, axis=axis)
    assert np.array_equal(found, wanted)
    as_text = [str(sorted(one.items(), key=str)) for one in read]
    assert sorted(as_text) == sorted(
        str(sorted(one.items(), key=str)) for one in stored_boxes(box, sizes)
    )
    assert len(set(as_text)) == len(as_text) <= 4


@pytest.mark.parametrize("size", [1, 2, 5])
def test_arcs_hold_each_position_once(size):
    for start in range(-size, size):
        for length in range(1, 2 * size + 1):
            held = [
                at
                for arc in arcs(slice(start, start + length), size)
                for at in range(arc.start, arc.stop)
            ]
            wanted = {at % size for at in range(start, start + length)}
            assert len(held) == len(set(held)) and set(held) == wanted
