"""The run's decisions, as pure functions of evidence."""

import math
from collections.abc import Sequence

from dbdask.schedule.stored_chunks import MOST_STORED

CACHE_SHARE = {"train": 0.3, "validation": 0.1}  # of a worker's memory limit
CACHE_BYTES = 256 * 2**20  # for a worker without a limit

CHUNKS_AT_WORK = 3  # of a stored vector, while a shard writes it

SHARD_BYTES = 4 * 2**20  # a shard smaller than this costs more in messages than it saves

FLOPS_PER_THREAD = 4e8  # of a minibatch, some 7 ms: below it a BLAS thread costs more than it saves


def blas_threads(most: int, flops: int | None) -> int:
    """Return how many BLAS threads a replica uses.

    The threads of a product wait for each other at its end, and OpenBLAS's spin while they wait: a
    small product takes longer with two threads than with one, several times so if something else
    wants the core. So every thread must get enough work. The work is counted, not timed. Products
    of different numbers of threads differ in their last bits, and the result of one replica must
    not depend on how busy its machine is.

    Parameters
    ----------
    most
        The replica's share of its worker's threads.
    flops
        Floating-point operations of a minibatch; None, where they are not known, is `most` threads.

    Examples
    --------
    >>> of_small = 6 * 203_530 * 128
    >>> blas_threads(2, of_small), blas_threads(8, 10 * of_small), blas_threads(2, None)
    (1, 3, 2)
    """
    return most if flops is None else max(1, min(most, int(flops / FLOPS_PER_THREAD)))


def shards_for(size: int, workers: int) -> int:
    """Return the default number of shards: one a worker, but none below `SHARD_BYTES`.

    Examples
    --------
    >>> shards_for(1000, 8), shards_for(41_777_152, 2)
    (1, 2)
    """
    return max(1, min(workers, math.ceil(4 * size / SHARD_BYTES)))


def places_for(replicas: int | None, workers: Sequence[str]) -> dict[str, int]:
    """Return how many replicas run on each worker.

    None means one a worker. More replicas than workers are spread evenly.

    Examples
    --------
    >>> places_for(3, ["a", "b"])
    {'a': 2, 'b': 1}
    >>> places_for(1, ["a", "b"])
    {'a': 1}
    """
    count = len(workers) if replicas is None else replicas
    share, rest = divmod(count, len(workers)) if workers else (0, 0)
    places = {worker: share + (position < rest) for position, worker in enumerate(workers)}
    return {worker: number for worker, number in places.items() if number}


def tasks_for(places: int, replicas: int | None) -> int:
    """Return how many portion tasks are submitted to a worker: those that run, and a queue.

    A lone replica has one, so that its order is fixed. A run that follows its workers keeps
    more, so that an adaptive cluster sees the demand.
    """
    if replicas == 1:
        return 1
    return places + (2 if replicas is None else 1)


def replica_bytes(size: int, n_fetch: int, n_push: int, local_slots: int | None = None) -> int:
    """Return the bytes of a running replica's vectors, those under way included.

    They are parameters, gradient, and the parameters for the next step as they arrive; with
    `local_slots` vectors of a local optimiser also these, the parameters that were fetched, and
    the displacement.
    """
    vectors = 3 + (n_fetch > 1) + 2 * (n_push > 1)
    if local_slots is not None:
        vectors += 2 + local_slots
    return 4 * size * vectors


def shard_bytes(
    length: int, slots: int, keep_best: bool, *, copied: bool, validates: bool = True
) -> int:
    """Return the bytes of a shard of `length` elements.

    They are its vectors, and a snapshot copy: of all of them (`copied`), or of the parameters alone
    to validate with. Without a copy, they are some chunks that are being written.

    Examples
    --------
    >>> mib = 2**18  # elements
    >>> shard_bytes(100 * mib, 1, False, copied=False, validates=False) // 2**20
    248
    >>> shard_bytes(100 * mib, 1, False, copied=True) // 2**20
    400
    """
    vectors = 1 + slots + keep_best
    copies = length * (vectors if copied else int(validates))
    return 4 * (length * vectors + max(copies, min(length, CHUNKS_AT_WORK * MOST_STORED)))


def batch_shard_bytes(length: int, history_length: int, keep_best: bool) -> int:
    """Return the bytes of a batch shard: pairs, point, trial, gradients, direction, the sum."""
    return 4 * length * (2 * history_length + 6 + 2 + keep_best)


def cache_bytes(name: str, memory_limit: int | None) -> int:
    """Return the stored bytes that a worker's reader of the examples `name` may keep.

    Examples
    --------
    >>> cache_bytes("train", 512 * 2**20) // 2**20, cache_bytes("train", None) // 2**20
    (153, 256)
    """
    return int(CACHE_SHARE[name] * memory_limit) if memory_limit else CACHE_BYTES
