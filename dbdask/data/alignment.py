"""Alignment: positions of two arrays are matched by their labels."""

import pandas as pd

from dbdask.arrays import BoolArray


def first_difference(labels: pd.Index, others: pd.Index) -> int | None:
    """Return the first position whose labels differ; None if all are equal.

    Examples
    --------
    >>> first_difference(pd.Index([0.0, 1.5, None]), pd.Index([0.0, 1.5, None]))
    >>> first_difference(pd.Index([0, 1, 2]), pd.Index([0, 2, 1]))
    1
    """
    if labels.equals(others):
        return None
    pairs = zip(labels.astype(object), others.astype(object), strict=True)
    return next((place for place, (one, other) in enumerate(pairs) if not _same(one, other)), None)


def _same(label: object, other: object) -> bool:
    if _is_missing(label) or _is_missing(other):
        return _is_missing(label) and _is_missing(other)
    return bool(label == other)


def _is_missing(label: object) -> bool:
    return bool(pd.api.types.is_scalar(label) and pd.isna(label))


def same_labels(labels: pd.Index, others: pd.Index) -> bool:
    """Return whether two dimensions have the same labels in the same order."""
    return len(labels) == len(others) and first_difference(labels, others) is None


def put_in_place(values: BoolArray, axis: int, own: pd.Index, labels: pd.Index) -> BoolArray:
    """Return booleans at `labels`, along an axis whose labels are `own`.

    `values` is boolean, of any shape with an axis for `own`; the result has one for `labels` there.
    A label that the axis lacks gives False.

    Examples
    --------
    >>> import numpy as np
    >>> put_in_place(np.array([True, False]), 0, pd.Index([7, 3]), pd.Index([3, 5, 7]))
    array([False, False,  True])
    """
    found = own.get_indexer(labels)
    shape = [1] * values.ndim
    shape[axis] = -1
    moved: BoolArray = values.take(found, axis=axis) & (found >= 0).reshape(shape)
    return moved
