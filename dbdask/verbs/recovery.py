"""Recovery of a Downpour run: end what is in flight, rebuild what is lost, and go on."""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dbdask.errors import TROUBLE
from dbdask.numbers.ledger import Standing, furthest
from dbdask.server.deadlines import deadline
from dbdask.verbs.giving_up import MOST_RECOVERIES, Returns, RunLost, lost_with
from dbdask.verbs.homes import wait_for_homes

if TYPE_CHECKING:
    from dbdask.verbs.downpour_run import DownpourRun

logger = logging.getLogger("dbdask")


class Told:
    """The lost updates that the history has, of each shard since a snapshot.

    A shard that is lost again before the next snapshot lacks all since then, not the new ones
    twice.

    Examples
    --------
    >>> told = Told()
    >>> told.new("first", {0: 5, 1: 5}), told.new("first", {0: 8}), told.new("second", {0: 2})
    (10, 3, 2)
    """

    def __init__(self) -> None:
        self._since = ""
        self._lost: dict[int, int] = {}

    def new(self, since: str, lost: dict[int, int]) -> int:
        """Return what is to be told: `lost` holds updates since that snapshot, by shard."""
        if since != self._since:
            self._since, self._lost = since, {}
        before = sum(self._lost.get(shard, 0) for shard in lost)
        self._lost.update(lost)
        return sum(lost.values()) - before


class Recovery:
    """What one run does about lost shards.

    Portions in flight end first, because a shard's constructor needs a free worker thread. A
    shard that has a copy left loses nothing: the copy takes over, and a new one is made from it.
    Of the others only those go back to the last snapshot; the survivors' ledger tells them what
    not to apply again. Where no shard survives, the whole run goes back.
    """

    def __init__(self, run: "DownpourRun") -> None:
        self.run = run
        self.in_a_row = 0  # recoveries since the last step
        self.returns = Returns()
        self._behind: set[int] = set()  # shards made anew that have no standing yet
        self._told = Told()

    def note_step(self) -> None:
        """A step was made: the run is going on."""
        self.in_a_row = 0

    async def recover(self, why: str) -> None:
        """Go on after trouble; trouble on the way begins again.

        Raises
        ------
        RunLost
            There is nothing to rebuild a shard from, or recovering does not help.
        """
        while why:
            self.in_a_row += 1
            if self.in_a_row > MOST_RECOVERIES:
                raise self.lost(f"{MOST_RECOVERIES} recoveries in a row without a step: {why}")
            logger.warning("recovering: %s", why)
            try:
                await self._recover()
                return
            except RunLost:
                raise
            except TROUBLE as error:
                why = repr(error)

    async def _recover(self) -> None:
        run = self.run
        await run.workforce.refresh(now=True)  # a dead worker is not waited for
        for portion in await run.workforce.look_around():  # nor one that stopped
            run.stream.hand_back(portion)
        await self._end_flight()
        await run.workforce.refresh(now=True)
        run.tally.lost += await run.server.drop_lost(run.roster.answering)
        run.server.give_up(self._behind)  # else they would pass for survivors
        self._behind |= set(run.server.gone)
        await self._rebuild(run.server.gone)
        await run.server.command("close_epochs", run.stream.epoch)  # some may not have heard it
        await run.barrier.release()

    async def _end_flight(self) -> None:
        """End every call, wait for the tasks to come home, and hand their portions back."""
        run = self.run
        await run.server.end_generation(run.roster.answering)
        await run.snapshots.give_up()
        await run.validator.give_up()
        until = time.monotonic() + deadline("portion-end")
        while run.workforce.outstanding and time.monotonic() < until:
            await run.take_in()
        for portion in run.workforce.give_up_all():
            run.stream.hand_back(portion)

    async def _rebuild(self, gone: list[int]) -> None:
        """Make anew what no copy is left of, and then the copies that are missing."""
        run, server = self.run, self.run.server
        if gone and run.plan.path is None:
            raise self.lost(f"shard {gone[0]} of {len(server.slices)} is gone")
        standings = await server.advance()
        run.workforce.abandoned = False
        if gone:
            await wait_for_homes(run)
            if standings:
                await self._make_again(gone)
                await self._adopt(gone, standings)
            else:
                await self._go_back(gone)
            self._behind.clear()
        await run.validator.mend(lost=bool(gone))
        await run.twins.make()

    async def _make_again(self, gone: Sequence[int]) -> None:
        """Rebuild shards from the last snapshot."""
        run = self.run
        await run.server.replace(gone, run.initial(), run.shard_homes())

    async def _adopt(self, gone: Sequence[int], standings: list[Standing]) -> None:
        """The survivors' standing becomes the new shards': nothing is applied to them twice."""
        run, epoch = self.run, self.run.stream.epoch
        rows, applied = furthest(standings, epoch)
        lost = await run.server.order("adopt", rows, applied, epoch, only=gone)
        assert run.snapshots.committed is not None  # that is what they were made from
        since = run.snapshots.committed.group
        run.tally.rolled_back += self._told.new(since, dict(zip(gone, lost, strict=True)))

    async def _go_back(self, gone: Sequence[int]) -> None:
        """Every shard is lost: the whole run goes back to the snapshot, and nothing is skipped."""
        run = self.run
        snapshot = run.snapshots.committed
        assert snapshot is not None  # a run with a checkpoint begins with a snapshot
        state = snapshot.state
        if run.tally.applied > state["applied"]:  # else this is one more try of the same return
            self.returns.note(snapshot.number, run.tally.applied)
        if self.returns.in_vain >= MOST_RECOVERIES:
            raise self.lost(
                f"the run went back {MOST_RECOVERIES} times to where every shard was lost again "
                f"before it came any further, after {run.tally.applied} updates"
            )
        run.forget_result()
        run.tally.go_back(state)
        self._told = Told()
        run.stream.restart(state["epoch"], [tuple(identity) for identity in state["finished"]])
        await self._make_again(gone)

    def lost(self, why: str) -> RunLost:
        """Return the error that ends the run: what is lost, and what would have saved it."""
        return RunLost(f"{why}; {lost_with(self.run)}")
