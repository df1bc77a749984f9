"""Weights: one number for each example, or one for each element of its targets."""

import numpy as np

from dbdask.arrays import BoolArray, Float32Array
from dbdask.data.recipe import Recipe


def weights_of(recipe: Recipe, stored: np.ndarray) -> Float32Array:
    """Return the weights of examples: float32, (examples,) or (examples, *target_shape).

    A missing weight is 0.

    Parameters
    ----------
    stored
        The stored weights that were gathered: (examples, 1, features).
    """
    variable, dims = recipe.weights, recipe.feature_dims[-1]
    assert variable is not None
    values, missing = variable.decode(stored[:, 0])
    weights = values.astype(np.float32)
    if missing is not None:
        weights = np.where(missing, np.float32(0), weights)
    if not dims:
        return weights[:, 0]
    assert recipe.targets is not None
    sizes = [variable.sizes[dim] for dim in dims]
    spread: Float32Array = recipe.targets.spread(weights.reshape(-1, *sizes), dims)
    return spread


def masked(weights: Float32Array | None, gap: BoolArray | None) -> Float32Array | None:
    """Return weights that are 0 for missing target elements: float32 (examples, *target_shape).

    `gap` is boolean, of that shape; without gaps the weights stay as they are.
    """
    if gap is None or not gap.any():
        return weights
    present = (~gap).astype(np.float32)
    if weights is None:
        return present
    return present * weights.reshape(weights.shape + (1,) * (present.ndim - weights.ndim))
