"""The beginning of a run: it waits for workers, checks their memory, and makes the shards."""

import numpy as np

from dbdask.data.memory import has_room_for_vector
from dbdask.models.piecewise import ACTIVATION_BYTES, PIECE_BYTES
from dbdask.rpc.arrivals import await_workers
from dbdask.rpc.scheduler import WorkerFacts
from dbdask.run.preflight import check_collectable, check_memory
from dbdask.run.run import Run
from dbdask.run.shard_placement import most_elements
from dbdask.run.stored_start import first_parameters
from dbdask.schedule import policies


async def begin(run: Run) -> int:
    """Wait for workers, check that the model fits in them, and return the number of shards."""
    plan = run.plan
    await await_workers(run.client)
    await run.workforce.refresh(first=True)
    await run.placement.wait()
    run.tally.note_replicas(*run.replicas)
    workers = len(run.placement.eligible())
    count = max(plan.partitions, plan.shards or policies.shards_for(plan.size, workers))
    _check_memory(run, count, workers)
    run.placement.begin()
    return count


def _check_memory(run: Run, shards: int, workers: int) -> None:
    plan, facts = run.plan, list(run.roster.facts.values())
    check_collectable(plan.name, plan.size, plan.path)
    length = most_elements(plan.size, shards, workers, plan.shard_copies)
    needed = run.method.memory(plan, length)
    replica, copied = needed.replica, needed.copied_shard
    if plan.partition is not None and plan.validation_cut is not None:
        replica += _validation_bytes(plan.size, facts)
    run.has_room_for_copies = copied is not None and all(
        replica + copied <= worker.memory_limit or not worker.memory_limit for worker in facts
    )
    more = plan.partitions + 1 if plan.can_be_cut else None
    check_memory(facts, replica, needed.shard, plan.name, more)


def _validation_bytes(size: int, facts: list[WorkerFacts]) -> int:
    """Return what a validation holds: the vector, in both orders, and a scratch; or pieces."""
    limit = min((worker.memory_limit for worker in facts if worker.memory_limit), default=None)
    return 12 * size if has_room_for_vector(size, limit) else PIECE_BYTES + ACTIVATION_BYTES


async def make_shards(run: Run, count: int) -> None:
    """Make every shard for the first time, and write the first snapshot."""
    plan = run.plan
    start = None if plan.last is not None else await first_parameters(run)
    await run.placement.place(count, run.initial(start))
    if isinstance(start, np.ndarray):
        await run.server.assign(start)
    if plan.path is not None and plan.last is None:
        await run.write()
