"""A model replica at work on one bundle: Algorithm 1.2 of the paper, from the worker's side."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from dbdask.data.block_provider import gather_blocks
from dbdask.data.examples import Examples
from dbdask.data.routes import Blocks, Piece
from dbdask.data.waiting import ReadGivenUp
from dbdask.errors import RECOVERABLE
from dbdask.metrics.magnitudes import Magnitude
from dbdask.models.evaluation import Evaluator
from dbdask.models.model import Model
from dbdask.rpc.portable import portable_errors
from dbdask.schedule.bundles import Bundle
from dbdask.schedule.left_out import LeftOut
from dbdask.schedule.portions import Portion
from dbdask.worker.context import WorkerContext, open_context
from dbdask.worker.link import ServerHandle


@dataclass(frozen=True)
class SandblasterJob:
    """What every replica of a run needs; it travels pickled and is opened once a worker."""

    model: Model
    train: Examples
    validation: Examples | None
    deviation: np.ndarray | float  # one unit of a scaled target, in its own units
    batch_size: int  # rows that the model sees at once; of no meaning for the sum
    seed: int


@dataclass(frozen=True)
class BundleOrder:
    """One bundle to work through, and the vector at which to evaluate."""

    run: str
    handle: ServerHandle
    bundle: Bundle
    point: str
    replicas: int  # places on this worker


@dataclass
class BundleReport:
    """What a bundle's task tells the verb: scalars, and what it left out as missing."""

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


@portable_errors
def accrue_bundle(order: BundleOrder, job: bytes, *blocks: Piece) -> BundleReport:
    """Add the gradients of a bundle into one buffer, and push it once to every shard.

    Losing a shard, the end of the generation, or a copy elsewhere that was faster ends the task
    early with a report; only an error of the model or of the data raises.
    """
    context = open_context(order.run, job)
    report = BundleReport(context.worker.address)
    with context.replica_slot(order.replicas):
        try:
            _accrue(context, order, report, gather_blocks(blocks))
        except RECOVERABLE as trouble:
            report.trouble = f"{type(trouble).__name__}: {trouble}"
        except ReadGivenUp:  # nothing was pushed: the bundle goes back as it came
            pass
    return report


def _accrue(
    context: WorkerContext, order: BundleOrder, report: BundleReport, blocks: Blocks
) -> None:
    bundle, size = order.bundle, order.handle.size
    if bundle.identity in context.unwanted:
        return
    with context.point(order.handle, bundle.evaluation, order.point) as point:
        began = time.monotonic()
        accrued, gradient = context.buffer(size), context.buffer(size)
        whole = _add_up(context, order, report, point, accrued, gradient, blocks)
        report.working = time.monotonic() - began
        if whole:
            began = time.monotonic()
            is_new = context.link(order.handle).contribute(bundle.identity, accrued)
            report.repeated = not is_new
            report.pushing = time.monotonic() - began
            report.finished = True
        context.give_back(accrued, gradient)


def _add_up(
    context: WorkerContext,
    order: BundleOrder,
    report: BundleReport,
    point: np.ndarray,
    accrued: np.ndarray,
    gradient: np.ndarray,
    blocks: Blocks,
) -> bool:
    """Add the bundle's gradients into `accrued`; False when the bundle is no longer wanted.

    A bad gradient is left out, and makes the loss infinite. It would be bad in every repeat, so
    that nothing can be said of this point but that it is not to be gone to.
    """
    job = context.job
    reader, bundle, evaluator = (
        context.reader("train"),
        order.bundle,
        Evaluator(job.model, job.seed),
    )
    is_first = True
    for portion, following in pairwise((*bundle.portions, None)):
        assert portion is not None
        report.rows += portion.rows
        for batch in reader.minibatches(
            portion, job.batch_size, blocks=blocks, following=following
        ):
            if context.closed or bundle.identity in context.unwanted:
                return False
            target = accrued if is_first else gradient
            with _naming(portion):
                place = 0, portion.number
                found = evaluator.minibatch(point, batch, place, gradient=target, as_mean=False)
            report.weight += found.weight
            report.examples += len(batch.inputs)
            if found.bad:
                report.loss = math.inf
                report.refused += 1
                report.refusal = f"portion {portion.number}, step {batch.step}: {found.bad}"
            elif found.weight > 0:
                report.loss += found.loss
                evaluator.updates.write_change(target, point, found.weight)
                if not is_first:
                    np.add(accrued, gradient, out=accrued)
                is_first = False
        report.left_out.add(reader.left_out(portion))
        report.magnitudes = reader.magnitudes
    if is_first:
        accrued.fill(0.0)
    return True


@contextmanager
def _naming(portion: Portion) -> Iterator[None]:
    """Let an error of the model say in which portion of the bundle it was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in portion {portion.number}")
        raise
