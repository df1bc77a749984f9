"""The history of a run: its records, which become an xarray Dataset."""

import base64
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import xarray as xr

from dbdask.arrays import Float64Array
from dbdask.json_types import JsonObject
from dbdask.metrics.call_time import CallSeconds
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
REPLICAS = (
    "seconds_exchanging",
    "seconds_reading",
    "seconds_computing",
    "seconds_fetching",
    "seconds_pushing",
    "seconds_waiting",
)
OPTIONAL = ("validation_loss", "validation_accuracy", "validation_rmse", "shard_copies")
COUNTS = ("epoch", "step", "examples", "lost", "repeated", "rolled_back", "dropped", "refused")
BY_PART = "seconds_exchanging_by_part"

PACK = 1024
"""Records that a checkpoint keeps packed together."""


@dataclass(frozen=True)
class Record:
    """The state of a run at one moment; a callback gets each record.

    Numbers that do not apply are NaN. The seconds by activity (`seconds_reading` to
    `seconds_waiting`) leave out the set-up before a replica's first minibatch, which attributes of
    the history have (`History.to_dataset`).
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
    """Copies of the shard that has the fewest, if `shard_copies` is above 1."""
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
    seconds_exchanging_by_part: tuple[float, ...] = ()
    """The same by part, added over replicas: the slowest part has the fewest. A run that is resumed
    with another number of parts counts anew. Empty if replicas have no parts."""
    seconds_waiting: float = math.nan
    """All other seconds of replicas, so far: the scheduler between portions, and rests. In
    Sandblaster without a bundle, while a pass is under way."""
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


NAMES = tuple(field.name for field in fields(Record) if field.name != BY_PART)
"""The fields that are one number."""


class History:
    """The records of a run, in order, the examples that it left out, and the time of its call."""

    def __init__(self, records: list[Record] | None = None) -> None:
        self.records = list(records or [])
        self.left_out = LeftOut()
        self._packed: list[JsonObject] = []  # of the first records: they never change
        self.first_loss = math.nan  # of the first minibatch, if it is known
        self.ends_refused = False  # whether the last gradients were refused as not finite
        self.call: CallSeconds | None = None  # set when the call has ended

    def append(self, record: Record) -> None:
        """Add a record."""
        self.records.append(record)

    def __len__(self) -> int:
        return len(self.records)

    def column(self, name: str) -> np.ndarray:
        """Return one number of every record: (records,), int64 for counts, else float64."""
        values = [getattr(record, name) for record in self.records]
        return np.array(values, dtype=np.int64 if name in COUNTS else np.float64)

    def to_dataset(self) -> xr.Dataset:
        """Return a Dataset over `record`; fields that never applied are left out.

        Attributes have the seconds of the call that ended with the last record:
        `seconds_starting`, `seconds_training` and `seconds_ending`, whose sum is the time of the
        whole call, and the stages of the start and of the end by name (`CallSeconds` explains
        them). A call that resumes a checkpoint has its own; `first_record` is its first record.
        """
        keep = [name for name in NAMES if name not in COORDINATES and self._applies(name)]
        variables: dict[str, Any] = {name: ("record", self.column(name)) for name in keep}
        if any(record.seconds_exchanging_by_part for record in self.records):
            variables[BY_PART] = (("record", "part"), _by_part(self.records))
        return xr.Dataset(
            variables,
            coords={name: ("record", self.column(name)) for name in COORDINATES},
            attrs=self.call.attributes() if self.call is not None else None,
        )

    def _applies(self, name: str) -> bool:
        if name not in SANDBLASTER + REPLICAS + OPTIONAL:
            return True
        return bool(np.isfinite(self.column(name)).any()) if self.records else False

    def to_json(self) -> dict[str, Any]:
        """Return columns with None for NaN, which a checkpoint keeps.

        All but the last records are packed once, so that a long history is neither converted again
        for each snapshot nor written out digit by digit.
        """
        while len(self.records) - PACK * len(self._packed) > PACK:
            start = PACK * len(self._packed)
            self._packed.append(_pack(self.records[start : start + PACK]))
        rest = self.records[PACK * len(self._packed) :]
        found: dict[str, Any] = {name: [_as_json(getattr(r, name)) for r in rest] for name in NAMES}
        if any(record.seconds_exchanging_by_part for record in rest):
            found[BY_PART] = [list(record.seconds_exchanging_by_part) for record in rest]
        if self._packed:
            found["packed"] = list(self._packed)
        if self.call is not None:
            found["call"] = self.call.to_json()
        return found

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "History":
        """Rebuild a history from `to_json()`, also of an older version."""
        records = [record for block in found.get("packed", ()) for record in _unpack(block)]
        rows: Callable[..., Any] = zip
        known = [name for name in (*NAMES, BY_PART) if name in found]
        table = rows(*(found[name] for name in known), strict=True)
        rest = [Record(**_from_json(dict(zip(known, row, strict=True)))) for row in table]
        history = cls([*records, *rest])
        if "call" in found:
            history.call = CallSeconds.from_json(found["call"])
        return history


def _by_part(records: Sequence[Record]) -> Float64Array:
    """Return the seconds by part: float64 (records, parts), NaN where a record has none."""
    rows = [record.seconds_exchanging_by_part for record in records]
    found = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, seconds in zip(found, rows, strict=True):
        row[: len(seconds)] = seconds
    return found


def _pack(records: list[Record]) -> JsonObject:
    """Return records as text: each column as 64-bit numbers, and whole ones as differences."""
    by_name = {name: np.array([getattr(record, name) for record in records]) for name in NAMES}
    by_name |= {f"{BY_PART} {part}": one for part, one in enumerate(_by_part(records).T)}
    kinds = ["i" if column.dtype.kind in "iub" else "f" for column in by_name.values()]
    numbers = [
        np.diff(column.astype("<i8"), prepend=0) if kind == "i" else _known(column)
        for column, kind in zip(by_name.values(), kinds, strict=True)
    ]
    # All first bytes, then all second bytes, and so on: equal bytes are neighbours.
    raw = np.stack([column.view(np.uint8).reshape(-1, 8).T for column in numbers])
    data = base64.b85encode(zlib.compress(raw.tobytes(), 1)).decode()
    return {"names": list(by_name), "kinds": "".join(kinds), "data": data}


def _known(column: np.ndarray) -> Float64Array:
    return np.where(np.isfinite(column), column, np.nan).astype("<f8")


def _unpack(block: JsonObject) -> list[Record]:
    names, kinds = block["names"], block["kinds"]
    raw = np.frombuffer(zlib.decompress(base64.b85decode(block["data"])), np.uint8)
    table = np.ascontiguousarray(raw.reshape(len(names), 8, -1).transpose(0, 2, 1))
    columns = {
        name: np.cumsum(one.view("<i8")).tolist() if kind == "i" else one.view("<f8")[:, 0].tolist()
        for name, kind, one in zip(names, kinds, table, strict=True)
    }
    rows: Callable[..., Any] = zip
    parts = [columns[name] for name in names if name.startswith(f"{BY_PART} ")]
    by_part = list(rows(*parts, strict=True)) or [()] * table.shape[1]
    known = [name for name in names if name in NAMES]
    values = rows(*(columns[name] for name in known), by_part, strict=True)
    return [Record(**_from_json(dict(zip((*known, BY_PART), row, strict=True)))) for row in values]


def _as_json(value: float) -> float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(row: JsonObject) -> JsonObject:
    """Return the fields of a record: NaN for None, and the seconds of those parts that have any."""
    found = {name: math.nan if value is None else value for name, value in row.items()}
    by_part: Iterable[float] = row.get(BY_PART, ())
    return found | {BY_PART: tuple(value for value in by_part if not math.isnan(value))}
