"""Where the time of a run goes: seconds by activity, as replicas count them and as they add up."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from time import perf_counter

import numpy as np
import xarray as xr

from dbdask.arrays import Float64Array
from dbdask.metrics.call_time import CallSeconds


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
    """Everything else: the scheduler between two tasks, rests of the run."""
    setting_up: float = 0.0
    """From the beginning of a replica's first task until it begins with a minibatch: its worker
    opens the model. It is no activity: `CallSeconds` has it."""

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

    def set_up_since(self, began: float) -> None:
        """Count all that has passed since `began`, by `perf_counter`, as set-up.

        Waiting for peers is no exchange yet: they set themselves up.
        """
        for name in ACTIVITIES:
            setattr(self, name, 0.0)
        self.setting_up = perf_counter() - began

    def wait_since(self, began: float) -> None:
        """Count as waiting what has passed since `began`, by `perf_counter`, and nothing else."""
        self.waiting = 0.0
        self.waiting = max(0.0, perf_counter() - began - self.setting_up - self.total)

    @property
    def total(self) -> float:
        """Seconds of all activities."""
        return math.fsum(getattr(self, name) for name in ACTIVITIES)

    def add(self, other: "Spent") -> None:
        """Add the seconds by activity of another task."""
        for name in ACTIVITIES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def columns(self) -> dict[str, float]:
        """Return the seconds by name of the history's variable; exchanges only if there are any."""
        seconds = {name: getattr(self, name) for name in ACTIVITIES}
        return {f"seconds_{n}": s for n, s in seconds.items() if s or n not in OCCASIONAL}


ACTIVITIES = tuple(field.name for field in fields(Spent) if field.name != "setting_up")
OCCASIONAL = ("exchanging",)
"""Activities that most runs do not have."""


def seconds_by_activity(history: xr.Dataset) -> dict[str, Float64Array]:
    """Return the seconds so far by activity, float64 of shape (records,) each.

    Downpour's add up the time of all replicas. Sandblaster's are parts of the run's own time: that
    of its passes is divided among the activities as the time of its replicas is. The set-up of the
    call that made the history is no part of them. Without any, an empty dictionary.
    """
    replicas = seconds_of_replicas(history)
    return _of_passes(history, replicas) if "seconds_evaluating" in history else replicas


def seconds_of_replicas(history: xr.Dataset) -> dict[str, Float64Array]:
    """Return the seconds so far of all replicas by activity, float64 of shape (records,) each.

    Without any, and for Sandblaster in an older version, an empty dictionary.
    """
    if "seconds_computing" not in history:
        return {}
    names = [name for name in ACTIVITIES if f"seconds_{name}" in history]
    return {name: _filled(history[f"seconds_{name}"].values) for name in names}


def _of_passes(history: xr.Dataset, replicas: dict[str, Float64Array]) -> dict[str, Float64Array]:
    """Return Sandblaster's own seconds; "evaluating" are those of passes that are not divided."""
    known = np.isfinite(history["seconds_evaluating"].values)  # not where a validation has ended
    evaluating, commanding = (
        _filled(history[f"seconds_{name}"].values) for name in ("evaluating", "commanding")
    )
    other = history["seconds"].values - evaluating - commanding
    call = CallSeconds.from_attributes(history.attrs)
    if call is not None:
        is_of_call = np.arange(len(other)) >= call.first_record
        other = other - is_of_call * (call.workers + call.shards)
        evaluating = evaluating - is_of_call * call.first_task
    passes = np.maximum(0.0, np.diff(evaluating, prepend=0.0))
    rest = {"commanding": commanding, "other": _filled(np.where(known, other, 0.0))}
    return _divided(passes, replicas, history) | rest


def _divided(
    passes: Float64Array, replicas: dict[str, Float64Array], history: xr.Dataset
) -> dict[str, Float64Array]:
    """Divide the seconds of passes, (records,), in the ratio of what replicas spent meanwhile."""
    if not replicas:
        return {"evaluating": np.cumsum(passes)}
    spent = {name: np.diff(seconds, prepend=0.0) for name, seconds in replicas.items()}
    total = np.sum(list(spent.values()), axis=0)
    is_divided = (total > 0) & np.isfinite(history["seconds_computing"].values)
    share = np.divide(passes, total, out=np.zeros(len(passes)), where=is_divided)
    parts = {name: np.cumsum(seconds * share) for name, seconds in spent.items()}
    undivided = np.cumsum(np.where(is_divided, 0.0, passes))
    return parts | ({"evaluating": undivided} if undivided.any() else {})


def _filled(values: Float64Array) -> Float64Array:
    """Carry the last known number on where a record has none."""
    known = np.where(np.isfinite(values), values, 0.0)
    return np.maximum.accumulate(known)
