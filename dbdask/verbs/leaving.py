"""Workers that leave in mid-training: their shards move on first, and then they may go."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from dbdask.server.contact import listen, retire
from dbdask.server.deadlines import deadline

logger = logging.getLogger("dbdask")


class Leaving:
    """Which workers want to leave, and what one run does about it.

    Dask refuses to retire a worker that holds an actor, and only says so in an event: the run
    hears it, moves the shards, and retires the worker itself. A worker that closes (`scale`,
    `--lifetime`, SIGTERM) waits a little for its shards to be fetched.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        self._asked: set[str] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._stop_listening: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Listen for workers that were asked to leave and could not."""
        self._stop_listening = listen(self.run.client, "all", self._hear)

    async def end(self) -> None:
        """Listen no more, and wait a moment for the workers that are on their way out."""
        self._stop_listening()
        retiring = list(self._retiring)
        if retiring:
            await asyncio.wait(retiring, timeout=deadline("answer"))
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)

    def _hear(self, message: dict[str, Any]) -> None:
        if message.get("action") == "retire-workers":
            refused = set(message.get("could-not-retire", ()))
            self._asked |= refused & set(self.run.server.workers)

    @property
    def workers(self) -> set[str]:
        """Workers that get nothing new: they close, or were asked to leave."""
        return self._asked | self.run.roster.closing

    @property
    def due(self) -> bool:
        """Whether a worker that leaves holds a shard, and something can be done about it.

        None that was asked to leave is told that it cannot while its successor may be in a check.
        """
        run = self.run
        going = self.workers & set(run.server.workers)
        if not going or run.server.can_leave(going, run.shard_homes()):
            return bool(going)
        return bool(self._asked) and not run.roster.expects_homes

    async def hand_on(self) -> None:
        """Bring a Downpour run to rest, move the shards of leaving workers, and go on."""
        run = self.run
        for portion in run.workforce.abandon(run.roster.closing):
            run.stream.hand_back(portion)
        await run.barrier.rest()
        await self.move()
        await run.barrier.release()

    async def move(self) -> None:
        """Move the shards of leaving workers, while nothing runs, and let the workers go.

        Training stops for as long as the shards travel; nothing is rolled back.
        """
        run, going = self.run, self.workers
        homes = run.shard_homes()
        if not run.server.can_leave(going, homes):
            self._refuse()
            return
        logger.info("moving shards: %s leave", sorted(going))
        async with run.validator.choice:  # a choice that comes between would be half made
            await run.server.move(going, homes)
        run.twins.note()
        asked, self._asked = self._asked, set()
        for worker in asked:
            run.roster.leaving.add(worker)
            retiring = asyncio.ensure_future(self._retire(worker))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

    async def _retire(self, worker: str) -> None:
        """Let a worker go, beside training: Dask moves the user's data first, and may not end."""
        try:
            if await retire(self.run.client, worker):
                return
            why = "Dask has not moved all that it holds"
        except Exception as error:
            why = repr(error)
        logger.warning("worker %s could not be retired, and stays: %s", worker, why)
        self.run.roster.leaving.discard(worker)

    def _refuse(self) -> None:
        for worker in self._asked:
            logger.warning(
                "worker %s cannot leave: it holds parameter shards, and no other worker may hold "
                "them; start another one, or widen shard_workers=, and then ask it again",
                worker,
            )
        self._asked = set()
