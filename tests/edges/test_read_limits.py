"""Reads end in time, slow ones keep nobody else out, and a trace of any length is sent without being held in memory."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status, TracesData
from sqlalchemy import Connection, text

from tachograph.errors import QueryTimeout
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.api import spool
from tachograph_exporter.config import Config
from tachograph_exporter.ingest.span_rows import stream_trace
from tachograph_exporter.ingest.spans import otlp_json, stored_record
from tachograph_exporter.store.database import Database, Lane
from tachograph_exporter.store.tokens import create_token
from tachograph_exporter.traces import search
from tests.conftest import Api, serve

pytestmark = pytest.mark.every_database

TRACE = "74" * 16
SECONDS = 0.3
LANES = [Lane.READ, Lane.SEARCH]


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


def sleep(connection: Connection) -> Any:
    """One statement that takes half a minute."""
    if connection.dialect.name == "postgresql":
        return connection.execute(text("SELECT pg_sleep(30)")).all()
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 300000000) SELECT max(x) FROM c"
    return connection.execute(text(endless)).all()


def ask_again_and_again(connection: Connection) -> None:
    """Many statements, each of them short."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        connection.execute(text("SELECT 1")).all()


@pytest.fixture
async def database(any_database_url: str) -> AsyncIterator[Database]:
    database = await asyncio.to_thread(Database, any_database_url)
    database.read_seconds = SECONDS
    yield database
    await database.aclose()


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("work", [sleep, ask_again_and_again])
async def test_a_read_ends_in_time(database: Database, lane: Lane, work: Any) -> None:
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(QueryTimeout, match=r"0\.3 s"):
            await database.read(work, lane)
        # It takes half a minute.
        assert time.monotonic() - started < 25
    database.read_seconds = 60
    # The connections go on.
    reads = [database.read(lambda c: c.execute(text("SELECT 7")).scalar(), lane) for _ in range(20)]
    assert set(await asyncio.gather(*reads)) == {7}
    assert database.condition.write_fault == ""


@pytest.mark.parametrize("lane", LANES)
async def test_waiting_for_its_turn_counts(database: Database, lane: Lane) -> None:
    begun: list[Connection] = []

    def work(connection: Connection) -> Any:
        begun.append(connection)
        return sleep(connection)

    results = await asyncio.gather(*(database.read(work, lane) for _ in range(30)), return_exceptions=True)
    assert {type(result) for result in results} == {QueryTimeout}
    # While the first ones slept, the time of the last ones ran out.
    assert len(begun) <= 10


async def test_nothing_runs_on_in_the_server(postgres: Any) -> None:
    database = await asyncio.to_thread(Database, postgres())
    database.read_seconds = SECONDS
    for lane in LANES:
        with pytest.raises(QueryTimeout):
            await database.read(sleep, lane)
    running = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE query LIKE '%pg_sleep(30)%' AND state = 'active' AND pid != pg_backend_pid()"
    )
    database.read_seconds = 60
    async with asyncio.timeout(60):
        while await database.read(lambda c: c.execute(text(running)).scalar()):
            pass
    await database.aclose()


async def test_a_request_that_reads_too_long_is_told_so(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.service.database.read_seconds = SECONDS
    monkeypatch.setattr(search, "search", lambda connection, *_arguments: sleep(connection))
    for path in ("/tempo/api/search", "/jaeger/api/traces"):
        async with api.session.get(api.address + path) as response:
            problem = await response.json()
            assert (response.status, problem["code"]) == (503, "query_timeout")
            assert response.headers["Retry-After"]
            assert "ask for less" in problem["detail"]


async def test_slow_searches_keep_nobody_else_out(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are threads or connections; the token is looked up each time."""
    begun, may_end = threading.Event(), threading.Event()

    def slow_search(connection: Connection, *_arguments: Any) -> Any:
        begun.set()
        while not may_end.is_set():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_sleep(0.05)")).all()
            else:
                may_end.wait(0.05)
        raise QueryTimeout(SECONDS)

    # Whoever is kept out waits until they end.
    api.service.database.read_seconds = 100
    monkeypatch.setattr(search, "search", slow_search)
    _, token = api.service.database.run(lambda c: create_token(c, name="t", scopes=["admin"]))
    headers = {"Authorization": f"Bearer {token}"}
    slow = [asyncio.create_task(api.call("GET", "/tempo/api/search")) for _ in range(12)]
    assert await asyncio.to_thread(begun.wait, 60)
    try:
        async with asyncio.timeout(60):
            for path in ("/-/healthy", "/-/ready", "/metrics", "/api/workflows", "/api/workspaces", "/api/tokens"):
                for _ in range(5):
                    assert (await api.call("GET", path, headers=headers))[0] == 200
        assert not any(task.done() for task in slow)
    finally:
        may_end.set()
    assert {(await task)[0] for task in slow} == {503}


def spans(count: int) -> bytes:
    request = ExportTraceServiceRequest()
    for service in ("one", "two"):
        group = request.resource_spans.add()
        group.resource.attributes.add(key="service.name").value.string_value = service
        group.scope_spans.add().scope.name = "scope of " + service
    for i in range(count):
        span = request.resource_spans[i % 2].scope_spans[0].spans.add(
            trace_id=b"t" * 16, span_id=struct.pack(">Q", i + 1), name=f"op{i % 50}", kind=Span.SPAN_KIND_SERVER,
            start_time_unix_nano=1_790_000_000_000_000_000 + i, end_time_unix_nano=1_790_000_000_000_001_000 + i,
        )  # fmt: skip
        span.attributes.add(key="text").value.string_value = f"value {i}"
        span.attributes.add(key="number").value.int_value = i
        span.events.add(name="event", time_unix_nano=1_790_000_000_000_000_500)
        span.links.add(trace_id=b"u" * 16, span_id=b"v" * 8)
        span.status.code = Status.STATUS_CODE_ERROR
    return request.SerializeToString()


@pytest.fixture
async def long_trace(api: Api, request: pytest.FixtureRequest) -> int:
    count: int = getattr(request, "param", 2_500)
    headers = {"Content-Type": "application/x-protobuf"}
    async with api.session.post(f"{api.address}/v1/traces", data=spans(count), headers=headers) as response:
        assert response.status == 200
    return count


async def body_of(api: Api, path: str, accept: str = "application/json") -> bytes:
    async with api.session.get(api.address + path, headers={"Accept": accept}) as response:
        assert response.status == 200
        assert response.content_type == accept
        body = await response.read()
        assert response.headers.get("Content-Length") == str(len(body))
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        return body


async def test_a_long_trace_is_whole_in_every_form(api: Api, long_trace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MAX_IN_MEMORY", 100_000)
    expected = {(i + 1).to_bytes(8, "big").hex() for i in range(long_trace)}
    jaeger = msgspec.json.decode(await body_of(api, f"/jaeger/api/traces/{TRACE}"))
    (trace,) = jaeger["data"]
    assert (jaeger["total"], trace["traceID"]) == (1, TRACE)
    assert [span["spanID"] for span in trace["spans"]] == sorted(expected)
    services = {key: process["serviceName"] for key, process in trace["processes"].items()}
    assert {services[span["processID"]] for span in trace["spans"]} == {"one", "two"}
    found = msgspec.json.decode(await body_of(api, "/jaeger/api/traces?service=one"))
    assert found["data"] == [trace]
    plain = msgspec.json.decode(await body_of(api, f"/tempo/api/traces/{TRACE}"))
    assert (
        plain["batches"]
        == msgspec.json.decode(await body_of(api, f"/tempo/api/v2/traces/{TRACE}"))["trace"]["resourceSpans"]
    )
    ids = [span["spanId"] for batch in plain["batches"] for span in batch["scopeSpans"][0]["spans"]]
    assert (len(ids), set(ids)) == (long_trace, expected)
    binary = TracesData.FromString(await body_of(api, f"/tempo/api/traces/{TRACE}", "application/protobuf"))
    second = await body_of(api, f"/tempo/api/v2/traces/{TRACE}", "application/protobuf")
    assert second.endswith(binary.SerializeToString())
    records = [span for group in binary.resource_spans for span in group.scope_spans[0].spans]
    assert [span.span_id.hex() for span in records] == ids
    # What is written in pieces is what OTLP's own JSON mapping makes of the whole.
    whole = [
        stored_record(span.SerializeToString(), row.resource, row.resource_id)
        for row, span in zip(
            api.service.database.look(lambda c: [*stream_trace(c, workspace_id(c), TRACE, by_resource=True)]),
            records,
            strict=True,
        )
    ]
    assert otlp_json(whole, key="batches") == plain


def workspace_id(connection: Connection) -> str:
    return str(connection.execute(text("SELECT id FROM workspaces")).scalar())


@pytest.mark.parametrize("long_trace", [6_000], indirect=True)
async def test_the_service_goes_on_while_a_long_trace_is_read(api: Api, long_trace: int) -> None:
    slowest = 0.0
    tasks = [
        asyncio.create_task(body_of(api, path, accept))
        for path, accept in ((f"/jaeger/api/traces/{TRACE}", "application/json"),
                             (f"/tempo/api/traces/{TRACE}", "application/json"),
                             (f"/tempo/api/traces/{TRACE}", "application/protobuf"))
    ]  # fmt: skip
    while not all(task.done() for task in tasks):
        # The event loop's own processor time: a busy machine does not count.
        started = time.thread_time()
        await asyncio.sleep(0)
        slowest = max(slowest, time.thread_time() - started)
    await asyncio.gather(*tasks)
    # Encoding it on the event loop takes over a second.
    assert slowest < 0.5


async def test_an_answer_has_a_longest_length(api: Api, long_trace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert long_trace
    monkeypatch.setattr(spool, "MAX_BYTES", 100_000)
    for path in (f"/jaeger/api/traces/{TRACE}", "/jaeger/api/traces?service=two", f"/tempo/api/traces/{TRACE}"):
        status, problem = await api.call("GET", path)
        assert (status, problem["code"]) == (400, "not_supported")
        assert "ask for less" in problem["detail"]
    await api.service.database.read(lambda c: c.exec_driver_sql("SELECT 1").scalar(), Lane.SEARCH)


async def test_comparing_views_has_a_deadline(api: Api) -> None:
    await api.call("POST", "/api/workflows", {"name": "w", "steps": [{"name": "a"}]})
    path = f"/api/workflows/executions/{await api.run('w')}/reconcile"
    assert (await api.call("GET", path))[0] == 200
    api.service.database.read_seconds = 1e-9
    status, body = await api.call("GET", path)
    assert (status, body["code"]) == (503, "query_timeout")
    api.service.database.read_seconds = 10.0
    assert (await api.call("GET", path))[0] == 200
