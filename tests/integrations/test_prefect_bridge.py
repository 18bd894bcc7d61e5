"""The bridge reads a Prefect server: what is stored, what comes live, and again after it or the server was away."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.conftest import Api
from tests.ingest.truth import differences
from tests.integrations.test_prefect import EVENTS, TRUTH, Server, shown
from typer.testing import CliRunner

from tachograph.report import runs
from tachograph_exporter.bridges import prefect as bridges
from tachograph_exporter.bridges.errors import BridgeError
from tachograph_exporter.bridges.journal import Journal
from tachograph_exporter.bridges.prefect_server import PrefectServer, api_address
from tachograph_exporter.cli import load

PASSWORD = "admin:hunter2"


class Prefect:
    """A server that answers as Prefect does: pages of events, a socket with its own protocol, runs by id."""

    def __init__(self) -> None:
        self.stored: list[Any] = []
        self.sockets: list[web.WebSocketResponse] = []
        self.known = Server()
        self.states: dict[str, Any] = {}
        self.broken: set[str] = set()
        self.requests = 0

    def application(self) -> web.Application:
        application = web.Application()
        application.add_routes([
            web.post("/api/events/filter", self.events), web.get("/api/events/filter/next", self.events),
            web.get("/api/events/out", self.socket), web.post("/api/flow_runs/filter", self.flow_runs),
            web.get("/api/flow_runs/{id}", self.flow_run), web.get("/api/task_runs/{id}", self.task_run),
        ])  # fmt: skip
        return application

    def page(self, since: str, begin: int) -> web.Response:
        events = [event for event in self.stored if event["occurred"] >= since]
        token = base64.b64encode(f"{since}|{begin + 20}".encode()).decode()
        # As a server that is reached by another name.
        next_page = f"http://internal:4200/api/events/filter/next?page-token={token}"
        is_last = begin + 20 >= len(events)
        return web.json_response({"events": events[begin : begin + 20], "next_page": None if is_last else next_page})

    async def events(self, request: web.Request) -> web.Response:
        self.requests += 1
        expected = f"Basic {base64.b64encode(PASSWORD.encode()).decode()}"
        if request.headers.get("Authorization") != expected:
            return web.Response(status=401)
        if request.method == "GET":
            since, begin = base64.b64decode(request.query["page-token"]).decode().split("|")
            return self.page(since, int(begin))
        body = await request.json()
        told = body["filter"]
        assert (told["order"], told["event"]["prefix"]) == ("ASC", ["prefect.flow-run.", "prefect.task-run."])
        return self.page(told["occurred"]["since"], 0)

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("prefect",))
        await socket.prepare(request)
        assert socket.ws_protocol == "prefect"
        if (await socket.receive_json()) != {"type": "auth", "token": PASSWORD}:
            await socket.close(code=1008)
            return socket
        await socket.send_json({"type": "auth_success"})
        told = await socket.receive_json()
        assert (told["type"], told["backfill"]) == ("filter", False)
        self.sockets.append(socket)
        async for _ in socket:
            pass
        self.sockets.remove(socket)
        return socket

    async def flow_run(self, request: web.Request) -> web.Response:
        if request.match_info["id"] in self.broken:
            return web.Response(status=500)
        return self.answer(await self.known.flow_run(request.match_info["id"]))

    async def task_run(self, request: web.Request) -> web.Response:
        return self.answer(await self.known.task_run(request.match_info["id"]))

    async def flow_runs(self, request: web.Request) -> web.Response:
        ids = (await request.json())["flow_runs"]["id"]["any_"]
        return web.json_response([self.states[run_id] for run_id in ids if run_id in self.states])

    @staticmethod
    def answer(value: Any) -> web.Response:
        return web.json_response(value) if value is not None else web.Response(status=404)

    async def tell(self, events: list[Any], *, live: bool = True) -> None:
        self.stored += events
        for event in events:
            for socket in list(self.sockets) if live else ():
                await socket.send_json({"type": "event", "event": event})


@contextlib.asynccontextmanager
async def served(prefect: Prefect, port: int | None = None) -> AsyncIterator[str]:
    server = TestServer(prefect.application(), port=port)
    await server.start_server()
    try:
        yield str(server.make_url("/api"))
    finally:
        for socket in list(prefect.sockets):
            await socket.close()
        await server.close()


@contextlib.asynccontextmanager
async def bridged(address: str, path: Path) -> AsyncIterator[bridges.PrefectBridge]:
    journal = Journal(path)
    async with aiohttp.ClientSession() as session:
        server = PrefectServer(session, address, password=PASSWORD)
        bridge = bridges.PrefectBridge(server, journal, lambda seconds: True, time.time() - 86_400 * 3650)
        task = asyncio.create_task(bridge.run())
        try:
            yield bridge
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            journal.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - it is about several things
            await asyncio.sleep(0.01)


async def test_a_bridge_misses_nothing_and_doubles_nothing(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridges, "MAX_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(bridges, "FIRST_PAUSE_SECONDS", 0.02)
    runs._runs.clear()
    prefect, path = Prefect(), tmp_path / "state" / "prefect.jsonl"
    prefect.stored = EVENTS[:25]
    async with served(prefect) as address:
        port = int(address.rsplit(":", 1)[1].split("/")[0])
        async with bridged(address, path) as bridge:
            with pytest.raises(BridgeError, match="another bridge is at work"):
                Journal(path)
            await until(lambda: prefect.sockets)
            await prefect.tell(EVENTS[25:30])
            await until(lambda: len(bridge._heard) == 30)
            # One of them does not come, and the connection is lost.
            await prefect.tell(EVENTS[30:31], live=False)
            await prefect.sockets[0].close()
            await until(lambda: len(bridge._heard) == 31 and prefect.sockets)
            await prefect.tell(EVENTS[31:35])
            await until(lambda: len(bridge._heard) == 35)
            # The server drops what a slow reader does not take.
            await prefect.tell(EVENTS[35:37], live=False)
            bridge._reread_at = 0.0
            await bridge.reread()
            assert len(bridge._heard) == 37
        assert path.stat().st_mode & 0o077 == 0
        # It was away, and so is the server when it starts.
        await prefect.tell(EVENTS[37:45])
    runs._runs.clear()
    # The machine went down while it wrote.
    with path.open("ab") as file:
        file.write(b'["task", "x')
    async with bridged(address, path) as bridge:
        await asyncio.sleep(0.05)
        async with served(prefect, port):
            await until(lambda: EVENTS[44]["id"] in bridge._heard and prefect.sockets)
            await prefect.tell(EVENTS[45:])
            await until(lambda: EVENTS[-1]["id"] in bridge._heard)
            assert differences(TRUTH, await shown(api), tolerance_seconds=0.05) == []
    assert "hunter2" not in path.read_text()


async def test_an_event_that_breaks_the_server_stops_no_other(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bridges, "MAX_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(bridges, "FIRST_PAUSE_SECONDS", 0.01)
    runs._runs.clear()
    prefect = Prefect()
    failed = TRUTH["executions"][2]["run_id"]
    text = json.dumps(EVENTS)
    broken = json.loads(text.replace(failed, "broken").replace('"id": "01a', '"id": "broken-01a'))
    broken = [event for event in broken if "broken" in json.dumps(event["resource"])][:2]
    prefect.broken = {"broken"}
    prefect.stored = [*broken, *[event for event in EVENTS if failed in json.dumps(event)]]
    # Its end comes in no event.
    ended = prefect.stored.pop()
    state = {"type": "FAILED", "name": "Failed", "message": ended["resource"]["prefect.state-message"]}
    prefect.states[failed] = {"id": failed, "state": {**state, "timestamp": ended["occurred"]}}
    async with served(prefect) as address, bridged(address, tmp_path / "prefect.jsonl") as bridge:
        await until(lambda: prefect.stored[-1]["id"] in bridge._heard and prefect.sockets)
        for _ in range(2):
            await bridge.look()
        (timeline,) = await shown(api)
        assert (timeline["status"], timeline["error_message"]) == ("failed", "kaboom")
    assert [record for record in caplog.records if "left out an event" in record.getMessage()]


async def test_a_server_that_lets_nobody_in_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bridges, "MAX_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(bridges, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("tests.integrations.test_prefect_bridge.PASSWORD", "")
    prefect = Prefect()
    async with served(prefect) as address, bridged(address, tmp_path / "prefect.jsonl"):
        monkeypatch.setattr("tests.integrations.test_prefect_bridge.PASSWORD", "other")
        await until(lambda: prefect.requests > 3)
    assert [record for record in caplog.records if "PREFECT_API_KEY" in record.getMessage()]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://host:4200", "http://host:4200/api"),
        ("http://host:4200/api/", "http://host:4200/api"),
        ("https://host/prefect", "https://host/prefect/api"),
        ("https://api.prefect.cloud/api/accounts/a/workspaces/w", "https://api.prefect.cloud/api/accounts/a/workspaces/w"),
    ],
)  # fmt: skip
def test_addresses(url: str, address: str) -> None:
    assert api_address(url) == address


@pytest.mark.parametrize("url", ["", "host:4200", "ftp://host", "http://", "http://me:secret@host/api", "http://h:x"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(BridgeError, match="not the URL of a Prefect server") as raised:
        api_address(url)
    assert "secret" not in str(raised.value)


def test_a_journal_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BridgeError, match="cannot keep what is known"):
        Journal(tmp_path / "file" / "state.jsonl")
    journal = Journal(tmp_path / "state.jsonl")
    journal.note(["flow", "x"])
    journal.reached(5.0)
    journal.reached(4.0)
    journal.compact([["flow", "y"]])
    journal.note(["end", "y"])
    journal.close()
    again = Journal(tmp_path / "state.jsonl")
    assert (again.read(), again.cursor) == ([["flow", "y"], ["end", "y"]], 5.0)
    again.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prefect", "host:4200"], "not the URL of a Prefect server"),
        (["prefect", "http://host:4200", "--since", "soon"], "--since: 'soon' is not a valid duration"),
        (["prefect", "http://host:4200", "--url", "http://x", "--database", "sqlite:///x.db"], "not both"),
        (["temporal", "host:7233", "--url", "http://x", "--database", "sqlite:///x.db"], "not both"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(load(["bridge"]), ["bridge", *arguments])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
