"""What a run leaves, and what an error says of where it stands."""

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
