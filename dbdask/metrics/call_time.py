"""The time of one call of `downpour` or `sandblaster`, from its first check to its result."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from time import perf_counter
from typing import Any

STARTING = ("checking", "cluster", "workers", "shards", "first_task")
ENDING = ("concluding", "parameters", "releasing")
STAGES = (*STARTING, "training", *ENDING)
"""The stages of a call, in order. A call that loses shards at its end may train again."""


@dataclass(frozen=True)
class CallSeconds:
    """Seconds of one call by stage. Their sum is the time of the whole call."""

    checking: float = 0.0
    """Checking the arguments, and opening the checkpoint."""
    cluster: float = 0.0
    """Starting a cluster of the call's own, if there was no client."""
    workers: float = 0.0
    """Waiting for workers, and for each to import what it needs and to open the data."""
    shards: float = 0.0
    """Making the shards, with the first parameters and the first snapshot."""
    first_task: float = 0.0
    """From then until the first replica begins with a minibatch: its worker opens the model."""
    training: float = 0.0
    """From then until no work is left, or the call is to stop."""
    concluding: float = 0.0
    """Ending what is under way, and the last validation."""
    parameters: float = 0.0
    """Writing the parameters to the checkpoint, and reading them."""
    releasing: float = 0.0
    """Releasing what the call held on the cluster, or closing its own; judging the result."""
    first_record: int = 0
    """Number of records that earlier calls made, from whose checkpoint this call went on."""

    @property
    def starting(self) -> float:
        """Seconds before the first replica begins with a minibatch."""
        return math.fsum(getattr(self, name) for name in STARTING)

    @property
    def ending(self) -> float:
        """Seconds after the training."""
        return math.fsum(getattr(self, name) for name in ENDING)

    @property
    def total(self) -> float:
        """Seconds of the whole call."""
        return math.fsum(getattr(self, name) for name in STAGES)

    def attributes(self) -> dict[str, float]:
        """Return the attributes of a history.

        Examples
        --------
        >>> found = CallSeconds(checking=0.5, shards=1.5, training=4.0, releasing=0.25).attributes()
        >>> found["seconds_starting"], found["seconds_training"], found["seconds_ending"]
        (2.0, 4.0, 0.25)
        >>> found["seconds_starting_shards"], found["seconds_ending_releasing"]
        (1.5, 0.25)
        """
        sums = {
            f"seconds_{name}": getattr(self, name) for name in ("starting", "training", "ending")
        }
        starting = {f"seconds_starting_{name}": getattr(self, name) for name in STARTING}
        ending = {f"seconds_ending_{name}": getattr(self, name) for name in ENDING}
        return {**sums, **starting, **ending, "first_record": self.first_record}

    @classmethod
    def from_attributes(cls, found: Mapping[Any, Any]) -> "CallSeconds | None":
        """Return the seconds that the attributes of a history hold; None if they hold none."""
        if "seconds_training" not in found:
            return None
        starting = {name: found.get(f"seconds_starting_{name}", 0.0) for name in STARTING}
        ending = {name: found.get(f"seconds_ending_{name}", 0.0) for name in ENDING}
        training, first = found["seconds_training"], int(found.get("first_record", 0))
        return cls(**starting, training=training, **ending, first_record=first)

    def to_json(self) -> dict[str, float]:
        """Return the fields by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "CallSeconds":
        """Rebuild from `to_json()`; a field that is not known is left out."""
        return cls(
            **{field.name: found[field.name] for field in fields(cls) if field.name in found}
        )


class CallClock:
    """Divides the time of one call into stages; it starts with the first one when it is made.

    Every second belongs to one stage. The call enters each stage on one thread at a time.

    Attributes
    ----------
    stage
        The stage under way.
    """

    def __init__(self) -> None:
        self.stage = STAGES[0]
        self._since = perf_counter()  # of the stage under way
        self._trains_since: float | None = None
        self._seconds = dict.fromkeys(STAGES, 0.0)

    def enter(self, stage: str, *, ago: float = 0.0) -> None:
        """Enter a stage, which began `ago` seconds ago, but after the beginning of the last one."""
        now = perf_counter()
        began = max(self._since, now - max(0.0, ago))
        self._seconds[self.stage] += began - self._since
        self.stage, self._since = stage, began

    def note_training(self, seconds: float) -> None:
        """Note that a replica has worked on minibatches for `seconds` until now.

        The first one ends the start of the call.
        """
        if self.stage == "first_task":
            self.enter("training", ago=seconds)
            self._trains_since = self._since

    def train_again(self) -> None:
        """Note that a call that was about to end goes on with its work."""
        if self.stage in ENDING:
            self.enter("first_task" if self._trains_since is None else "training")

    @property
    def trained_for(self) -> float:
        """Seconds since the first replica began with a minibatch; 0.0 before."""
        return 0.0 if self._trains_since is None else perf_counter() - self._trains_since

    def late(self, setting_up: float, lasted: float) -> float:
        """Return how much of a replica's set-up fell into the training.

        Parameters
        ----------
        setting_up
            Seconds of the set-up.
        lasted
            Seconds that the replica has worked since, until now.
        """
        return min(setting_up, max(0.0, self.trained_for - lasted))

    def seconds(self, first_record: int = 0) -> CallSeconds:
        """Return the seconds of all stages until now."""
        spent = self._seconds | {
            self.stage: self._seconds[self.stage] + perf_counter() - self._since
        }
        return CallSeconds(**spent, first_record=first_record)
