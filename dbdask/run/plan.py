"""The plan of a run: all that is settled before the first task, for any method."""

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dbdask.data.block_provider import BlockProvider
from dbdask.metrics.magnitudes import Magnitude
from dbdask.models.partition import Partition
from dbdask.run.ownership import Ownership
from dbdask.schedule.portions import Cut
from dbdask.storage.checkpoint import Snapshot
from dbdask.worker.initial import FromStored

SavedState = dict[str, Any]
"""The content of a snapshot besides vectors: anything that JSON can hold, by name."""


def _unknown_loss(_magnitudes: Sequence[Magnitude]) -> float:
    return math.inf


def _new_name() -> str:
    return uuid.uuid4().hex[:12]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The arguments of one run, checked and made whole. A method keeps its own numbers itself."""

    job: bytes
    """The job of the run's tasks, pickled."""
    model: bytes
    """The model, pickled: shards ask it for the first parameters."""
    size: int
    """Elements of the flat vector."""
    trained: tuple[tuple[int, int], ...]
    """Ranges of the flat vector that updates may change; the rest are buffers."""
    buffers: tuple[tuple[int, int], ...] = ()
    """Ranges of buffers that training changes, as the model says."""
    provider: BlockProvider
    """Brings workers the examples that they cannot read themselves."""
    seed: int
    settings: SavedState
    """The settings that a checkpoint keeps, and compares when a run resumes."""
    run: str = field(default_factory=_new_name)
    """Identity of the run, part of every key and every snapshot."""
    start: np.ndarray | FromStored | None = None
    """First parameters, float32, (size,), in the shards' order, or where the shards find them; None
    asks the model."""
    validation_provider: BlockProvider | None = None
    validation_cut: Cut | None = None
    """Portions of the validation examples; None if there are none."""
    validate_steps: int | None = None
    validate_seconds: float | None = None
    keep: str = "last"
    target_loss: float | None = None
    """A validation loss of at most this stops the run."""
    replicas: int | None = None
    shards: int | None = None
    partition: Partition | None = None
    """How replicas are cut over workers; None if they are not."""
    can_be_cut: bool = False
    """Whether a replica could be cut over one worker more."""
    shard_copies: int = 1
    workers: tuple[str, ...] | None = None
    shard_workers: tuple[str, ...] | None = None
    path: str | None = None
    """The checkpoint."""
    last: Snapshot | None = None
    """The committed snapshot that the run goes on from."""
    ownership: Ownership | None = None
    """The run's hold of the checkpoint; None if no other run can want it."""
    blind_loss: Callable[[Sequence[Magnitude]], float] = _unknown_loss
    """About the loss of a model that ignores its inputs, by the magnitudes of the data; infinite if
    no loss shows that the run has diverged."""
    snapshot_seconds: float = 30.0

    @property
    def partitions(self) -> int:
        """Parts of a replica, each on a worker of its own."""
        return 1 if self.partition is None else self.partition.parts

    @property
    def replica_size(self) -> int:
        """Elements of the largest part of a replica."""
        return self.size if self.partition is None else self.partition.largest

    def in_order_of_model(self, vector: np.ndarray) -> np.ndarray:
        """Return a vector of the shards, float32 (size,), in the order of the model's layout."""
        return vector if self.partition is None else self.partition.to_whole(vector)

    @property
    def name(self) -> str:
        """The name of the model in errors."""
        return f"model of {self.size:,} parameters"
