"""What a run leaves: its outcome, and nothing on the cluster; and what errors say of it."""

import asyncio
from dataclasses import dataclass
from typing import Any

from dbdask.numbers.history import History
from dbdask.status import Status


@dataclass(frozen=True)
class Outcome:
    """Where the parameters are, the history, and why the run stopped."""

    parameters: Any
    history: History
    status: Status


def where_it_stands(path: str | None) -> str:
    """Name the last snapshot and the line that resumes it, or what would have made one."""
    if path is None:
        return (
            "the run has no checkpoint to go on from: give checkpoint=PATH "
            '(and resume="auto"), or shard_copies=2'
        )
    return f"the last snapshot is in {path!r}: go on from it with checkpoint={path!r}, resume=True"


async def leave_nothing(run: Any) -> None:
    """End what a run has under way, and take its rooms and shards off the cluster."""
    try:
        run.workforce.close()
        run.leaving.end()
        if hasattr(run, "server"):
            await run.snapshots.give_up()
            await run.validator.give_up()
            await run.server.end_generation(run.workforce.everyone)
            await asyncio.to_thread(run.plan.supply.close)
            await run.server.release(run.workforce.everyone)
    finally:
        run.at_rest.set()
