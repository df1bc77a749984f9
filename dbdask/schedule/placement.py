"""Placement of copies of shards on workers, as a pure function of their holders."""

from collections import Counter
from collections.abc import Sequence


def missing_copies(
    holders: Sequence[Sequence[str]], copies: int, workers: Sequence[str]
) -> list[tuple[int, str]]:
    """Return a worker for every copy that a shard lacks: (shard, worker), in order.

    A worker holds a shard at most once; of the others, the one with the fewest shards gets the
    copy. First copies are placed before second ones, so that both spread evenly.

    Parameters
    ----------
    holders
        For each shard, the workers that hold a copy of it.
    copies
        How many copies each shard is to have; with fewer workers it has fewer.
    workers
        The workers that may be given shards.

    Examples
    --------
    >>> missing_copies([[], []], 2, ["a", "b", "c"])
    [(0, 'a'), (1, 'b'), (0, 'c'), (1, 'a')]
    >>> missing_copies([["a"], ["b"]], 2, ["b"])
    [(0, 'b')]
    """
    held = [list(names) for names in holders]
    loads = Counter(name for names in held for name in names)
    chosen = []
    for number in range(copies):
        for shard, names in enumerate(held):
            free = [worker for worker in workers if worker not in names]
            if len(names) > number or not free:
                continue
            worker = min(free, key=lambda name: loads[name])
            loads[worker] += 1
            names.append(worker)
            chosen.append((shard, worker))
    return chosen
