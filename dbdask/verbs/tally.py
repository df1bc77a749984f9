"""The tally of a run: totals over portions, and the history's records."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from dbdask.numbers.history import History, Record
from dbdask.verbs.replica import PortionReport


class Tally:
    """Adds up what portions report.

    Parameters
    ----------
    state
        The state of the snapshot that the run goes on from, or None.
    emit
        Takes each new record.
    """

    def __init__(self, state: dict[str, Any] | None, emit: Callable[[Record], None]) -> None:
        self._emit = emit
        self._began = time.monotonic()
        self.last_loss = math.inf
        self.last_refusal = ""
        self.replicas = 0
        self.shard_copies = math.nan
        self.lost = self.repeated = self.rolled_back = self.dropped = self.refused = 0
        self.history = History()
        self.seconds_before = 0.0
        self.steps = self.examples = self.applied = 0
        if state:
            self._restore(state)
        self._steps_at_start = self.steps

    def _restore(self, state: dict[str, Any]) -> None:
        self.steps, self.examples = state["steps"], state["examples"]
        self.applied = state["applied"]
        self.seconds_before = state["seconds"]
        self.history = History.from_json(state["history"])
        for name, value in state["counts"].items():
            setattr(self, name, value)

    def state(self) -> dict[str, Any]:
        """What a snapshot keeps."""
        names = ("lost", "repeated", "rolled_back", "dropped", "refused")
        return {
            "steps": self.steps,
            "examples": self.examples,
            "seconds": self.seconds,
            "counts": {name: getattr(self, name) for name in names},
            "history": self.history.to_json(),
        }

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.seconds_before + time.monotonic() - self._began

    @property
    def steps_since_start(self) -> int:
        """Minibatches since this run began or was resumed."""
        return self.steps - self._steps_at_start

    def go_back(self, state: dict[str, Any]) -> None:
        """The whole run goes back to a snapshot: what came after is done again."""
        self.repeated += max(0, self.applied - state["applied"])
        self.applied = state["applied"]

    def add(self, report: PortionReport, epoch: int, workers: int, replicas: int | None) -> None:
        """Add a portion's report, and make a record of it where it trained."""
        self.note_replicas(workers, replicas)
        self.steps += report.steps
        self.examples += report.examples
        self.applied += report.pushes
        self.repeated += report.repeated
        self.dropped += report.dropped
        self.history.left_out.add(report.left_out)
        self.refused += len(report.refused)
        for step, parameter in report.refused[-1:]:
            self.last_refusal = (
                f"epoch {report.epoch}, portion {report.number}, step {step}: {parameter}"
            )
        if not report.weight:
            return
        self.last_loss = report.loss / report.weight
        good = report.steps - len(report.refused)
        staleness = report.staleness or [0]
        self.record(
            epoch=epoch,
            loss=self.last_loss,
            gradient_norm=math.sqrt(report.squared_norms / good),
            replicas=self.replicas,
            staleness_median=float(statistics.median(staleness)),
            staleness_max=float(max(staleness)),
        )

    def note_replicas(self, workers: int, replicas: int | None) -> None:
        """Note how many replicas train: as many as were asked for, else one a worker."""
        self.replicas = workers if replicas is None else replicas

    def record(self, *, epoch: int, **values: float) -> None:
        """Make a record of `values` at the totals of now."""
        values.setdefault("replicas", self.replicas)
        record = Record(
            seconds=self.seconds,
            epoch=epoch,
            step=self.steps,
            examples=self.examples,
            lost=self.lost,
            repeated=self.repeated,
            rolled_back=self.rolled_back,
            dropped=self.dropped,
            refused=self.refused,
            shard_copies=self.shard_copies,
            **values,  # type: ignore[arg-type]
        )
        self.history.append(record)
        self._emit(record)
