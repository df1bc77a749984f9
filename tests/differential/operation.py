"""An operation of xarray: its name, what it says in a reproduction, and the step itself."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

Step = Callable[[xr.Dataset], xr.Dataset]
Drawn = tuple[str, Step] | None
Random = np.random.Generator


@dataclass(frozen=True)
class Operation:
    """One step, its name, and what it says in a reproduction."""

    name: str
    text: str
    step: Step
