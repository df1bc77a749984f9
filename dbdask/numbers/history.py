"""The history of a run: one record after another, as an xarray Dataset in the end."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import xarray as xr

from dbdask.numbers.left_out import LeftOut

COORDINATES = ("seconds", "epoch", "step", "examples")
SANDBLASTER = (
    "iteration",
    "step_length",
    "evaluations",
    "bundles",
    "backups_launched",
    "backups_won",
    "seconds_evaluating",
    "seconds_commanding",
)
OPTIONAL = ("validation_loss", "validation_accuracy", "validation_rmse", "shard_copies")
COUNTS = ("epoch", "step", "examples", "lost", "repeated", "rolled_back", "dropped", "refused")


@dataclass(frozen=True)
class Record:
    """What is known of a run at one moment; a callback gets each one.

    Numbers that do not apply are NaN.
    """

    seconds: float
    """Seconds of training so far, those before a resume included."""
    epoch: int
    """The epoch, from 0."""
    step: int
    """Minibatches so far; in Sandblaster iterations. A run that goes back to a snapshot as a whole
    counts on from there, as with the other totals of its work."""
    examples: int
    """Examples so far."""
    loss: float = math.nan
    """The objective over what was trained since the record before."""
    validation_loss: float = math.nan
    """Mean loss on the validation examples."""
    validation_accuracy: float = math.nan
    """Share of the validation examples whose largest output is the label."""
    validation_rmse: float = math.nan
    """Root mean squared error on the validation examples, in the target's own units."""
    gradient_norm: float = math.nan
    """Root mean square of the minibatches' gradient norms; in Sandblaster the gradient's norm."""
    replicas: int = 0
    """Model replicas that trained."""
    staleness_median: float = math.nan
    """Updates between a fetch and its push."""
    staleness_max: float = math.nan
    """The most updates between a fetch and its push."""
    lost: int = 0
    """Shards, and copies of shards, lost with their workers so far."""
    repeated: int = 0
    """Pushes that a shard had already, so far: of steps, or of bundles."""
    rolled_back: int = 0
    """Updates that shards lost with their workers, so far: counted once for each such shard. In
    Sandblaster iterations."""
    shard_copies: float = math.nan
    """Copies of the shard that has the fewest, where `shard_copies` is above 1."""
    dropped: int = 0
    """Examples left out so far, in every epoch and pass again: missing, or cut by a group."""
    refused: int = 0
    """Bad gradients refused, so far: of minibatches, in every epoch and pass again."""
    iteration: float = math.nan
    """L-BFGS iterations so far."""
    step_length: float = math.nan
    """Length of the accepted step along the direction."""
    evaluations: float = math.nan
    """Passes over the data so far, those done again after a rollback too."""
    bundles: float = math.nan
    """Bundles done so far."""
    backups_launched: float = math.nan
    """Backup copies of bundles so far."""
    backups_won: float = math.nan
    """Backup copies that ended first, so far."""
    seconds_evaluating: float = math.nan
    """Seconds spent in passes over the data, so far."""
    seconds_commanding: float = math.nan
    """Seconds spent in commands on vectors, so far."""


NAMES = tuple(field.name for field in fields(Record))


class History:
    """The records of a run, in order; and what it left out of the data that it has read."""

    def __init__(self, records: list[Record] | None = None) -> None:
        self.records = list(records or [])
        self.left_out = LeftOut()
        self.first_loss = math.nan  # of the first minibatch, where one is known
        self.ends_refused = False  # whether the last gradients were refused as not finite

    def append(self, record: Record) -> None:
        """Add a record."""
        self.records.append(record)

    def __len__(self) -> int:
        return len(self.records)

    def column(self, name: str) -> np.ndarray:
        """Return one field of every record."""
        values = [getattr(record, name) for record in self.records]
        return np.array(values, dtype=np.int64 if name in COUNTS else np.float64)

    def to_dataset(self) -> xr.Dataset:
        """Return a Dataset over `record`; what never applied is left out."""
        keep = [name for name in NAMES if name not in COORDINATES and self._applies(name)]
        return xr.Dataset(
            {name: ("record", self.column(name)) for name in keep},
            coords={name: ("record", self.column(name)) for name in COORDINATES},
        )

    def _applies(self, name: str) -> bool:
        if name not in SANDBLASTER + OPTIONAL:
            return True
        return bool(np.isfinite(self.column(name)).any()) if self.records else False

    def to_json(self) -> dict[str, list[Any]]:
        """Return columns without NaN (None instead): what a checkpoint keeps."""
        return {name: [_as_json(getattr(r, name)) for r in self.records] for name in NAMES}

    @classmethod
    def from_json(cls, columns: dict[str, list[Any]]) -> "History":
        """Rebuild a history from `to_json()`."""
        rows: Callable[..., Any] = zip
        known = [name for name in NAMES if name in columns]
        table = rows(*(columns[name] for name in known), strict=True)
        return cls([Record(**_from_json(dict(zip(known, row, strict=True)))) for row in table])


def _as_json(value: float) -> float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(row: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in row.items()}
