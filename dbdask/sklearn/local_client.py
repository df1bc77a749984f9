"""The client of a fit: the user's, the current one, or that of a cluster in this process."""

import atexit
import os
import threading

from dask.system import CPU_COUNT
from distributed import Client, LocalCluster

from dbdask.run.session import current_client


class LocalClient:
    """A client of one worker in this process, which uses all cores and is kept for later fits.

    The cluster starts no process, and ends with this one. A forked process makes its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[int, LocalCluster, Client] | None = None

    def client(self) -> Client:
        """Return the client, of a new cluster if there is none or it was closed."""
        with self._lock:
            if self._kept is not None:
                process, _, client = self._kept
                if process == os.getpid() and client.status == "running":
                    return client
            cluster = LocalCluster(
                n_workers=1,
                threads_per_worker=CPU_COUNT,
                processes=False,
                dashboard_address=":0",
                memory_limit=None,  # it would count the user's own arrays, and pause the worker
            )
            client = Client(cluster, set_as_default=False)
            self._kept = os.getpid(), cluster, client
            return client

    def close(self) -> None:
        """Close the cluster, if this process has one."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None and kept[0] == os.getpid():
            _, cluster, client = kept
            client.close()
            cluster.close()


local_client = LocalClient()
"""That of this process."""

atexit.register(local_client.close)


def client_of_fit(client: Client | None, replicas: int | None) -> tuple[Client, int | None]:
    """Return the client of a fit and its number of replicas.

    The client is the given one, else the current one, else that of this process, on which there
    is one replica unless another number was given: its order of portions is then fixed.
    """
    found = client if client is not None else current_client()
    if found is not None:
        return found, replicas
    return local_client.client(), 1 if replicas is None else replicas
