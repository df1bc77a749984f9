"""Where the time of a run goes: seconds by activity, their shares, and the bottleneck in words."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from time import perf_counter

import numpy as np
import xarray as xr

from dbdask.arrays import Float64Array


@dataclass
class Spent:
    """Seconds of replicas by activity."""

    reading: float = 0.0
    """Waiting for the next minibatch: reading, decoding, shuffling."""
    computing: float = 0.0
    """Losses, gradients, and steps of a local optimiser."""
    fetching: float = 0.0
    """Waiting for parameters."""
    pushing: float = 0.0
    """Sending gradients and waiting until every shard has applied them."""
    exchanging: float = 0.0
    """Sending to the other parts of a partitioned replica, and waiting for them."""
    waiting: float = 0.0
    """Everything else: the scheduler between two portions, rests of the run, set-up."""

    def __post_init__(self) -> None:
        self._inside = 0.0  # seconds of the blocks nested in the present one

    @contextmanager
    def on(self, activity: str) -> Iterator[None]:
        """Add the time inside the `with` block to an activity, less that of blocks within it."""
        began, before, self._inside = perf_counter(), self._inside, 0.0
        try:
            yield
        finally:
            seconds = perf_counter() - began
            setattr(self, activity, getattr(self, activity) + seconds - self._inside)
            self._inside = before + seconds

    def wait_since(self, began: float) -> None:
        """Count as waiting what has passed since `began`, by `perf_counter`, and nothing else."""
        self.waiting = 0.0
        self.waiting = max(0.0, perf_counter() - began - self.total)

    @property
    def total(self) -> float:
        """Seconds in all."""
        return math.fsum(getattr(self, name) for name in ACTIVITIES)

    def add(self, other: "Spent") -> None:
        """Add the seconds of another portion."""
        for name in ACTIVITIES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def columns(self) -> dict[str, float]:
        """Return the seconds by name of the history's variable; exchanges only if there are any."""
        seconds = {name: getattr(self, name) for name in ACTIVITIES}
        return {f"seconds_{n}": s for n, s in seconds.items() if s or n not in OCCASIONAL}


ACTIVITIES = tuple(field.name for field in fields(Spent))
OCCASIONAL = ("exchanging",)
"""Activities that most runs do not have."""

ADVICE = {
    "reading": "larger chunks along the sample dimension, or a faster store, would help",
    "computing": "more workers, or a larger batch_size on more cores, would help",
    "fetching": "a larger n_fetch would help, or workers on one host",
    "pushing": "a larger n_push would help, or local_optimizer with n_push of some dozens",
    "exchanging": "fewer partitions would help, or a larger batch_size, or workers on one host",
    "waiting": "longer portions would help: more data, or a larger snapshot_every",
    "evaluating": "more workers would help",
    "commanding": "fewer shards, or a smaller history_length, would help",
    "other": "a larger portion_size, or a larger snapshot_every, would help",
}


def seconds_by_activity(history: xr.Dataset) -> dict[str, Float64Array]:
    """Return the seconds so far by activity, float64 of shape (records,) each.

    Downpour's add up the time of all replicas; Sandblaster's are parts of the run's own time.
    Without any, an empty dictionary.
    """
    if "seconds_computing" in history:
        names = [name for name in ACTIVITIES if f"seconds_{name}" in history]
        return {name: _filled(history[f"seconds_{name}"].values) for name in names}
    if "seconds_evaluating" not in history:
        return {}
    parts = {
        name: _filled(history[f"seconds_{name}"].values) for name in ("evaluating", "commanding")
    }
    other = history["seconds"].values - sum(parts.values())
    return parts | {"other": np.maximum(0.0, other)}


def _filled(values: Float64Array) -> Float64Array:
    """Carry the last known number on where a record has none."""
    known = np.where(np.isfinite(values), values, 0.0)
    return np.maximum.accumulate(known)


def bottleneck(history: xr.Dataset) -> str:
    """Return a sentence that names what takes most time, and the argument that changes it.

    "" where the history tells nothing of it.
    """
    seconds = {name: float(values[-1]) for name, values in seconds_by_activity(history).items()}
    total = sum(seconds.values())
    if not total:
        return ""
    most = max(seconds, key=lambda name: seconds[name])
    what = "waiting between portions" if most == "waiting" else most
    return f"{what.capitalize()} takes {seconds[most] / total:.0%} of the time: {ADVICE[most]}."
