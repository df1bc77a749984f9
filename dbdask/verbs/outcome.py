"""What a run leaves: its outcome, and nothing on the cluster; and what errors say of it."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from dbdask.numbers.checkpoint import Snapshot, VectorReference
from dbdask.numbers.history import History
from dbdask.server.contact import has_scheduler, worker_answers
from dbdask.server.deadlines import deadline
from dbdask.status import Status
from dbdask.verbs.aside import Aside

logger = logging.getLogger("dbdask")

LARGEST_READ = 256 * 2**20  # bytes of parameters that a result holds by itself


@dataclass(frozen=True)
class Outcome:
    """Where the parameters are, the history, and why the run stopped."""

    parameters: Any
    history: History
    status: Status


def where_it_stands(run: Any, *, twins_help: bool = True) -> str:
    """What an error says of a run: its last snapshot, or what would have made one."""
    return how_to_go_on(run.plan.path, _last_snapshot(run), twins_help=twins_help)


def _last_snapshot(run: Any) -> Snapshot | None:
    last: Snapshot | None = run.snapshots.committed if hasattr(run, "snapshots") else run.plan.last
    return last


def how_to_go_on(path: str | None, last: Snapshot | None, *, twins_help: bool = True) -> str:
    """Name the last snapshot and the line that resumes it, or what would have helped."""
    if path is None:
        twins = ", or shard_copies=2" if twins_help else ""
        return (
            "the run has no checkpoint to go on from: give checkpoint=PATH "
            f'(and resume="auto"){twins}'
        )
    if last is None:
        return f"no snapshot is in {path!r} yet: the same call starts anew"
    return f"the last snapshot is in {path!r}: go on from it with checkpoint={path!r}, resume=True"


def with_snapshot(error: Exception, run: Any) -> Exception:
    """Return the error with where the run's last snapshot is, if there is one to go on from."""
    stands = where_it_stands(run)
    if _last_snapshot(run) is None or stands in str(error):
        return error
    return type(error)(f"{error}; {stands}")


async def brought_home(reference: VectorReference, size: int) -> np.ndarray | VectorReference:
    """Read a small vector, so that the result outlives the checkpoint; leave a large one there.

    One that a store does not hand over in time stays there too: the result reads it when asked.
    """
    if 4 * size > LARGEST_READ:
        return reference
    try:
        async with asyncio.timeout(deadline("store", 4 * size)):
            vector: np.ndarray = await Aside().do(reference.read)
            return vector
    except TimeoutError:
        logger.warning("the parameters stay in %r, which does not hand them over", reference.path)
        return reference


async def leave_nothing(run: Any) -> None:
    """End what a run has under way, and take its rooms and shards off the cluster."""
    try:
        if hasattr(run, "validator"):
            await run.validator.give_up()  # it looks who is there: that ends before the roster
        await run.workforce.close()
        await run.leaving.end()
        if hasattr(run, "server"):
            await run.snapshots.give_up()
            workers = await _answering(run.client, run.roster.everyone)
            await run.server.end_generation(workers)
            for supply in (run.plan.supply, run.plan.validation_supply):
                if supply is not None:
                    await asyncio.to_thread(supply.close)
            await run.server.release(workers)
    finally:
        run.at_rest.set()


async def _answering(client: Any, workers: list[str]) -> list[str]:
    """Those of some workers that answer: the dead are waited for once, not at every word.

    Workers without their scheduler end by themselves, and what the run holds there with them.
    """
    if not has_scheduler(client):
        return []
    seconds, pool = deadline("connect"), client.rpc
    answers = await asyncio.gather(*(worker_answers(pool, w, seconds=seconds) for w in workers))
    return [worker for worker, answer in zip(workers, answers, strict=True) if answer]
