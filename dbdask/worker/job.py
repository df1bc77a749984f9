"""The parts of a run that its tasks need, for every method."""

from typing import Protocol

import numpy as np

from dbdask.data.examples import Examples
from dbdask.models.cut import Cut
from dbdask.models.model import Model


class Job(Protocol):
    """The parts of a run that every task needs."""

    @property
    def model(self) -> Model: ...

    @property
    def train(self) -> Examples: ...

    @property
    def validation(self) -> Examples | None: ...

    @property
    def deviation(self) -> np.ndarray | float:
        """One unit of each scaled target, in its own units: float64 (targets,); else 1.0."""

    @property
    def batch_size(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def cut(self) -> Cut | None:
        """How the model is cut into parts; None if it is not."""
