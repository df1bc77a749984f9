"""Reading a box of a Zarr array with no more memory than it needs."""

from __future__ import annotations

import numpy as np
import zarr


def read_array(array: zarr.Array, index: tuple[slice, ...]) -> np.ndarray:
    """Return the stored values in the box."""
    return np.asarray(array[index] if index else array[()])
