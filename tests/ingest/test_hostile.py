"""Hostile OTLP requests: each gets a clear answer, never a 500, and memory stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from tests.api.test_otlp import PLAIN, T0, export, send, span, timeline
from tests.conftest import Api, serve

from tachograph.clock import NS
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.ingest import rests, span_rows, span_store
from tachograph_exporter.ingest.assembly.executions import assemble
from tachograph_exporter.ingest.envelope import BadRequest, scopes_of
from tachograph_exporter.ingest.otlp_json import scopes_of_json
from tachograph_exporter.ingest.spans import EARLIEST_NS, SpanRecord, records_of

WHOLE = export(PLAIN).SerializeToString()
IDS = {"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174"}
ONE = {**IDS, "name": "j", "startTimeUnixNano": str(T0), "endTimeUnixNano": str(T0 + NS)}


@pytest.fixture
async def api(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.1, max_otlp_body_bytes=30_000_000), handlers):
        yield api


def read(body: bytes, *, is_json: bool = False) -> list[SpanRecord | str]:
    """Read a body as the service does, up to the events it would store."""
    read_records = list(records_of(scopes_of_json(body) if is_json else scopes_of(body)))
    traces: dict[str, list[SpanRecord]] = {}
    for record in read_records:
        if isinstance(record, SpanRecord):
            traces.setdefault(record.trace_id, []).append(record)
    for spans in traces.values():
        for execution in assemble("default", spans, time.time_ns()):
            assert execution.events
    return read_records


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_truncated_or_altered_protobuf_is_read_or_refused(data: st.DataObject) -> None:
    body = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                body[at] = data.draw(st.integers(0, 255))
            case 1:
                del body[at : at + data.draw(st.integers(1, 20))]
            case _:
                body[at:at] = data.draw(st.binary(max_size=20))
        if not body:
            break
    with contextlib.suppress(BadRequest):
        read(bytes(body))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["resourceSpans", "scopeSpans", "spans", "resource", "attributes", "key", "value", "traceId",
                         "spanId", "parentSpanId", "name", "startTimeUnixNano", "endTimeUnixNano", "links", "events",
                         "status", "code", "kind", "intValue", "stringValue", "arrayValue", "values"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(JSON, JSON)
@example({}, {"startTimeUnixNano": "-1"})
@example({}, {"attributes": [{"key": "a", "value": {"stringValue": "\ud800"}}]})
def test_json_of_any_shape_is_read_or_refused(anything: Any, fields: Any) -> None:
    of_span = {**ONE, **fields} if isinstance(fields, dict) else fields
    for document in (anything, {"resourceSpans": [{"scopeSpans": [{"spans": [of_span]}]}]}):
        try:
            body = msgspec.json.encode(document)
        except UnicodeEncodeError:
            body = b'{"resourceSpans": "\\ud800"}'
        with contextlib.suppress(BadRequest):
            read(body, is_json=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6), st.integers(-3, 9), st.integers(-3, 9)), max_size=12))
def test_spans_in_any_relation_are_assembled(shape: list[tuple[int, int, int, int]]) -> None:
    spans = [span(f"s{i}", i, parent, start, end) for i, parent, start, end in shape]
    assert all(isinstance(record, SpanRecord) for record in read(export(spans).SerializeToString()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"traceId": "00"}, "no valid trace id"),
        ({"traceId": "0" * 32}, "no valid trace id"),
        ({"spanId": "1" * 20}, "no valid span id"),
        ({"parentSpanId": "abcd"}, "no valid parent span id"),
        ({"startTimeUnixNano": "0"}, "no valid start"),
        ({"endTimeUnixNano": str(2**64 - 1)}, "no valid start or end"),
    ],
)
async def test_an_invalid_span_is_rejected_with_a_reason_and_the_others_are_kept(
    api: Api, change: dict[str, str], says: str
) -> None:
    document = {"resourceSpans": [{"scopeSpans": [{"spans": [{**ONE, **change}, ONE]}]}]}
    status, body = await send(api, msgspec.json.encode(document), "application/json")
    partial = msgspec.json.decode(body)["partialSuccess"]
    assert (status, partial["rejectedSpans"], says in partial["errorMessage"]) == (200, "1", True)
    assert (await api.get("/api/workflows/executions"))["total"] == 1


@pytest.mark.parametrize(
    ("body", "kind", "headers", "status", "says"),
    [
        (b"[" * 400_000, "application/json", {}, 400, "not JSON"),
        (b'{"resourceSpans":' + b'[{"scopeSpans":' * 2000, "application/json", {}, 400, "JSON"),
        (b'{"resourceSpans":' + b"[" * 90 + b"]" * 90 + b"}", "application/json", {}, 400, "not a JSON Export"),
        (b'{"resourceSpans": "\xff"}', "application/json", {}, 400, "JSON"),
        (
            lambda: gzip.compress(b"\0" * 200_000_000, 1),
            "application/x-protobuf",
            {"Content-Encoding": "gzip"},
            413,
            "larger than",
        ),
        (b"no gzip", "application/x-protobuf", {"Content-Encoding": "gzip"}, 400, "cannot be read"),
        (b"x", "application/x-protobuf", {"Content-Encoding": "br2"}, 415, ""),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "application/x-protobuf", {}, 400, "not a protobuf"),
        (b"\x00" * 31_000_000, "application/x-protobuf", {}, 413, "larger than"),
    ],
    ids=["deep", "deeper", "arrays", "bytes", "gzip bomb", "no gzip", "encoding", "length", "large"],
)
async def test_a_body_that_is_not_a_request_is_refused(
    api: Api, body: bytes | Callable[[], bytes], kind: str, headers: dict[str, str], status: int, says: str
) -> None:
    got, answer = await send(api, body if isinstance(body, bytes) else body(), kind, **headers)
    assert (got, says in answer.decode(errors="replace")) == (status, True), answer[:300]
    assert (await send(api, WHOLE))[0] == 200


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_a_trace_of_many_spans_is_kept_and_assembled_later(
    api: Api, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(span_rows, "LATER_SECONDS", 0.0)
    monkeypatch.setattr(span_rows, "SPANS_PER_SECOND", 10**12)
    monkeypatch.setattr(rests, "TIMES", 0)
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    names = [f"part {i % 50}" for i in range(count)]
    draw = random.Random(7)
    parents = [0, 1] + [draw.randint(1, max(1, i // 2)) for i in range(2, count)]
    for number in range(count):
        part = scope.spans.add(
            trace_id=b"\x01" * 16, span_id=(number + 1).to_bytes(8, "big"), name=names[number],
            start_time_unix_nano=T0 + number, end_time_unix_nano=T0 + count + number,
        )  # fmt: skip
        if number:
            part.parent_span_id = parents[number].to_bytes(8, "big")
    scope.spans[0].name = "deep"
    status, body = await send(api, gzip.compress(request.SerializeToString(), 1), **{"Content-Encoding": "gzip"})
    answer = ExportTraceServiceResponse.FromString(body)
    assert (status, answer.partial_success.rejected_spans) == (200, 0)
    # The service's own task reassembles it, or this call, whichever comes first.
    async with asyncio.timeout(200):
        assemble = api.service.upkeep.reassemble_due_traces
        while await assemble() or not (await api.get("/api/workflows/executions"))["total"]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    deep = await timeline(api)
    assert (deep["workflow_name"], deep["status"]) == ("deep", "completed")
    assert deep["step_count"] == sum(parent == 1 for parent in parents)
    monkeypatch.setattr(span_store, "MAX_TRACE_SPANS", count)
    extra = scope.spans.add(
        trace_id=b"\x01" * 16, span_id=b"\x09" * 8, name="late", start_time_unix_nano=T0, end_time_unix_nano=T0
    )
    del request.resource_spans[:]
    group = request.resource_spans.add().scope_spans.add()
    group.spans.append(extra)
    status, body = await send(api, request.SerializeToString())
    partial = ExportTraceServiceResponse.FromString(body).partial_success
    assert (status, partial.rejected_spans, "no room for more" in partial.error_message) == (200, 1, True)


async def test_times_at_the_limits_of_their_range(api: Api) -> None:
    soon = time.time_ns() + 86_000 * NS
    year = 366 * 86_400 * NS
    early = [{**ONE, "startTimeUnixNano": str(EARLIEST_NS), "endTimeUnixNano": str(EARLIEST_NS + year)}]
    late = [{**ONE, "traceId": "a" * 32, "startTimeUnixNano": str(soon), "endTimeUnixNano": str(soon + NS)}]
    for spans in (early, late):
        document = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
        status, body = await send(api, msgspec.json.encode(document), "application/json")
        assert (status, msgspec.json.decode(body)) == (200, {})
    page = await api.get("/api/workflows/executions")
    assert page["total"] == 2
    for item in page["items"]:
        path = f"/api/workflows/executions/{item['execution_id']}/timeline"
        assert (await api.get(path))["status"] == "completed"
        await api.get(f"{path}?format=chrome")
    for query in ("start=1&end=99999999999999999999", "start=0", "end=1e400", "minDuration=99999999999999999999d"):
        status, _ = await api.call("GET", f"/tempo/api/search?{query}")
        assert status in (200, 422), query
    assert (await api.call("GET", f"/jaeger/api/traces?start=0&end={(1 << 53) - 1}&service=x"))[0] == 200
    for path in ("metrics", "trends"):
        status, body = await api.call("GET", f"/api/workflows/j/{path}")
        assert status in (200, 422), body


async def test_when_too_many_bytes_wait_further_requests_are_asked_to_retry(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = api.service.receiver
    assert receiver.reserve(60 << 20)
    body = b"\0" * (5 << 20)
    async with api.session.post(
        f"{api.address}/v1/traces", data=io.BytesIO(body), headers={"Content-Type": "application/x-protobuf"}
    ) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
    receiver.release(60 << 20)
    assert (await send(api, WHOLE))[0] == 200
