"""Tempo's search, as Grafana's Tempo data source and Traces Drilldown ask it.

Shapes: ``SearchResponse`` in Tempo's ``pkg/tempopb/tempo.proto``, in protobuf's JSON. Grafana's source reads it
strictly: a field that its version does not know is an error there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from tachograph_exporter.api import problems
from tachograph_exporter.api.jaeger import read
from tachograph_exporter.api.request import json_response
from tachograph_exporter.api.viewer_query import ViewerQuery
from tachograph_exporter.attribute_text import as_text
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.traces import search
from tachograph_exporter.traces.search import Search, Trace
from tachograph_exporter.traces.traceql.columns import Column, columns_of
from tachograph_exporter.traces.traceql.fields import Several, TraceView, first
from tachograph_exporter.traces.traceql.lexer import Duration, TraceQLError
from tachograph_exporter.traces.traceql.parser import parse
from tachograph_exporter.traces.traceql.pipelines import Spanset
from tachograph_exporter.traces.traceql.syntax import EVERYTHING, Query, duration_text

MAX_SHOWN: int = 1000
"""Spans shown of a spanset."""


def parsed(text: str | None) -> Query:
    """A TraceQL query; all spans if there is none. Raises 400."""
    if text is None:
        return EVERYTHING
    try:
        return parse(text)
    except TraceQLError as error:
        raise problems.not_supported(f"TraceQL: {error}") from None


def any_value(value: Any) -> dict[str, Any]:
    """A value as OTLP's JSON has it; as Tempo has it where OTLP has no such type."""
    if isinstance(value, Several):
        value = first(value)
    if value is None:
        return {"stringValue": "nil"}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, Duration):
        return {"stringValue": duration_text(value)}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": json_number(value)}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(item) for item in value]}}
    return {"stringValue": str(as_text(value))}


def json_number(value: float) -> float | str:
    """A number in protobuf's JSON, where those that are not finite are texts."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


async def tempo_search(request: web.Request) -> web.Response:
    """``GET /tempo/api/search``: Tempo's query API: traces by a TraceQL query (`q`) or by `tags`.

    The traces that started in the range, the newest first; `metrics.inspectedTraces` says how many were inspected,
    and `completedJobs` is 0 if it ended before it had looked at all of them.
    `docs/trace-viewers.md` says what of TraceQL is supported.
    """
    query = ViewerQuery(request)
    tags = query.logfmt("tags")
    criteria = Search(
        query=parsed(query.text("q")),
        service=tags.pop("service.name", None),
        name=tags.pop("name", None),
        tags=tags,
        start_ns=query.time("start"),
        end_ns=query.time("end"),
        min_ns=query.duration("minDuration"),
        max_ns=query.duration("maxDuration"),
        limit=query.integer("limit", 20, 1, search.MAX_TRACES),
    )
    shown = query.integer("spss", 3, 0, MAX_SHOWN)
    query.done()
    if criteria.query.metrics is not None:
        raise problems.not_supported("TraceQL: metrics are at /tempo/api/metrics/query_range, not in a search")
    columns = columns_of(criteria.query.pipeline)
    traces: list[dict[str, Any]] = []
    outcome = await read(
        request,
        lambda c, workspace, slug: search.search(
            c, workspace, slug, criteria, lambda trace: traces.append(_summary(trace, columns, shown or None))
        ),
    )
    traces.sort(key=lambda trace: -int(trace["startTimeUnixNano"]))
    return json_response(
        {
            "traces": traces,
            "metrics": {
                "inspectedTraces": outcome.inspected,
                "totalBlocks": 1,
                "completedJobs": int(outcome.is_complete),
                "totalJobs": 1,
            },
        }
    )


def _summary(trace: Trace, columns: Sequence[Column], shown: int | None) -> dict[str, Any]:
    root, view = trace.root, trace.view()
    spansets = [_spanset(spanset, view, columns, shown) for spanset in trace.spansets]
    stats: dict[str, dict[str, int]] = {}
    for span in trace.spans:
        of_service = stats.setdefault(span.service, {"spanCount": 0})
        of_service["spanCount"] += 1
        if span.is_error:
            of_service["errorCount"] = of_service.get("errorCount", 0) + 1
    return {
        "traceID": trace.trace_id,
        "rootServiceName": root.service,
        "rootTraceName": root.name,
        "startTimeUnixNano": str(trace.start_ns),
        "durationMs": trace.duration_ns // 1_000_000,
        "spanSet": spansets[0],
        "spanSets": spansets,
        "serviceStats": stats,
    }


def _spanset(spanset: Spanset, view: TraceView, columns: Sequence[Column], shown: int | None) -> dict[str, Any]:
    spans = sorted(spanset.spans, key=lambda span: (span.start_ns, span.span_id))[:shown]
    answer = {"spans": [_span(span, view, columns) for span in spans], "matched": len(spanset.spans)}
    if spanset.attributes:
        answer["attributes"] = [{"key": name, "value": any_value(value)} for name, value in spanset.attributes]
    return answer


def _span(span: SpanRecord, view: TraceView, columns: Sequence[Column]) -> dict[str, Any]:
    attributes = []
    for name, get in columns:
        value = first(get(span, view))
        if value is not None:
            attributes.append({"key": name, "value": any_value(value)})
    return {
        "spanID": span.span_id,
        "name": span.name,
        "startTimeUnixNano": str(span.start_ns),
        "durationNanos": str(max(0, span.end_ns - span.start_ns)),
        "attributes": attributes,
    }
