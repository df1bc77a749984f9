"""The cluster that dbdask runs on in the comparisons: two workers of one thread."""

from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client, LocalCluster


@contextmanager
def cluster_of(
    workers: int = 2,
    *,
    threads: int = 1,
    processes: bool = True,
    memory_limit: str = "auto",
) -> Iterator[Client]:
    """Yield the client of a new cluster, which is closed at the end."""
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            processes=processes,
            memory_limit=memory_limit,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
