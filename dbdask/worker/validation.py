"""Validation beside training: the loss on examples, with the parameters of a snapshot copy."""

from typing import Any

from dbdask.data.block_provider import gather_blocks
from dbdask.metrics.scores import Score, score_minibatch
from dbdask.rpc.portable import portable_errors
from dbdask.schedule.portions import Portion
from dbdask.worker.context import open_context
from dbdask.worker.link import ServerHandle


@portable_errors
def evaluate_portion(
    run: str, handle: ServerHandle, number: int, portion: Portion, job: bytes, *blocks: Any
) -> Score:
    """Score one portion of the validation examples with snapshot copy `number`."""
    context = open_context(run, job)
    parameters = context.copy_of(handle, number)
    scratch = context.buffer(handle.size)
    score = Score()
    reader = context.reader("validation")
    batches = reader.minibatches(portion, context.job.batch_size, blocks=gather_blocks(blocks))
    for batch in batches:
        score += score_minibatch(
            context.job.model, parameters, batch, scratch, context.job.deviation
        )
    context.give_back(scratch)
    return score
