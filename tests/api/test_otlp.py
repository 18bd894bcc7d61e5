"""OTLP ingest: by the specification, in any order, twice, in pieces; and spans become executions."""

from __future__ import annotations

import asyncio
import gzip
import io
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from google.rpc.status_pb2 import Status as RpcStatus
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status, TracesData
from tests.conftest import Api, serve
from tests.store.test_rollups import differing

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config

S = 1_000_000_000
T0 = 1_790_000_000 * S


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


RESOURCES: dict[bytes, Mapping[str, str | int]] = {}
"""Attributes of spans' resources, by encoded span."""


def describe(attributes: Any, values: Mapping[str, str | int]) -> None:
    for key, value in values.items():
        kind = AnyValue(string_value=value) if isinstance(value, str) else AnyValue(int_value=value)
        attributes.add(key=key).value.CopyFrom(kind)


def span(
    name: str,
    number: int,
    parent: int = 0,
    start: float = 0,
    end: float | None = 1,
    *,
    links: Sequence[int] = (),
    error: str = "",
    trace: int = 1,
    of: Mapping[str, str | int] | None = None,
    around: Mapping[str, str | int] | None = None,
) -> Span:
    span = Span(
        trace_id=trace.to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        parent_span_id=parent.to_bytes(8, "big") if parent else b"",
        name=name,
        start_time_unix_nano=T0 + round(start * S),
        end_time_unix_nano=T0 + round(end * S) if end is not None else 0,
    )
    for link in links:
        span.links.add(trace_id=span.trace_id, span_id=link.to_bytes(8, "big"))
    describe(span.attributes, of or {})
    if around:
        RESOURCES[span.SerializeToString()] = around
    if error:
        span.status.code = Status.STATUS_CODE_ERROR
        event = span.events.add(name="exception", time_unix_nano=span.end_time_unix_nano)
        for key, text in (("exception.type", "ValueError"), ("exception.message", error)):
            event.attributes.add(key=key).value.string_value = text
    return span


def export(spans: Sequence[Span], service: str = "etl") -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    for span in spans:
        group = request.resource_spans.add()
        describe(group.resource.attributes, {"service.name": service, **RESOURCES.get(span.SerializeToString(), {})})
        scope = group.scope_spans.add()
        scope.scope.name = "test"
        scope.spans.append(span)
    return request


async def send(api: Api, body: bytes, kind: str = "application/x-protobuf", **headers: str) -> tuple[int, bytes]:
    async with api.session.post(
        f"{api.address}/v1/traces", data=io.BytesIO(body), headers={"Content-Type": kind, **headers}
    ) as answer:
        assert answer.content_type == (kind if kind != "text/plain" else "application/json")
        return answer.status, await answer.read()


async def sent(api: Api, *spans: Span) -> None:
    status, body = await send(api, export(spans).SerializeToString())
    assert (status, ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans) == (200, 0)


async def timeline(api: Api, number: int = 0) -> Any:
    page = await api.get("/api/workflows/executions")
    return await api.get(f"/api/workflows/executions/{page['items'][number]['execution_id']}/timeline")


PLAIN = [
    span("nightly", 1, 0, 0, 10),
    span("extract", 2, 1, 0, 4),
    span("load", 3, 1, 4.5, 10, error="disk full"),
    span("SELECT", 4, 2, 1, 2),
]


async def test_a_trace_of_any_program_is_an_execution_with_steps(api: Api) -> None:
    await sent(api, *PLAIN)
    nightly = await timeline(api)
    assert (nightly["workflow_name"], nightly["status"]) == ("nightly", "completed")
    assert nightly["total_duration_seconds"] == 10
    steps = {step["step_name"]: step for step in nightly["step_timeline"]}
    assert {name: step["status"] for name, step in steps.items()} == {"extract": "completed", "load": "failed"}
    assert steps["load"]["depends_on"] == [steps["extract"]["step_id"]]
    assert (steps["load"]["error_type"], steps["load"]["error_message"]) == ("ValueError", "disk full")
    assert steps["load"]["wait"] == {"dependency": 4, "queue": 0, "backoff": 0, "unaccounted": 0.5, "scheduled": 0}
    assert [part["step_name"] for part in nightly["critical_path"]] == ["extract", "load"]
    metrics = await api.get("/api/workflows/nightly/metrics")
    assert (metrics["total_executions"], metrics["by_status"]["completed"]["p50"]) == (1, 10)
    text = await api.metrics()
    labels = 'status="failed",step="load",workflow="nightly",workspace="default"'
    assert f"workflow_step_duration_seconds_count{{{labels}}} 1.0" in text
    assert 'workflow_executions_running{workflow="nightly",workspace="default"} 0.0' in text


OWN = "01a20b27-3435-7f34-bb64-1f7dfa48e9a4"


def airflow(task: str = "", attempt: int = 0, state: str = "") -> dict[str, str | int]:
    attributes: dict[str, str | int] = {"airflow.dag_id": "sales", "airflow.dag_run.run_id": "manual__1"}
    if task:
        attributes |= {"airflow.task_id": task, "airflow.task_instance.map_index": -1}
        attributes |= {"airflow.task_instance.try_number": attempt}
    return attributes | ({"airflow.task_instance.state": state} if state else {})


def prefect(kind: str, **said: str) -> dict[str, str]:
    return {"prefect.run.type": kind, **{f"prefect.{key.replace('_', '.')}": value for key, value in said.items()}}


def celery(action: str, state: str = "", retries: int = 0) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {"celery.action": action, "messaging.message.id": "m1"}
    return attributes | (
        {"celery.task_name": "tasks.add", "celery.state": state, "celery.retries": retries} if state else {}
    )


WORKFLOW = {"temporalWorkflowID": "order-1"}
RUN = {**WORKFLOW, "temporalRunID": OWN}
ENGINES: dict[str, tuple[list[Span], str, dict[str, tuple[str, int]]]] = {
    "airflow": (
        [span("dag_run.sales", 1, 0, 0, 20, of=airflow()),
         span("task_run.pull", 2, 1, 0, 5, error="gone", of=airflow("pull", 1, "up_for_retry")),
         span("task_run.pull", 3, 1, 9, 15, of=airflow("pull", 2, "success")),
         span("worker.pull", 4, 3, 10, 15, of=airflow("pull", 2)),
         span("task_run.mail", 5, 1, 15, 20, of=airflow("mail", 1, "skipped"))],
        "sales completed", {"pull": ("completed", 2), "mail": ("skipped", 0)},
    ),
    "prefect": (
        [span("wise-owl", 1, 0, 0, 5, of=prefect("flow", run_name="wise-owl", flow_id="etl", run_id=OWN)),
         span("pull-1f3", 2, 1, 0, 2, of=prefect("task", run_name="pull-1f3"))],
        "etl completed", {"pull": ("completed", 1)},
    ),
    "temporal": (
        [span("StartWorkflow:Order", 1, 0, 0, 0.1, of=WORKFLOW),
         span("RunWorkflow:Order", 2, 1, 0.2, 8, of=RUN),
         span("StartActivity:charge", 3, 2, 0.3, 0.3, of=RUN),
         span("RunActivity:charge", 4, 3, 0.4, 1, error="declined", of={**RUN, "temporalActivityID": "1"}),
         span("RunActivity:charge", 5, 3, 2, 6, of={**RUN, "temporalActivityID": "1"})],
        "Order completed", {"charge": ("completed", 2)},
    ),
    "temporal in python": (
        [span("StartWorkflow:Order", 1, 0, 0, 0.1, of=WORKFLOW),
         span("RunWorkflow:Order", 2, 1, 0.2, 0.2, of=RUN),
         span("StartActivity:charge", 3, 1, 0.3, 0.3, of=RUN),
         span("RunActivity:charge", 4, 3, 0.4, 1, error="declined", of={**RUN, "temporalActivityID": "1"}),
         span("RunActivity:charge", 5, 3, 2, 6, error="declined", of={**RUN, "temporalActivityID": "1"}),
         span("CompleteWorkflow:Order", 6, 1, 6.1, 6.1, error="Activity task failed", of=RUN)],
        "Order failed", {"charge": ("failed", 2)},
    ),
    "celery": (
        [span("checkout", 1, 0, 0, 5),
         span("apply_async/tasks.add", 2, 1, 0, 0.1, of=celery("apply_async")),
         span("run/tasks.add", 3, 2, 1, 2, error="boom", of=celery("run", "RETRY", 0)),
         span("run/tasks.add", 4, 2, 3, 5, of=celery("run", "SUCCESS", 1))],
        "checkout completed", {"tasks.add": ("completed", 2)},
    ),
}  # fmt: skip


async def counted(api: Api) -> dict[str, float]:
    """What Prometheus would see, added up over all labels."""
    await asyncio.to_thread(api.service.recorder.flush)
    sums = dict.fromkeys(
        ("workflow_executions_started_total", "workflow_execution_duration_seconds_count",
         "workflow_executions_running", "workflow_step_duration_seconds_count", "workflow_step_attempts_total",
         "workflow_step_retries_total", "workflow_steps_running"), 0.0
    )  # fmt: skip
    for line in (await api.metrics()).splitlines():
        name = line.partition("{")[0]
        if name in sums:
            sums[name] += float(line.rpartition("} ")[2])
    return sums


WAYS = ("whole", "one by one", "backwards", "twice")
ARRIVALS = [
    *(("sqlite", engine, how) for engine in ENGINES for how in WAYS),
    # The order does not depend on the database: each engine in one of them.
    *(
        pytest.param("postgresql", engine, WAYS[number % len(WAYS)], marks=pytest.mark.e2e)
        for number, engine in enumerate(ENGINES)
    ),
]


@pytest.mark.parametrize(("any_database_url", "engine", "how"), ARRIVALS, indirect=["any_database_url"])
async def test_engines_traces_become_timelines_however_they_arrive(
    api: Api, engine: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tachograph_exporter.ingest.trace_executions.QUIET_SECONDS", 0.0)
    spans, said, steps = ENGINES[engine]
    # In the order processes export them: each span when it has ended, children before their parents.
    spans = sorted(spans, key=lambda span: (span.end_time_unix_nano, not span.parent_span_id))
    if how == "whole":
        await sent(api, *spans)
    else:
        for span in reversed(spans) if how == "backwards" else spans:
            await sent(api, span)
        if how == "twice":
            shuffled = list(spans)
            random.Random(1).shuffle(shuffled)
            await sent(api, *shuffled)
    execution = await timeline(api)
    assert f"{execution['workflow_name']} {execution['status']}" == said
    entries = {step["step_name"]: (step["status"], len(step["attempts"])) for step in execution["step_timeline"]}
    assert entries == steps
    assert (await api.get("/api/workflows/executions"))["total"] == 1
    assert differing(api.service.database) == 0
    # The service's own task reassembles the trace, or this call, whichever comes first; the end is announced last.
    async with asyncio.timeout(60):
        is_counted = False
        while not is_counted:
            due = await api.service.upkeep.reassemble_due_traces()
            is_counted = not due and bool((await counted(api))["workflow_execution_duration_seconds_count"])
            await asyncio.sleep(0.05)
    attempts = sum(count for _, count in steps.values())
    ran = sum(count > 0 for _, count in steps.values())
    assert await counted(api) == {
        "workflow_executions_started_total": 1,
        "workflow_execution_duration_seconds_count": 1,
        "workflow_executions_running": 0,
        "workflow_step_duration_seconds_count": ran,
        "workflow_step_attempts_total": attempts,
        "workflow_step_retries_total": attempts - ran,
        "workflow_steps_running": 0,
    }
    for step in execution["step_timeline"]:
        if step["started_at"] is not None:
            # Further attempts are queued within the time that the step took.
            before = (
                step["wait"]["dependency"]
                + step["wait"]["unaccounted"]
                + step["wait"]["scheduled"]
                + step["attempts"][0]["queue_seconds"]
            )
            assert step["wait_seconds"] + step["run_seconds"] == pytest.approx(before + step["duration_seconds"])


async def test_an_execution_is_running_until_its_root_arrives(api: Api) -> None:
    await sent(api, *PLAIN[1:])
    running = await timeline(api)
    assert (running["status"], running["step_count"]) == ("running", 2)
    await sent(api, PLAIN[0])
    done = await timeline(api)
    assert (done["execution_id"], done["status"]) == (running["execution_id"], "completed")


async def test_clocks_that_step_back_and_cycles_do_no_harm(api: Api) -> None:
    await sent(api, span("a", 1, 0, 5, 3), span("b", 2, 1, 4, 1), span("c", 3, 4, 0, 1), span("d", 4, 3, 0, 1))
    execution = await timeline(api)
    assert (execution["workflow_name"], execution["total_duration_seconds"]) == ("a", 0)
    assert all((step["duration_seconds"] or 0) >= 0 for step in execution["step_timeline"])


async def test_by_the_specification(api: Api) -> None:
    whole = export(PLAIN).SerializeToString()
    status, body = await send(api, gzip.compress(whole), **{"Content-Encoding": "gzip"})
    assert status == 200
    status, body = await send(api, b"{}", "application/json")
    assert (status, body) == (200, b"{}")
    ids = {"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174"}
    fields = {
        **ids,
        "name": "j",
        "startTimeUnixNano": str(T0),
        "endTimeUnixNano": str(T0 + S),
        "kind": 2,
        "newField": 1,
    }
    import msgspec

    document = {"resourceSpans": [{"scopeSpans": [{"spans": [fields, {**fields, "spanId": "00"}]}]}]}
    status, body = await send(api, msgspec.json.encode(document), "application/json")
    partial = msgspec.json.decode(body)["partialSuccess"]
    assert (status, partial["rejectedSpans"], "no valid span id" in partial["errorMessage"]) == (200, "1", True)
    status, body = await send(api, b"\xff\xff nonsense")
    assert (status, "not a protobuf" in RpcStatus.FromString(body).message) == (400, True)
    status, body = await send(api, b"[1, 2", "application/json")
    assert (status, "not JSON" in msgspec.json.decode(body)["message"]) == (400, True)
    assert (await send(api, b"x", "text/plain"))[0] == 415
    # A refused request stores nothing.
    assert (await api.get("/api/workflows/executions"))["total"] == 2


async def test_trace_viewers_read_ingested_and_recorded_executions(api: Api) -> None:
    await sent(api, *PLAIN)
    await api.call(
        "POST", "/api/workflows", {"name": "own", "steps": [{"name": "a"}, {"name": "b", "depends_on_steps": ["a"]}]}
    )
    execution = await api.run("own")
    trace_id = (await api.get(f"/api/workflows/executions/{execution}"))["trace_id"]
    assert (await api.get("/jaeger/api/services"))["data"] == ["etl", "tachograph"]
    assert (await api.get("/jaeger/api/services/etl/operations"))["data"] == ["SELECT", "extract", "load", "nightly"]
    (arrived,) = (await api.get("/jaeger/api/traces?service=etl&limit=5"))["data"]
    spans = {span["operationName"]: span for span in arrived["spans"]}
    assert spans["load"]["references"] == [
        {"refType": "CHILD_OF", "traceID": arrived["traceID"], "spanID": spans["nightly"]["spanID"]}
    ]
    assert (spans["load"]["startTime"], spans["load"]["duration"]) == ((T0 + 4_500_000_000) // 1000, 5_500_000)
    assert {"key": "error", "type": "bool", "value": True} in spans["load"]["tags"]
    assert arrived["processes"]["p1"]["serviceName"] == "etl"
    (recorded,) = (await api.get(f"/jaeger/api/traces/{trace_id}"))["data"]
    assert [span["operationName"] for span in recorded["spans"]] == ["run own", "a", "b"]
    links = [reference["refType"] for reference in recorded["spans"][2]["references"]]
    assert links == ["CHILD_OF", "FOLLOWS_FROM"]
    # Tempo, in JSON and in protobuf: whole spans, as they were sent.
    tempo = await api.get(f"/tempo/api/v2/traces/{arrived['traceID']}")
    (group,) = tempo["trace"]["resourceSpans"]
    assert {span["name"] for span in group["scopeSpans"][0]["spans"]} == {span.name for span in PLAIN}
    assert group["scopeSpans"][0]["spans"][0]["traceId"] == arrived["traceID"]
    headers = {"Accept": "application/protobuf"}
    async with api.session.get(f"{api.address}/tempo/api/traces/{arrived['traceID']}", headers=headers) as answer:
        data = TracesData.FromString(await answer.read())
    assert sorted(data.resource_spans[0].scope_spans[0].spans, key=str) == sorted(PLAIN, key=str)
    for query, names in (
        ("", ["run own", "nightly"]),
        ('q={resource.service.name="etl" %26%26 duration>5s}', ["nightly"]),
        ('q={ name = "load" %26%26 status = error }', ["nightly"]),
        ("tags=service.name%3Dtachograph", ["run own"]),
        ("minDuration=1h", []),
    ):
        answer = await api.get(f"/tempo/api/search?{query}")
        assert [trace["rootTraceName"] for trace in answer["traces"]] == names, query
    status, body = await api.call("GET", "/tempo/api/search?q={} | rate()")
    assert (status, body["code"], "query_range" in body["detail"]) == (400, "not_supported", True)
    assert (await api.call("GET", f"/jaeger/api/traces/{'9' * 32}"))[1]["code"] == "trace_not_found"
    otlp = await api.get(f"/api/workflows/executions/{execution}/timeline?format=otlp")
    assert len(otlp["resourceSpans"][0]["scopeSpans"][0]["spans"]) == 3


async def test_our_own_spans_sent_by_otlp_give_the_timeline_they_were_made_from(api: Api) -> None:
    from tests.api.test_api import RETRY, register

    await register(api, RETRY)
    execution = await api.run("retry", {"n": 3})
    path = f"/api/workflows/executions/{execution}/timeline"
    recorded = await api.get(path)
    exported = await api.get(f"{path}?format=otlp")
    await api.call("POST", "/api/workspaces", {"slug": "elsewhere"})
    status, _ = await api.call("POST", "/v1/traces?workspace_slug=elsewhere", exported)
    assert status == 200
    # Its id belongs to an execution of another workspace, which must not change.
    (listed,) = (await api.get("/api/workflows/executions?workspace_slug=elsewhere"))["items"]
    assert listed["execution_id"] != execution
    other = f"/api/workflows/executions/{listed['execution_id']}/timeline?workspace_slug=elsewhere"
    arrived = await api.get(other)
    for field in ("workflow_name", "status", "total_duration_seconds", "critical_path_seconds", "step_count"):
        assert arrived[field] == recorded[field], field
    steps = [
        [(s["step_name"], s["status"], len(s["attempts"])) for s in t["step_timeline"]] for t in (arrived, recorded)
    ]
    assert sorted(steps[0]) == sorted(steps[1])
    assert await api.get(path) == recorded
    # Sending it again, to both workspaces, changes nothing.
    await api.call("POST", "/v1/traces?workspace_slug=elsewhere", exported)
    await api.call("POST", "/v1/traces", exported)
    assert await api.get(path) == recorded
    assert (await api.get(other))["step_timeline"] == arrived["step_timeline"]
    assert differing(api.service.database) == 0


async def test_an_execution_without_new_spans_is_lost_until_some_arrive(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sent(api, *PLAIN[1:])
    sweep = api.sweep_by_hand()
    assert await sweep() == 0
    monkeypatch.setattr("tachograph_exporter.store.recovery.INGEST_LEASE_SECONDS", -1.0)
    assert await sweep() == 1
    assert (await timeline(api))["status"] == "lost"
    assert differing(api.service.database) == 0
    await sent(api, PLAIN[0])
    completed = await timeline(api)
    assert (completed["status"], completed["total_duration_seconds"]) == ("completed", 10)
    metrics = await api.get("/api/workflows/nightly/metrics")
    assert (metrics["total_executions"], metrics["by_status"].keys()) == (1, {"completed"})
    assert (await api.get("/api/workflows/executions/stats"))["by_status"] == {"completed": 1}
    assert differing(api.service.database) == 0
