"""The clients of users: which of them can be worked with."""

from typing import Any

from dbdask.rpc.scheduler import is_closed


def check_client(client: Any) -> None:
    """Refuse what is no open, synchronous client.

    Raises
    ------
    TypeError
        `client` is no Dask client, or an asynchronous one.
    ValueError
        It is closed.
    """
    if not hasattr(client, "asynchronous"):
        raise TypeError(f"client must be a dask.distributed.Client, got {client!r}")
    if client.asynchronous:
        raise TypeError("client must be synchronous, got an asynchronous one: Client(address)")
    if is_closed(client):
        raise ValueError(f"client must be open, got a closed one, {client!r}: Client(address)")
