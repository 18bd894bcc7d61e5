"""Live events over the wire: WebSocket and server-sent events, filters, resuming, tokens, limits."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.conftest import Api, running, serve

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.stream import hub as hubs

PAIR = {
    "name": "pair",
    "steps": [
        {"name": "a"},
        {"name": "b", "depends_on_steps": ["a"], "max_retries": 1, "retry_backoff": {"initial_seconds": 0.01},
         "config": {"handler": "fail", "times": 1, "message": "not yet"}},
    ],
}  # fmt: skip
TOKEN = "a-token-of-this-test"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tachograph_exporter.store.event_log.LOOK_SECONDS", 0.05)


@pytest.fixture
async def api(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for found in serve(Config(database=database_url, grace_seconds=0.2), handlers):
        status, _ = await found.call("POST", "/api/workflows", PAIR)
        assert status == 201
        await found.call("POST", "/api/workflows", {"name": "other", "steps": [{"name": "x"}]})
        yield found


class Socket:
    """A WebSocket client that reads messages."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def next(self) -> Any:
        async with asyncio.timeout(15):
            return msgspec.json.decode(await self.socket.receive_str())

    async def until(self, event_type: str) -> list[Any]:
        found: list[Any] = []
        while not found or found[-1]["event_type"] != event_type:
            found.append(await self.next())
        return found


async def connect(api: Api, path: str, **options: Any) -> Socket:
    made = Socket(await api.session.ws_connect(api.address + path, **options))
    assert (await made.next())["event_type"] == "connected"
    return made


async def test_the_whole_stream_of_a_run(api: Api) -> None:
    socket = await connect(api, "/ws/workflows/stream")
    execution = await api.run("pair")
    found = await socket.until("workflow_completed")
    assert [(one["event_type"], one["data"].get("step_name")) for one in found] == [
        ("workflow_started", None), ("step_started", "a"), ("step_completed", "a"), ("step_started", "b"),
        ("step_retrying", "b"), ("step_started", "b"), ("step_completed", "b"), ("workflow_completed", None),
    ]  # fmt: skip
    assert {one["workflow_execution_id"] for one in found} == {execution}
    assert found[4]["data"]["error_message"] == "not yet"
    assert found[-1]["data"]["step_count"] == 2
    timeline = await api.get(f"/api/workflows/executions/{execution}/timeline")
    told = {one["workflow_step_id"]: one["data"] for one in found if one["event_type"] == "step_completed"}
    for step in timeline["step_timeline"]:
        for field in ("started_at", "completed_at", "duration_seconds", "run_seconds", "wait"):
            assert told[step["step_id"]][field] == step[field]
    # Go on behind the third, as if the connection had been cut there.
    back = await connect(api, f"/ws/workflows/stream?after={found[2]['sequence']}")
    assert await back.until("workflow_completed") == found[3:]


@pytest.mark.parametrize("path", ["/ws/workflows/pair", "/ws/workflows/{id}", "/ws/workflows/steps/{step}"])
async def test_followers_of_one_thing_hear_of_that(api: Api, path: str) -> None:
    await api.run("pair")
    execution = (await api.get("/api/workflows/executions"))["items"][0]
    timeline = await api.get(f"/api/workflows/executions/{execution['execution_id']}/timeline")
    step = timeline["step_timeline"][0]["step_id"]
    socket = await connect(api, path.format(id=execution["workflow_id"], step=step) + "?types=step_completed")
    for name in ("other", "pair", "other", "pair"):
        await api.run(name)
    names = ["a", "a"] if "steps" in path else ["a", "b", "a", "b"]
    assert [(await socket.next())["data"]["step_name"] for _ in names] == names


async def test_the_same_by_server_sent_events(api: Api) -> None:
    async with api.session.get(f"{api.address}/api/stream?types=workflow_completed&workflow_id=pair") as stream:
        assert (stream.status, stream.content_type) == (200, "text/event-stream")
        first = await read_event(stream)
        assert first["event"] == "connected"
        for name in ("other", "pair", "pair"):
            await api.run(name)
        found = [await read_event(stream) for _ in range(2)]
    assert [one["event"] for one in found] == ["workflow_completed"] * 2
    assert [msgspec.json.decode(one["data"])["sequence"] for one in found] == [int(one["id"]) for one in found]
    headers = {"Last-Event-ID": found[0]["id"]}
    async with api.session.get(f"{api.address}/api/stream?types=workflow_completed", headers=headers) as stream:
        await read_event(stream)
        assert await read_event(stream) == found[1]


async def read_event(stream: aiohttp.ClientResponse) -> dict[str, str]:
    found: dict[str, str] = {}
    async with asyncio.timeout(15):
        while line := (await stream.content.readline()).decode().rstrip("\n"):
            name, _, value = line.partition(": ")
            found[name] = value
    return found


async def test_other_workspaces_hear_nothing(api: Api) -> None:
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
async def test_what_cannot_be_followed_is_told_before(api: Api, path: str, status: int, code: str) -> None:
    got, body = await api.call("GET", path)
    assert (got, body["code"]) == (status, code)


async def test_a_page_of_another_site_may_not_listen(api: Api) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await connect(api, "/ws/workflows/stream", headers={"Origin": "https://elsewhere.example"})
    assert refused.value.status == 403
    await connect(api, "/ws/workflows/stream", headers={"Origin": api.address})


async def test_a_client_that_talks_is_let_go(api: Api) -> None:
    socket = await connect(api, "/ws/workflows/stream")
    await socket.socket.send_bytes(b"x")
    assert (await socket.socket.receive()).type is aiohttp.WSMsgType.CLOSE
    assert socket.socket.close_code == 1008
    socket = await connect(api, "/ws/workflows/stream")
    await socket.socket.send_str("x" * 100_000)
    assert (await socket.socket.receive()).type is aiohttp.WSMsgType.CLOSE
    assert socket.socket.close_code == 1009


async def test_tokens_by_header_and_as_a_browser_has_to(database_url: str, handlers: HandlerRegistry) -> None:
    config = Config(database=database_url, grace_seconds=0.2, token=TOKEN, max_stream_clients=2)
    offered = "tachograph.bearer." + base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
    async with running(config, handlers) as api:
        for protocols in ((), ("tachograph", "tachograph.bearer.d3Jvbmc")):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await connect(api, "/ws/workflows/stream", protocols=protocols)
            assert refused.value.status == 401
        by_header = await connect(api, "/ws/workflows/stream", headers={"Authorization": f"Bearer {TOKEN}"})
        by_protocol = await connect(api, "/ws/workflows/stream", protocols=("tachograph", offered))
        # What the server chose, and says again to everybody between, is not the token.
        assert by_protocol.socket.protocol == "tachograph"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await connect(api, "/ws/workflows/stream", protocols=("tachograph", offered))
        assert (refused.value.status, refused.value.headers and refused.value.headers["Retry-After"]) == (503, "10")
        text = await api.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert 'tachograph_stream_clients{kind="websocket"} 2.0' in text
        assert 'tachograph_stream_clients_refused_total{reason="full"} 1.0' in text
        await by_header.socket.close()


async def test_heartbeats_carry_the_place_to_go_on_from(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "HEARTBEAT_SECONDS", 0.3)
    socket = await connect(api, "/ws/workflows/other")
    await api.run("pair")
    beats = [await socket.next() for _ in range(4)]
    assert {one["event_type"] for one in beats} == {"heartbeat"}
    assert beats[-1]["sequence"] > 0
    back = await connect(api, f"/ws/workflows/stream?after={beats[-1]['sequence']}")
    await api.run("other")
    assert (await back.until("workflow_completed"))[0]["event_type"] == "workflow_started"


async def test_a_service_that_stops_says_so(database_url: str, handlers: HandlerRegistry) -> None:
    async with aiohttp.ClientSession() as session:
        async with running(Config(database=database_url, grace_seconds=0.2), handlers) as api:
            socket = await session.ws_connect(api.address + "/ws/workflows/stream")
            await socket.receive()
            last = asyncio.create_task(socket.receive())
        assert (await last).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1001
