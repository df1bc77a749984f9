"""First parameters that are large and lie in a store: the shards read them, each its own slice."""

import asyncio
import logging
import pickle
from collections.abc import Sequence

import numpy as np
from distributed import Client

from dbdask.daemon_threads import beside_loop
from dbdask.models.layout import Layout, as_layout
from dbdask.result import Result
from dbdask.rpc.calls import is_no_answer, run_on
from dbdask.rpc.deadlines import deadline
from dbdask.run.run import Run
from dbdask.worker.initial import FromStored, StoredRange

logger = logging.getLogger("dbdask")

LEAST_BYTES = 64 * 2**20
"""Bytes of parameters from which on the shards read them; fewer are read here."""


def stored_start(parameters: object, layout: Layout) -> FromStored | None:
    """Return how shards read the parameters of a result; None if the client is to read them.

    Parameters
    ----------
    parameters
        What the user gave.
    layout
        That of the model that is to be trained.

    Raises
    ------
    ValueError
        The result lacks a parameter of the model, or has it in another shape.
    """
    if not isinstance(parameters, Result) or parameters.stored is None:
        return None
    if 4 * layout.size < LEAST_BYTES:
        return None
    theirs = as_layout(parameters.model.layout)
    places = dict(zip((p.name for p in theirs.parameters), theirs.offsets, strict=True))
    shapes = {p.name: p.shape for p in theirs.parameters}
    ranges: list[StoredRange] = []
    for parameter, offset in zip(layout.parameters, layout.offsets, strict=True):
        check_parameter(parameter.name, shapes.get(parameter.name), parameter.shape)
        name = parameter.name
        ranges.append(StoredRange(name, offset, places[name], parameter.size))
    return FromStored(parameters.stored, tuple(ranges))


def check_parameter(name: str, shape: tuple[int, ...] | None, wanted: tuple[int, ...]) -> None:
    """Compare the shape of a parameter that was given, None if it is missing, with the model's.

    Raises
    ------
    ValueError
        It is missing, or has another shape.
    """
    if shape is None:
        raise ValueError(f"parameters has no {name!r}, which the model needs")
    if shape != wanted:
        raise ValueError(f"parameters[{name!r}] has shape {shape}, the model needs {wanted}")


async def first_parameters(run: Run) -> np.ndarray | FromStored | None:
    """Return what the first shards hold: a vector, float32 (size,), or where they find it.

    A stored vector is read here if a worker cannot read it. None asks the model.

    Raises
    ------
    CheckpointError, ResultError
        A checkpoint or a saved result is damaged, or its store hangs.
    ValueError
        A number is not finite.
    """
    start = run.plan.start
    if not isinstance(start, FromStored):
        return start
    trouble = await trouble_of_readers(run.client, run.placement.eligible(), start)
    if not trouble:
        return start
    logger.warning(
        "parameters= are read here and sent to the shards, because %s: give the result a path or "
        "URL that every worker can read, where they do not fit this process",
        trouble,
    )
    return await beside_loop(start.read, 0, run.plan.size)


async def trouble_of_readers(client: Client, workers: Sequence[str], start: FromStored) -> str:
    """Return which worker cannot read a stored vector, and why; '' if all can."""
    asked = (_trouble_of(client, worker, pickle.dumps(start)) for worker in workers)
    return next((trouble for trouble in await asyncio.gather(*asked) if trouble), "")


async def _trouble_of(client: Client, worker: str, start: bytes) -> str:
    """Ask one worker. A worker that gives no answer has left, which says nothing of the store."""
    try:
        seconds = deadline("store") + deadline("connect")
        trouble: str = await run_on(client.rpc, worker, why_unreadable, start, seconds=seconds)
    except Exception as error:
        trouble = "" if is_no_answer(error) else repr(error)
    return f"worker {worker}: {trouble}" if trouble else ""


async def why_unreadable(start: bytes) -> str:
    """Read one element of a stored vector, on a worker; return what failed, or ''."""
    return await beside_loop(_why_unreadable, start)


def _why_unreadable(start: bytes) -> str:
    try:
        pickle.loads(start).read(0, 1)
    except Exception as error:
        return repr(error)
    return ""
