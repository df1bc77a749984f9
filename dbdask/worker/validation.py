"""Validation beside training: the score of examples, at the parameters of a snapshot copy."""

from dataclasses import dataclass
from functools import partial

from dbdask.data.block_provider import gather_blocks
from dbdask.data.memory import has_room_for_vector, memory_limit
from dbdask.data.routes import Piece
from dbdask.data.waiting import ReadGivenUp
from dbdask.errors import RECOVERABLE
from dbdask.metrics.scores import Score, score_minibatch
from dbdask.models.model import Model
from dbdask.models.network import Network
from dbdask.models.piecewise import PiecewiseNetwork
from dbdask.rpc.portable import portable_errors
from dbdask.schedule.portions import Portion
from dbdask.worker.context import open_context
from dbdask.worker.link import ServerHandle


@dataclass(frozen=True)
class ValidationOrder:
    """One portion of the validation examples, and the snapshot copy to score it with."""

    run: str
    handle: ServerHandle
    copy: int
    portion: Portion


@dataclass
class ValidationReport:
    """The result of a validation task."""

    score: Score
    finished: bool = False
    trouble: str = ""
    """Why the task ended early, if a shard or the generation was lost."""
    gave_up: str = ""
    """The read that the task waited for until it was told to wait no longer."""


@portable_errors
def score_validation(order: ValidationOrder, job: bytes, *blocks: Piece) -> ValidationReport:
    """Score one portion of the validation examples with a snapshot copy of the parameters.

    If a shard is lost, the generation ends, or the run gives up a read that does not come, the task
    ends early with a report. Only an error of the model or of the data raises.
    """
    report = ValidationReport(Score())
    try:
        report.score = _score(order, job, blocks)
        report.finished = True
    except RECOVERABLE as trouble:
        report.trouble = f"{type(trouble).__name__}: {trouble}"
    except ReadGivenUp as read:
        report.gave_up = str(read)
    return report


def _score(order: ValidationOrder, job: bytes, blocks: tuple[Piece, ...]) -> Score:
    context = open_context(order.run, job)
    model, batch_size = context.job.model, context.job.batch_size
    scored: Model | PiecewiseNetwork = model
    if isinstance(model, Network) and not has_room_for_vector(order.handle.size, memory_limit()):
        scored = PiecewiseNetwork(model, partial(context.read_copy, order.handle, order.copy))
        batch_size = max(batch_size, scored.examples_at_once)  # a minibatch fetches everything
        parameters = scratch = context.buffer(0)
    else:
        parameters = context.copy_of(order.handle, order.copy)
        scratch = context.buffer(order.handle.size)
    score = Score()
    reader = context.reader("validation")
    for batch in reader.minibatches(order.portion, batch_size, blocks=gather_blocks(blocks)):
        score += score_minibatch(scored, parameters, batch, scratch, context.job.deviation)
    context.give_back(scratch)
    return score
