"""The magnitudes of the values of a first block, before they are rounded to float32."""

import numpy as np

from dbdask.arrays import Float64Array
from dbdask.data.gathering import Block
from dbdask.data.recipe import Recipe
from dbdask.data.sources import Variable
from dbdask.metrics.magnitudes import Magnitude

MOST_VALUES = 2**16
"""Values of each variable that are measured, which takes a millisecond."""


def first_look(recipe: Recipe, block: Block) -> tuple[Magnitude, ...]:
    """Return the magnitudes of the variables that training sees without standardisation."""
    feature_sets = [("inputs", recipe.inputs)]
    if recipe.targets is not None and recipe.classes is None:
        feature_sets.append(("targets", recipe.targets))
    found, parts = [], iter(block.parts)
    for role, features in feature_sets:
        for number, (variable, part) in enumerate(zip(features.variables, parts, strict=False)):
            if not features.is_scaled(number) and features.category(number) is None:
                found.append(Magnitude.of(role, variable.name, _sample(variable, part.values)))
    return tuple(found)


def _sample(variable: Variable, stored: np.ndarray) -> Float64Array:
    """Return some decoded values from all over the block: float64, without missing ones."""
    rows = max(1, MOST_VALUES // max(1, stored.shape[1]))
    stored = stored[:: max(1, len(stored) // rows)]
    decoded, missing = variable.decode(stored)
    values = decoded.astype(np.float64)
    if stored.dtype == np.float64 and decoded.dtype == np.float32:
        # If decoding only rounds, the stored values are measured.
        with np.errstate(over="ignore"):
            same = np.array_equal(decoded, stored.astype(np.float32), equal_nan=True)
        values = stored if same else values
    return values if missing is None else values[~missing]
