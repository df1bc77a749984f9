"""Recovery from a loss: end the work in flight, rebuild the lost shards, and go on; or give up."""

import logging
from collections.abc import Sequence

from dbdask.errors import RECOVERABLE, ShardLost
from dbdask.run.run import Run
from dbdask.schedule.ledger import ShardProgress, furthest

logger = logging.getLogger("dbdask")

MOST_RECOVERIES = 3  # without a step between them, or without coming any further


class RunLost(ShardLost):
    """The run cannot go on: the error goes to the user, and no recovery follows."""


def lost_with(run: Run) -> str:
    """Return what an error of a lost run adds: work that failed often, and how to resume."""
    suspicion = run.workforce.failures.suspicion
    return (f"{suspicion}; " if suspicion else "") + run.snapshots.resume_hint()


class Returns:
    """How often in a row a run went back to a snapshot without coming further than before.

    Steps made since the snapshot do not count. If one place in the data kills the shards each
    time, the steps before it are made again and again.
    """

    def __init__(self) -> None:
        self.in_vain = 0
        self._furthest = (-1, -1)  # snapshot, steps

    def note(self, snapshot: int, steps: int) -> None:
        """Note that the run goes back from so many steps to that snapshot."""
        here = snapshot, steps
        self.in_vain = self.in_vain + 1 if here <= self._furthest else 0
        self._furthest = max(here, self._furthest)


class RollbackCounter:
    """The lost updates that the history has, of each shard since a snapshot.

    A shard that is lost again before the next snapshot lacks all since then, not the new ones
    twice.

    Examples
    --------
    >>> counter = RollbackCounter()
    >>> counter.new("first", {0: 5, 1: 5}), counter.new("first", {0: 8})
    (10, 3)
    >>> counter.new("second", {0: 2})
    2
    """

    def __init__(self) -> None:
        self._since = ""
        self._lost: dict[int, int] = {}

    def new(self, since: str, lost: dict[int, int]) -> int:
        """Return how many of the lost updates are not counted yet.

        Parameters
        ----------
        since
            The snapshot that the shards were made from.
        lost
            The updates that each shard has lost since that snapshot.
        """
        if since != self._since:
            self._since, self._lost = since, {}
        before = sum(self._lost.get(shard, 0) for shard in lost)
        self._lost.update(lost)
        return sum(lost.values()) - before


class Recovery:
    """Recovers a run from lost shards.

    Work in flight ends first, because a shard's constructor needs a free worker thread. A shard
    that has a copy left loses nothing: the copy takes over, and a new one is made from it. If a
    shard has none, the method says how far that throws the run back. Either only the lost shard
    returns to the last snapshot, and the survivors' ledger tells it what not to apply again; or
    all shards return, and the method with them. All return as well if no shard survives.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.in_a_row = 0  # recoveries since the last step
        self.returns = Returns()
        self._progress = run.progress
        self._has_returned = False  # in the recovery under way
        self._behind: set[int] = set()  # shards made anew that have no progress yet
        self._counter = RollbackCounter()

    async def recover(self, why: str) -> None:
        """Recover from trouble; more trouble on the way begins the recovery again.

        Raises
        ------
        RunLost
            There is nothing to rebuild a shard from, or recovering does not help.
        """
        self._has_returned = False
        while why:
            self._count(why)
            try:
                await self._recover(why)
                return
            except RunLost:
                raise
            except RECOVERABLE as error:
                why = repr(error)

    def _count(self, why: str) -> None:
        if self._progress != self.run.progress:
            self._progress, self.in_a_row = self.run.progress, 0
        self.in_a_row += 1
        if self.in_a_row > MOST_RECOVERIES:
            name = self.run.method.progress_name
            raise self._lost(f"{MOST_RECOVERIES} recoveries in a row without a {name}: {why}")
        logger.warning("recovering: %s", why)

    async def _recover(self, why: str) -> None:
        run, server = self.run, self.run.server
        await run.check_workers()
        await run.snapshots.give_up()
        run.validator.give_up()
        await run.end_training_tasks()
        await run.workforce.refresh(now=True)
        await run.placement.drop_lost()
        server.give_up(self._behind)  # else they would count as survivors
        self._behind |= set(server.gone)
        await self._rebuild(server.gone, why)
        await server.command("close_epochs", run.method.epoch)  # a shard may lack it
        await run.method.go_on(run)

    async def _rebuild(self, gone: list[int], why: str) -> None:
        """Make the shards without a copy, and then the copies that are missing."""
        run, server = self.run, self.run.server
        if gone and run.plan.path is None:
            raise self._lost(f"shard {gone[0]} of {len(server.slices)} is gone")
        progresses = await server.advance()
        run.workforce.late_pushes_possible = False
        if gone:
            await run.placement.wait()
            if progresses and run.method.rolls_back_alone:
                await run.placement.replace(gone, run.initial())
                await self._adopt(gone, progresses)
            else:
                await self._go_back(why)
            self._behind.clear()
        await run.validator.mend(lost=bool(gone))
        await run.placement.add_copies()

    async def _adopt(self, gone: Sequence[int], progresses: list[ShardProgress]) -> None:
        """Give the survivors' progress to the new shards, so that nothing is applied twice."""
        run, epoch = self.run, self.run.method.epoch
        rows, applied = furthest(progresses, epoch)
        lost = await run.server.order("adopt", rows, applied, epoch, only=gone)
        assert run.snapshots.committed is not None  # that is what they were made from
        since = run.snapshots.committed.group
        run.tally.rolled_back += self._counter.new(since, dict(zip(gone, lost, strict=True)))

    async def _go_back(self, why: str) -> None:
        """Take the whole run back to the last snapshot; nothing is skipped."""
        run = self.run
        snapshot = run.snapshots.committed
        assert snapshot is not None  # a run with a checkpoint begins with a snapshot
        self._note_return(snapshot.number, why)
        shards = range(len(run.server.slices))
        self._behind |= set(shards)
        await run.placement.replace(shards, run.initial())
        run.forget_result()
        self._counter = RollbackCounter()
        run.method.restore(run, snapshot.state)

    def _note_return(self, snapshot: int, why: str) -> None:
        """Note a return once, however many tries it takes."""
        run = self.run
        steps, words = run.method.reached(run)
        if not self._has_returned:
            self._has_returned = True
            self.returns.note(snapshot, steps)
        if self.returns.in_vain >= MOST_RECOVERIES:
            lost = "every shard was" if run.method.rolls_back_alone else "shards were"
            raise self._lost(
                f"the run went back {MOST_RECOVERIES} times to where {lost} lost again before it "
                f"came any further, {words}: {why}"
            )

    def _lost(self, why: str) -> RunLost:
        """Return the error that ends the run; it says what is lost and what would have saved it."""
        return RunLost(f"{why}; {lost_with(self.run)}")
