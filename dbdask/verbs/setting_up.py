"""The first shards: made again, on other workers, where one leaves or stops meanwhile."""

import logging
from typing import Any

from dbdask.errors import TROUBLE
from dbdask.verbs.giving_up import MOST_RECOVERIES, RunLost, lost_with
from dbdask.verbs.homes import wait_for_homes

logger = logging.getLogger("dbdask")


async def set_up(run: Any) -> None:
    """Have a run make its shards, until they are there.

    Nothing was trained, so nothing is lost by beginning again.

    Raises
    ------
    RunLost
        They were lost in every one of several tries.
    """
    for tries_left in reversed(range(MOST_RECOVERIES + 1)):
        await wait_for_homes(run)
        try:
            return await run.make_shards()
        except TROUBLE as error:
            if not tries_left:
                raise RunLost(f"{error}; {lost_with(run)}") from error
            logger.warning("setting up again: %s", error)
        await run.workforce.refresh(now=True)
        await run.workforce.look_around()
