"""Windows over images, and the order of images in memory."""

import re

import numpy as np
import pytest

from dbdask.models.images import (
    BLOCK,
    Windows,
    as_pair,
    blocks,
    check_image,
    examples_first,
    examples_last,
)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 4)])
def test_windows_are_slices_of_the_image(size, stride):
    images = np.random.default_rng(0).normal(size=(9, 8, 2, 3))
    windows = Windows(size, stride)
    view = windows.view(images)
    assert view.shape[:2] == windows.positions((9, 8, 2))
    for row, column in np.ndindex(view.shape[:2]):
        top, left = row * stride[0], column * stride[1]
        expected = images[top : top + size[0], left : left + size[1]]
        np.testing.assert_array_equal(view[row, column], expected)
    assert windows.rows_needed(1, 2) == (stride[0], stride[0] + size[0])
    assert windows.rows_needed(1, 1) == (0, 0)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 4)])
def test_values_of_overlapping_windows_add_up(size, stride):
    windows, images, expected = Windows(size, stride), np.ones((9, 8, 2, 3)), np.ones((9, 8, 2, 3))
    view = windows.view(images)
    values = np.random.default_rng(1).normal(size=view.shape)
    for row, column in np.ndindex(view.shape[:2]):
        top, left = row * stride[0], column * stride[1]
        expected[top : top + size[0], left : left + size[1]] += values[row, column]
    windows.add(values, view)
    np.testing.assert_allclose(images, expected, atol=1e-12)


@pytest.mark.parametrize("size", [0, 1, BLOCK // 7, BLOCK // 2, BLOCK, 3 * BLOCK])
def test_blocks_cover_each_position_once_and_are_small(size):
    seen = np.zeros((6, 5), int)
    for rows, columns in blocks((6, 5), size):
        seen[rows, columns] += 1
        assert seen[rows, columns].size * size <= BLOCK or seen[rows, columns].size == 1
    assert (seen == 1).all()


def test_arrays_change_their_order_without_a_second_copy():
    images = np.random.default_rng(2).normal(size=(4, 3, 5, 2))
    last = examples_last(images)
    assert last.flags.c_contiguous and last.shape == (3, 5, 2, 4)
    np.testing.assert_array_equal(examples_first(last), images)
    assert np.shares_memory(examples_last(examples_first(last)), last)


def test_pairs():
    assert as_pair("size", 3) == as_pair("size", [3, np.int64(3)]) == (3, 3)
    for value, error, message in [
        (0, ValueError, "size must be at least 1, got 0"),
        ((2, 0), ValueError, "size must be at least 1, got 0"),
        (2.5, TypeError, r"size must be a whole number, got 2\.5"),
        (True, TypeError, "size must be a whole number, got True"),
        ((1, 2, 3), TypeError, r"a whole number or a pair \(rows, columns\).*got \(1, 2, 3\)"),
    ]:
        with pytest.raises(error, match=message):
            as_pair("size", value)


def test_what_is_no_image_of_enough_size_is_refused():
    check_image("L2Pool", "size", (4, 5), (4, 5, 1))
    for shape, message in [
        ((28, 28), "(28, 28): an image of one channel has input_shape (28, 28, 1)"),
        ((784,), "L2Pool needs images of (rows, columns, channels), got input_shape (784,)"),
        ((3, 9, 1), "size of L2Pool must be at most the image, 3 x 9, got 4 x 5"),
        ((9, 4, 1), "size of L2Pool must be at most the image, 9 x 4, got 4 x 5"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            check_image("L2Pool", "size", (4, 5), shape)
