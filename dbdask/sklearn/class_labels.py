"""Labels of classes as indices, and weights of classes as weights of examples."""

from collections.abc import Mapping
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from dbdask.arrays import Float64Array
from dbdask.sklearn.containers import DuckArray, in_memory


def classes_of(y: DuckArray, client: Client | None) -> np.ndarray:
    """Return the labels that occur in y, sorted: (classes,), of the dtype of y.

    Raises
    ------
    ValueError
        y is not one label for each example, or has fewer than two labels.
    """
    if y.ndim != 1:
        raise ValueError(f"y must have one label for each sample, got shape {y.shape}")
    found = in_memory(da.unique(y), client) if isinstance(y, da.Array) else np.unique(y)
    check_classification_targets(found)
    if len(found) < 2:
        raise ValueError(f"y must have at least two classes, got one class, {found.tolist()}")
    return found


def encode(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return class indices, int64 of the shape of `labels`; `classes` are sorted.

    Raises
    ------
    ValueError
        A label is of no class.

    Examples
    --------
    >>> encode(np.array(["no", "yes", "no"]), np.array(["no", "yes"]))
    array([0, 1, 0])
    """
    places = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    strange = classes[places] != labels
    if strange.any():
        unknown = np.unique(labels[strange])[:5].tolist()
        raise ValueError(f"y has the labels {unknown}, the classes are {classes.tolist()}")
    return places.astype(np.int64)


def encoded(y: DuckArray, classes: np.ndarray) -> DuckArray:
    """Return the class indices of y, int64 (samples,), lazily if y is lazy."""
    if isinstance(y, da.Array):
        indices: da.Array = da.map_blocks(encode, y, classes, dtype=np.int64)
        return indices
    return encode(y, classes)


def decoded(indices: DuckArray, classes: np.ndarray) -> DuckArray:
    """Return the labels of class indices, int64 (samples,), lazily if these are lazy."""
    if isinstance(indices, da.Array):
        labels: da.Array = da.map_blocks(_take, indices, classes, dtype=classes.dtype)
        return labels
    return _take(indices, classes)


def weighted(
    weights: DuckArray | None,
    class_weight: Mapping[Any, float] | str | None,
    indices: DuckArray,
    classes: np.ndarray,
    client: Client | None,
) -> DuckArray | None:
    """Return the weights of the examples times those of their classes: float (samples,), or None.

    Parameters
    ----------
    weights
        Float (samples,), or None.
    class_weight
        A weight for each label, "balanced" (samples / (classes * samples of the class)), or None.
    indices
        Class indices, int64 (samples,).
    """
    if class_weight is None:
        return weights
    table = _class_weights(class_weight, indices, classes, client)
    if isinstance(indices, da.Array):
        by_class: DuckArray = da.map_blocks(_take, indices, table, dtype=np.float64)
    else:
        by_class = table[indices]
    return by_class if weights is None else weights * by_class


def _class_weights(
    class_weight: Mapping[Any, float] | str,
    indices: DuckArray,
    classes: np.ndarray,
    client: Client | None,
) -> Float64Array:
    """Return the weight of each class: (classes,)."""
    if not isinstance(class_weight, str):
        return np.asarray(compute_class_weight(dict(class_weight), classes=classes, y=classes))
    if class_weight != "balanced":
        raise ValueError(
            f"class_weight must be a mapping, 'balanced' or None, got {class_weight!r}"
        )
    if isinstance(indices, da.Array):
        counts = in_memory(da.bincount(indices, minlength=len(classes)), client)
    else:
        counts = np.bincount(indices, minlength=len(classes))
    return counts.sum() / (len(classes) * np.maximum(counts, 1))


def _take(indices: np.ndarray, table: np.ndarray) -> np.ndarray:
    return table[np.asarray(indices, np.int64)]
