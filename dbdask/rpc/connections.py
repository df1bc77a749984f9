"""Connections to the address of a worker. An address where no process listens fails at once."""

import asyncio
import re

from distributed.comm import Comm, get_address_host_port
from distributed.core import ConnectionPool

from dbdask.schedule.awake import LOOK_SECONDS, AwakeClock

FIRST_TRY_SECONDS = 0.5
GRACE_SECONDS = 1.0  # until a connection is given up after its caller has stopped waiting


async def connect(pool: ConnectionPool, address: str, seconds: float) -> Comm:
    """Return a connection to an address.

    If this process was suspended while it connected, Dask's time-out does not count, and it tries
    again.

    Raises
    ------
    ConnectionRefusedError
        No process listens at the address.
    OSError
        No connection was made within `seconds`.
    """
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
    """Return a new connection, or raise as soon as the address refuses one.

    Dask tries an address where no process listens until its time is up. So this function looks for
    itself after a moment.

    Tornado never closes a socket if its connecting is cancelled in the turn in which it succeeds.
    So no attempt is cancelled at once. Dask gets the whole time, because it cancels an attempt that
    takes longer than a fifth of its time, and begins again.
    """
    connecting = asyncio.ensure_future(pool.connect(address, timeout=seconds))
    try:
        await asyncio.wait({connecting}, timeout=FIRST_TRY_SECONDS)
        if not connecting.done() and await _is_refused(address):
            raise ConnectionRefusedError(f"no process listens at {address}")
        await asyncio.wait({connecting})
        return connecting.result()
    except BaseException:
        _leave_to_next(pool, address, connecting)
        raise


def _leave_to_next(pool: ConnectionPool, address: str, connecting: "asyncio.Task[Comm]") -> None:
    """Put a connection whose caller has stopped waiting into the pool when it is made."""

    def give_back(connecting: "asyncio.Task[Comm]") -> None:
        if not connecting.cancelled() and connecting.exception() is None:
            pool.reuse(address, connecting.result())

    connecting.add_done_callback(give_back)
    asyncio.get_running_loop().call_later(GRACE_SECONDS, connecting.cancel)


async def _is_refused(address: str) -> bool:
    """Whether a connection is refused: the process is gone. A busy process lets callers wait."""
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
    """Say what to do if TLS ended a connection; return '' if another error ended it."""
    if not (address.startswith("tls://") and re.search(r"TLS cert|SSL\w*Error", repr(error))):
        return ""
    server = pool.server() if pool.server else None
    caller = getattr(server, "address", "the client")
    return (
        f"cannot be reached from {caller}, because one refuses the other's TLS certificate: "
        f"scheduler, workers and client need certificates of one authority, or --tls-ca-file "
        f"with the authorities of all ({error!r})"
    )
