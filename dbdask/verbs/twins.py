"""Copies of shards on other workers: whether some are missing, and making them."""

import logging
import math
from typing import Any

logger = logging.getLogger("dbdask")


class Twins:
    """What one run does so that every shard has as many copies as `shard_copies` asks for.

    A copy is made from another one while nothing is applied, so the two are equal. Where there
    are too few workers the run goes on with fewer copies, says so, and makes them when a worker
    comes.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        self._said = 0

    @property
    def due(self) -> bool:
        """Whether copies are missing that could be made now."""
        server = self.run.server
        return server.copies < server.wanted and server.lacks_copies(self.run.shard_homes())

    async def make(self) -> None:
        """Make what is missing; the run is at rest, and every shard has a copy."""
        await self.run.server.add_copies(self.run.shard_homes())
        self.note()

    async def make_at_new_generation(self) -> None:
        """Make what is missing where no shard was lost: replicas get a new handle."""
        async with self.run.validator.choice:  # a copy is made with all that is chosen, or before
            await self.run.server.advance()
            await self.make()

    def note(self) -> None:
        """Tell the history how many copies there are, and the log where they are too few."""
        server, tally = self.run.server, self.run.tally
        tally.shard_copies = float(server.copies) if server.wanted > 1 else math.nan
        if server.copies < server.wanted and self._said != server.copies:
            logger.warning(
                "every shard is to have %d copies, but only %d workers can hold shards: the run "
                "goes on with %d until a worker comes",
                server.wanted,
                len(self.run.shard_homes()),
                server.copies,
            )
        self._said = server.copies
