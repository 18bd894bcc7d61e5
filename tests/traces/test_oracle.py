"""Made-up queries on made-up traces give what plain Python says: 150 here, others on each database, 600 if slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from tests.api.test_otlp import send
from tests.conftest import Api, serve
from tests.otlp_values import any_value
from tests.traces.oracle import MINUTE, T0, Maker, S, Span, Steps, Trace, made_up_traces

from tachograph.workflow import HandlerRegistry
from tachograph_exporter.config import Config

pytestmark = pytest.mark.every_database

SEARCHES, METRICS = 100, 50
TRACES = made_up_traces(seed=7, count=24)
STATUSES = {"unset": 0, "ok": 1, "error": 2}
KINDS = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}


def exported(spans: Sequence[Span]) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    for span in spans:
        group = request.resource_spans.add()
        for key, value in span.resource.items():
            group.resource.attributes.add(key=key).value.CopyFrom(any_value(value))
        sent = group.scope_spans.add().spans.add(
            trace_id=bytes.fromhex(span.trace.id),
            span_id=bytes.fromhex(span.id),
            parent_span_id=bytes.fromhex(span.parent),
            name=span.name,
            kind=KINDS[span.kind],
            start_time_unix_nano=span.start,
            end_time_unix_nano=span.end,
            status=trace_pb2.Status(code=STATUSES[span.status]),  # type: ignore[arg-type]
        )
        for key, value in span.attributes.items():
            sent.attributes.add(key=key).value.CopyFrom(any_value(value))
        for name, at, attributes in span.events:
            event = sent.events.add(name=name, time_unix_nano=at)
            for key, value in attributes.items():
                event.attributes.add(key=key).value.CopyFrom(any_value(value))
        for trace_id, span_id in span.links:
            sent.links.add(trace_id=bytes.fromhex(trace_id), span_id=bytes.fromhex(span_id))
    return request


@pytest.fixture
async def api(any_database_url: str, handlers: HandlerRegistry) -> AsyncIterator[Api]:
    async for api in serve(Config(database=any_database_url, grace_seconds=0.1), handlers):
        body = exported([span for trace in TRACES for span in trace.spans]).SerializeToString()
        assert (await send(api, body))[0] == 200
        yield api


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.slow)])
async def test_made_up_queries_give_what_plain_python_says(api: Api, times: int) -> None:
    maker = Maker(seed=11 if api.service.database.is_sqlite else 12)
    searches, metrics = SEARCHES * times, METRICS * times
    answers = 0
    for _ in range(searches):
        text, meaning = maker.search()
        expected = {trace.id: sets for trace in TRACES if (sets := meaning(trace))}
        body = await api.get("/tempo/api/search", params={"q": text, "limit": "500", "spss": "0"})
        found = {
            trace["traceID"]: [frozenset(span["spanID"] for span in spanset["spans"]) for spanset in trace["spanSets"]]
            for trace in body["traces"]
        }
        assert {key: Counter(sets) for key, sets in found.items()} == {
            key: Counter(sets) for key, sets in expected.items()
        }, text
        assert [len(sets[0]) for sets in found.values()] == [t["spanSet"]["matched"] for t in body["traces"]], text
        answers += 0 < len(expected) < len(TRACES)
    # Most queries tell traces apart: the test can fail.
    assert answers > searches // 3
    shown = 0
    for number in range(metrics):
        text, table = maker.metrics()
        shown += await compare_metrics(api, text, table, is_instant=number % 4 == 0)
    assert shown > metrics // 2


async def compare_metrics(api: Api, text: str, table: Any, *, is_instant: bool) -> bool:
    start, end = T0 // S + 60, T0 // S + 20 * 60
    if is_instant:
        # One step that includes its start.
        steps = Steps((end * S,), (end - start) * S + 1)
        expected = table(TRACES, steps)
        if "rate(" in text:
            expected = {labels: {t: v * (steps.length / (steps.length - 1)) for t, v in values.items()}
                        for labels, values in expected.items()}  # fmt: skip
        query = {"q": text, "start": str(start), "end": str(end)}
        body = await api.get("/tempo/api/metrics/query", params=query)
        found = {labels_of(series): {end * S: series["value"]} for series in body["series"]}
    else:
        length = 5 * MINUTE
        first = start * S - start * S % length
        steps = Steps(tuple(range(first, -(-end * S // length) * length + 1, length)), length)
        expected = table(TRACES, steps)
        query = {"q": text, "start": str(start), "end": str(end), "step": "5m"}
        body = await api.get("/tempo/api/metrics/query_range", params=query)
        found = {
            labels_of(series): {int(sample["timestampMs"]) * 10**6: sample["value"] for sample in series["samples"]}
            for series in body["series"]
        }
    expected = {tuple(sorted(labels)): values for labels, values in expected.items()}
    assert found.keys() == expected.keys(), text
    for labels, values in expected.items():
        assert found[labels].keys() == values.keys(), (text, labels)
        for time, value in values.items():
            low, high = value if isinstance(value, tuple) else (value, value)
            slack = 0.1 * abs(high) + 1e-12 if isinstance(value, tuple) else 1e-9 * abs(high) + 1e-12
            assert low - slack <= found[labels][time] <= high + slack, (text, labels, time)
    return any(value for values in expected.values() for value in values.values())


def labels_of(series: Any) -> tuple[tuple[str, Any], ...]:
    labels = []
    for label in series["labels"]:
        ((kind, value),) = label["value"].items()
        labels.append((label["key"], int(value) if kind == "intValue" else value))
    return tuple(sorted(labels))


def test_the_made_up_traces_have_every_shape() -> None:
    def some(test: Any) -> bool:
        return any(test(trace) for trace in TRACES)

    def orphans(trace: Trace) -> int:
        return sum(1 for span in trace.spans if span.parent and span.parent not in trace.by_id())

    assert some(lambda t: sum(not s.parent for s in t.spans) > 1)
    assert some(lambda t: all(s.parent for s in t.spans))
    assert some(lambda t: orphans(t) and any(not s.parent for s in t.spans))
    assert some(lambda t: any(not s.end for s in t.spans))
