"""Jaeger's clients: every request form of Jaeger UI 2.14 and 2.20 and of Grafana's Jaeger data source, decoded by the
shapes that their code reads.

Sources: ``packages/jaeger-ui/src/api`` of jaegertracing/jaeger-ui at v2.14.0 and after v2.20.0; ``pkg/tsdb/jaeger`` of
grafana/grafana (its ``types``); ``apiv3`` of jaegertracing/jaeger.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

import msgspec
import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.api.test_otlp import PLAIN, T0, S, export, sent, span
from tests.conftest import Api, serve

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config
from tachograph_exporter.ingest.spans import otlp_json, records

T = TypeVar("T")
Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
Decimal = Annotated[str, msgspec.Meta(pattern=r"^\d+$")]
Count = Annotated[int, msgspec.Meta(ge=0)]


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        yield api


# Jaeger UI: ``schemas.ts`` and ``generated-client.ts`` of its API v3 client.
class Services(msgspec.Struct):
    services: list[str]


class Operation(msgspec.Struct):
    name: str
    spanKind: str  # noqa: N815


class Operations(msgspec.Struct):
    operations: list[Operation]


class ServiceSummary(msgspec.Struct):
    name: str
    spanCount: Count  # noqa: N815
    errorSpanCount: Count  # noqa: N815


class Summary(msgspec.Struct):
    traceId: Hex  # noqa: N815
    rootServiceName: str  # noqa: N815
    rootOperationName: str  # noqa: N815
    minStartTimeUnixNano: Decimal  # noqa: N815
    maxEndTimeUnixNano: Decimal  # noqa: N815
    spanCount: Count  # noqa: N815
    errorSpanCount: Count  # noqa: N815
    orphanSpanCount: Count  # noqa: N815
    services: list[ServiceSummary]


class Summaries(msgspec.Struct):
    summaries: list[Summary]


# The older API: ``types/trace.ts`` of the UI, ``types.go`` of Grafana.
class Tag(msgspec.Struct):
    key: str
    type: str
    value: Any


class Reference(msgspec.Struct):
    refType: str  # noqa: N815
    traceID: Hex  # noqa: N815
    spanID: str  # noqa: N815


class Log(msgspec.Struct):
    timestamp: int
    fields: list[Tag]


class JaegerSpan(msgspec.Struct):
    traceID: Hex  # noqa: N815
    spanID: str  # noqa: N815
    processID: str  # noqa: N815
    operationName: str  # noqa: N815
    startTime: int  # noqa: N815
    duration: int
    logs: list[Log]
    references: list[Reference]
    tags: list[Tag]
    warnings: list[str] | None


class Process(msgspec.Struct):
    serviceName: str  # noqa: N815
    tags: list[Tag]


class JaegerTrace(msgspec.Struct):
    traceID: Hex  # noqa: N815
    spans: list[JaegerSpan]
    processes: dict[str, Process]
    warnings: list[str] | None


class Error(msgspec.Struct):
    code: int
    msg: str
    traceID: str = ""  # noqa: N815


class Traces(msgspec.Struct):
    data: list[JaegerTrace]
    total: int
    limit: int
    offset: int
    errors: list[Error] | None


class Names(msgspec.Struct):
    data: list[str]


class Label(msgspec.Struct):
    name: str
    value: str


class Gauge(msgspec.Struct):
    doubleValue: float | str  # noqa: N815


class MetricPoint(msgspec.Struct):
    gaugeValue: Gauge  # noqa: N815
    timestamp: str


class Metric(msgspec.Struct):
    labels: list[Label]
    metricPoints: list[MetricPoint]  # noqa: N815


class MetricFamily(msgspec.Struct):
    name: str
    type: str
    help: str
    metrics: list[Metric]


async def answer(api: Api, kind: type[T], path: str, **parameters: Any) -> T:
    query = f"?{urlencode(parameters, doseq=True)}" if parameters else ""
    return msgspec.convert(await api.get(f"/jaeger{path}{query}"), kind)


def iso(seconds: float) -> str:
    """As JavaScript's ``toISOString`` writes it."""
    at = T0 // S + seconds
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{round(at % 1 * 1000):03d}Z"


TRACE = f"{1:032x}"
OTHER = f"{2:032x}"
OTHERS = [
    span("shop", 1, 0, 60, 61, trace=2, of={"region": "eu", "tries": 3}),
    span("lost child", 9, 7, 60.5, 60.9, trace=2, error="no"),
]


async def test_jaeger_ui_lists_services_and_operations(api: Api) -> None:
    await sent(api, *PLAIN)
    assert (await answer(api, Services, "/api/v3/services")).services == ["etl"]
    operations = (await answer(api, Operations, "/api/v3/operations", service="etl")).operations
    assert sorted(op.name for op in operations) == ["SELECT", "extract", "load", "nightly"]
    assert {op.spanKind for op in operations} == {"internal"}
    assert (await answer(api, Operations, "/api/v3/operations", service="etl", spanKind="server")).operations == []
    assert (await answer(api, Operations, "/api/v3/operations", service="none")).operations == []
    assert (await answer(api, Names, "/api/services")).data == ["etl"]
    assert len((await answer(api, Names, "/api/services/etl/operations")).data) == 4


async def test_jaeger_ui_searches_summaries(api: Api) -> None:
    await sent(api, *PLAIN)
    await sent(api, *OTHERS)
    whole = {"query.startTimeMin": iso(-60), "query.startTimeMax": iso(120), "query.searchDepth": "20"}
    newest, oldest = (await answer(api, Summaries, "/api/v3/trace-summaries", **whole)).summaries
    assert oldest == Summary(TRACE, "etl", "nightly", str(T0), str(T0 + 10 * S), 4, 1, 0, [ServiceSummary("etl", 4, 1)])
    assert (newest.traceId, newest.spanCount, newest.errorSpanCount, newest.orphanSpanCount) == (OTHER, 2, 1, 1)

    async def ids(**parameters: str) -> list[str]:
        query = {**whole, **{f"query.{name}": value for name, value in parameters.items()}}
        return [s.traceId for s in (await answer(api, Summaries, "/api/v3/trace-summaries", **query)).summaries]

    assert await ids(serviceName="etl", operationName="load") == [TRACE]
    assert await ids(serviceName="other") == []
    assert await ids(attributes='{"region":"eu","tries":"3"}') == [OTHER]
    assert await ids(attributes='{"error":"true"}') == [OTHER, TRACE]
    assert await ids(attributes='{"span.kind":"internal","otel.status_code":"ERROR"}') == [OTHER, TRACE]
    # One span must be that long, as in Jaeger, and have everything else too.
    assert await ids(durationMin="10s") == [TRACE]
    assert await ids(durationMin="350ms", durationMax="450000us") == [OTHER]
    assert await ids(operationName="load", durationMin="6s") == []
    assert await ids(searchDepth="1") == [OTHER]
    # The end is exclusive, the start is not.
    assert await ids(startTimeMin=iso(60), startTimeMax=iso(61)) == [OTHER]
    assert await ids(startTimeMax=iso(60)) == [TRACE]
    # The older names, and a zone whose plus is not escaped.
    older = "query.start_time_min=2020-01-01T00:00:00.123456789+01:00&query.service_name=etl&query.num_traces=1"
    found = await api.get(f"/jaeger/api/v3/trace-summaries?{older}&query.duration_min=1m&query.operation_name=x")
    assert found == {"summaries": []}
    found = await api.get(f"/jaeger/api/v3/trace-summaries?{older}&query.duration_max=5m")
    assert [summary["traceId"] for summary in found["summaries"]] == [OTHER]


async def test_jaeger_ui_opens_and_compares_traces(api: Api) -> None:
    await sent(api, *PLAIN)
    await sent(api, *OTHERS)
    (trace,) = (await answer(api, Traces, f"/api/traces/{TRACE}")).data
    assert (trace.traceID, len(trace.spans), trace.processes["p1"].serviceName) == (TRACE, 4, "etl")
    # Compare of 2.14: the id twice; of an id that does not exist, the others are there.
    for given, expected in (([TRACE, OTHER], [TRACE, OTHER]), ([TRACE, TRACE], [TRACE]), ([OTHER, "f" * 32], [OTHER])):
        traces = await answer(api, Traces, "/api/traces", traceID=given)
        assert [t.traceID for t in traces.data] == expected
        assert [error.traceID for error in traces.errors or ()] == [i for i in given if i not in expected]
    # Ids without leading zeros, and in base64.
    for text in ("1", "AAAAAAAAAAAAAAAAAAAAAQ", "AAAAAAAAAAAAAAAAAAAAAQ=="):
        assert (await answer(api, Traces, f"/api/traces/{text}")).data[0].traceID == TRACE


async def test_jaeger_ui_2_14_searches(api: Api) -> None:
    await sent(api, *PLAIN)
    await sent(api, *OTHERS)
    form = {"service": "etl", "limit": "1500", "lookback": "custom", "start": T0 // 1000 - 60_000_000,
            "end": T0 // 1000 + 120_000_000, "maxDuration": "", "minDuration": ""}  # fmt: skip
    for extra, expected in (
        ({}, [OTHER, TRACE]),
        ({"operation": "load"}, [TRACE]),
        ({"tags": '{"region":"eu"}'}, [OTHER]),
        ({"tag": ["region:eu", "tries:3"]}, [OTHER]),
        ({"tag": ["region:eu", "tries:4"]}, []),
        ({"tags": ['{"region":"eu"}', '{"tries":3}']}, [OTHER]),
        ({"minDuration": "1.2ms", "maxDuration": "1h30m", "limit": "1"}, [OTHER]),
    ):
        traces = await answer(api, Traces, "/api/traces", **{**form, **extra})
        assert [trace.traceID for trace in traces.data] == expected, extra
    dependencies = await api.get(f"/jaeger/api/dependencies?endTs={T0 // 1_000_000}&lookback=604800000")
    assert dependencies["data"] == []
    assert (await api.get("/jaeger/api/operations?service=etl&spanKind=server"))["data"] == []


async def test_api_v3_returns_otlp(api: Api) -> None:
    await sent(api, *PLAIN)
    for path in (
        f"/jaeger/api/v3/traces/{TRACE}",
        f"/jaeger/api/v3/traces/{TRACE}?start_time=2020-01-01T00:00:00Z&end_time=2036-01-01T00:00:00Z&raw_traces=true",
        "/jaeger/api/v3/traces?query.service_name=etl&query.start_time_min=2020-01-01T00:00:00Z"
        "&query.start_time_max=2036-01-01T00:00:00Z",
    ):
        result = (await api.get(path))["result"]
        # What arrived, in OTLP's JSON.
        (group,) = result["resourceSpans"]
        assert group["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "etl"}}]
        spans = {span["spanId"]: span for span in group["scopeSpans"][0]["spans"]}
        assert len(spans) == len(PLAIN)
        for original in PLAIN:
            returned = spans[original.span_id.hex()]
            assert (returned["traceId"], returned["name"]) == (TRACE, original.name)
            assert returned["startTimeUnixNano"] == str(original.start_time_unix_nano)
            assert set(returned) >= set(MessageToDict(original))


async def test_problems_are_in_the_words_of_jaeger_too(api: Api) -> None:
    status, body = await api.call("GET", f"/jaeger/api/v3/traces/{'9' * 32}")
    assert (status, body["code"], body["error"]["httpCode"]) == (404, "trace_not_found", 404)
    assert body["error"]["message"] == body["detail"]
    status, body = await api.call("GET", "/jaeger/api/v3/traces?query.service_name=none")
    assert (status, body["error"]) == (404, {"httpCode": 404, "message": "no trace matches the query"})
    status, body = await api.call("GET", "/jaeger/api/v3/trace-summaries?query.durationMin=soon")
    assert (status, body["error"]["httpCode"], "query.durationMin" in body["error"]["message"]) == (422, 422, True)
    status, body = await api.call("GET", "/jaeger/api/v3/trace-summaries?query.filter={}")
    assert (status, body["code"]) == (400, "not_supported")
    # The older API: the UI shows `code - msg` of each.
    status, body = await api.call("GET", f"/jaeger/api/traces/{'9' * 32}")
    assert (status, [error["msg"] for error in body["errors"]]) == (404, [body["detail"]])
    status, body = await api.call("GET", "/jaeger/api/traces?start=x&limit=y")
    assert (status, len(body["errors"])) == (422, 2)
    assert all(error["msg"] for error in body["errors"])
    # Our own have no such members.
    assert "error" not in (await api.call("GET", "/api/workflows/none"))[1]


async def test_jaeger_ui_uploads_otlp(api: Api) -> None:
    spans = [s for s in records(export([*PLAIN, *OTHERS]).resource_spans) if not isinstance(s, str)]
    body = msgspec.json.encode(otlp_json(spans))
    headers = {"Content-Type": "text/plain;charset=UTF-8"}
    async with api.session.post(f"{api.address}/jaeger/api/transform", data=body, headers=headers) as response:
        assert response.status == 200
        traces = msgspec.json.decode(await response.read(), type=Traces)
    assert {trace.traceID: len(trace.spans) for trace in traces.data} == {TRACE: 4, OTHER: 2}
    # Nothing is stored, and what is no OTLP is refused.
    assert (await answer(api, Services, "/api/v3/services")).services == []
    async with api.session.post(f"{api.address}/jaeger/api/transform", data=b"{", headers=headers) as response:
        assert (response.status, (await response.json())["code"]) == (400, "invalid_json")
    bad = MessageToDict(Span(name="no ids"))
    document = {"resourceSpans": [{"scopeSpans": [{"spans": [bad]}]}]}
    _, body = await api.call("POST", "/jaeger/api/transform", document)
    assert (body["data"], [error["msg"] for error in body["errors"]]) == ([], ['span "no ids" has no valid trace id'])


async def test_monitor_page_shows_the_figures_of_the_metrics(api: Api) -> None:
    steps = [{"name": "a"}, {"name": "b", "config": {"handler": "fail", "message": "no"}, "depends_on_steps": ["a"]}]
    await api.call("POST", "/api/workflows", {"name": "good", "steps": steps[:1]})
    await api.call("POST", "/api/workflows", {"name": "bad", "steps": steps})
    for _ in range(3):
        await api.run("good")
    await api.run("bad")
    now = time.time_ns() // 1_000_000 + 1

    async def family(kind: str, **options: Any) -> MetricFamily:
        query = {"service": "tachograph", "endTs": now, "lookback": 3_600_000, "step": 60_000, "ratePer": 600_000,
                 "spanKind": "server", "quantile": 0.95, **options}  # fmt: skip
        return await answer(api, MetricFamily, f"/api/metrics/{kind}", **query)

    calls = await family("calls")
    assert (calls.name, calls.type) == ("service_call_rate", "GAUGE")
    (metric,) = calls.metrics
    assert metric.labels == [Label("service_name", "tachograph")]
    window = now // 1000 - (now // 1000 - 600) // 300 * 300
    assert metric.metricPoints[-1].gaugeValue.doubleValue == pytest.approx(4 / window)
    assert metric.metricPoints[0].gaugeValue.doubleValue == 0
    assert 12 <= len(metric.metricPoints) <= 13
    (errors,) = (await family("errors")).metrics
    assert errors.metricPoints[-1].gaugeValue.doubleValue == 0.25
    assert errors.metricPoints[0].gaugeValue.doubleValue == "NaN"
    by_operation = {m.labels[1].value: m for m in (await family("latencies", groupByOperation="true")).metrics}
    assert sorted(by_operation) == ["run bad", "run good"]
    shown = by_operation["run good"].metricPoints[-1].gaugeValue.doubleValue
    metrics = await api.get("/api/workflows/good/metrics")
    assert shown == pytest.approx(1000 * metrics["by_status"]["completed"]["p95"])
    inner = await family("errors", groupByOperation="true", spanKind="internal")
    assert inner.name == "service_operation_error_rate"
    last = {m.labels[1].value: m.metricPoints[-1].gaugeValue.doubleValue for m in inner.metrics}
    assert last == {"a": 0, "b": 1}
    assert (await family("calls", spanKind="client")).metrics == []
    assert (await family("calls", service="other")).metrics == []
    # Long ranges have coarser points.
    for lookback in (2 * 86_400_000, 30 * 86_400_000, 600 * 86_400_000):
        (metric,) = (await family("calls", lookback=lookback)).metrics
        assert len(metric.metricPoints) <= 601
        assert float(metric.metricPoints[-1].gaugeValue.doubleValue) > 0
    assert (await api.get("/jaeger/api/metrics/minstep"))["data"] == 300_000
    status, body = await api.call("GET", "/jaeger/api/metrics/latencies?quantile=95")
    assert (status, {error["at"] for error in body["errors"]}) == (422, {"quantile", "service"})


async def test_monitor_page_knows_services_that_send_spans(api: Api) -> None:
    now = time.time_ns() / S - T0 / S
    await sent(api, span("nightly", 1, 0, now - 60, now - 50), span("load", 2, 1, now - 59, now - 52))
    query = {"service": "etl", "lookback": 3_600_000, "groupByOperation": "true", "quantile": 0.5}
    (metric,) = (await answer(api, MetricFamily, "/api/metrics/latencies", **query)).metrics
    assert metric.labels == [Label("service_name", "etl"), Label("operation", "nightly")]
    assert metric.metricPoints[-1].gaugeValue.doubleValue == pytest.approx(10_000, rel=0.05)


async def test_grafanas_jaeger_source(api: Api) -> None:
    await sent(api, *PLAIN)
    await sent(api, *OTHERS)
    micros = {"start": T0 // 1000 - 60_000_000, "end": T0 // 1000 + 120_000_000}
    assert (await answer(api, Names, "/api/services")).data == ["etl"]
    assert "load" in (await answer(api, Names, "/api/services/etl/operations")).data
    search = {**micros, "service": "etl", "operation": "load", "tags": '{"error":"true"}', "limit": 501,
              "minDuration": "100µs", "maxDuration": "1h30m"}  # fmt: skip
    assert [trace.traceID for trace in (await answer(api, Traces, "/api/traces", **search)).data] == [TRACE]
    # "Time range in query" is on.
    (trace,) = (await answer(api, Traces, f"/api/traces/{TRACE}", **micros)).data
    assert len(trace.spans) == 4
    calls = await api.get(f"/jaeger/api/dependencies?endTs={T0 // 1_000_000}&lookback=3600000")
    assert (calls["data"], calls["errors"]) == ([], None)
    # The feature flag `jaegerEnableGrpcEndpoint`.
    assert (await answer(api, Services, "/api/v3/services")).services == ["etl"]
    assert len((await answer(api, Operations, "/api/v3/operations", service="etl")).operations) == 6
    times = "start_time=2020-01-01T00:00:00+01:00&end_time=2036-01-01T00:00:00.000000001Z"
    assert len((await api.get(f"/jaeger/api/v3/traces/{TRACE}?{times}"))["result"]["resourceSpans"]) == 1


async def test_services_with_strange_names_are_found(api: Api) -> None:
    from tests.api.test_otlp import send

    await send(api, export([span("op/a b", 1)], service="team/app é").SerializeToString())
    assert (await answer(api, Names, "/api/services/team%2Fapp%20%C3%A9/operations")).data == ["op/a b"]
    assert len((await answer(api, Operations, "/api/v3/operations", service="team/app é")).operations) == 1
