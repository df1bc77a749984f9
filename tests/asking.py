"""What tests ask a scheduler.

`Client.scheduler_info` hands out what the client has kept of the last answer, and the client asks
by itself, without the workers, every now and then: between question and reading it may be that.
"""

from typing import Any

from distributed import Client


def workers_of(client: Client) -> dict[str, dict[str, Any]]:
    """Return each worker's description, by address."""
    return client.run_on_scheduler(
        lambda dask_scheduler: dask_scheduler.identity(n_workers=-1)["workers"]
    )
