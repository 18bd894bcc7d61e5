"""HEAD works wherever GET does, and 405 says which methods a path has: for every route of the service."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

import pytest
from tests.api.test_api import RETRY, register
from tests.conftest import Api

from tachograph_exporter.api import page
from tachograph_exporter.api.all_routes import ROUTES

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
# A ping changes something, also by GET.
READS: Final = sorted({r.path for r in ROUTES if r.method == "GET" and not r.path.startswith("/ping/")})
FAULTY: Final = (
    "/api/workflows?limit=-1", "/api/workflows/nothing", "/api/workflows/executions/nothing/timeline", "/nothing",
    "/api/workflows?workspace_slug=nothing", "/api/stream?execution_id=nothing", "/web/nothing.js",
)  # fmt: skip
VARIANTS: Final = (
    "/api/workflows/executions?format=ndjson", "/api/workflows/retry/executions?format=ndjson&limit=-1",
    "/api/workflows/executions/{execution_id}/timeline?format=chrome", "/metrics?name[]=tachograph_build_info",
    "/web/{file}", "/docs", "/",
)  # fmt: skip
VOLATILE: Final = frozenset({"date"})
OF_THE_CONNECTION: Final = ("connection", "keep-alive", "transfer-encoding")
"""Headers that are about the connection, or how a body is cut into pieces (RFC 9110, section 7.6.1)."""


@pytest.fixture
async def values(api: Api) -> dict[str, str]:
    """What the placeholders of paths stand for: a run and its trace."""
    await register(api, RETRY)
    execution = await api.run("retry")
    timeline = await api.get(f"/api/workflows/executions/{execution}/timeline")
    failures = await api.get("/api/failures")
    return {
        "workflow_id": "retry", "execution_id": execution, "trace_id": timeline["trace_id"], "workspace": "default",
        "step_id": timeline["step_timeline"][0]["step_id"], "service": "default", "tag": "name", "token_id": "nothing",
        "workflow": "retry", "run": "1", "action": "log", "failure_id": failures["items"][0]["id"],
        "silence_id": "nothing",
        "file": "style.css" if "style.css" in page._FILES else next(iter(page._FILES)),
    }  # fmt: skip


def filled(path: str, values: dict[str, str]) -> str:
    path = re.sub(r"\{(\w+)[^}]*\}", lambda match: values[match[1]], path)
    return f"{path}?execution={values['execution_id']}" if path.endswith("/compare") else path


async def head_of(api: Api, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, what follows the headers) of a request after which another one is sent.

    Read from the socket, because a client would not show a body where there must be none.
    """
    host = api.address.removeprefix("http://")
    reader, writer = await asyncio.open_connection(*host.split(":"))
    try:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        writer.write("\r\n".join(lines).encode())
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).decode()
        rest = b""
        if method == "HEAD":
            writer.write(f"GET /-/healthy HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            rest = await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()
    first, *fields = head.strip().split("\r\n")
    pairs = [field.split(": ", 1) for field in fields]
    return int(first.split()[1]), {name.lower(): value for name, value in pairs}, rest


@pytest.mark.parametrize(
    "headers", [{}, {"Accept-Encoding": "gzip", "X-Forwarded-For": "192.0.2.1"}, {"If-None-Match": "*"}]
)
async def test_head_has_the_headers_of_get_and_no_body(
    api: Api, values: dict[str, str], headers: dict[str, str]
) -> None:
    # These answers say how many requests there were, how long the process runs, or how late it is now.
    changing = ("/metrics", "/api/night", "/api/overview", "/api/failures", "/api/queues")
    for template in (*READS, *(path + "/" for path in READS), *VARIANTS, *FAULTY):
        path = filled(template, values)
        status, got, _ = await head_of(api, "GET", path, headers)
        head_status, head, rest = await head_of(api, "HEAD", path, headers)
        assert head_status == status, path
        for name in OF_THE_CONNECTION:
            got.pop(name, None)
        is_closed = head.get("connection") == "close"
        for name in OF_THE_CONNECTION:
            head.pop(name, None)
        if "ndjson" in path:
            # How a list without end is compressed is only known when it is sent.
            got.pop("content-encoding", None)
        assert head.keys() == got.keys(), path
        is_changing = path.startswith(changing) or path.rstrip("/").endswith("/report")
        ignored = VOLATILE | ({"content-length", "etag"} if is_changing else frozenset())
        assert {k: v for k, v in head.items() if k not in ignored} == {
            k: v for k, v in got.items() if k not in ignored
        }, path
        # The connection goes on with the next response, or is closed.
        assert rest.startswith(b"HTTP/1.1 200 OK\r\n") or (rest == b"" and is_closed), path


async def test_head_of_a_stream_follows_nothing(api: Api, values: dict[str, str]) -> None:
    for path in ("/api/stream", f"/api/stream?workflow_id={values['workflow_id']}"):
        async with api.session.head(api.address + path) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    async with api.session.head(f"{api.address}/ws/workflows/stream", headers=upgrade) as response:
        assert response.status == 426
    assert api.service.hub.follower_count == 0


async def test_head_of_the_metrics_does_not_count_as_seen(api: Api, values: dict[str, str]) -> None:
    series = 'workflow_executions_started_total{workflow="retry",workspace="default"}'
    for _ in range(3):
        async with api.session.head(f"{api.address}/metrics") as response:
            assert response.status == 200
    assert f"{series} 0.0\n" in await api.get("/metrics")
    assert f"{series} 1.0\n" in await api.get("/metrics")


async def test_allow_names_the_methods_that_a_path_has(api: Api, values: dict[str, str]) -> None:
    templates = sorted({route.path for route in ROUTES} | {path for path, _ in page.PAGES})
    for template in templates:
        path = filled(template, values).replace(values["execution_id"], "nothing").partition("?")[0]
        statuses: dict[str, int] = {}
        allowed: dict[str, str] = {}
        for method in METHODS:
            body: dict[str, Any] = {"json": {}} if method in ("POST", "PUT", "PATCH") else {}
            if "{workflow_id}" in template and method in ("DELETE", "PATCH"):
                path = template.replace("{workflow_id}", "nothing").replace("{step_id}", "x")
            async with api.session.request(method, api.address + path, **body) as response:
                statuses[method] = response.status
                allowed[method] = response.headers.get("Allow", "")
        supported = {method for method, status in statuses.items() if status != 405}
        assert ("GET" in supported) == ("HEAD" in supported), (path, statuses)
        assert supported, (path, statuses)
        for method, status in statuses.items():
            if status == 405:
                assert set(allowed[method].split(",")) == supported, (method, path)
            else:
                assert method not in ("OPTIONS", "TRACE"), (method, path)
                assert method != "PUT" or "{workflow}" in template, (method, path)
