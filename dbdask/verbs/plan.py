"""What a verb settles before the first task, whichever method trains."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dbdask.data.supply import Supply
from dbdask.numbers.checkpoint import Snapshot
from dbdask.numbers.portions import Cut


@dataclass(frozen=True)
class Plan:
    """The arguments of one run, checked and made whole. A method keeps its own numbers itself."""

    run: str
    """Identity of the run, part of every key and every snapshot."""
    job: bytes
    """What workers need to train and to validate, pickled."""
    model: bytes
    """The model, pickled: shards ask it for the first parameters."""
    name: str
    """What errors call the model."""
    size: int
    """Elements of the flat vector."""
    trained: tuple[tuple[int, int], ...]
    """Ranges of the flat vector that updates may change; the rest are buffers."""
    seed: int
    start: np.ndarray | None
    """First parameters, float32 of shape (size,); None asks the model."""
    supply: Supply
    validation_supply: Supply | None
    validation_cut: Cut | None
    """Portions of the validation examples; None if there are none."""
    replicas: int | None
    shards: int | None
    shard_copies: int
    workers: tuple[str, ...] | None
    shard_workers: tuple[str, ...] | None
    validate_steps: int | None
    validate_seconds: float | None
    keep: str
    target_loss: float | None
    """A validation loss of at most this stops the run."""
    path: str | None
    """The checkpoint."""
    last: Snapshot | None
    """The committed snapshot that the run goes on from."""
    snapshot_seconds: float
    settings: dict[str, Any]
    """What a checkpoint says of the run that it is of."""
