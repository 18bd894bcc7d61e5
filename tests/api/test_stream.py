"""Live events over the wire: WebSocket and server-sent events, filters, resuming, tokens, limits."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest
from tests.conftest import Api, running, serve

from tachograph.clock import NS
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api import stream
from tachograph_exporter.config import Config
from tachograph_exporter.store.database import Database
from tachograph_exporter.store.tokens import create_token, revoke_token
from tachograph_exporter.stream import hub as hubs
from tachograph_exporter.stream.messages import control_message

PAIR = {
    "name": "pair",
    "steps": [
        {"name": "a"},
        {"name": "b", "depends_on_steps": ["a"], "max_retries": 1, "retry_backoff": {"initial_seconds": 0.01},
         "config": {"handler": "fail", "times": 1, "message": "not yet"}},
    ],
}  # fmt: skip
TOKEN = "a-token-of-this-test"


@pytest.fixture
async def api(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.2), handlers):
        status, _ = await api.call("POST", "/api/workflows", PAIR)
        assert status == 201
        await api.call("POST", "/api/workflows", {"name": "other", "steps": [{"name": "x"}]})
        yield api


class Socket:
    """A WebSocket client that reads messages."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def next(self) -> Any:
        async with asyncio.timeout(60):
            return msgspec.json.decode(await self.socket.receive_str())

    async def until(self, event_type: str) -> list[Any]:
        messages: list[Any] = []
        while not messages or messages[-1]["event_type"] != event_type:
            messages.append(await self.next())
        return messages


Connect = Callable[..., Awaitable[Socket]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connects to a stream; the connection is closed when the test ends."""
    async with contextlib.AsyncExitStack() as sockets:

        async def connect(api: Api, path: str, **options: Any) -> Socket:
            socket = await sockets.enter_async_context(api.session.ws_connect(api.address + path, **options))
            follower = Socket(socket)
            assert (await follower.next())["event_type"] == "connected"
            return follower

        yield connect


async def test_the_whole_stream_of_a_run(api: Api, connect: Connect) -> None:
    socket = await connect(api, "/ws/workflows/stream")
    execution = await api.run("pair")
    messages = await socket.until("workflow_completed")
    assert [(message["event_type"], message["data"].get("step_name")) for message in messages] == [
        ("workflow_started", None), ("step_started", "a"), ("step_completed", "a"), ("step_started", "b"),
        ("step_retrying", "b"), ("step_started", "b"), ("step_completed", "b"), ("workflow_completed", None),
    ]  # fmt: skip
    assert {message["workflow_execution_id"] for message in messages} == {execution}
    assert messages[4]["data"]["error_message"] == "not yet"
    assert messages[-1]["data"]["step_count"] == 2
    timeline = await api.get(f"/api/workflows/executions/{execution}/timeline")
    data = {m["workflow_step_id"]: m["data"] for m in messages if m["event_type"] == "step_completed"}
    for step in timeline["step_timeline"]:
        for field in ("started_at", "completed_at", "duration_seconds", "run_seconds", "wait"):
            assert data[step["step_id"]][field] == step[field]
    # Resume after the third, as if the connection had dropped there.
    resumed = await connect(api, f"/ws/workflows/stream?after={messages[2]['sequence']}")
    assert await resumed.until("workflow_completed") == messages[3:]


@pytest.mark.parametrize("path", ["/ws/workflows/pair", "/ws/workflows/{id}", "/ws/workflows/steps/{step}"])
async def test_a_stream_of_one_workflow_or_step_has_only_its_events(api: Api, connect: Connect, path: str) -> None:
    await api.run("pair")
    execution = (await api.get("/api/workflows/executions"))["items"][0]
    timeline = await api.get(f"/api/workflows/executions/{execution['execution_id']}/timeline")
    step = timeline["step_timeline"][0]["step_id"]
    socket = await connect(api, path.format(id=execution["workflow_id"], step=step) + "?types=step_completed")
    for name in ("other", "pair", "other", "pair"):
        await api.run(name)
    names = ["a", "a"] if "steps" in path else ["a", "b", "a", "b"]
    assert [(await socket.next())["data"]["step_name"] for _ in names] == names


async def test_server_sent_events_carry_the_same_messages(api: Api) -> None:
    async with api.session.get(f"{api.address}/api/stream?types=workflow_completed&workflow_id=pair") as stream:
        assert (stream.status, stream.content_type) == (200, "text/event-stream")
        first = await read_event(stream)
        assert first["event"] == "connected"
        for name in ("other", "pair", "pair"):
            await api.run(name)
        events = [await read_event(stream) for _ in range(2)]
    assert [event["event"] for event in events] == ["workflow_completed"] * 2
    assert [msgspec.json.decode(event["data"])["sequence"] for event in events] == [int(e["id"]) for e in events]
    headers = {"Last-Event-ID": events[0]["id"]}
    async with api.session.get(f"{api.address}/api/stream?types=workflow_completed", headers=headers) as stream:
        await read_event(stream)
        assert await read_event(stream) == events[1]


async def read_event(stream: aiohttp.ClientResponse) -> dict[str, str]:
    fields: dict[str, str] = {}
    async with asyncio.timeout(60):
        while line := (await stream.content.readline()).decode().rstrip("\n"):
            name, _, value = line.partition(": ")
            fields[name] = value
    return fields


async def test_a_stream_has_no_events_of_other_workspaces(api: Api, connect: Connect) -> None:
    await api.call("POST", "/api/workspaces", {"slug": "elsewhere"})
    theirs = await connect(api, "/ws/workflows/stream?workspace_slug=elsewhere")
    ours = await connect(api, "/ws/workflows/stream")
    await api.run("pair")
    await ours.until("workflow_completed")
    with pytest.raises(TimeoutError):
        await theirs.socket.receive(timeout=0.2)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/ws/workflows/nothing", 404, "workflow_not_found"),
        ("/ws/workflows/executions/nothing", 404, "execution_not_found"),
        ("/ws/workflows/stream?workspace_slug=none", 404, "workspace_not_found"),
        ("/ws/workflows/stream?types=step_exploded", 422, "invalid_parameters"),
        ("/ws/workflows/stream?after=-1", 422, "invalid_parameters"),
        ("/ws/workflows/stream", 426, "upgrade_required"),
        ("/api/stream?execution_id=nothing", 404, "execution_not_found"),
    ],
)
async def test_an_invalid_subscription_is_refused_before_the_stream_starts(
    api: Api, path: str, status: int, code: str
) -> None:
    got, body = await api.call("GET", path)
    assert (got, body["code"]) == (status, code)


async def test_a_page_of_another_site_is_refused(api: Api, connect: Connect) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await connect(api, "/ws/workflows/stream", headers={"Origin": "https://elsewhere.example"})
    assert refused.value.status == 403
    await connect(api, "/ws/workflows/stream", headers={"Origin": api.address})


async def test_a_client_that_sends_too_much_is_disconnected(api: Api, connect: Connect) -> None:
    socket = await connect(api, "/ws/workflows/stream")
    await socket.socket.send_bytes(b"x")
    assert (await socket.socket.receive()).type is aiohttp.WSMsgType.CLOSE
    assert socket.socket.close_code == 1008
    socket = await connect(api, "/ws/workflows/stream")
    await socket.socket.send_str("x" * 100_000)
    assert (await socket.socket.receive()).type is aiohttp.WSMsgType.CLOSE
    assert socket.socket.close_code == 1009


async def test_tokens_by_header_and_by_subprotocol_as_browsers_send_them(
    database_url: str, handlers: HandlerRegistry, connect: Connect
) -> None:
    config = Config(database=database_url, grace_seconds=0.2, token=TOKEN, max_stream_clients=2)
    offered = "tachograph.bearer." + base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
    async with running(config, handlers) as api:
        for protocols in ((), ("tachograph", "tachograph.bearer.d3Jvbmc")):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await connect(api, "/ws/workflows/stream", protocols=protocols)
            assert refused.value.status == 401
        by_header = await connect(api, "/ws/workflows/stream", headers={"Authorization": f"Bearer {TOKEN}"})
        by_protocol = await connect(api, "/ws/workflows/stream", protocols=("tachograph", offered))
        # The server echoes the chosen subprotocol to every proxy on the way; it is not the token.
        assert by_protocol.socket.protocol == "tachograph"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await connect(api, "/ws/workflows/stream", protocols=("tachograph", offered))
        assert (refused.value.status, refused.value.headers and refused.value.headers["Retry-After"]) == (503, "10")
        text = await api.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert 'tachograph_stream_clients{kind="websocket"} 2.0' in text
        assert 'tachograph_stream_clients_refused_total{reason="full"} 1.0' in text
        await by_header.socket.close()


async def test_heartbeats_carry_the_sequence_number_to_resume_from(
    api: Api, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "HEARTBEAT_SECONDS", 0.3)
    socket = await connect(api, "/ws/workflows/other")
    await api.run("pair")
    heartbeats = [await socket.next() for _ in range(4)]
    assert {message["event_type"] for message in heartbeats} == {"heartbeat"}
    assert heartbeats[-1]["sequence"] > 0
    resumed = await connect(api, f"/ws/workflows/stream?after={heartbeats[-1]['sequence']}")
    await api.run("other")
    assert (await resumed.until("workflow_completed"))[0]["event_type"] == "workflow_started"


async def test_a_stopping_service_closes_the_stream_with_going_away(
    database_url: str, handlers: HandlerRegistry
) -> None:
    async with aiohttp.ClientSession() as session:
        async with running(Config(database=database_url, grace_seconds=0.2), handlers) as api:
            socket = await session.ws_connect(api.address + "/ws/workflows/stream")
            await socket.receive()
            last = asyncio.create_task(socket.receive())
        assert (await last).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1001


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_stream_ends_with_its_token(
    database_url: str, handlers: HandlerRegistry, connect: Connect, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(stream, "TOKEN_SECONDS", 0.2)
    config = Config(database=database_url, grace_seconds=0.2, token=TOKEN)
    async with running(config, handlers) as api:
        expires = time.time_ns() + 2 * NS if how == "expired" else None
        create = functools.partial(create_token, name="t", scopes=["read"], expires_ns=expires)
        identifier, token = api.service.database.run(create)
        headers = {"Authorization": f"Bearer {token}"}
        ending = (await connect(api, "/ws/workflows/stream", headers=headers)).socket
        lasting = await connect(api, "/ws/workflows/stream", headers={"Authorization": f"Bearer {TOKEN}"})
        async with api.session.get(api.address + "/api/stream", headers=headers) as events:
            await events.content.readany()
            if how == "revoked":
                # By another process, so that this one is not told.
                other = Database(database_url)
                other.run(lambda c: revoke_token(c, identifier))
                other.close()
            async with asyncio.timeout(60):
                while (message := await ending.receive()).type is aiohttp.WSMsgType.TEXT:
                    pass
                assert message.type is aiohttp.WSMsgType.CLOSE
                assert ending.close_code == 1008
                with contextlib.suppress(aiohttp.ClientError):
                    while await events.content.readany():
                        pass
        assert not lasting.socket.closed


async def test_the_descriptor_of_a_stalled_client_is_closed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(stream, "_CLOSE_SECONDS", 0.5)
    monkeypatch.setattr(stream, "_MAX_BUFFERED_BYTES", 16 * 1024)
    address = urlsplit(api.address)
    assert address.hostname is not None
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((address.hostname, address.port))
        key = base64.b64encode(b"0123456789abcdef").decode()
        client.sendall(
            f"GET /ws/workflows/stream?types=all HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        port = f":{client.getsockname()[1]:04X}"

        def descriptors() -> int:
            """This process's descriptors of the other end; the kernel's own rest of a closed socket has no inode."""
            with open("/proc/net/tcp") as table:
                fields = [line.split() for line in table][1:]
            inodes = {f"socket:[{field[9]}]" for field in fields if field[2].endswith(port)}
            held = 0
            for name in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):
                    held += os.readlink(f"/proc/self/fd/{name}") in inodes
            return held

        async with asyncio.timeout(60):
            while api.service.hub.follower_count == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert descriptors() == 1
        # It reads nothing, while more is sent than every buffer on the way holds.
        flood = control_message("heartbeat", time.time_ns(), 1, "x" * 65_536)
        async with asyncio.timeout(60):
            while api.service.hub.follower_count:
                for follower in api.service.hub._all():
                    follower.offer(flood)
                await asyncio.sleep(0.02)
            while descriptors():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
