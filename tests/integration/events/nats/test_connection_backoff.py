"""The backoff between attempts to connect, counted by a socket in place of the server."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from events.nats.client.connection import Connection
from events.nats.server import free_port
from events.process.backoff import LOCAL_PAUSE, Backoff
from events.process.settings import LedgerAddress, Settings, hub_address, ledger_address, load
from tests.support.nats.hub_servers import HubServers
from tests.support.waiting import until


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def settings(folder: Path, *ports: int) -> Settings:
    """Return the addresses of a node's own server and of its hub, at *ports*."""
    url = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
    path = folder / "plumbline.json"
    path.write_text(json.dumps({"ledger": {"url": url}, "hub": {"url": url}}))
    return load(path, Settings)


def hub(folder: Path, *ports: int) -> LedgerAddress:
    address = hub_address(settings(folder, *ports))
    assert address is not None
    return address


@asynccontextmanager
async def hanging_up(port: int) -> AsyncIterator[list[float]]:
    """Yield the times at which clients connected to *port*; each is disconnected."""
    times: list[float] = []

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        times.append(time.monotonic())
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", port):
        yield times


@asynccontextmanager
async def connecting(address: LedgerAddress) -> AsyncIterator[Connection]:
    """Yield a connection that is opening, and close it."""
    connection = Connection(address, "test", 1.0)
    opening = asyncio.create_task(connection.open())
    try:
        yield connection
    finally:
        while not opening.done():  # ``asyncio.wait_for`` loses some cancellations before Python 3.12
            opening.cancel()
            await asyncio.wait([opening], timeout=1)
        await connection.close()


async def up(connection: Connection, made: int = 1) -> None:
    await until(lambda: connection.connected and connection.generation == made)


async def test_pause_grows_for_a_hub_but_not_for_the_nodes_server(folder: Path) -> None:
    ports = free_port(), free_port()
    async with hanging_up(ports[0]) as at_hub, hanging_up(ports[1]) as at_node:
        own = ledger_address(settings(folder, ports[1]))
        async with connecting(hub(folder, ports[0])), connecting(own):
            await asyncio.sleep(4)
    assert 5 <= len(at_hub) <= 8
    assert len(at_node) >= 15
    gaps = [later - earlier for earlier, later in itertools.pairwise(at_hub)]
    assert gaps[0] < 0.4
    assert max(gaps) > 0.6


async def test_clients_of_a_hub_have_different_pauses(folder: Path) -> None:
    port = free_port()
    async with hanging_up(port) as times, AsyncExitStack() as clients:
        for _ in range(20):
            await clients.enter_async_context(connecting(hub(folder, port)))
        await until(lambda: len(times) >= 5 * 20)
        fifth = times[4 * 20 : 5 * 20]
    assert max(fifth) - min(fifth) > 0.2


async def test_backoff_resets_once_a_hub_is_back(
    folder: Path,
) -> None:
    servers = HubServers(folder)
    servers.start()
    (port,) = servers.ports
    longest = 1.0
    async with connecting(LedgerAddress(servers.url, max_pause=longest)) as connection:
        await up(connection)
        servers.kill()
        async with hanging_up(port) as times:
            await until(lambda: len(times) >= 7)
        assert all(later - earlier < longest + 0.5 for earlier, later in itertools.pairwise(times))
        servers.start()
        back = time.monotonic()
        await up(connection, 2)
        assert time.monotonic() - back < longest + 0.5
        servers.kill()
        async with hanging_up(port) as again:
            await until(lambda: len(again) >= 2)
        assert again[1] - again[0] < 0.4


async def test_all_servers_of_a_hub_are_tried_before_a_pause(folder: Path) -> None:
    ports = [free_port() for _ in range(3)]
    async with AsyncExitStack() as stack:
        at = [await stack.enter_async_context(hanging_up(port)) for port in ports]
        await stack.enter_async_context(connecting(hub(folder, *ports)))
        await until(lambda: all(len(times) >= 5 for times in at))
    for together in list(zip(*at, strict=False))[:5]:  # the last pause is 0.4 s at least
        assert max(together) - min(together) < 0.35


async def test_client_switches_at_once_if_one_of_three_servers_dies(folder: Path) -> None:
    servers = HubServers(folder, 3)
    servers.start()
    address = hub(folder, *servers.ports)
    try:
        async with connecting(address) as connection:
            await up(connection)
            for count in range(2, 5):
                lost = servers.ports.index(int(connection._client._server.rpartition(":")[2]))
                servers.kill(lost)
                died = time.monotonic()
                await up(connection, count)
                assert time.monotonic() - died < 1.0
                servers.start(lost)
    finally:
        servers.kill()


async def test_close_does_not_wait_for_the_pause(folder: Path) -> None:
    servers = HubServers(folder)
    servers.start()
    (port,) = servers.ports
    async with connecting(hub(folder, port)) as connection:
        await up(connection)
        servers.kill()
        async with hanging_up(port) as times:
            await until(lambda: len(times) >= 6)  # the next pause is 1.6 s at least
            await asyncio.sleep(0.1)
            started = time.monotonic()
            await connection.close()
            assert time.monotonic() - started < 0.5
            await asyncio.sleep(2)
        assert len(times) == 6


async def test_close_succeeds_with_unsent_messages(folder: Path) -> None:
    servers = HubServers(folder)
    servers.start()
    async with connecting(hub(folder, *servers.ports)) as connection:
        await up(connection)
        servers.kill()
        await asyncio.sleep(0.5)
        await connection.subscribe("plumbline.down", lambda _: None, lambda: None)
        await connection.close()


async def test_replaced_client_waits_for_the_rest_of_the_pause() -> None:
    pace = Backoff(10.0)
    for _ in range(3):
        await pace.wait(1)
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(LOCAL_PAUSE / 2):
                await pace.wait(1)
    async with asyncio.timeout(5):
        await pace.wait(1)
    assert 0.15 < time.monotonic() - started < 0.8
