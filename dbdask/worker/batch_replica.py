"""A model replica at work on one bundle: Algorithm 1.2 of the paper, from the worker's side."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from time import perf_counter

import numpy as np

from dbdask.data.block_provider import gather_blocks
from dbdask.data.examples import Examples
from dbdask.data.feed import Minibatch
from dbdask.data.routes import Blocks, Piece
from dbdask.metrics.magnitudes import Magnitude
from dbdask.metrics.time_spent import Spent
from dbdask.models.cut import Cut
from dbdask.models.evaluation import Evaluated
from dbdask.models.model import Model
from dbdask.models.part_evaluation import ELSEWHERE
from dbdask.rpc.portable import portable_errors
from dbdask.schedule.bundles import Bundle
from dbdask.schedule.gangs import Member
from dbdask.schedule.left_out import LeftOut
from dbdask.schedule.portions import Portion
from dbdask.worker.context import WorkerContext, open_context
from dbdask.worker.link import ServerHandle
from dbdask.worker.mailbox import GangLeft
from dbdask.worker.reporting import reported, turn_of
from dbdask.worker.share import Share, share_of
from dbdask.worker.timed_minibatches import TimedMinibatches


@dataclass(frozen=True)
class SandblasterJob:
    """The description of a run for its replicas; it travels pickled and is opened once a worker."""

    model: Model
    train: Examples
    validation: Examples | None
    deviation: np.ndarray | float  # one unit of a scaled target, in its own units
    batch_size: int  # rows that the model sees at once; of no meaning for the sum
    seed: int
    cut: Cut | None = None  # of the model into parts; None if replicas are not partitioned


@dataclass(frozen=True)
class BundleOrder:
    """One bundle to work through, and the vector at which to evaluate."""

    run: str
    handle: ServerHandle
    bundle: Bundle
    point: str
    replicas: int  # places on this worker
    member: Member | None = None  # of a gang, if replicas are partitioned


@dataclass
class BundleReport:
    """The report of a bundle's task: scalars, and the examples left out as missing."""

    worker: str
    loss: float = 0.0
    weight: float = 0.0
    examples: int = 0
    rows: int = 0
    finished: bool = False  # every shard has the gradient
    trouble: str = ""  # why it ended early, when a shard or the generation was lost
    working: float = 0.0  # seconds of reading and computing
    pushing: float = 0.0
    repeated: bool = False  # a shard had the gradient already
    refused: int = 0  # bad gradients; the loss is infinite then
    refusal: str = ""  # where the last one was
    left_out: LeftOut = field(default_factory=LeftOut)
    magnitudes: tuple[Magnitude, ...] = ()
    spent: Spent = field(default_factory=Spent)  # `waiting` is left to the pass to find
    by_part: dict[int, Spent] = field(default_factory=dict)  # of several parts: seconds of each
    part: int = 0  # of a partitioned replica
    gang_ended: str = ""  # why the gang cannot go on, if this task has learnt so
    ended_by: str = ""  # the cause of the gang's end (see `GangEnded`)


def merged(reports: Sequence[BundleReport]) -> BundleReport:
    """Return one report from those of the parts of a replica; at least one.

    Losses and counts of examples are the same in all parts, and are those of the first. The bundle
    is finished if every part has pushed it. Seconds by activity are added.
    """
    first = min(reports, key=lambda report: report.part)
    spent = Spent()
    for report in reports:
        spent.add(report.spent)
    return replace(
        first,
        finished=all(report.finished for report in reports),
        trouble=next((report.trouble for report in reports if report.trouble), ""),
        working=max(report.working for report in reports),
        pushing=max(report.pushing for report in reports),
        repeated=any(report.repeated for report in reports),
        refusal=next((r.refusal for r in reports if ELSEWHERE not in r.refusal), first.refusal),
        spent=spent,
        by_part={report.part: report.spent for report in reports},
    )


@portable_errors
def accrue_bundle(order: BundleOrder, job: bytes, *blocks: Piece) -> BundleReport:
    """Add the gradients of a bundle into one buffer, and push it once to every shard.

    Losing a shard, the end of the generation or of the gang, or a copy elsewhere that was faster
    ends the task early with a report; only an error of the model or of the data raises.
    """
    began = perf_counter()
    context = open_context(order.run, job)
    report = BundleReport(context.worker.address)
    with (
        reported(order.member, report),
        turn_of(context, order.handle, order.member),
        context.replica_slot(order.replicas) as slot,
    ):
        bundle = order.bundle.identity
        share = share_of(context, order.handle, order.member, bundle, report.spent)
        report.part = share.index
        if slot.ended is None:
            report.spent.set_up_since(began)
        _accrue(context, order, report, share, gather_blocks(blocks))
        slot.ended = perf_counter()
    return report


def _accrue(
    context: WorkerContext,
    order: BundleOrder,
    report: BundleReport,
    share: Share,
    blocks: Blocks,
) -> None:
    bundle, size = order.bundle, share.size
    if _is_unwanted(context, order):
        return
    handle = share.link.handle
    holding = context.point(handle, bundle.evaluation, order.point, share.index)
    with ExitStack() as held:
        with report.spent.on("fetching"):
            point = held.enter_context(holding)
        began = perf_counter()
        accrued, gradient = context.buffer(size), context.buffer(size)
        whole = _add_up(context, order, report, share, point, accrued, gradient, blocks)
        report.working = perf_counter() - began
        if whole:
            with report.spent.on("pushing"):
                is_new = share.link.contribute(bundle.identity, accrued)
            report.repeated = not is_new
            report.pushing = report.spent.pushing
            report.finished = True
        context.give_back(accrued, gradient)


def _add_up(
    context: WorkerContext,
    order: BundleOrder,
    report: BundleReport,
    share: Share,
    point: np.ndarray,
    accrued: np.ndarray,
    gradient: np.ndarray,
    blocks: Blocks,
) -> bool:
    """Add the bundle's gradients into `accrued`; False when the bundle is no longer wanted.

    A bad gradient is left out, and makes the loss infinite. It would be bad in every repeat, so
    that nothing can be said of this point but that it is not to be gone to.
    """
    job, spent = context.job, report.spent
    reader, bundle = context.reader("train"), order.bundle
    is_first = True
    for portion, following in pairwise((*bundle.portions, None)):
        assert portion is not None
        report.rows += portion.rows
        batches = reader.minibatches(portion, job.batch_size, blocks=blocks, following=following)
        for batch in TimedMinibatches(batches, spent):
            if _is_unwanted(context, order):
                return False
            target = accrued if is_first else gradient
            with spent.on("computing"):
                with _naming(portion):
                    place = 0, portion.number
                    found = share.minibatch(point, batch, place, gradient=target, as_mean=False)
                if _counts(report, found, portion, batch):
                    share.write_change(target, point, found.weight)
                    if not is_first:
                        np.add(accrued, gradient, out=accrued)
                    is_first = False
        report.left_out.add(reader.left_out(portion))
        report.magnitudes = reader.magnitudes
    if is_first:
        accrued.fill(0.0)
    return True


def _counts(report: BundleReport, found: Evaluated, portion: Portion, batch: Minibatch) -> bool:
    """Count a minibatch in the report; return whether its gradient is to be added."""
    report.weight += found.weight
    report.examples += len(batch.inputs)
    if found.bad:
        report.loss = math.inf
        report.refused += 1
        report.refusal = f"portion {portion.number}, step {batch.step}: {found.bad}"
        return False
    if found.weight > 0:
        report.loss += found.loss
    return found.weight > 0


def _is_unwanted(context: WorkerContext, order: BundleOrder) -> bool:
    """Whether a copy elsewhere was faster. A part that knows it first ends its gang.

    Raises
    ------
    GangLeft
        The task is a gang's: its peers wait for it, and must not.
    """
    unwanted = context.closed or order.bundle.identity in context.unwanted
    if unwanted and order.member is not None:
        raise GangLeft(f"{order.bundle.name} is done elsewhere")
    return unwanted


@contextmanager
def _naming(portion: Portion) -> Iterator[None]:
    """Let an error of the model say in which portion of the bundle it was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in portion {portion.number}")
        raise
