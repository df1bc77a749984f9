"""Recovery of a Downpour run: end what is in flight, rebuild what is lost, and go on."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dbdask.errors import ShardLost, WorkerError
from dbdask.server.deadlines import deadline
from dbdask.server.parameter_server import TROUBLE

if TYPE_CHECKING:
    from dbdask.verbs.downpour_run import DownpourRun

logger = logging.getLogger("dbdask")

MOST_RECOVERIES = 3  # without a step between them
TURN_SECONDS = 0.25
Row = tuple[int, int, int]  # epoch, portion, last step


class RunLost(ShardLost):
    """The run cannot go on: this trouble is the verb's answer, and no further recovery's."""


class Recovery:
    """What one run does about lost shards.

    Portions in flight end first, because a shard's constructor needs a free worker thread. Then
    only the lost shards go back to the last snapshot; the survivors' ledger tells them what not
    to apply again. Where no shard survives, the whole run goes back.
    """

    def __init__(self, run: "DownpourRun") -> None:
        self.run = run
        self.in_a_row = 0  # recoveries since the last step

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
        await self._end_flight()
        await run.workforce.refresh(now=True)
        lost = await run.server.find_lost(run.workforce.everyone)
        run.tally.lost += len(lost)
        await self._rebuild(lost)
        await run.barrier.release()

    async def _end_flight(self) -> None:
        """End every call, wait for the tasks to come home, and hand their portions back."""
        run = self.run
        await run.server.end_generation(run.workforce.everyone)
        await run.snapshots.give_up()
        await run.validator.give_up()
        until = time.monotonic() + deadline("portion-end")
        while run.workforce.outstanding and time.monotonic() < until:
            await run.take_in()
        for portion in run.workforce.give_up_all():
            run.stream.hand_back(portion)

    async def _rebuild(self, lost: list[int]) -> None:
        server = self.run.server
        survivors = [i for i in range(len(server.slices)) if i not in lost]
        if lost and self.run.plan.path is None:
            raise self.lost(f"shard {lost[0]} of {len(server.slices)} is gone")
        ledgers = await server.advance(survivors)
        self.run.workforce.abandoned = False
        if not lost:
            return
        await wait_for_homes(self.run)
        if not survivors:
            await self._go_back(lost)
            return
        await self._make_again(lost)
        await self._adopt(lost, ledgers)

    async def _make_again(self, lost: Sequence[int]) -> None:
        """Rebuild shards from the last snapshot, else from where the run started."""
        run = self.run
        await run.server.replace(lost, run.initial(), run.shard_homes())
        if run.snapshots.committed is None and run.plan.start is not None:
            await run.server.assign(run.plan.start, only=lost)

    async def _adopt(self, lost: Sequence[int], ledgers: list[list[Row]]) -> None:
        """The survivors' numbers become the new shards': nothing is applied to them twice."""
        run = self.run
        rows = merged(ledgers)
        await run.server.command("adopt", rows, run.stream.epoch, only=lost)
        snapshot = run.snapshots.committed
        kept = snapshot.state["applied"] if snapshot else 0
        run.tally.rolled_back += max(0, run.tally.applied - kept) * len(lost)

    async def _go_back(self, lost: Sequence[int]) -> None:
        """Every shard is lost: the whole run goes back to the snapshot, and nothing is skipped."""
        run = self.run
        snapshot = run.snapshots.committed
        state: dict[str, Any] = (
            snapshot.state if snapshot else {"epoch": 0, "finished": [], "applied": 0}
        )
        run.tally.go_back(state)
        run.stream.restart(state["epoch"], [tuple(identity) for identity in state["finished"]])
        await self._make_again(lost)

    def lost(self, why: str) -> RunLost:
        """Return the error that ends the run: what is lost, and what would have saved it."""
        return RunLost(f"{why}; {self.run.where_it_stands()}")


async def wait_for_homes(run: Any) -> None:
    """Return when there is a worker for shards and one for portions.

    Raises
    ------
    WorkerError
        None came within the deadline.
    """
    until = time.monotonic() + deadline("portion-end")
    while not (run.shard_homes() and run.workforce.workers):
        if time.monotonic() > until:
            raise WorkerError(
                f"no worker is left to go on with, and none came in "
                f"{deadline('portion-end'):g} s; {run.where_it_stands()}"
            )
        await asyncio.sleep(TURN_SECONDS)
        await run.workforce.refresh()
        await run.workforce.watch_silence()


def merged(ledgers: list[list[Row]]) -> list[Row]:
    """Return the largest step of every portion over several shards' ledgers.

    Examples
    --------
    >>> merged([[(0, 1, 4)], [(0, 1, 5), (0, 2, 0)]])
    [(0, 1, 5), (0, 2, 0)]
    """
    latest: dict[tuple[int, int], int] = {}
    for epoch, portion, step in (row for rows in ledgers for row in rows):
        latest[epoch, portion] = max(step, latest.get((epoch, portion), -1))
    return [(epoch, portion, step) for (epoch, portion), step in sorted(latest.items())]
