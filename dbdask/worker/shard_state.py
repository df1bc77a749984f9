"""The state of a parameter shard: all that a new shard needs to take its place."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dbdask.schedule.ledger import Ledger
from dbdask.worker.commands import Answers


@dataclass
class Contributions:
    """The gradient of one pass: the sum over the bundles that have arrived."""

    total: np.ndarray  # float64
    evaluation: int = -1  # of the pass that is open, if one is
    admitted: set[int] = field(default_factory=set)  # bundles
    change: np.ndarray | None = None
    """By how much the last pass changed the buffers, until its point is accepted."""

    def copy(self) -> "Contributions":
        """Return contributions that change independently of these."""
        change = None if self.change is None else self.change.copy()
        return Contributions(self.total.copy(), self.evaluation, set(self.admitted), change)


@dataclass
class ShardState:
    """The whole state of a shard. A shard that is made from it answers as the first one would."""

    vectors: dict[str, np.ndarray]
    """The parameters, the optimiser's slots, and the best parameters: of one length."""
    applied: int
    """Updates so far; those that a loss took from this shard alone are counted."""
    ledger: Ledger
    """The pushes that were applied, so that a repeat is recognised."""
    copies: "dict[int, ShardState]" = field(default_factory=dict)
    """Snapshot copies, by number; nothing changes them."""
    answers: Answers = field(default_factory=Answers)
    """Answers to the last commands, for a repeat."""
    contributions: Contributions | None = None
    """The gradient of the open pass, of a batch method."""

    def copy(self, names: Sequence[str] | None = None) -> "ShardState":
        """Return a state with copies of all vectors, or of those in `names`.

        It has no snapshot copies, no answers, and no open pass.
        """
        return ShardState(
            {n: v.copy() for n, v in self.vectors.items() if names is None or n in names},
            self.applied,
            self.ledger.copy(),
        )

    def everything(self) -> "ShardState":
        """Return a copy with snapshot copies, remembered answers and the open pass.

        The snapshot copies are shared, because nothing writes into them.
        """
        state = self.copy()
        state.copies, state.answers = dict(self.copies), self.answers.copy()
        if self.contributions is not None:
            state.contributions = self.contributions.copy()
        return state
