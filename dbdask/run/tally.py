"""The tally of a run: totals over portions, and the history's records."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dbdask.metrics.call_time import CallClock
from dbdask.metrics.history import BY_PART, History, Record
from dbdask.metrics.magnitudes import Magnitude
from dbdask.metrics.time_spent import ACTIVITIES, Spent
from dbdask.run.plan import SavedState
from dbdask.schedule.portion_marks import PortionTable
from dbdask.worker.portion_order import PortionReport

COUNTS = ("lost", "repeated", "rolled_back", "dropped", "refused")


class Tally:
    """Adds up the reports of portions; each step counts once, however often it was done.

    Parameters
    ----------
    state
        The state of the snapshot that the run goes on from, or None.
    emit
        Takes each new record.
    call
        The clock of the call; None starts one.
    parts
        Parts of a replica.
    """

    def __init__(
        self,
        state: SavedState | None,
        emit: Callable[[Record], None],
        call: CallClock | None = None,
        parts: int = 1,
    ) -> None:
        self._emit = emit
        self.call = CallClock() if call is None else call
        self._began = time.monotonic()
        self.last_loss = math.inf
        self.last_refusal = ""
        self.replicas = 0
        self.shard_copies = math.nan
        self.lost = self.repeated = self.rolled_back = self.dropped = self.refused = 0
        self.history = History()
        self.magnitudes: dict[str, tuple[Magnitude, ...]] = {}  # by worker
        self.seconds_before = 0.0
        self.spent = Spent()
        self.exchanging = [0.0] * parts if parts > 1 else []  # seconds by part
        self.refused_lately = 0  # since the last snapshot, by replicas that train
        self._refused_before = 0  # before a resume
        self.steps = self.examples = self.applied = 0
        self._done = PortionTable()  # steps, examples of the open portions
        self._epoch = 0
        if state:
            self._restore(state)
        self._steps_at_start = self.steps
        self._first_record = len(self.history)

    def _restore(self, state: SavedState) -> None:
        self.steps, self.examples = state["steps"], state["examples"]
        self.applied = state["applied"]
        self.seconds_before = state["seconds"]
        self.history = History.from_json(state["history"])
        for name, value in state["counts"].items():
            setattr(self, name, value)
        self._refused_before = self.refused
        self._restore_seconds()
        self.history.first_loss = state.get("first_loss") or self._first_recorded()
        self._restore_done(state)

    def _restore_seconds(self) -> None:
        """Go on from the seconds by activity of the last record that has any.

        A part of another cut was another part: its seconds begin anew.
        """
        for record in reversed(self.history.records):
            seconds = {name: getattr(record, f"seconds_{name}") for name in ACTIVITIES}
            known = {name: spent for name, spent in seconds.items() if not math.isnan(spent)}
            if known:
                self.spent = Spent(**known)
                if len(record.seconds_exchanging_by_part) == len(self.exchanging):
                    self.exchanging = list(record.seconds_exchanging_by_part)
                return

    def _first_recorded(self) -> float:
        """The loss at the beginning, as an older checkpoint has it."""
        losses = self.history.column("loss")
        known = losses[~np.isnan(losses)]
        return float(known[0]) if len(known) else math.nan

    def _restore_done(self, state: SavedState) -> None:
        self._done = PortionTable.from_rows(state["done"])

    def state(self) -> SavedState:
        """Return what a snapshot keeps of the tally."""
        return {
            "steps": self.steps,
            "examples": self.examples,
            "seconds": self.seconds,
            "counts": {name: getattr(self, name) for name in COUNTS},
            "done": [list(row) for row in self._done.rows()],
            "history": self.history.to_json(),
            "first_loss": None if math.isnan(first := self.history.first_loss) else first,
        }

    @property
    def seconds(self) -> float:
        """Seconds of training, including those before a resume."""
        return self.seconds_before + time.monotonic() - self._began

    @property
    def steps_since_start(self) -> int:
        """Minibatches since this run began or was resumed."""
        return self.steps - self._steps_at_start

    @property
    def refused_since_start(self) -> int:
        """Bad gradients since this run began or was resumed."""
        return self.refused - self._refused_before

    def go_back(self, state: SavedState) -> None:
        """Go back to a snapshot's totals: later steps are done, and counted, again."""
        self.repeated += max(0, self.applied - state["applied"])
        self.steps, self.examples = state["steps"], state["examples"]
        self.applied = state["applied"]
        for name in ("rolled_back", "dropped", "refused"):
            setattr(self, name, state["counts"][name])
        self._restore_done(state)

    def add(self, report: PortionReport, epoch: int, workers: int, replicas: int | None) -> None:
        """Add a portion's report, and make a record if the replica has trained."""
        self.note_replicas(workers, replicas)
        before = self._count_work(report)
        self.applied += report.pushes
        self.repeated += report.repeated
        self.dropped += report.dropped
        self.spend(report.spent, report.by_part)
        self.history.left_out.add(report.left_out)
        if report.magnitudes:
            self.magnitudes[report.worker] = report.magnitudes
        if report.steps:
            self.history.ends_refused = report.ends_refused
        self.refused += sum(step >= before for step, _ in report.refused)
        self.refused_lately += len(report.refused)
        for step, parameter in report.refused[-1:]:
            self.last_refusal = (
                f"epoch {report.epoch}, portion {report.number}, step {step}: {parameter}"
            )
        if not report.weight:
            return
        self.last_loss = report.loss / report.weight
        if math.isnan(self.history.first_loss):
            self.history.first_loss = report.first_loss
        staleness = report.staleness or [0]
        self.record(
            epoch=epoch,
            loss=self.last_loss,
            gradient_norm=math.sqrt(report.squared_norms / report.good),
            replicas=self.replicas,
            staleness_median=float(statistics.median(staleness)),
            staleness_max=float(max(staleness)),
            **self.seconds_columns(),
        )

    def spend(self, spent: Spent, by_part: Mapping[int, Spent]) -> None:
        """Add the seconds of a task that has ended, or of the tasks of several parts.

        The first task that worked on minibatches ends the start of the call. What other replicas
        need longer to set up, and those that come later, they wait.
        """
        tasks = list(by_part.values()) or [spent]
        if any(task.computing for task in tasks):
            self.call.note_training(max(task.total for task in tasks))
        for task in tasks:
            self.spent.add(task)
            self.spent.waiting += self.call.late(task.setting_up, task.total)
        for part, task in by_part.items():
            self.exchanging[part] += task.exchanging

    def seconds_columns(self) -> dict[str, Any]:
        """Return the seconds of replicas by name of the history's variable."""
        return {**self.spent.columns(), BY_PART: tuple(self.exchanging)}

    def note_call(self) -> None:
        """Note in the history how long the call has taken, which ends now."""
        self.history.call = self.call.seconds(self._first_record)

    def _count_work(self, report: PortionReport) -> int:
        """Count a report's steps and examples; return how many steps of the portion counted before.

        A replica that dies does not report its last steps. The next replica reports where it
        began, so they are counted then. A step that some shard lacked is done, and reported,
        twice.
        """
        if report.epoch > self._epoch:  # the one before is finished
            self._done.forget_before(report.epoch)
            self._epoch = report.epoch
        steps, examples = self._done.get(report.epoch, report.number) or (0, 0)
        examples_now = report.examples_before + report.examples
        if report.finished:
            examples_now = report.examples_in_all
        done = max(steps, report.first_step + report.steps), max(examples, examples_now)
        self.steps += done[0] - steps
        self.examples += done[1] - examples
        self._done.put(report.epoch, report.number, *done)
        return steps

    def settle(self, epoch: int) -> None:
        """Make a last record if something was counted since the record before."""
        last = self.history.records[-1] if self.history.records else None
        counted = [getattr(self, name) for name in COUNTS]
        if self.steps and counted != [getattr(last, name, 0) for name in COUNTS]:
            self.record(epoch=epoch)

    def note_replicas(self, workers: int, replicas: int | None) -> None:
        """Note how many replicas train: as many as were asked for, else one a worker."""
        self.replicas = workers if replicas is None else replicas

    def record(self, *, epoch: int, **values: Any) -> None:
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
            **values,
        )
        self.history.append(record)
        self._emit(record)
