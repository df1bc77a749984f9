"""The barrier: replicas come to rest between two steps, and all shards hold the same ones."""

from collections.abc import Callable

from dbdask.algorithms.stream import PortionStream
from dbdask.run.run import Run
from dbdask.schedule.ledger import ShardProgress, uneven
from dbdask.schedule.portions import Portion
from dbdask.worker.context import LONG_READ_SECONDS


class Barrier:
    """Brings a run to rest: a replica hands its portion back after the push that is under way.

    Parameters
    ----------
    stream
        The open epoch and its portions.
    complete
        Gives a worker a portion, to bring all shards to the last step that one of them has.
    """

    def __init__(
        self,
        stream: PortionStream,
        complete: Callable[[Run, Portion, str], None],
    ) -> None:
        self.stream, self.complete = stream, complete
        self.progress = ShardProgress([], 0)  # of every copy of every shard, at the last rest

    async def rest(self, run: Run) -> None:
        """Wait until no replica works and every shard has applied the same steps.

        A task whose worker was silent, and which was given up, may still be pushing. Then the
        generation ends too.
        """
        await run.server.order("pause", True)
        await self._empty(run, may_give_up_reads=True)
        if run.workforce.late_pushes_possible:
            await run.server.advance()
            run.workforce.late_pushes_possible = False
        while apart := await self._uneven(run):
            await self._even_out(run, apart)

    async def release(self, run: Run) -> None:
        """Let replicas go on."""
        await run.server.order("pause", False)

    async def _uneven(self, run: Run) -> set[tuple[int, int]]:
        """Return the portions that copies of shards hold at different steps."""
        progresses = await run.server.pause()
        self.progress = progresses[0]
        # A shard may not know yet that other epochs are closed.
        return uneven(progresses, self.stream.epoch)

    async def _empty(self, run: Run, *, may_give_up_reads: bool = False) -> None:
        """Take in work until no training is under way; raise the trouble that it reports.

        A run that is to stop waits neither for a chunk that does not come, nor for a task behind
        one of Dask's that does not end: its portion goes back.
        """
        since = run.clock.seconds()
        while run.workforce.training:
            if run.stop_reason and may_give_up_reads:
                run.give_up_long_reads()
                if run.clock.seconds() - since > LONG_READ_SECONDS:
                    run.workforce.give_up_unsubmitted()
                    await run.workforce.give_up_unbegun()
            await run.take_in()

    async def _even_out(self, run: Run, apart: set[tuple[int, int]]) -> None:
        """Bring the shards that lack a step of a portion to the step that others have."""
        while not run.workforce.teams:  # until a worker comes, or none does for too long
            await run.take_in()
        teams = run.workforce.teams
        for (_, number), place in zip(apart, teams * len(apart), strict=False):
            self.complete(run, self.stream.portion(number), place)
        await self._empty(run)
