"""Connections that are not encrypted yet: bounded in time and number, and what follows the handshake is not lost."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trustme
from aiohttp import web

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api import connections
from tachograph_exporter.api.connections import Runner
from tachograph_exporter.config import Config
from tachograph_exporter.service import Service

LIMIT = 5
REQUEST = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Encrypted:
    """A service that speaks TLS."""

    def __init__(self, runner: Runner, authority: trustme.CA) -> None:
        self.runner = runner
        self.host, self.port = runner.addresses[0][:2]
        self.context = ssl.create_default_context()
        authority.configure_trust(self.context)
        self.writers: list[asyncio.StreamWriter] = []

    @property
    def server(self) -> Any:
        return self.runner.server

    async def opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection without a handshake."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        self.writers.append(writer)
        return reader, writer

    async def ask(self) -> bytes:
        """The response to a request that is sent with the end of the handshake."""
        reader, writer = await asyncio.open_connection(
            self.host, self.port, ssl=self.context, server_hostname="localhost"
        )
        writer.write(REQUEST)
        self.writers.append(writer)
        async with asyncio.timeout(60):
            return await reader.read()

    async def until_forgotten(self) -> None:
        """Wait until no handshake is under way."""
        async with asyncio.timeout(60):
            while self.server.handshakes:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.fixture
async def encrypted(
    database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Encrypted]:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    monkeypatch.setattr(connections, "MAX_HANDSHAKES", LIMIT)
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    service = Service(Config(database=database_url, grace_seconds=0.1), handlers)
    runner = Runner(service.application(), max_connections_per_peer=500, tls=context, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = Encrypted(runner, authority)
    yield client
    for writer in client.writers:
        writer.transport.abort()
    await runner.cleanup()


async def test_what_follows_the_handshake_is_read(encrypted: Encrypted) -> None:
    for answer in await asyncio.gather(*(encrypted.ask() for _ in range(4))):
        assert answer.startswith(b"HTTP/1.1 200"), answer[:100]
    assert not encrypted.server.handshakes


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01", b"\x16"])
async def test_a_handshake_ends_in_time(encrypted: Encrypted, sent: bytes) -> None:
    reader, writer = await encrypted.opened()
    writer.write(sent)
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    await encrypted.until_forgotten()
    assert not encrypted.server.connections


@pytest.mark.parametrize("sent", [REQUEST, b"\0" * 5000, b"\x15\x03\x01\x00\x02\x02\x00"])
async def test_what_is_no_handshake_closes_the_connection(encrypted: Encrypted, sent: bytes) -> None:
    reader, writer = await encrypted.opened()
    writer.write(sent)
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionError):
            await reader.read()
    await encrypted.until_forgotten()
    assert (await encrypted.ask()).startswith(b"HTTP/1.1 200")


async def test_handshakes_of_an_address_are_bounded(encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60.0)
    for _ in range(4 * LIMIT):
        await encrypted.opened()
    async with asyncio.timeout(60):
        # The oldest ones make room.
        while len(encrypted.server.handshakes.get("127.0.0.1", {})) != LIMIT:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await encrypted.ask()).startswith(b"HTTP/1.1 200")
    assert len(encrypted.server.handshakes["127.0.0.1"]) < LIMIT + 1


async def test_clients_that_leave_in_the_middle_are_forgotten(encrypted: Encrypted) -> None:
    for sent in (b"", b"\x16\x03\x01"):
        _, writer = await encrypted.opened()
        writer.write(sent)
        await writer.drain()
        writer.transport.abort()
    await encrypted.until_forgotten()
    assert not encrypted.server.connections
