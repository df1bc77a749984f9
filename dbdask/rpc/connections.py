"""Connections to the address of a worker: none waits where no process listens."""

import asyncio
import re

from distributed.comm import Comm, get_address_host_port
from distributed.core import ConnectionPool

from dbdask.schedule.awake import LOOK_SECONDS, AwakeClock

FIRST_TRY_SECONDS = 0.5
GRACE_SECONDS = 1.0  # a connection that nobody waits for any more


async def connect(pool: ConnectionPool, address: str, seconds: float) -> Comm:
    """Return a connection; where this process paused on the way, Dask's time-out judges nobody."""
    if any(not comm.closed() for comm in pool.available.get(address, ())):
        return await pool.connect(address, timeout=seconds)
    while True:
        clock = AwakeClock(asyncio.get_running_loop().time)
        watching = asyncio.ensure_future(_watch(clock))
        try:
            return await _connect_anew(pool, address, seconds)
        except ConnectionRefusedError:
            raise
        except OSError:
            clock.seconds()
            if not clock.pauses:
                raise
        finally:
            watching.cancel()


async def _watch(clock: AwakeClock) -> None:
    """Look at a clock for as long as the wait that it measures."""
    while True:
        clock.seconds()
        await asyncio.sleep(LOOK_SECONDS)


async def _connect_anew(pool: ConnectionPool, address: str, seconds: float) -> Comm:
    """Return a new connection; Dask tries an address where nobody listens until the time is up.

    Tornado never closes a socket whose connecting is cancelled in the very turn in which it is
    connected. So nothing is cancelled at once, and Dask gets all the time there is: it cancels what
    takes longer than a fifth of it, and begins again.
    """
    connecting = asyncio.ensure_future(pool.connect(address, timeout=seconds))
    try:
        await asyncio.wait({connecting}, timeout=FIRST_TRY_SECONDS)
        if not connecting.done() and await _is_refused(address):
            raise ConnectionRefusedError(f"nobody listens at {address}")
        await asyncio.wait({connecting})
        return connecting.result()
    except BaseException:
        _leave_to_next(pool, address, connecting)
        raise


def _leave_to_next(pool: ConnectionPool, address: str, connecting: "asyncio.Task[Comm]") -> None:
    """Leave a connection that nobody waits for any more to the next who asks, if it is made."""

    def give_back(connecting: "asyncio.Task[Comm]") -> None:
        if not connecting.cancelled() and connecting.exception() is None:
            pool.reuse(address, connecting.result())

    connecting.add_done_callback(give_back)
    asyncio.get_running_loop().call_later(GRACE_SECONDS, connecting.cancel)


async def _is_refused(address: str) -> bool:
    """Whether a connection is refused: the process is gone, where a busy one lets it wait."""
    if not address.startswith(("tcp://", "tls://")):
        return False
    host, port = get_address_host_port(address)
    try:
        async with asyncio.timeout(FIRST_TRY_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return False


def refused_certificate(pool: ConnectionPool, address: str, error: BaseException) -> str:
    """Say what to do where a connection ended in TLS; nothing where it ended otherwise."""
    if not (address.startswith("tls://") and re.search(r"TLS cert|SSL\w*Error", repr(error))):
        return ""
    server = pool.server() if pool.server else None
    caller = getattr(server, "address", "the client")
    return (
        f"cannot be reached from {caller}, because one refuses the other's TLS certificate: "
        f"scheduler, workers and client need certificates of one authority, or --tls-ca-file "
        f"with the authorities of all ({error!r})"
    )
