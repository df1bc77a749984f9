"""Recovery of a Sandblaster run: do it again where no shard is lost, else go back as a whole."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from dbdask.errors import TROUBLE
from dbdask.server.deadlines import deadline
from dbdask.verbs.giving_up import MOST_RECOVERIES, Returns, RunLost, lost_with
from dbdask.verbs.homes import TURN_SECONDS, wait_for_homes

if TYPE_CHECKING:
    from dbdask.verbs.sandblaster_run import SandblasterRun

logger = logging.getLogger("dbdask")


class BatchRecovery:
    """What one run does after trouble, and when shards have to move.

    Where every shard still has a copy nothing goes back: a command is given again under its
    number, a pass is made again. Where a shard has none, every shard goes back to the last
    snapshot: else curvature pairs, inner products and loss would belong to no point.
    """

    def __init__(self, run: "SandblasterRun") -> None:
        self.run = run
        self.in_a_row = 0  # recoveries since the last pass
        self.returns = Returns()

    def note_pass(self) -> None:
        """A pass was made: the run is going on."""
        self.in_a_row = 0

    async def through(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do work that may be done again, until no trouble that cost no shard is in its way."""
        while True:
            try:
                return await work()
            except RunLost:
                raise
            except TROUBLE as error:
                await self._mend(error)

    async def _mend(self, error: Exception) -> None:
        """Return where every shard still has a copy; else the trouble comes out."""
        run = self.run
        while True:
            await run.workforce.refresh(now=True)
            await run.workforce.look_around()
            run.tally.lost += await run.server.drop_lost(run.roster.answering)
            if run.server.gone:
                raise error
            self._count(str(error))
            try:
                await self._end_flight()
                await run.validator.give_up()
                await run.server.advance()
                await run.validator.mend(lost=False)
                await run.twins.make()
                return
            except TROUBLE as again:
                error = again

    async def go_back(self, why: str) -> None:
        """Bring every shard, and so the method, back to the last committed iteration.

        Raises
        ------
        RunLost
            There is no snapshot to go back to, or going back does not help.
        """
        self._note_return(why)
        while True:
            self._count(why)
            try:
                await self._go_back(why)
                return
            except RunLost:
                raise
            except TROUBLE as error:
                why = repr(error)

    async def _go_back(self, why: str) -> None:
        run, server = self.run, self.run.server
        await run.workforce.refresh(now=True)
        await run.workforce.look_around()
        await run.snapshots.give_up()
        await run.validator.give_up()
        await self._end_flight()
        await run.workforce.refresh(now=True)
        run.tally.lost += await server.drop_lost(run.roster.answering)
        if run.plan.path is None:
            gone = f"shard {server.gone[0]} of {len(server.slices)} is gone" if server.gone else why
            raise RunLost(f"{gone}; {lost_with(run)}")
        await wait_for_homes(run)
        snapshot = run.snapshots.committed
        assert snapshot is not None  # a run with a checkpoint begins with a snapshot
        iteration = run.state.iteration
        server.generation += 1
        await server.replace(range(len(server.slices)), run.initial(), run.shard_homes())
        await run.validator.mend(lost=True)
        run.twins.note()
        run.restore(snapshot)
        run.tally.rolled_back += max(0, iteration - run.state.iteration)

    def _note_return(self, why: str) -> None:
        run, snapshot = self.run, self.run.snapshots.committed
        if snapshot is not None:
            self.returns.note(snapshot.number, run.state.iteration)
        if self.returns.in_vain >= MOST_RECOVERIES:
            raise RunLost(
                f"the run went back {MOST_RECOVERIES} times to where shards were lost again before "
                f"it came any further, at iteration {run.state.iteration}: {why}; {lost_with(run)}"
            )

    def _count(self, why: str) -> None:
        self.in_a_row += 1
        if self.in_a_row > MOST_RECOVERIES:
            raise RunLost(
                f"{MOST_RECOVERIES} recoveries in a row without a pass: {why}; "
                f"{lost_with(self.run)}"
            )
        logger.warning("recovering: %s", why)

    async def move_shards(self) -> None:
        """Move the shards of leaving workers and make missing copies, between two commands."""
        run = self.run
        if run.leaving.due:
            await self._end_flight()
            await run.leaving.move()
        if run.twins.due:
            await self._end_flight()
            await run.twins.make_at_new_generation()

    async def _end_flight(self) -> None:
        """End every call, and wait for the tasks to come home."""
        run, workforce = self.run, self.run.workforce
        await run.server.end_generation(run.roster.answering)
        until = time.monotonic() + deadline("portion-end")
        while workforce.outstanding and time.monotonic() < until:
            await workforce.refresh()
            await workforce.ended(TURN_SECONDS)
            await workforce.watch_silence()
        workforce.give_up_all()
