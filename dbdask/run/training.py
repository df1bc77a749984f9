"""The life of a run of any method, from the first shard to the parameters."""

import asyncio
import logging

from dbdask.errors import RECOVERABLE, ShardLost
from dbdask.run.beginning import begin, make_shards
from dbdask.run.outcome import Outcome
from dbdask.run.recovery import MOST_RECOVERIES, Recovery, RunLost, lost_with
from dbdask.run.releasing import release
from dbdask.run.run import Run

logger = logging.getLogger("dbdask")


async def train(run: Run) -> Outcome:
    """Carry a run to its end; afterwards nothing of it stays on the cluster.

    Raises
    ------
    ShardLost
        Shards were lost, and cannot be rebuilt, or are lost again each time.
    DataError, WorkerError
        The data are wrong, or no worker can go on: the error names the last snapshot.
    Exception
        The optimiser raised it in a shard. A note names the last snapshot.
    """
    try:
        await _set_up(run)
        return await _to_the_end(run)
    except RunLost as error:
        raise ShardLost(str(error)) from None
    except RECOVERABLE as error:
        raise ShardLost(f"{error}; {run.snapshots.resume_hint()}") from error
    except Exception as error:
        _raise_named(run, error)
        raise
    finally:
        run.call.enter("releasing")
        await asyncio.shield(asyncio.ensure_future(release(run)))


def _raise_named(run: Run, error: Exception) -> None:
    """Name the last snapshot in an error: in the message of our own errors, else in a note."""
    named = run.snapshots.named_in(error)
    if named is not error:  # an error that is its own cause can never be pickled
        raise named from error


async def _set_up(run: Run) -> None:
    """Make the first shards; begin again on other workers if one leaves or stops meanwhile.

    Nothing was trained yet, so nothing is lost.
    """
    run.call.enter("workers")
    count = await begin(run)
    for tries_left in reversed(range(MOST_RECOVERIES + 1)):
        await run.placement.wait()
        run.call.enter("shards")
        try:
            await make_shards(run, count)
            break
        except RECOVERABLE as error:
            if not tries_left:
                raise RunLost(f"{error}; {lost_with(run)}") from error
            logger.warning("setting up again: %s", error)
        await run.check_workers()
    run.call.enter("first_task")


async def _to_the_end(run: Run) -> Outcome:
    """Train and conclude; after a loss while concluding the run may train again."""
    recovery = Recovery(run)
    while True:
        try:
            while not run.method.has_ended(run):
                await run.method.advance(run)
            run.call.enter("concluding")
            parameters = await run.conclude()
            status = run.method.end(run)
            return Outcome(parameters, run.tally.history, status, run.validator.has_best)
        except RunLost:
            raise
        except RECOVERABLE as error:
            run.call.train_again()
            await recovery.recover(str(error))
