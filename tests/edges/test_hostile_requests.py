"""What no name and no time can be: refused where it enters, on both databases, as a problem of the sender."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api.all_routes import ROUTES
from tachograph_exporter.api.connections import Runner
from tachograph_exporter.api.routes import Route
from tachograph_exporter.config import Config
from tachograph_exporter.service import Service
from tests.conftest import Api, serve

pytestmark = pytest.mark.every_database

TEXTS = (
    "%00",
    "a%00b",
    "%ff",
    "%C3%28",
    "%ED%A0%80",
    "%F0%9F%92%A5",
    "x" * 3000,
    "%27%22%3B--",
    "%25",
    "%E2%80%AE",
    "*",
)
TIMES = (
    "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59", "0001-01-01", "0001-01-01T00:00:00%2B23:59", "1677-09-21",
    "2262-04-11T23:47:16Z", "2262-04-12", "1960-01-01", "9223372036", "9223372037", "9" * 30, "9" * 400, "99999999w",
    "1e400", "-1", "nan", "inf", "0000-00-00", "2026-02-30",
)  # fmt: skip
NUMBERS = ("9223372036854775807", "9223372036854775808", "-9223372036854775809", "9" * 16, "9" * 13, "9" * 18, "9" * 19,
           "9" * 5000, "١", "1_0", "+1", "0x1", "--1", "-")  # fmt: skip
RAW = (b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"\xc3\xa9", b"\xf0\x9f\x92\xa5")
READ_HEADERS = ("Authorization", "X-Workspace-Id", "X-Workspace-Slug", "X-Project-Id", "Last-Event-ID", "Origin",
                "Sec-Fetch-Site", "Content-Type", "Content-Encoding", "traceparent", "tracestate", "baggage",
                "If-None-Match", "Accept", "Accept-Encoding", "X-Prometheus-Scrape-Timeout-Seconds", "User-Agent",
                "Cookie", "Sec-WebSocket-Protocol")  # fmt: skip


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1, max_stream_clients=0), handlers):
        yield api


@pytest.fixture
async def host_api(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.1), handlers):
        yield api


def path_of(route: Route, value: str = "x", hostile: str = "") -> str:
    """The route's path with a value for the parameter named ``hostile`` and "x" for all others."""
    return "/".join(
        (value if part[1:-1].partition(":")[0] == hostile else "x") if part.startswith("{") else part
        for part in route.path.split("/")
    )


def targets(route: Route) -> Iterator[str]:
    """Paths and queries with each parameter of a route at each hostile value."""
    for part in route.path.split("/"):
        if part.startswith("{"):
            yield from (path_of(route, value, part[1:-1].partition(":")[0]) for value in (*TEXTS, *NUMBERS))
    for parameter in route.query:
        values = TEXTS + (TIMES if parameter.kind in ("time", "duration") else NUMBERS)
        if "seconds" in parameter.description or parameter.name in ("start", "end", "endTs", "lookback"):
            values += NUMBERS + TIMES
        yield from (f"{path_of(route)}?{quote(parameter.name)}={value}" for value in values)
    for name in ("workspace_id", "workspace_slug", "project_id") if route.in_workspace else ():
        yield from (f"{path_of(route)}?{name}={value}" for value in TEXTS)
    yield from (f"{path_of(route)}?{name}=x" for name in ("%00", "a%00", "%ff"))


class Wire:
    """A connection on which requests are written byte by byte; opened again where it was closed."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.partition("//")[2].partition(":")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body)."""
        is_new = self._streams is None
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, int(self._port))
        reader, writer = self._streams
        try:
            writer.write(request)
            await writer.drain()
            async with asyncio.timeout(60):
                start = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            self.close()
            if is_new:
                raise
            return await self.send(request)
        lines = start.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        async with asyncio.timeout(60):
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        if "content-length" not in headers or headers.get("connection", "").lower() == "close":
            self.close()
        return int(lines[0].split()[1]), headers, body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def raw(api: Api | str, head: bytes) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of a request on a connection of its own."""
    wire = Wire(api if isinstance(api, str) else api.address)
    try:
        return await wire.send(head)
    finally:
        wire.close()


# Each database sees every value at an eighth of the parameters, and every parameter an eighth of the values; `make
# slow` has all.
@pytest.mark.parametrize("share", [pytest.param(8, id="share"), pytest.param(1, id="all", marks=pytest.mark.slow)])
async def test_no_parameter_is_an_error_of_the_service(api: Api, share: int) -> None:
    mine = 4 * int(not api.service.database.is_sqlite)
    wire = Wire(api.address)
    host = api.address.partition("//")[2]
    await api.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "s"}]})
    await api.run("w")
    count = 0
    failures: list[Any] = []
    for turn, route in enumerate(ROUTES):
        for number, target in enumerate(targets(route)):
            if (turn + number - mine) % share:
                continue
            count += 1
            started = time.monotonic()
            body = b"{}" if route.method != "GET" else b""
            kind = b"Content-Type: application/json\r\n" if body else b""
            sent = quote(target, safe="/?=%:+-")
            head = f"{route.method} {sent} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n".encode()
            status, headers, content = await wire.send(head + kind + b"\r\n" + body)
            if status >= 500 and status != 503:
                failures.append((status, route.method, target[:120], content[:100]))
            if time.monotonic() - started > 30:
                failures.append((status, route.method, target[:120], "slow"))
            if status >= 400 and not headers.get("content-type", "").endswith("json"):
                failures.append((status, route.method, target[:120], headers))
    wire.close()
    assert not failures, (len(failures), count, failures[:40])
    assert count > 1000


NULLS = ("/api/workflows?workspace_slug=%00", "/api/workflows/%00", "/api/workflows/a%00b",
         "/api/workflows/executions?step=%00", "/api/stream?step_id=%00", "/api/workflows/executions?%00=1",
         "/tempo/api/traces/%00")  # fmt: skip


async def test_no_text_holds_a_null_character(api: Api) -> None:
    for path in NULLS:
        status, body = await api.call("GET", path)
        assert (status, body["code"]) == (400, "bad_request"), path
        assert "U+0000" in body["detail"]


TIME_FAULTS = (
    ("/api/workflows/executions?to=9999-12-31T23:59:59Z", "to"),
    ("/api/workflows/executions?from=0001-01-01", "from"),
    ("/api/workflows/w/metrics?from=1677-09-20", "from"),
    ("/api/workflows/w/trends?to=2262-04-12", "to"),
    ("/jaeger/api/traces?service=x&start=9999999999999999", "start"),
    ("/tempo/api/search?end=9999-12-31", "end"),
    ("/jaeger/api/dependencies?endTs=9999999999999&lookback=1", "endTs"),
    ("/jaeger/api/dependencies?endTs=1&lookback=9999999999999", "lookback"),
)


async def test_a_time_that_no_clock_shows_is_named(host_api: Api) -> None:
    api = host_api
    await api.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "s"}]})
    for path, at in TIME_FAULTS:
        status, body = await api.call("GET", path)
        assert (status, body["code"]) == (422, "invalid_parameters"), path
        assert [fault["at"] for fault in body["errors"]] == [at], path
        assert "2262" in body["errors"][0]["message"]


async def test_headers_are_read_as_utf_8_before_anything_else(host_api: Api) -> None:
    host = host_api.address.partition("//")[2].encode()
    wire = Wire(host_api.address)
    for name in READ_HEADERS:
        for value in RAW:
            for prefix in (b"", b"Bearer ", b"tachograph.bearer."):
                request = b"GET /api/workflows HTTP/1.1\r\nHost: %b\r\n%b: %b%b\r\n\r\n"
                status, headers, body = await wire.send(request % (host, name.encode(), prefix, value))
                assert status < 500, (name, value, body)
                if status >= 400:
                    assert headers["content-type"].startswith("application/problem+json"), (name, value)
                if name in ("Authorization", "X-Workspace-Id", "X-Workspace-Slug", "X-Project-Id"):
                    is_text = value in RAW[3:]
                    assert (status == 400) is not is_text, (name, value, status, body)
    wire.close()


BODIES: list[tuple[str, str, Any]] = [
    ("POST", "/api/workspaces", {"slug": "s", "name": "a\0b"}),
    ("POST", "/api/workflows", {"name": "a\0b", "steps": [{"name": "s"}]}),
    ("POST", "/api/workflows", {"name": "b", "steps": [{"name": "\0"}]}),
    ("POST", "/api/workflows", {"name": "c", "steps": [{"name": "s", "config": {"handler": "noop", "\0": 1}}]}),
    ("POST", "/api/workflows", {"name": "d", "description": "\0", "steps": [{"name": "s"}]}),
    ("PATCH", "/api/workflows/w", {"description": "\0"}),
    ("POST", "/api/workflows/validate", {"name": "\0"}),
    ("POST", "/api/workflows/w/execute", {"input_variables": {"x": ["\0"]}}),
    ("POST", "/api/workspaces/default/projects", {"slug": "p", "name": "\0"}),
]


async def test_no_body_holds_a_null_character(api: Api) -> None:
    await api.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "s"}]})
    for method, path, body in BODIES:
        status, problem = await api.call(method, path, body)
        assert (status, problem["code"]) == (422, "invalid_body"), body
        assert "U+0000" in problem["detail"]
        assert "$." in problem["detail"]


async def test_a_backslash_is_no_null_character(api: Api) -> None:
    document = {"name": "a\\u0000", "steps": [{"name": "s"}]}
    assert (await api.call("POST", "/api/workflows", document))[0] == 201


async def test_numbers_of_any_size_in_a_body_are_the_senders(api: Api) -> None:
    for i, number in enumerate((1 << 63, -(1 << 63) - 1, (1 << 64) - 1, 1 << 64, 10**400, 1e308)):
        await send_numbers(api, number, f"-{i}")


async def send_numbers(api: Api, number: float, suffix: str) -> None:
    inputs = {"input_variables": {"x": number, "y": [{"z": number}]}}
    step = {"name": "s", "config": {"handler": "sleep", "seconds": 0, "more": number}}
    documents: list[dict[str, Any]] = [
        {"name": "v" + suffix, "variables": {"x": number}, "steps": [{"name": "s"}]},
        {"name": "t" + suffix, "steps": [{"name": "s", "timeout_seconds": number}]},
        {"name": "r" + suffix, "steps": [{"name": "s", "max_retries": number}]},
        {"name": "c" + suffix, "steps": [step]},
    ]
    for document in documents:
        status, body = await api.call("POST", "/api/workflows/validate", document)
        assert status < 500, body
        status, body = await api.call("POST", "/api/workflows", document)
        assert status in (201, 400, 422), (document, body)
        if status == 201:
            status, body = await api.call("POST", f"/api/workflows/{document['name']}/execute", inputs)
            assert status in (202, 400, 422), (document, body)
            if status == 202:
                await api.finished(body["execution_id"])
                assert (await api.call("GET", f"/api/workflows/executions/{body['execution_id']}/timeline"))[0] == 200


async def test_host_names_compare_without_case_and_others_stay_outside(host_api: Api) -> None:
    for host in ("LOCALHOST", "LocalHost:9923", "localhost.", "localhost.:1", "127.0.0.1", "[::1]"):
        assert (await host_api.call("GET", "/api/workflows", headers={"Host": host}))[0] == 200, host
        headers = {"Host": host, "Origin": f"http://{host}".swapcase()}
        assert (await host_api.call("POST", "/api/workflows/validate", {}, headers=headers))[0] == 200, host
    for host in ("evil.example", "localhost.evil.example", "localhost:x", "127.0.0.1.nip.io", "[::2]",
                 "localhost@evil.example", "0x7f.1", "::1", ""):  # fmt: skip
        status, body = await host_api.call("GET", "/api/workflows", headers={"Host": host})
        assert (status, body["code"]) == (421, "wrong_host"), host


UNREADABLE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"{}\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nNo colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 20_000 + b"\r\n\r\n",
    b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /api/workflows HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    b"POST /api/workflows HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /api/workflows HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\x00\r\n\r\n",
)  # fmt: skip


async def test_what_is_not_http_gets_a_problem_and_the_connection_closes(
    database_url: str, handlers: HandlerRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(Config(database=database_url, grace_seconds=0.1), handlers)
    runner = Runner(service.application(), max_connections_per_peer=500, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        for request in UNREADABLE:
            status, headers, body = await raw(f"http://{host}:{port}", request)
            problem = msgspec.json.decode(body)
            assert (status, problem["status"], problem["code"]) == (400, 400, "bad_request"), (request[:60], body)
            assert headers["content-type"] == "application/problem+json"
            assert headers.get("connection", "close") == "close"
        good = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert (await raw(f"http://{host}:{port}", good))[0] == 200
    finally:
        await runner.cleanup()
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


ENDS_OF_TIME = (1, 1 << 62, (1 << 63) - 2, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


async def test_runs_at_the_ends_of_time_are_shown_as_others_are(api: Api) -> None:
    """Whoever sends spans names their times: what is taken is shown, by every route."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.add(key="service.name").value.string_value = "x"
    for i, time_ns in enumerate(ENDS_OF_TIME):
        for j, end_ns in enumerate((0, 1, time_ns, (1 << 63) - 1)):
            span = group.scope_spans.add().spans.add(
                trace_id=bytes([i + 1, j + 1]) * 8, span_id=bytes([j + 1]) * 8, name="x",
                start_time_unix_nano=time_ns, end_time_unix_nano=end_ns,
            )  # fmt: skip
            span.attributes.add(key="cicd.pipeline.name").value.string_value = "x"
            span.attributes.add(key="cicd.pipeline.run.id").value.string_value = f"{i}-{j}"
    headers = {"Content-Type": "application/x-protobuf"}
    async with api.session.post(f"{api.address}/v1/traces", data=request.SerializeToString(), headers=headers) as sent:
        assert sent.status == 200
    items = (await api.get("/api/workflows/executions?limit=100"))["items"]
    failures = []
    for item in items:
        for route in ROUTES:
            if route.method != "GET" or route.status == 101 or route.path == "/api/stream":
                continue
            ids = {"{execution_id}": item["execution_id"], "{workflow_id}": "x", "{trace_id}": item["trace_id"],
                   "{workspace}": "default"}  # fmt: skip
            path = "/".join(ids.get(part, "x" if part.startswith("{") else part) for part in route.path.split("/"))
            if "{execution_id}" not in route.path and "{trace_id}" not in route.path and item is not items[0]:
                continue
            path += f"?a={item['execution_id']}&b={items[0]['execution_id']}" if path.endswith("/compare") else ""
            status, body = await api.call("GET", path)
            if status >= 500:
                failures.append((path, status, body))
    assert not failures, failures[:5]
