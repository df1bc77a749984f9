"""Types of arrays whose dtype is known; `np.ndarray` alone means that it depends on the data.

The shape of each is in the docstring of the function that takes or returns it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
"""Parameters, gradients, and what a model is shown."""

Float64Array = npt.NDArray[np.float64]
"""Sums and products, which are formed in double precision."""

FloatArray = npt.NDArray[np.floating[Any]]
"""Numbers in the float dtype that the caller has chosen."""

Int64Array = npt.NDArray[np.int64]
"""Positions, places and counts."""

BoolArray = npt.NDArray[np.bool_]
"""Truth values: masks and choices."""
