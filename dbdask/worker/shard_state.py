"""The state of a parameter shard: all that a new shard needs to take its place."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dbdask.schedule.ledger import Ledger
from dbdask.worker.commands import Answers


@dataclass
class Contributions:
    """The gradient of one pass, as far as bundles have come in."""

    total: np.ndarray  # float64
    evaluation: int = -1  # of the pass that is open, if one is
    admitted: set[int] = field(default_factory=set)  # bundles

    def copy(self) -> "Contributions":
        """Return contributions that go their own way from here."""
        return Contributions(self.total.copy(), self.evaluation, set(self.admitted))


@dataclass
class ShardState:
    """All that moves with a shard, so that a shard made from it answers as the first one would."""

    vectors: dict[str, np.ndarray]
    """The parameters, the optimiser's slots, and the best parameters: of one length."""
    applied: int
    """Updates so far; those that a loss took from this shard alone are counted."""
    ledger: Ledger
    """What was applied, so that a repeat is known."""
    copies: "dict[int, ShardState]" = field(default_factory=dict)
    """Snapshot copies, by number; nothing changes them."""
    answers: Answers = field(default_factory=Answers)
    """Answers to the last commands, for a repeat."""
    contributions: Contributions | None = None
    """What the open pass of a batch method has added up."""

    def copy(self, names: Sequence[str] | None = None) -> "ShardState":
        """Return a state that shares no vector with this one, of some vectors or of all.

        Snapshot copies are shared: nothing writes into them.
        """
        return ShardState(
            {n: v.copy() for n, v in self.vectors.items() if names is None or n in names},
            self.applied,
            self.ledger.copy(),
        )

    def everything(self) -> "ShardState":
        """Return a copy with snapshot copies, remembered answers and the open pass."""
        state = self.copy()
        state.copies, state.answers = dict(self.copies), self.answers.copy()
        if self.contributions is not None:
            state.contributions = self.contributions.copy()
        return state
