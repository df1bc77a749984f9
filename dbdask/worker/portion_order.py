"""The order for a task of Downpour, and its report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dbdask.data.examples import Examples
from dbdask.metrics.magnitudes import Magnitude
from dbdask.metrics.time_spent import Spent
from dbdask.models.cut import Cut
from dbdask.models.model import Model
from dbdask.models.part_evaluation import ELSEWHERE
from dbdask.optim.optimizers import Optimizer
from dbdask.schedule.gangs import Member
from dbdask.schedule.left_out import LeftOut
from dbdask.schedule.portions import Portion
from dbdask.worker.link import ServerHandle


@dataclass(frozen=True)
class DownpourJob:
    """The description of a run for its replicas; it travels pickled and is opened once a worker."""

    model: Model
    train: Examples
    validation: Examples | None
    deviation: np.ndarray | float  # one unit of a scaled target, in its own units
    batch_size: int
    n_fetch: int
    n_push: int
    local_rate: float
    local_optimizer: Optimizer | None  # of the replica's own steps, whose displacement is pushed
    trained: tuple[tuple[int, int], ...]  # ranges of the flat vector
    clip_norm: float | None
    max_refused: int
    seed: int
    optimizer: Optimizer  # of the shards: a worker that cannot unpickle it is told so, and named
    cut: Cut | None = None  # of the model into parts; None if replicas are not partitioned


@dataclass(frozen=True)
class PortionOrder:
    """One portion to work through, and what its worker may begin to read."""

    run: str
    handle: ServerHandle
    portion: Portion
    following: Portion | None
    replicas: int  # places on this worker
    most_steps: int | None  # hand the portion back after so many steps (warm start)
    complete_only: bool  # only bring all shards to the last step that one of them has
    member: Member | None = None  # of a gang, if replicas are partitioned


@dataclass
class PortionReport:
    """The report of a portion's task: scalars only."""

    epoch: int
    number: int
    worker: str
    first_step: int = 0  # the one it began with: those before had been applied
    examples_before: int = 0  # in the steps before it
    next_step: int = 0
    finished: bool = False
    trouble: str = ""  # why the portion ended early, when a shard or the generation was lost
    steps: int = 0
    pushes: int = 0  # acknowledged by every shard, and new to all of them
    examples: int = 0
    loss: float = 0.0  # summed over minibatches: mean loss times weight
    weight: float = 0.0
    squared_norms: float = 0.0  # of the gradients of `good` minibatches
    good: int = 0
    staleness: list[int] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)  # step, parameter
    examples_in_all: int = 0  # of a portion that is finished, by all tasks that trained on it
    dropped: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    repeated: int = 0
    first_loss: float = math.nan  # of the first minibatch that counts
    magnitudes: tuple[Magnitude, ...] = ()
    spent: Spent = field(default_factory=Spent)
    by_part: dict[int, Spent] = field(default_factory=dict)  # of several parts: seconds of each
    part: int = 0  # of a partitioned replica
    gang_ended: str = ""  # why the gang cannot go on, if this task has learnt so
    ended_by: str = ""  # the cause of the gang's end (see `GangEnded`)

    @property
    def ends_refused(self) -> bool:
        """Whether the last tenth of its steps, or more, was refused: it has diverged by then."""
        steps = {step for step, _ in self.refused}
        last = self.first_step + self.steps - 1
        tail = range(last, last - max(1, self.steps // 10), -1)
        return self.steps > 0 and all(step in steps for step in tail)


def merged(reports: Sequence[PortionReport]) -> PortionReport:
    """Return one report from those of the parts of a replica; at least one.

    Losses, norms and counts of examples are the same in all parts, and are those of the first. The
    portion is finished, and a step done, if that is so in every part. Seconds are added.
    """
    first, *others = sorted(reports, key=lambda report: report.part)
    by_part = {report.part: report.spent for report in (first, *others)}
    whole = replace(first, spent=Spent(), by_part=by_part, staleness=[], refused=[])
    for report in (first, *others):
        whole.spent.add(report.spent)
        whole.staleness += report.staleness
    whole.refused = [_named(steps) for steps in zip(*(r.refused for r in reports), strict=False)]
    whole.next_step = min(report.next_step for report in reports)
    whole.finished = all(report.finished for report in reports)
    whole.pushes = min(report.pushes for report in reports)
    whole.repeated = max(report.repeated for report in reports)
    whole.trouble = next((report.trouble for report in reports if report.trouble), "")
    return whole


def _named(steps: Sequence[tuple[int, str]]) -> tuple[int, str]:
    """Return the refusal of one step by the part that has the culprit."""
    return next((one for one in steps if one[1] != ELSEWHERE), steps[0])
