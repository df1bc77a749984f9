"""The barrier: replicas come to rest between two steps, and all shards hold the same ones."""

from typing import TYPE_CHECKING

from dbdask.errors import ShardLost
from dbdask.numbers.ledger import Standing, uneven

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
        while apart := await self._uneven():
            await self._complete(apart)

    async def release(self) -> None:
        """Let replicas go on."""
        await self.run.server.order("pause", False)

    async def _uneven(self) -> set[tuple[int, int]]:
        """The portions that copies of shards hold at different steps."""
        standings = await self.run.server.pause()
        self.standing = standings[0]
        # Some shards may not have heard yet that other epochs are closed.
        return uneven(standings, self.run.stream.epoch)

    async def _empty(self) -> None:
        """Take in until nothing is outstanding; trouble on the way comes out."""
        while self.run.workforce.outstanding:
            await self._take_in()

    async def _take_in(self) -> None:
        trouble = await self.run.take_in()
        if trouble:
            raise ShardLost(trouble)

    async def _complete(self, apart: set[tuple[int, int]]) -> None:
        """Bring the shards that lack a step of a portion to the step that others have."""
        run = self.run
        while not run.roster.workers:  # until one comes, or none does for too long
            await self._take_in()
        workers = run.roster.workers
        for (_, number), worker in zip(apart, workers * len(apart), strict=False):
            run.give(run.stream.portion(number), worker, complete_only=True)
        await self._empty()
