"""The barrier: replicas come to rest between two steps, and all shards hold the same ones."""

from typing import TYPE_CHECKING

from dbdask.errors import ShardLost
from dbdask.numbers.ledger import Standing

if TYPE_CHECKING:
    from dbdask.verbs.downpour_run import DownpourRun


class Barrier:
    """Brings one run to rest (a replica hands its portion back with the push that it is in)."""

    def __init__(self, run: "DownpourRun") -> None:
        self.run = run
        self.standing = Standing([], 0)  # of every copy of every shard, at the last rest

    async def rest(self) -> None:
        """Return when no replica works and every shard has applied the same steps.

        A task that was given up for silent may still be pushing: then the generation ends too.
        """
        server, workforce = self.run.server, self.run.workforce
        await server.order("pause", True)
        await self._empty()
        if workforce.abandoned:
            async with self.run.validator.choice:
                await server.advance()
            workforce.abandoned = False
        while uneven := await self._uneven():
            await self._complete(uneven)

    async def release(self) -> None:
        """Let replicas go on."""
        await self.run.server.order("pause", False)

    async def _uneven(self) -> set[tuple[int, int]]:
        """The portions that copies of shards hold at different steps."""
        standings = await self.run.server.pause()
        self.standing = standings[0]
        epoch = self.run.stream.epoch  # some shards may not have heard yet that others are closed
        first, *others = (
            {row[:3] for row in standing.rows if row[0] >= epoch} for standing in standings
        )
        return {(epoch, portion) for steps in others for epoch, portion, _ in first ^ steps}

    async def _empty(self) -> None:
        """Take in until nothing is outstanding; trouble on the way comes out."""
        while self.run.workforce.outstanding:
            await self._take_in()

    async def _take_in(self) -> None:
        trouble = await self.run.take_in()
        if trouble:
            raise ShardLost(trouble)

    async def _complete(self, uneven: set[tuple[int, int]]) -> None:
        """Bring the shards that lack a step of a portion to the step that others have."""
        run = self.run
        while not run.roster.workers:  # until one comes, or none does for too long
            await self._take_in()
        portions = {
            (p.epoch, p.number): p for p in run.plan.cut.portions(run.plan.seed, run.stream.epoch)
        }
        workers = run.roster.workers
        for identity, worker in zip(uneven, workers * len(uneven), strict=False):
            run.give(portions[identity], worker, complete_only=True)
        await self._empty()
