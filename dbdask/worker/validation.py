"""Validation beside training: the loss on examples, with the parameters of a snapshot copy."""

from typing import Any

from dbdask.data.supply import gather_blocks
from dbdask.metrics.scores import Score, score_minibatch
from dbdask.rpc.portable import portable_errors
from dbdask.schedule.portions import Portion
from dbdask.worker.context import open_room
from dbdask.worker.link import ServerHandle


@portable_errors
def evaluate_portion(
    run: str, handle: ServerHandle, number: int, portion: Portion, job: bytes, *blocks: Any
) -> Score:
    """Score one portion of the validation examples with snapshot copy `number`."""
    room = open_room(run, job)
    parameters = room.copy_of(handle, number)
    scratch = room.buffer(handle.size)
    score = Score()
    reader = room.reader("validation")
    batches = reader.minibatches(portion, room.job.batch_size, blocks=gather_blocks(blocks))
    for batch in batches:
        score += score_minibatch(room.job.model, parameters, batch, scratch, room.job.deviation)
    room.give_back(scratch)
    return score
