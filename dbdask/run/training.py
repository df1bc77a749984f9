"""From the first shard to the parameters: the life of a run, whatever its method."""

import asyncio
import logging

from dbdask.errors import RECOVERABLE, DataError, ModelError, ShardLost, WorkerError
from dbdask.run.outcome import Outcome
from dbdask.run.recovery import MOST_RECOVERIES, Recovery, RunLost, lost_with
from dbdask.run.run import Run

logger = logging.getLogger("dbdask")


async def train(run: Run) -> Outcome:
    """Carry a run to its end; whatever happens, nothing of it stays on the cluster.

    Raises
    ------
    ShardLost
        Shards were lost, and nothing is there to rebuild them from, or rebuilding does not help.
    DataError, WorkerError
        The data are wrong, or no worker can go on: the error names the last snapshot.
    Exception
        What the optimiser raised in a shard: it names the last snapshot in a note.
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
        await asyncio.shield(asyncio.ensure_future(run.release()))


def _raise_named(run: Run, error: Exception) -> None:
    """Let an error name the last snapshot: in its message if it is ours, else in a note."""
    if isinstance(error, (DataError, ModelError, WorkerError)):
        named = run.snapshots.named_in(error)
        if named is not error:  # an error that is its own cause can never be pickled
            raise named from error
    elif run.snapshots.committed is not None and run.snapshots.resume_hint() not in str(error):
        error.add_note(run.snapshots.resume_hint())


async def _set_up(run: Run) -> None:
    """Make the first shards: again, on other workers, if one leaves or stops meanwhile.

    Nothing was trained, so nothing is lost by beginning again.
    """
    count = await run.begin()
    for tries_left in reversed(range(MOST_RECOVERIES + 1)):
        await run.placement.wait()
        try:
            return await run.make_shards(count)
        except RECOVERABLE as error:
            if not tries_left:
                raise RunLost(f"{error}; {lost_with(run)}") from error
            logger.warning("setting up again: %s", error)
        await run.look_around()


async def _to_the_end(run: Run) -> Outcome:
    """Train, and conclude; a loss on the way may bring the run back into training."""
    recovery = Recovery(run)
    while True:
        try:
            while not run.method.has_ended(run):
                await run.method.advance(run)
            parameters = await run.conclude()
            status = run.method.end(run)
            return Outcome(parameters, run.tally.history, status, run.validator.has_best)
        except RunLost:
            raise
        except RECOVERABLE as error:
            await recovery.recover(str(error))
