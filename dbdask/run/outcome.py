"""The outcome of a run, and the hint how to resume it."""

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np

from dbdask.daemon_threads import DeadlinePassed, beside_loop, call_within
from dbdask.metrics.history import History
from dbdask.rpc.deadlines import deadline
from dbdask.status import Status
from dbdask.storage.checkpoint import Snapshot, VectorReference

logger = logging.getLogger("dbdask")

LARGEST_READ = 256 * 2**20  # bytes of parameters that a result holds by itself


@dataclass(frozen=True)
class Outcome:
    """The parameters or where they are, the history, and why the run stopped."""

    parameters: np.ndarray | VectorReference
    history: History
    status: Status
    is_best: bool = False
    """Whether the parameters are the best by validation, and not the last."""


def resume_hint(path: str | None, last: Snapshot | None, *, copies_help: bool = True) -> str:
    """Name the last snapshot and the line that resumes it, or what would have helped."""
    if path is None:
        copies = ", or shard_copies=2" if copies_help else ""
        return (
            "the run has no checkpoint to go on from: give checkpoint=PATH "
            f'(and resume="auto"){copies}'
        )
    if last is None:
        return f"no snapshot is in {path!r} yet: the same call starts anew"
    return f"the last snapshot is in {path!r}: go on from it with checkpoint={path!r}, resume=True"


async def read_if_small(reference: VectorReference, size: int) -> np.ndarray | VectorReference:
    """Read a vector of `size` elements if it is small, so that the result outlives the checkpoint.

    Returns float32 (size,), or the reference. A large vector stays in the checkpoint, and so does a
    vector whose store does not answer in time: the result reads it when it is asked for.
    """
    if 4 * size > LARGEST_READ:
        return reference
    seconds, what = deadline("store", 4 * size), f"the parameters in checkpoint={reference.path!r}"
    try:
        return await beside_loop(partial(call_within, seconds, reference.read, what=what))
    except DeadlinePassed:
        logger.warning("the parameters stay in %r, which does not hand them over", reference.path)
        return reference
