"""Connections to addresses, and what becomes of those that are waited for no longer."""

import asyncio
import time
from contextlib import suppress

import pytest
from distributed.comm import listen
from distributed.core import ConnectionPool
from tornado.tcpclient import _Connector

from dbdask.rpc import calls, connections


def test_a_connection_that_nobody_waits_for_is_left_to_the_next(monkeypatch):
    """A wait that ends in the very turn in which the socket is connected left it open for ever."""
    connecting, connect = [], _Connector.on_connect_done

    def connect_and_cancel(*arguments):
        connect(*arguments)
        while connecting:
            connecting.pop().cancel()

    monkeypatch.setattr(_Connector, "on_connect_done", connect_and_cancel)

    async def serve(comm):
        with suppress(OSError):
            await comm.read()

    async def story():
        async with listen("tcp://127.0.0.1:0", serve) as listener, ConnectionPool() as pool:
            address = listener.contact_address
            waiting = asyncio.ensure_future(connections.connect(pool, address, 5.0))
            connecting.append(waiting)
            await asyncio.wait({waiting})
            assert waiting.cancelled()
            until = time.monotonic() + 120
            while pool._n_connecting or pool.active:
                assert time.monotonic() < until
                await asyncio.sleep(0.01)
            assert pool.open == 1
            pool.reuse(address, await connections.connect(pool, address, 5.0))
            assert pool.open == 1

    asyncio.run(story())


def test_who_stops_to_wait_for_one_who_never_answers_gives_it_up(monkeypatch):
    monkeypatch.setattr(connections, "GRACE_SECONDS", 0.1)

    async def story():
        held = []  # and no handshake
        server = await asyncio.start_server(lambda *ends: held.append(ends), "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with server, ConnectionPool() as pool:
            asking = calls.worker_answers(pool, f"tcp://{host}:{port}", seconds=0.2)
            assert not await asking
            until = time.monotonic() + 120
            while pool._n_connecting or pool.open:
                assert time.monotonic() < until
                await asyncio.sleep(0.01)
            for _, writer in held:
                writer.close()

    asyncio.run(story())


def test_where_nobody_listens_is_known_long_before_the_deadline():
    async def story():
        async with ConnectionPool() as pool:
            began = time.monotonic()
            with pytest.raises(
                ConnectionRefusedError, match="no process listens at tcp://127.0.0.1:9"
            ):
                await connections.connect(pool, "tcp://127.0.0.1:9", 60.0)
            assert time.monotonic() - began < 30
            await asyncio.sleep(connections.GRACE_SECONDS + 0.1)
            assert not pool._n_connecting

    asyncio.run(story())
