"""When a run is recovered no more, and what its error says."""

from typing import Any

from dbdask.errors import ShardLost

MOST_RECOVERIES = 3  # without a step between them, or back to where the run was already


class RunLost(ShardLost):
    """The run cannot go on: this trouble is the verb's answer, and no further recovery's."""


class Returns:
    """How often in a row a run went back to a snapshot, and came no further than before.

    Steps made since do not count: where the same place costs the shards each time, they are made
    over and over again.
    """

    def __init__(self) -> None:
        self.in_vain = 0
        self._furthest = (-1, -1)  # snapshot, steps

    def note(self, snapshot: int, steps: int) -> None:
        """Note that the run goes back from so many steps to that snapshot."""
        here = snapshot, steps
        self.in_vain = self.in_vain + 1 if here <= self._furthest else 0
        self._furthest = max(here, self._furthest)


def lost_with(run: Any) -> str:
    """What an error of a lost run adds: work that failed more than once, and where it stands."""
    suspicion = run.workforce.failures.suspicion
    return (f"{suspicion}; " if suspicion else "") + str(run.where_it_stands())
