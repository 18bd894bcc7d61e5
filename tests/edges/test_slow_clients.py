"""Clients that take their time, and many from one address: nobody holds a connection for ever or keeps others out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api import connections, encodings
from tachograph_exporter.api.connections import AT_ONCE, Runner, Site, peer_of
from tachograph_exporter.config import Config
from tachograph_exporter.service import Service

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
LIMIT = 20
HEAD = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
async def address(
    database_url: str, handlers: HandlerRegistry, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[str, int]]:
    """A running service whose patience is short."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "KEEPALIVE_SECONDS", 4.0)
    monkeypatch.setattr(connections, "READ_SECONDS", 0.5)
    monkeypatch.setattr(connections, "LINGERING_SECONDS", 0.1)
    monkeypatch.setattr(connections, "_SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(encodings, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(encodings, "BODY_SECONDS", 1.0)
    service = Service(Config(database=database_url, grace_seconds=0.1), handlers)
    app = service.application()

    async def large(_request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 50_000_000)

    app.router.add_get("/large", large)
    runner = Runner(app, max_connections_per_peer=LIMIT, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][0], runner.addresses[0][1]
    for _, writer in _streams:
        writer.transport.abort()
    _streams.clear()
    await runner.cleanup()


_streams: list[Stream] = []


async def opened(address: tuple[str, int]) -> Stream:
    """A connection, closed after the test."""
    _streams.append(await asyncio.open_connection(*address))
    return _streams[-1]


async def until_closed(stream: Stream) -> bytes:
    """What the service sends until it closes the connection."""
    received = b""
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionError):
            while data := await stream[0].read(1 << 20):
                received += data
    return received


async def drip(stream: Stream, data: bytes) -> None:
    """Send the same bytes again and again, slowly."""
    with contextlib.suppress(ConnectionError):
        while True:
            stream[1].write(data)
            await stream[1].drain()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"A: " + b"x" * 100])
async def test_half_a_head_does_not_stay(address: tuple[str, int], sent: bytes) -> None:
    started = time.monotonic()
    stream = await opened(address)
    stream[1].write(sent)
    answer = await until_closed(stream)
    assert time.monotonic() - started > connections.HEAD_SECONDS
    assert b" 408 " in answer.splitlines()[0]
    problem = msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])
    assert problem["code"] == "request_timeout"


@pytest.mark.parametrize("repeated", [b"A: b\r\n", b"x"])
async def test_a_head_that_drips_does_not_stay(address: tuple[str, int], repeated: bytes) -> None:
    stream = await opened(address)
    stream[1].write(HEAD)
    dripping = asyncio.create_task(drip(stream, repeated))
    assert b" 408 " in (await until_closed(stream)).splitlines()[0]
    dripping.cancel()


async def test_half_a_head_after_a_whole_request_does_not_stay(address: tuple[str, int]) -> None:
    for pause in (0.0, 0.2):
        stream = await opened(address)
        stream[1].write(HEAD + b"\r\n")
        if pause:
            await stream[0].readuntil(b"\r\n\r\n")
            await asyncio.sleep(pause)
        stream[1].write(HEAD)
        await until_closed(stream)


async def test_a_connection_without_a_request_ends_later(address: tuple[str, int]) -> None:
    stream = await opened(address)
    stream[1].write(HEAD + b"\r\n")
    await stream[0].readuntil(b"\r\n\r\n")
    await asyncio.sleep(0.8)
    # Longer than a head may take: this is no head.
    stream[1].write(HEAD + b"\r\n")
    assert b" 200 " in await stream[0].readuntil(b"\r\n\r\n")
    assert b"408" not in await until_closed(stream)


def post(path: str, kind: str = "application/json", length: int = 1000) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    return head.encode()


BODY_ROUTES = (post("/api/workflows"), post("/api/workflows/validate"), post("/v1/traces"),
               post("/v1/traces", "application/x-protobuf"))  # fmt: skip


@pytest.mark.parametrize(("head", "is_dripping"), [
    *((head, False) for head in BODY_ROUTES), (BODY_ROUTES[0], True), (BODY_ROUTES[3], True),
])  # fmt: skip
async def test_a_body_that_does_not_come_is_not_waited_for(
    address: tuple[str, int], head: bytes, is_dripping: bool
) -> None:
    stream = await opened(address)
    stream[1].write(head + b"{")
    dripping = asyncio.create_task(drip(stream, b" ") if is_dripping else asyncio.sleep(0))
    answer = await until_closed(stream)
    assert b" 408 " in answer.splitlines()[0]
    assert b"connection: close" in answer.lower()
    limits = {encodings.IDLE_SECONDS, *({encodings.BODY_SECONDS} if is_dripping else ())}
    assert any(f"within {limit:g} s".encode() in answer for limit in limits)
    dripping.cancel()


async def test_a_body_in_pieces_is_read(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    # Each comes in time, and all together take longer than one may.
    monkeypatch.setattr(encodings, "IDLE_SECONDS", 2.5)
    monkeypatch.setattr(encodings, "BODY_SECONDS", 60.0)
    stream = await opened(address)
    stream[1].write(post("/api/workflows/validate", length=2))
    for piece in (b"{", b"}"):
        await asyncio.sleep(1.3)
        stream[1].write(piece)
    assert b" 200 " in await stream[0].readuntil(b"\r\n\r\n")


async def test_a_response_that_nobody_reads_is_given_up(address: tuple[str, int]) -> None:
    stream = await opened(address)
    stream[1].write(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await stream[0].readuntil(b"\r\n\r\n")
    await asyncio.sleep(1.5)
    rest = await until_closed(stream)
    assert len(rest) < 50_000_000


async def healthy(address: tuple[str, int]) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{address[0]}:{address[1]}/-/healthy") as response,
    ):
        return response.status


async def test_connections_that_wait_make_room(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of unfinished heads, from the address of everybody else: who asks for something gets it."""
    # The time of none is up before all of them are there.
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60.0)
    streams = []
    for _ in range(300):
        stream = await opened(address)
        stream[1].write(HEAD)
        streams.append(stream)
    assert await healthy(address) == 200
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    ends = await asyncio.gather(*(until_closed(stream) for stream in streams))
    # The last ones were still there when their time was up.
    assert 0 < sum(b" 408 " in answer for answer in ends) <= LIMIT
    assert await healthy(address) == 200


async def test_who_asks_for_something_keeps_the_connection(address: tuple[str, int]) -> None:
    """Many connections that never ask for anything do not push out one that does now and then."""
    stream = await opened(address)
    idle = [await opened(address) for _ in range(LIMIT // 2)]
    for _ in range(4):
        stream[1].write(HEAD + b"\r\n")
        answer = await stream[0].readuntil(b"\r\n\r\n")
        assert b" 200 " in answer
        await stream[0].readexactly(int(answer.lower().partition(b"content-length: ")[2].split()[0]))
        idle += [await opened(address) for _ in range(LIMIT)]
    ended = [asyncio.create_task(until_closed(stream)) for stream in idle[: LIMIT // 2]]
    await asyncio.wait(ended, timeout=60)
    assert all(task.done() for task in ended)


async def test_connections_in_use_do_not(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "IDLE_SECONDS", 120.0)
    monkeypatch.setattr(encodings, "BODY_SECONDS", 120.0)
    waiting = 0
    arrived = encodings._arrived

    async def counted(*arguments: Any) -> bytes:
        nonlocal waiting
        waiting += 1
        return await arrived(*arguments)

    monkeypatch.setattr(encodings, "_arrived", counted)
    busy = []
    for _ in range(LIMIT):
        stream = await opened(address)
        stream[1].write(post("/api/workflows/validate") + b"{")
        busy.append(stream)
    async with asyncio.timeout(60):
        while waiting < LIMIT:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    answer = await until_closed(await opened(address))
    assert b" 503 " in answer.splitlines()[0]
    assert msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])["code"] == "too_many_connections"
    assert b"retry-after: 1" in answer.lower()
    for stream in busy:
        stream[1].close()
    async with asyncio.timeout(60):
        while await _status(lambda: healthy(address)) != 200:  # noqa: ASYNC110 - the service tells nobody
            await asyncio.sleep(0.05)


async def _status(call: Callable[[], Awaitable[int]]) -> int:
    try:
        return await call()
    except aiohttp.ClientError:
        return 0


async def test_streams_have_a_limit_of_their_own(address: tuple[str, int]) -> None:
    url = f"http://{address[0]}:{address[1]}"
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        contextlib.AsyncExitStack() as s,
    ):
        sockets: list[Any] = []
        for _ in range(LIMIT + 5):
            sockets.append(await s.enter_async_context(session.ws_connect(f"{url}/ws/workflows/stream")))
            sockets.append(await s.enter_async_context(session.get(f"{url}/api/stream")))
        # Nothing of a stream counts as a head, a body or a response that is not read.
        await asyncio.sleep(1.2)
        assert await healthy(address) == 200
        assert not any(socket.closed for socket in sockets)


async def test_who_hangs_up_in_the_middle_of_a_request_is_not_logged(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """A traceback for each of them fills the disk, and writing it takes longer than the request."""
    for head in BODY_ROUTES:
        for how in ("close", "abort"):
            stream = await opened(address)
            stream[1].write(head + b"{")
            await asyncio.sleep(0.1)
            getattr(stream[1] if how == "close" else stream[1].transport, how)()
    assert await healthy(address) == 200
    await asyncio.sleep(0.7)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_a_network_counts_as_one_address() -> None:
    assert peer_of(("192.0.2.1", 5)) == peer_of(("::ffff:192.0.2.1", 6, 0, 0)) == "192.0.2.1"
    assert (
        peer_of(("2001:db8::1", 5, 0, 0)) == peer_of(("2001:db8::ffff:2", 6, 0, 0)) != peer_of(("2001:db8:0:1::1", 5))
    )
    assert peer_of(("fe80::1%eth0", 5, 0, 2)) == "fe80::"
    assert peer_of("") == peer_of(None) == ""


async def test_hundreds_that_come_or_go_at_once_have_a_few_in_each_turn_of_the_loop() -> None:
    async def respond(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    app = web.Application()
    app.router.add_post("/", respond)
    runner = Runner(app, max_connections_per_peer=1_000, access_log=None)
    await runner.setup()
    site = Site(runner, "127.0.0.1", 0)
    await site.start()
    clients: list[socket.socket] = []
    counts: list[int] = []
    loop, server = asyncio.get_running_loop(), runner.server
    assert server is not None

    def count() -> None:
        counts.append(len(server.connections))
        timer[0] = loop.call_soon(count)

    timer = [loop.call_soon(count)]
    try:
        for i in range(300):
            # The loop does not run meanwhile: all of them have to fit into the system's queue.
            clients.append(socket.create_connection(("127.0.0.1", site.bound_port), timeout=60))
            clients[-1].sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + b"Content-Length: 9\r\n\r\nx" * (i % 2))
        async with asyncio.timeout(60):
            while counts[-1:] != [300]:  # noqa: ASYNC110 - turns are counted
                await asyncio.sleep(0.01)
            for client in clients:
                client.close()
            while counts[-1] != 0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        steps = [abs(after - before) for before, after in pairwise(counts)]
        # asyncio accepts one more than it was told, depending on its version.
        assert 0 < max(steps) <= AT_ONCE + 1
        with socket.create_connection(("127.0.0.1", site.bound_port)) as client:
            # Those that have ended at the end of the service are taken apart as well.
            client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
            async with asyncio.timeout(60):
                while counts[-1] != 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    finally:
        timer[0].cancel()
        await runner.cleanup()
    assert server.connections == []
