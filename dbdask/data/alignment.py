"""Alignment: positions of two arrays are matched by their labels, where both have some."""

import numpy as np
import pandas as pd


def first_difference(labels: np.ndarray, others: np.ndarray) -> int | None:
    """Return the first position whose labels differ; None where all are equal.

    Examples
    --------
    >>> first_difference(np.array([0.0, 1.5, np.nan]), np.array([0.0, 1.5, np.nan]))
    >>> first_difference(np.array([0, 1, 2]), np.array([0, 2, 1]))
    1
    """
    both_missing = (labels != labels) & (others != others)
    differ = np.flatnonzero((labels != others) & ~both_missing)
    return int(differ[0]) if len(differ) else None


def same_labels(labels: np.ndarray, others: np.ndarray) -> bool:
    """Say whether two dimensions have the same labels in the same order."""
    return len(labels) == len(others) and first_difference(labels, others) is None


def put_in_place(values: np.ndarray, axis: int, own: pd.Index, labels: np.ndarray) -> np.ndarray:
    """Return truth values at `labels` along an axis that has its `own`; False where it lacks one.

    Examples
    --------
    >>> put_in_place(np.array([True, False]), 0, pd.Index([7, 3]), np.array([3, 5, 7]))
    array([False, False,  True])
    """
    found = own.get_indexer(pd.Index(labels))
    shape = [1] * values.ndim
    shape[axis] = -1
    return values.take(found, axis=axis) & (found >= 0).reshape(shape)
