"""The history of a run: its records, which become an xarray Dataset."""

import base64
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import xarray as xr

from dbdask.arrays import Float64Array
from dbdask.json_types import JsonObject
from dbdask.schedule.left_out import LeftOut

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
DOWNPOUR = (
    "seconds_exchanging",
    "seconds_reading",
    "seconds_computing",
    "seconds_fetching",
    "seconds_pushing",
    "seconds_waiting",
)
OPTIONAL = ("validation_loss", "validation_accuracy", "validation_rmse", "shard_copies")
COUNTS = ("epoch", "step", "examples", "lost", "repeated", "rolled_back", "dropped", "refused")

PACK = 1024
"""Records that a checkpoint keeps packed together."""


@dataclass(frozen=True)
class Record:
    """The state of a run at one moment; a callback gets each record.

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
    """The objective over the examples that were trained since the previous record."""
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
    """Repeated pushes that a shard refused because it had them, so far: of steps or bundles."""
    rolled_back: int = 0
    """Updates that shards lost with their workers, so far: counted once for each such shard. In
    Sandblaster iterations."""
    shard_copies: float = math.nan
    """Copies of the shard that has the fewest, where `shard_copies` is above 1."""
    dropped: int = 0
    """Examples left out so far, in every epoch and pass again: missing, or cut by a group."""
    refused: int = 0
    """Gradients refused as not finite, so far: of minibatches, in every epoch and pass again."""
    seconds_reading: float = math.nan
    """Seconds that replicas have waited for minibatches, so far, added over replicas."""
    seconds_computing: float = math.nan
    """Seconds of replicas in losses, gradients and local steps, so far."""
    seconds_fetching: float = math.nan
    """Seconds that replicas have waited for parameters, so far."""
    seconds_pushing: float = math.nan
    """Seconds of replicas in pushes, so far."""
    seconds_exchanging: float = math.nan
    """Seconds that the parts of partitioned replicas have sent to each other and waited for each
    other, so far, added over parts."""
    seconds_waiting: float = math.nan
    """All other seconds of replicas, so far: the scheduler between portions, rests, set-up."""
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
    """The records of a run, in order, and the examples that it left out."""

    def __init__(self, records: list[Record] | None = None) -> None:
        self.records = list(records or [])
        self.left_out = LeftOut()
        self._packed: list[JsonObject] = []  # of the first records: they never change
        self.first_loss = math.nan  # of the first minibatch, if it is known
        self.ends_refused = False  # whether the last gradients were refused as not finite

    def append(self, record: Record) -> None:
        """Add a record."""
        self.records.append(record)

    def __len__(self) -> int:
        return len(self.records)

    def column(self, name: str) -> np.ndarray:
        """Return one field of every record: (records,), int64 for counts, else float64."""
        values = [getattr(record, name) for record in self.records]
        return np.array(values, dtype=np.int64 if name in COUNTS else np.float64)

    def to_dataset(self) -> xr.Dataset:
        """Return a Dataset over `record`; fields that never applied are left out."""
        keep = [name for name in NAMES if name not in COORDINATES and self._applies(name)]
        return xr.Dataset(
            {name: ("record", self.column(name)) for name in keep},
            coords={name: ("record", self.column(name)) for name in COORDINATES},
        )

    def _applies(self, name: str) -> bool:
        if name not in SANDBLASTER + DOWNPOUR + OPTIONAL:
            return True
        return bool(np.isfinite(self.column(name)).any()) if self.records else False

    def to_json(self) -> dict[str, list[Any]]:
        """Return columns with None for NaN, which a checkpoint keeps.

        All but the last records are packed once, so that a long history is neither converted again
        for each snapshot nor written out digit by digit.
        """
        while len(self.records) - PACK * len(self._packed) > PACK:
            start = PACK * len(self._packed)
            self._packed.append(_pack(self.records[start : start + PACK]))
        rest = self.records[PACK * len(self._packed) :]
        columns = {name: [_as_json(getattr(r, name)) for r in rest] for name in NAMES}
        return columns | ({"packed": list(self._packed)} if self._packed else {})

    @classmethod
    def from_json(cls, columns: dict[str, list[Any]]) -> "History":
        """Rebuild a history from `to_json()`."""
        records = [record for block in columns.get("packed", ()) for record in _unpack(block)]
        rows: Callable[..., Any] = zip
        known = [name for name in NAMES if name in columns]
        table = rows(*(columns[name] for name in known), strict=True)
        rest = [Record(**_from_json(dict(zip(known, row, strict=True)))) for row in table]
        return cls([*records, *rest])


def _pack(records: list[Record]) -> JsonObject:
    """Return records as text: each column as 64-bit numbers, and whole ones as differences."""
    columns = [np.array([getattr(record, name) for record in records]) for name in NAMES]
    kinds = ["i" if column.dtype.kind in "iub" else "f" for column in columns]
    numbers = [
        np.diff(column.astype("<i8"), prepend=0) if kind == "i" else _known(column)
        for column, kind in zip(columns, kinds, strict=True)
    ]
    # All first bytes, then all second bytes, and so on: equal bytes are neighbours.
    raw = np.stack([column.view(np.uint8).reshape(-1, 8).T for column in numbers])
    data = base64.b85encode(zlib.compress(raw.tobytes(), 1)).decode()
    return {"names": list(NAMES), "kinds": "".join(kinds), "data": data}


def _known(column: np.ndarray) -> Float64Array:
    return np.where(np.isfinite(column), column, np.nan).astype("<f8")


def _unpack(block: JsonObject) -> list[Record]:
    names, kinds = block["names"], block["kinds"]
    raw = np.frombuffer(zlib.decompress(base64.b85decode(block["data"])), np.uint8)
    table = np.ascontiguousarray(raw.reshape(len(names), 8, -1).transpose(0, 2, 1))
    columns = {
        name: np.cumsum(one.view("<i8")).tolist() if kind == "i" else one.view("<f8")[:, 0].tolist()
        for name, kind, one in zip(names, kinds, table, strict=True)
        if name in NAMES
    }
    rows: Callable[..., Any] = zip
    values = rows(*columns.values(), strict=True)
    return [Record(**dict(zip(columns, row, strict=True))) for row in values]


def _as_json(value: float) -> float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(row: JsonObject) -> JsonObject:
    return {name: math.nan if value is None else value for name, value in row.items()}
