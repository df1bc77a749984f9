"""The barrier: replicas come to rest between two steps, and all shards hold the same ones."""

from collections.abc import Callable, Sequence

from dbdask.numbers.ledger import Standing
from dbdask.numbers.portions import Portion
from dbdask.verbs.run import Run
from dbdask.verbs.stream import PortionStream


class Barrier:
    """Brings a run to rest (a replica hands its portion back with the push that it is in).

    Parameters
    ----------
    stream
        Knows the epoch that is open.
    portions_of
        The portions of an epoch.
    complete
        Has a worker bring all shards to the last step of a portion that one of them has.
    """

    def __init__(
        self,
        stream: PortionStream,
        portions_of: Callable[[int], Sequence[Portion]],
        complete: Callable[[Run, Portion, str], None],
    ) -> None:
        self.stream, self.portions_of, self.complete = stream, portions_of, complete
        self.standing = Standing([], 0)  # of every copy of every shard, at the last rest

    async def rest(self, run: Run) -> None:
        """Return when no replica works and every shard has applied the same steps.

        A task that was given up for silent may still be pushing: then the generation ends too.
        """
        await run.server.order("pause", True)
        await self._empty(run)
        if run.workforce.abandoned:
            async with run.validator.choice:
                await run.server.advance()
            run.workforce.abandoned = False
        while uneven := await self._uneven(run):
            await self._even_out(run, uneven)

    async def release(self, run: Run) -> None:
        """Let replicas go on."""
        await run.server.order("pause", False)

    async def _uneven(self, run: Run) -> set[tuple[int, int]]:
        """The portions that copies of shards hold at different steps."""
        standings = await run.server.pause()
        self.standing = standings[0]
        epoch = self.stream.epoch  # some shards may not have heard yet that others are closed
        first, *others = (
            {row[:3] for row in standing.rows if row[0] >= epoch} for standing in standings
        )
        return {(epoch, portion) for steps in others for epoch, portion, _ in first ^ steps}

    async def _empty(self, run: Run) -> None:
        """Take in until nothing is outstanding; trouble on the way comes out."""
        while run.workforce.outstanding:
            await run.take_in()

    async def _even_out(self, run: Run, uneven: set[tuple[int, int]]) -> None:
        """Bring the shards that lack a step of a portion to the step that others have."""
        while not run.roster.workers:  # until one comes, or none does for too long
            await run.take_in()
        portions = {(p.epoch, p.number): p for p in self.portions_of(self.stream.epoch)}
        workers = run.roster.workers
        for identity, worker in zip(uneven, workers * len(uneven), strict=False):
            self.complete(run, portions[identity], worker)
        await self._empty(run)
