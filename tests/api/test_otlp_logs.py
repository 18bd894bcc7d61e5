"""Logs by OTLP: kept with their span, once, masked and bounded; exceptions sent as logs are the errors of steps."""

from __future__ import annotations

import asyncio
import gzip
import io
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Status, StatusCode
from sqlalchemy import select
from tests.api.test_otlp import T0, S, describe, sent, span, timeline
from tests.conftest import Api, make_execution, make_step, serve

from tachograph.events import ExecutionStarted, StepLogged, StepStarted
from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.ingest import log_store
from tachograph_exporter.store import archiving, log_rows
from tachograph_exporter.store.schema import log_traces, span_logs

PROTOBUF = "application/x-protobuf"


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


@pytest.fixture
async def local(database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=database_url, grace_seconds=0.1), handlers):
        yield api


def line(
    text: str, number: int = 0, at: float = 0, *, trace: int = 1, severity: int = 9, name: str = "", **of: str
) -> LogRecord:
    """A record in the span with this number (0: it names only its trace; trace 0: it names none)."""
    record = LogRecord(
        time_unix_nano=T0 + round(at * S),
        severity_number=severity,  # type: ignore[arg-type]
        event_name=name,
        trace_id=trace.to_bytes(16, "big") if trace else b"",
        span_id=number.to_bytes(8, "big") if number else b"",
    )
    record.body.string_value = text
    describe(record.attributes, {key.replace("__", "."): value for key, value in of.items()})
    return record


def request_of(*records: LogRecord) -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    group = request.resource_logs.add()
    describe(group.resource.attributes, {"service.name": "etl"})
    group.scope_logs.add().log_records.extend(records)
    return request


async def post(api: Api, body: bytes, **headers: str) -> tuple[int, bytes]:
    kind = {"Content-Type": PROTOBUF, **{key.replace("_", "-"): value for key, value in headers.items()}}
    async with api.session.post(f"{api.address}/v1/logs", data=io.BytesIO(body), headers=kind) as response:
        return response.status, await response.read()


async def log(api: Api, *records: LogRecord) -> None:
    status, body = await post(api, request_of(*records).SerializeToString())
    assert (status, ExportLogsServiceResponse.FromString(body).partial_success.rejected_log_records) == (200, 0)


async def lines(api: Api, **query: Any) -> Any:
    page = await api.get("/api/workflows/executions")
    return await api.get(f"/api/workflows/executions/{page['items'][0]['execution_id']}/logs", params=query)


def exception(number: int, message: str, at: float = 0.5, name: str = "exception") -> LogRecord:
    return line(
        "", number, at, severity=17, name=name,
        exception__type="ValueError", exception__message=message, exception__stacktrace="Traceback: …",
    )  # fmt: skip


RUN = [span("nightly", 1, 0, 0, 10), span("load", 2, 1, 1, 4), span("INSERT", 3, 2, 2, 3), span("report", 4, 1, 5, 9)]


async def test_lines_belong_to_the_step_of_their_span_or_the_nearest_above(api: Api) -> None:
    await sent(api, *RUN)
    await log(
        api,
        line("done", 4, 8, severity=13),
        line("in the run", 1, 0.5),
        line("slow statement", 3, 2.5, table="orders", password="hunter2"),
        line("of the trace", 0, 9),
        line("of a span that never came", 99, 9.5),
    )
    page = await lines(api)
    assert [(entry["message"], entry["step_name"], entry["level"]) for entry in page["items"]] == [
        ("in the run", None, "info"),
        ("slow statement", "load", "info"),
        ("done", "report", "warn"),
        ("of the trace", None, "info"),
        ("of a span that never came", None, "info"),
    ]
    statement = page["items"][1]
    assert (statement["attributes"]["table"], statement["service"]) == ("orders", "etl")
    assert "hunter2" not in str(page)
    assert (statement["span_id"], statement["trace_id"]) == (f"{3:016x}", f"{1:032x}")
    assert [entry["message"] for entry in (await lines(api, step="load"))["items"]] == ["slow statement"]
    assert [entry["message"] for entry in (await lines(api, level="warn"))["items"]] == ["done"]
    status, problem = await api.call("GET", "/api/workflows/executions/none/logs")
    assert (status, problem["code"]) == (404, "execution_not_found")


async def test_pages_of_lines_hold_each_line_once(local: Api) -> None:
    await sent(local, *RUN)
    # Several at the same time.
    await log(local, *[line(f"line {i}", 2 + i % 2, i // 4) for i in range(25)])
    messages: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = await lines(local, limit=7, **after)
        messages += [entry["message"] for entry in page["items"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert sorted(messages) == sorted(f"line {i}" for i in range(25))


async def test_secrets_are_masked_and_texts_are_bounded(local: Api) -> None:
    await sent(local, *RUN)
    secret = "ghp_" + "a1B2" * 8
    long = "x" * 1_000_000
    record = line(f"push with {secret}", 2, 2, header=f"Authorization: Bearer {secret}", api_key=secret, long=long)
    structured = line("", 2, 3)
    structured.body.kvlist_value.values.add(key="api_key").value.string_value = secret
    structured.body.kvlist_value.values.add(key="long").value.string_value = long
    broken = exception(2, f"cannot use postgresql://user:{secret}@host/db")
    await log(local, record, structured, broken, line(long + secret, 2, 4), line("nul \0", 2, 5))
    page = await lines(local)
    assert len(page["items"]) == 5
    assert secret not in str(page)
    assert len(str(page)) < 30_000
    rows = await local.service.database.read(lambda c: c.execute(select(span_logs)).all())
    assert secret not in str(rows)


@pytest.mark.parametrize("is_first", [True, False], ids=["log first", "span first"])
async def test_an_exception_sent_as_a_log_is_the_error_of_its_step(api: Api, is_first: bool) -> None:
    root, load = span("nightly", 1, 0, 0, 10), span("load", 2, 1, 1, 4, error="disk full")
    expected_root, expected = (
        span("nightly", 1, 0, 0, 10, trace=9),
        span("load", 2, 1, 1, 4, error="disk full", trace=9),
    )
    del load.events[:]
    load.status.message = "a status that says less"
    records = exception(2, "handled before", 0.2, name=""), exception(2, "disk full")
    if is_first:
        await log(api, *records)
        await sent(api, root, load)
    else:
        await sent(api, root, load)
        await log(api, *records)
    await sent(api, expected_root, expected)
    page = await api.get("/api/workflows/executions")
    steps = [
        (await api.get(f"/api/workflows/executions/{item['execution_id']}/timeline"))["step_timeline"][0]
        for item in page["items"]
    ]
    by_trace = {step["trace_id"]: step for step in steps}
    by_log, by_event = by_trace[f"{1:032x}"], by_trace[f"{9:032x}"]
    for key in ("status", "error_type", "error_message"):
        assert by_log[key] == by_event[key], key
    assert (by_log["error_message"], by_log["error_stack"]) == ("disk full", "Traceback: …")
    assert (await api.get("/api/workflows/nightly/metrics"))["total_executions"] == 2
    for item in page["items"]:
        assert (await api.get(f"/api/workflows/executions/{item['execution_id']}/reconcile"))["agrees"]


async def test_a_logged_exception_fails_no_step_that_completed(local: Api) -> None:
    await sent(local, *RUN)
    await log(local, exception(2, "handled", name=""), exception(4, "handled too"))
    nightly = await timeline(local)
    assert {step["status"] for step in nightly["step_timeline"]} == {"completed"}
    assert {step["error_message"] for step in nightly["step_timeline"]} == {None}


async def test_the_error_of_a_long_trace_comes_from_logs_too(local: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tachograph_exporter.ingest.span_store.MAX_AT_ONCE", 2)
    monkeypatch.setattr("tachograph_exporter.ingest.span_rows.MAX_AT_ONCE", 2)
    load = span("load", 2, 1, 1, 4, error="x")
    del load.events[:]
    await sent(local, span("nightly", 1, 0, 0, 10), load, span("a", 3, 1), span("b", 4, 1))
    await log(local, exception(2, "disk full"))
    async with asyncio.timeout(60):
        while True:
            page = await local.get("/api/workflows/executions")
            if page["items"]:
                steps = {step["step_name"]: step for step in (await timeline(local))["step_timeline"]}
                if steps.get("load", {}).get("error_message") == "disk full":
                    break
            await asyncio.sleep(0.05)


async def test_a_request_that_is_sent_again_adds_nothing(api: Api) -> None:
    body = request_of(line("a", 2, 1), line("a", 2, 1), line("b", 2, 1), line("a", 2, 2)).SerializeToString()
    for _ in range(3):
        assert (await post(api, body))[0] == 200
    await sent(api, *RUN)
    page = await lines(api)
    # Two records that are equal in everything are one.
    assert [entry["message"] for entry in page["items"]] == ["a", "b", "a"]
    assert page["dropped_count"] == 0


async def test_json_and_compressed_bodies_say_the_same(local: Api) -> None:
    await sent(local, *RUN)
    record = line("by JSON", 2, 1)
    document = MessageToDict(request_of(record))
    (written,) = document["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    written |= {"traceId": record.trace_id.hex(), "spanId": record.span_id.hex(), "severityNumber": 9}
    status, answer = await local.call("POST", "/v1/logs", document)
    assert (status, answer) == (200, {})
    encoded = gzip.compress(request_of(line("by gzip", 2, 2)).SerializeToString())
    assert (await post(local, encoded, Content_Encoding="gzip"))[0] == 200
    assert (await post(local, request_of(record).SerializeToString()))[0] == 200
    assert [entry["message"] for entry in (await lines(local))["items"]] == ["by JSON", "by gzip"]


async def test_what_is_not_valid_costs_nothing_else(local: Api) -> None:
    await sent(local, *RUN)
    bad_trace, bad_span, old = line("bad trace", 2), line("bad span", 2), line("old", 2)
    bad_trace.trace_id, bad_span.span_id, old.time_unix_nano = b"short", b"short", 1
    status, body = await post(local, request_of(bad_trace, line("good", 2), bad_span, old).SerializeToString())
    partial = ExportLogsServiceResponse.FromString(body).partial_success
    assert (status, partial.rejected_log_records) == (200, 3)
    assert "no valid trace id" in partial.error_message
    assert (await post(local, b"no protobuf"))[0] == 400
    status, answer = await local.call("POST", "/v1/logs", {"resourceLogs": {}})
    assert (status, "ExportLogsServiceRequest" in answer["message"]) == (400, True)
    assert [entry["message"] for entry in (await lines(local))["items"]] == ["good"]


async def test_of_a_span_the_newest_lines_are_kept_and_its_exceptions(
    local: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_rows, "MAX_SPAN_RECORDS", 10)
    monkeypatch.setattr(log_rows, "MAX_TRACE_RECORDS", 25)
    await sent(local, *RUN)
    await log(local, exception(2, "first of all", 0))
    for i in range(30):
        await log(local, line(f"line {i}", 2, 1 + i))
    page = await lines(local, step="load")
    assert [entry["message"] for entry in page["items"]] == ["", *[f"line {i}" for i in range(21, 30)]]
    assert page["dropped_count"] == 21
    await log(local, *[line("other span", 100 + i, i) for i in range(40)])
    page = await lines(local, limit=1000)
    assert (len(page["items"]), page["dropped_count"]) == (25, 46)
    dropped = 'tachograph_otlp_dropped_total{reason="limit",signal="logs"} 46.0'
    assert dropped in await local.metrics()


async def test_lines_without_a_trace_are_counted_and_dropped(local: Api) -> None:
    await log(local, line("of no trace", trace=0), line("of no trace", trace=0), line("kept", 2))
    assert 'tachograph_otlp_dropped_total{reason="no_trace",signal="logs"} 2.0' in await local.metrics()
    stored = await local.service.database.read(lambda c: c.execute(select(span_logs.c.body)).scalars().all())
    assert stored == ["kept"]


async def test_lines_of_traces_that_nobody_knows_wait_an_hour_and_are_bounded(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = api.service.database

    async def known(now_ns: int) -> set[int]:
        while await database.write(lambda c: log_rows.prune_unknown(c, now_ns)):
            pass
        rows = await database.read(lambda c: c.execute(select(log_traces.c.trace_id)).scalars().all())
        return {int(trace_id, 16) for trace_id in rows}

    await sent(api, *RUN)
    for trace in (1, 2, 3, 4):
        await log(api, line("early", 2, trace=trace))
    now = time.time_ns()
    assert await known(now) == {1, 2, 3, 4}
    await sent(api, span("late", 2, trace=2))
    monkeypatch.setattr(log_rows, "MAX_UNKNOWN", 1)
    assert await known(now) == {1, 2, 4}
    assert await known(now + round((log_rows.UNKNOWN_SECONDS + 60) * S)) == {1, 2}
    monkeypatch.setattr(log_store, "_PRUNED_AFTER", 3)
    await log(api, *[line("unknown", 2, trace=trace) for trace in (5, 6, 7)])
    assert len(await known(now)) == 3


async def test_lines_are_deleted_with_their_spans(api: Api) -> None:
    await sent(api, *RUN)
    await log(api, line("of a trace with spans", 2), line("of another", 2, trace=5))
    database = api.service.database
    archiving.delete_spans(database, time.time_ns() + S)
    bodies = select(span_logs.c.body)
    assert await database.read(lambda c: c.execute(bodies).scalars().all()) == ["of another"]
    archiving.delete_logs(database, time.time_ns() + S)
    assert await database.read(lambda c: c.execute(bodies).scalars().all()) == []
    assert await database.read(lambda c: c.execute(select(log_traces)).all()) == []


async def test_lines_of_another_workspace_are_not_shown(local: Api) -> None:
    await local.call("POST", "/api/workspaces", {"name": "other", "slug": "other"})
    await sent(local, *RUN)
    async with local.session.post(
        f"{local.address}/v1/logs?workspace_slug=other",
        data=request_of(line("theirs", 2)).SerializeToString(),
        headers={"Content-Type": PROTOBUF},
    ) as response:
        assert response.status == 200
    assert (await lines(local))["items"] == []


def failure() -> ValueError:
    """An exception that was raised."""
    try:
        raise ValueError("disk full")
    except ValueError as error:
        return error


async def test_the_sdk_sends_a_programs_log_lines_and_the_exception_of_a_step(api: Api) -> None:
    def run() -> None:
        resource = Resource({"service.name": "etl"})
        spans, logs = TracerProvider(resource=resource, shutdown_on_exit=False), LoggerProvider(resource, False)
        spans.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{api.address}/v1/traces")))
        logs.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(f"{api.address}/v1/logs")))
        tracer, logger = spans.get_tracer("test"), logs.get_logger("test")
        # As an instrumentation does it that sends exceptions as logs only.
        with tracer.start_as_current_span("nightly"), tracer.start_as_current_span("load") as load:
            logger.emit(body="loading", severity_text="INFO")
            logger.emit(event_name="exception", exception=failure())
            load.set_status(Status(StatusCode.ERROR))
        spans.shutdown()
        logs.shutdown()

    await asyncio.to_thread(run)
    nightly = await timeline(api)
    (load,) = nightly["step_timeline"]
    assert (load["error_type"], load["error_message"]) == ("ValueError", "disk full")
    assert "test_otlp_logs" in load["error_stack"]
    page = await lines(api, step="load")
    assert [(entry["message"], entry["error_message"]) for entry in page["items"]] == [
        ("loading", None),
        ("", "disk full"),
    ]
    assert page["items"][0]["level"] == "info"


async def test_what_a_step_recorded_here_is_listed_with_what_arrived(api: Api) -> None:
    execution = make_execution()
    step = make_step(execution, "load")
    for event in (
        ExecutionStarted(execution=execution, time_ns=T0),
        StepStarted(step=step, time_ns=T0),
        StepLogged(step=step, time_ns=T0 + 3 * S, level="warning", message="recorded", attempt=1, sequence=1),
        StepLogged(step=step, time_ns=T0 + 1 * S, level="info", message="recorded too", attempt=1, sequence=2),
    ):
        api.service.recorder(event)
    await asyncio.to_thread(api.service.recorder.flush)
    arrived = line("by OTLP", int(step.span_id, 16), 2, trace=int(execution.trace_id, 16))
    await log(api, arrived)
    path = f"/api/workflows/executions/{execution.execution_id}/logs"
    page = await api.get(path)
    assert [(entry["message"], entry["source"], entry["step_name"]) for entry in page["items"]] == [
        ("recorded too", "recorded", "load"),
        ("by OTLP", "otlp", "load"),
        ("recorded", "recorded", "load"),
    ]
    first = await api.get(path, params={"limit": 2})
    rest = await api.get(path, params={"limit": 2, "after": first["next"]})
    assert [entry["message"] for entry in rest["items"]] == ["recorded"]
    assert [entry["message"] for entry in (await api.get(path, params={"level": "warn"}))["items"]] == ["recorded"]
