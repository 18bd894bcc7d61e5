"""The handler ``http``: where it goes, what it takes along, and when it gives up."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tachograph.errors import DoNotRetry
from tachograph.events import Event
from tachograph.workflow import ExecutionResult, Executor, HandlerRegistry, WorkflowBuilder, registry
from tachograph.workflow.builtin import addresses
from tachograph.workflow.builtin.addresses import AddressPolicy
from tachograph.workflow.builtin.http import restricted
from tachograph_exporter.config import Config, ConfigError
from tests.conftest import running

SECRETS = {"Authorization": "Bearer secret", "Cookie": "session=secret", "X-Api-Key": "secret", "Accept": "text/plain"}


async def run_http(config: dict[str, Any], handlers: HandlerRegistry | None = None) -> ExecutionResult:
    events: list[Event] = []
    flow = WorkflowBuilder("w").step("a", handler="http", config=config)
    carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "baggage": "who=me"}
    executor = Executor(events.append, handlers=handlers or registry.copy(), carrier=lambda: carrier)
    return await executor.run(flow.build())


def message_of(result: ExecutionResult) -> str:
    assert result.failure is not None
    return result.failure.message


@pytest.fixture
async def sites() -> Any:
    """Two servers; one redirects to the other. (first, second, requests that arrived)."""
    seen: list[tuple[str, str, dict[str, str], str]] = []
    addresses: list[str] = []

    async def take(request: web.Request) -> web.Response:
        where = "first" if request.url.port == int(addresses[0].rpartition(":")[2]) else "second"
        seen.append((where, request.method, dict(request.headers), await request.text()))
        if (target := request.query.get("to")) is not None:
            return web.Response(status=int(request.query.get("status", 302)), headers={"Location": target})
        return web.json_response({"ok": True})

    servers = []
    for _ in range(2):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", take)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        addresses.append(str(server.make_url("")).rstrip("/"))
    yield addresses[0], addresses[1], seen
    for server in servers:
        await server.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_credentials_stay_with_their_origin(sites: Any, status: int) -> None:
    first, second, seen = sites
    url = f"{first}/a?status={status}&to={second}/b"
    result = await run_http({"url": url, "headers": SECRETS})
    assert result.outputs["a"] == {"status": 200, "body": {"ok": True}}
    assert [where for where, *_ in seen] == ["first", "second"]
    assert seen[0][2]["Authorization"] == "Bearer secret"
    assert "secret" not in str(seen[1])
    assert "baggage" not in seen[1][2]
    assert seen[1][2]["Accept"] == "text/plain"
    assert seen[1][2]["traceparent"].startswith("00-0af7")


async def test_credentials_that_were_dropped_do_not_come_back(sites: Any) -> None:
    first, second, seen = sites
    await run_http({"url": f"{first}/a?to={second}/b%3Fto={first}/c", "headers": SECRETS})
    assert [where for where, *_ in seen] == ["first", "second", "first"]
    assert "secret" not in str(seen[1:])


async def test_credentials_stay_on_a_redirect_within_an_origin(sites: Any) -> None:
    first, _, seen = sites
    await run_http({"url": f"{first}/a?to=/b", "headers": SECRETS})
    assert [headers.get("Authorization") for _, _, headers, _ in seen] == ["Bearer secret"] * 2


async def test_a_redirected_post_becomes_a_get_or_fails(sites: Any) -> None:
    first, second, seen = sites
    await run_http({"url": f"{first}/a?to={second}/b", "method": "POST", "json": {"x": 1}})
    assert [(method, body) for _, method, _, body in seen] == [("POST", '{"x":1}'), ("GET", "")]
    result = await run_http({"url": f"{first}/a?status=307&to={second}/b", "method": "POST", "json": {"x": 1}})
    assert "answered 307" in message_of(result)
    assert len(seen) == 3


async def test_redirects_end(sites: Any) -> None:
    first, _, seen = sites
    result = await run_http({"url": f"{first}/a?to=/a?to=/a"})
    assert result.failure is None
    seen.clear()
    loop = await run_http({"url": f"{first}/a?to={first}/a"}, None)
    assert loop.failure is None
    app = web.Application()

    async def again(_request: web.Request) -> web.Response:
        raise web.HTTPFound("/")

    app.router.add_get("/", again)
    server = TestServer(app)
    await server.start_server()
    result = await run_http({"url": str(server.make_url("/"))})
    assert "redirects" in message_of(result)
    await server.close()


@pytest.fixture
def slow_site() -> Iterator[Callable[[bytes, bytes, float], str]]:
    """Starts a server that sends a first part at once and then another again and again; its address."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(first: bytes, again: bytes, pause: float) -> str:
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            with closing(listener):
                listener.settimeout(60)
                connection, _ = listener.accept()
                with closing(connection):
                    try:
                        connection.recv(65_536)
                        connection.sendall(first)
                        while not stop.wait(pause):
                            connection.sendall(again)
                    except OSError:
                        return

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield start
    stop.set()
    for thread in threads:
        thread.join()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"


@pytest.mark.parametrize(("first", "again"), [
    (b"", b""), (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), (b"HTTP", b"x"), (HEAD, b"x"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
], ids=["silence", "headers", "status line", "body", "chunks"])  # fmt: skip
async def test_the_time_limit_bounds_the_whole_call(
    slow_site: Callable[[bytes, bytes, float], str], first: bytes, again: bytes
) -> None:
    url = slow_site(first, again, 0.02)
    started = time.monotonic()
    result = await run_http({"url": url, "timeout_seconds": 0.5})
    assert "0.5 s" in message_of(result)
    assert time.monotonic() - started < 50


async def test_a_name_that_does_not_resolve_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: asked.wait(60) and [])
    started = time.monotonic()
    result = await run_http({"url": "http://slow.example/", "timeout_seconds": 0.3})
    asked.set()
    assert "0.3 s" in message_of(result)
    assert time.monotonic() - started < 50


async def test_an_endless_response_is_not_read_to_its_end(slow_site: Callable[[bytes, bytes, float], str]) -> None:
    endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    url = slow_site(endless, b"10000\r\n" + b"x" * 0x10000 + b"\r\n", 0.001)
    assert "more than 1000000 bytes" in message_of(await run_http({"url": url}))
    many = slow_site(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 500, 0.001)
    assert "failed" in message_of(await run_http({"url": many}))


INSIDE = (
    "127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0.0.0.0", "localhost", "10.0.0.1", "172.16.0.1",
    "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16", "224.0.0.1", "255.255.255.255",
    "[::1]", "[::]", "[fe80::1]", "[fd00:ec2::254]", "[::ffff:127.0.0.1]", "[::ffff:169.254.169.254]",
    "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::80ff:fffe]", "[ff02::1]", "[::127.0.0.1]", "198.18.0.1",
)  # fmt: skip


@pytest.mark.parametrize("host", INSIDE)
async def test_a_service_sends_requests_to_public_addresses_only(host: str) -> None:
    result = await run_http({"url": f"http://{host}:9/", "timeout_seconds": 3}, restricted(registry, AddressPolicy()))
    assert "--http-allow" in message_of(result)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "64:ff9b::101:101", "2002:101:101::"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert AddressPolicy().may_reach("example.com", 443, address)


@pytest.mark.parametrize(("rule", "allowed", "refused"), [
    ("*", [("x", 1, "127.0.0.1"), ("x", 1, "169.254.169.254")], []),
    ("10.0.0.0/8", [("x", 1, "10.9.9.9"), ("x", 1, "::ffff:10.1.1.1")], [("x", 1, "127.0.0.1")]),
    ("127.0.0.1", [("x", 80, "127.0.0.1")], [("x", 80, "127.0.0.2")]),
    ("127.0.0.1:8080", [("x", 8080, "127.0.0.1")], [("x", 80, "127.0.0.1")]),
    ("[::1]:8080", [("x", 8080, "::1")], [("x", 81, "::1")]),
    ("::1", [("x", 8080, "::1")], [("x", 81, "fe80::1")]),
    ("Api.Internal", [("api.internal", 1, "10.0.0.1"), ("API.internal.", 1, "10.0.0.1")],
     [("internal", 1, "10.0.0.1")]),
    ("api.internal:80", [("api.internal", 80, "10.0.0.1")], [("api.internal", 81, "10.0.0.1")]),
])  # fmt: skip
def test_what_is_allowed_is_named(
    rule: str, allowed: list[tuple[str, int, str]], refused: list[tuple[str, int, str]]
) -> None:
    policy = AddressPolicy((rule,))
    assert all(policy.may_reach(*target) for target in allowed)
    assert not any(policy.may_reach(*target) for target in refused)


@pytest.mark.parametrize("rule", ["", "a b", "10.0.0.0/99", "host:port", "http://x", "host:0", "host:70000", "*.x"])
def test_a_rule_that_names_nothing_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        AddressPolicy((rule,))
    with pytest.raises(ConfigError, match="expected"):
        Config(http_allow=(rule,)).check()


async def test_a_redirect_does_not_lead_inside(sites: Any) -> None:
    first, second, seen = sites
    port = first.rpartition(":")[2]
    result = await run_http(
        {"url": f"{first}/a?to={second}/b"}, restricted(registry, AddressPolicy((f"127.0.0.1:{port}",)))
    )
    assert "--http-allow" in message_of(result)
    assert len(seen) == 1


async def test_a_name_is_resolved_once(sites: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads outside when it is checked and inside when it is used (DNS rebinding)."""
    port = int(sites[0].rpartition(":")[2])
    answers = iter(["203.0.113.9", "127.0.0.1", "127.0.0.1"])
    calls: list[str] = []

    def resolve(host: str, *_arguments: Any, **_options: Any) -> Any:
        calls.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    reached: list[Any] = []

    def connect(_family: int, address: Any, _seconds: float) -> Any:
        reached.append(address)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(addresses, "_connect", connect)
    await run_http({"url": f"http://rebinding.example:{port}/", "timeout_seconds": 2},
                   restricted(registry, AddressPolicy(("rebinding.example",))))  # fmt: skip
    assert len(calls) == 1
    assert reached == [("203.0.113.9", port)]


async def test_by_default_a_program_reaches_its_own_machine_but_no_metadata(sites: Any) -> None:
    assert (await run_http({"url": sites[0]})).failure is None
    for host in ("169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]", "100.100.100.200", "168.63.129.16"):
        result = await run_http({"url": f"http://{host}/", "timeout_seconds": 1})
        assert "TACHOGRAPH_HTTP_ALLOW" in message_of(result)


async def test_the_environment_allows_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHOGRAPH_HTTP_ALLOW", "169.254.0.0/16 10.0.0.1")
    assert addresses.own_policy().may_reach("x", 80, "169.254.169.254")
    assert not addresses.own_policy().may_reach("x", 80, "100.100.100.200")


@pytest.mark.parametrize("url", ["http://user:pass@127.0.0.1/", "http:///x", "http://[::1", "http://127.0.0.1:x/",
                                 "http://127.0.0.1/\r\nA: b", "http://127.0.0.1:99999/", "http://\x00/", "http://a..b/",
                                 "http://" + "a" * 70 + ".example/"])  # fmt: skip
async def test_what_is_no_url_is_not_tried_again(url: str) -> None:
    events: list[Event] = []
    flow = WorkflowBuilder("w").step("a", handler="http", config={"url": url}, max_retries=2)
    result = await Executor(events.append, handlers=registry.copy()).run(flow.build())
    assert result.failure is not None
    assert "pass@" not in result.failure.message
    assert sum(type(event).__name__ == "StepStarted" for event in events) == 1


async def test_a_service_keeps_documents_away_from_itself(database_url: str, handlers: HandlerRegistry) -> None:
    async with running(Config(database=database_url, grace_seconds=0.1), handlers) as api:
        steps = [{"name": "s", "config": {"handler": "http", "url": f"{api.address}/api/workflows"}}]
        await api.call("POST", "/api/workflows", {"name": "w", "steps": steps})
        execution = await api.run("w")
        timeline = await api.get(f"/api/workflows/executions/{execution}/timeline")
        assert "--http-allow" in timeline["error_message"]
    async with running(Config(database=database_url, grace_seconds=0.1, http_allow=("127.0.0.1",)), handlers) as api:
        steps = [{"name": "s", "config": {"handler": "http", "url": f"{api.address}/-/healthy"}}]
        await api.call("POST", "/api/workflows", {"name": "w2", "steps": steps})
        execution = await api.run("w2")
        assert (await api.get(f"/api/workflows/executions/{execution}"))["status"] == "completed"


def test_a_handler_of_ones_own_named_http_stays() -> None:
    own = HandlerRegistry()

    @own.register("http")
    def mine(_context: Any) -> None:
        raise DoNotRetry

    handler = restricted(own, AddressPolicy()).find("http")
    assert handler is not None
    assert handler.function is mine
    assert restricted(HandlerRegistry(), AddressPolicy()).find("http") is None
