"""Policies: which workers will not finish their work, which work is suspected, and why."""

from collections.abc import Iterable, Sequence, Set
from typing import Any

from dbdask.rpc.deadlines import deadline
from dbdask.run.outstanding import Outstanding
from dbdask.run.roster import Roster


def late_workers(held: Iterable[Outstanding[Any]], now: float, least: float) -> set[str]:
    """Return the workers of work that have answered no ping for more than `least` seconds."""
    return {out.worker for out in held if now - out.since > least}


def unreachable(held: Iterable[Outstanding[Any]], roster: Roster, late: Set[str]) -> set[str]:
    """Return the workers that will not finish their work.

    They are silent, have left, or are paused by Dask while their work is overdue: on a paused
    worker it may never begin. A worker that closes in order is not among them unless it is also
    one of these.

    Parameters
    ----------
    held
        The work under way.
    roster
        The workers.
    late
        Workers of overdue work.
    """
    left = {out.worker for out in held} - set(roster.facts)
    return roster.silent | left | (late & roster.paused)


def suspects(held: Sequence[Outstanding[Any]], workers: Iterable[str]) -> list[Outstanding[Any]]:
    """Return the work that lost or paused workers were at.

    That is the oldest on each, of training and of validation: which of the two the worker had
    begun is not known.
    """
    suspected: list[Outstanding[Any]] = []
    for worker in sorted(workers):
        pending = [out for out in held if out.worker == worker and not out.task.done()]
        oldest = {out.work.examples: out for out in reversed(pending)}
        suspected += oldest.values()
    return suspected


def why_unreachable(worker: str, roster: Roster) -> str:
    """Say why a worker's work is given up, in words that follow "because"."""
    if worker not in roster.facts:
        return f"worker {worker} was lost"
    if worker in roster.paused - roster.silent:
        return f"Dask has paused worker {worker}, because its memory is nearly full"
    return f"worker {worker} answered no ping for {deadline('ping'):g} s (dbdask.ping)"
