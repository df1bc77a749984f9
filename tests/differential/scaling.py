"""Mean and deviation of the positions that are selected, each counted once, in float64."""

from dataclasses import dataclass

import numpy as np

from .oracle import Selected
from .shown import Shown


@dataclass
class Scaling:
    """How a variable is scaled; numbers, or one for each feature.

    Parameters
    ----------
    mean_error
        How far another sum in float64 may be from the mean.
    empty, infinite, doubtful
        Nothing to measure; an infinite value among it; a spread that may be rounding.
    """

    mean: np.ndarray
    deviation: np.ndarray
    mean_error: np.ndarray
    empty: bool
    infinite: bool
    doubtful: bool


def scaling_of(
    shown: Shown,
    along: tuple[str, ...],
    features: tuple[str, ...],
    selected: Selected,
    per: str,
) -> Scaling:
    """Measure what is selected of a variable, its features in the order given."""
    values, missing = _measured(shown, along, features, selected)
    axis = 0 if per == "feature" else None
    with np.errstate(all="ignore"):
        wide = np.where(missing, 0, values).astype(np.float64)
        infinite = bool(np.isinf(wide.astype(np.float32)).any())
        count = (~missing).sum(axis=axis)
        mean = wide.sum(axis=axis) / count
        error = np.where(missing, 0, wide - mean)
        mean = mean + error.sum(axis=axis) / count
        deviation = np.sqrt(np.where(missing, 0, (wide - mean) ** 2).sum(axis=axis) / count)
        low = np.where(missing, np.inf, wide).min(axis=axis, initial=np.inf)
        high = np.where(missing, -np.inf, wide).max(axis=axis, initial=-np.inf)
        largest = np.abs(np.where(missing, 0, wide)).max(axis=axis, initial=0.0)
    constant = low == high
    doubtful = bool((~constant & (deviation < 1e-12 * largest)).any())
    return Scaling(
        mean,
        np.where(constant, 1.0, deviation),
        4e-16 * len(values) * largest,
        bool((count == 0).any()),
        infinite,
        doubtful,
    )


def _measured(
    shown: Shown, along: tuple[str, ...], features: tuple[str, ...], selected: Selected
) -> tuple[np.ndarray, np.ndarray]:
    """Return the selected positions of a variable's own dimensions: (positions, *features)."""
    own = [dim for dim in along if dim in shown.dims]
    order = [shown.dims.index(dim) for dim in (*own, *features)]
    box = np.ix_(*(selected.positions(dim) for dim in along))
    inside = np.zeros(selected.mask.shape, bool)
    inside[box] = selected.mask[box]
    inside = inside.any(axis=tuple(n for n, dim in enumerate(along) if dim not in own))
    return shown.values.transpose(order)[inside], shown.missing.transpose(order)[inside]
