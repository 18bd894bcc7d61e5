"""Jaeger's query API, version 3, which its UI speaks from 2.15 on; traces are OTLP.

Shapes: ``api_v3/query_service.proto`` of github.com/jaegertracing/jaeger-idl, and the HTTP gateway of Jaeger (package
``apiv3``). Parameters have two names, ``query.serviceName`` and the older ``query.service_name``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

from aiohttp import web
from sqlalchemy import Connection

from tachograph_exporter.api import problems
from tachograph_exporter.api.jaeger import end_of, read, requested_trace
from tachograph_exporter.api.request import json_response
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.api.spool import Spool, send, spooled
from tachograph_exporter.api.viewer_query import ViewerQuery
from tachograph_exporter.ingest.spans import SpanRecord, StoredSpan, write_otlp_json
from tachograph_exporter.traces import search
from tachograph_exporter.traces.search import Search, Trace

DEFAULT_DEPTH: Final = 100
"""Traces that a search returns if it does not say how many (``defaultSearchDepth`` in Jaeger)."""
_CAPITAL: Final = re.compile("[A-Z]")


def _older(name: str) -> str:
    """The older name of a parameter: ``query.service_name`` for ``query.serviceName``."""
    return _CAPITAL.sub(lambda match: f"_{match[0].lower()}", name)


def _write(spans: Iterable[SpanRecord | StoredSpan], put: Callable[[bytes], object]) -> None:
    put(b'{"result":{"resourceSpans":')
    write_otlp_json(spans, put)
    put(b"}}")


async def jaeger_v3_services(request: web.Request) -> web.Response:
    """``GET /jaeger/api/v3/services``: Jaeger's query API, version 3: the services that have spans."""
    ViewerQuery(request).done()
    return json_response({"services": await read(request, lambda c, workspace, _: search.services(c, workspace))})


async def jaeger_v3_operations(request: web.Request) -> web.Response:
    """``GET /jaeger/api/v3/operations``: Jaeger's query API, version 3: a service's span names, with their kinds."""
    query = ViewerQuery(request)
    service, kind = query.text("service"), query.text(query.given("spanKind", "span_kind"))
    query.done()
    operations = await read(request, lambda c, workspace, _: search.operations(c, workspace, service))
    # A span of no kind is an internal one, for Jaeger and for its UI.
    rows = [{"name": name, "spanKind": of_kind or "internal"} for name, of_kind in operations]
    return json_response({"operations": [row for row in rows if kind is None or row["spanKind"] == kind.lower()]})


async def jaeger_v3_dependencies(request: web.Request) -> web.Response:
    """``GET /jaeger/api/v3/dependencies``: Jaeger's query API, version 3: which services call which."""
    query = ViewerQuery(request)
    start = query.time(query.given("startTime", "start_time"))
    end = query.time(query.given("endTime", "end_time"))
    query.done()
    until = query.now_ns if end is None else end
    lookback = None if start is None else max(0, until - start)
    calls = await read(request, lambda c, workspace, _: search.dependencies(c, workspace, until, lookback))
    # A 64-bit number is text in protobuf's JSON.
    data = [{"parent": caller, "child": called, "callCount": str(count)} for caller, called, count in calls]
    return json_response({"dependencies": data})


def _criteria(query: ViewerQuery) -> Search:
    def name(camel: str) -> str:
        return query.given(f"query.{camel}", _older(f"query.{camel}"))

    end_ns = query.time(name("startTimeMax"))
    depth = query.given("query.searchDepth", "query.search_depth", "query.num_traces")
    criteria = Search(
        service=query.text(name("serviceName")),
        name=query.text(name("operationName")),
        tags=query.tags("query.attributes"),
        start_ns=query.time(name("startTimeMin")),
        # Before it, in Jaeger.
        end_ns=None if end_ns is None else end_ns - 1,
        span_min_ns=query.duration(name("durationMin")),
        span_max_ns=query.duration(name("durationMax")),
        limit=query.integer(depth, DEFAULT_DEPTH, 1, search.MAX_TRACES),
    )
    if query.text("query.filter") is not None:
        raise problems.not_supported("structured filters (query.filter) are not supported")
    query.done()
    return criteria


async def jaeger_v3_summaries(request: web.Request) -> web.Response:
    """``GET /jaeger/api/v3/trace-summaries``: Jaeger's query API, version 3: what its UI lists of the traces found."""
    criteria = _criteria(ViewerQuery(request))
    now = time.time_ns()

    def work(connection: Connection, workspace_id: str, slug: str) -> list[dict[str, Any]]:
        summaries: list[dict[str, Any]] = []

        def take(trace: Trace) -> None:
            spans: Iterable[SpanRecord] = trace.spans
            if len(trace.spans) >= search.MAX_SEARCHED_SPANS:
                # The search looked at the first ones only.
                stored = search.spans_of_trace(connection, workspace_id, slug, trace.trace_id)
                spans = map(search.record_of, stored)
            summaries.append(trace_summary(trace, spans, now))

        search.search(connection, workspace_id, slug, criteria, take)
        return summaries

    return json_response({"summaries": await read(request, work)})


def trace_summary(trace: Trace, spans: Iterable[SpanRecord], now: int) -> dict[str, Any]:
    """Jaeger's ``TraceSummary``; ``spans`` are all of the trace's. Open spans last until ``now`` (unix nanoseconds)."""
    counts: dict[str, list[int]] = {}
    parents: list[str] = []
    ids: set[str] = set()
    last = 0
    for span in spans:
        count = counts.setdefault(span.service, [0, 0])
        count[0] += 1
        count[1] += span.is_error
        last = max(last, end_of(span, now))
        ids.add(span.span_id)
        if span.parent_span_id:
            parents.append(span.parent_span_id)
    root = trace.root
    return {
        "traceId": trace.trace_id,
        "rootServiceName": root.service,
        "rootOperationName": root.name,
        "minStartTimeUnixNano": str(trace.start_ns),
        "maxEndTimeUnixNano": str(last),
        "spanCount": sum(count for count, _ in counts.values()),
        "errorSpanCount": sum(errors for _, errors in counts.values()),
        "orphanSpanCount": sum(parent not in ids for parent in parents),
        "services": [
            {"name": service, "spanCount": count, "errorSpanCount": errors}
            for service, (count, errors) in sorted(counts.items())
        ],
    }


async def jaeger_v3_search(request: web.Request) -> web.StreamResponse:
    """``GET /jaeger/api/v3/traces``: Jaeger's query API, version 3: traces by service, name, attributes and time."""
    criteria = _criteria(ViewerQuery(request))

    def work(connection: Connection, workspace_id: str, slug: str) -> Spool | None:
        trace_ids: list[str] = []
        search.search(connection, workspace_id, slug, criteria, lambda trace: trace_ids.append(trace.trace_id))
        traces = [
            search.spans_of_trace(connection, workspace_id, slug, trace_id, by_resource=True) for trace_id in trace_ids
        ]
        return spooled(lambda put: _write(chain.from_iterable(traces), put)) if trace_ids else None

    spool: Spool | None = await read(request, work)
    if spool is None:
        raise problems.no_traces()
    return await send(request, spool, "application/json")


async def jaeger_v3_trace(request: web.Request) -> web.StreamResponse:
    """``GET /jaeger/api/v3/traces/{trace_id}``: Jaeger's query API, version 3: one trace, as OTLP."""
    query = ViewerQuery(request)
    # The whole trace is returned, wherever in the range it lies.
    query.time(query.given("startTime", "start_time")), query.time(query.given("endTime", "end_time"))
    query.done()

    def write(spans: Iterator[SpanRecord | StoredSpan], put: Callable[[bytes], object]) -> None:
        _write(spans, put)

    return await send(request, await requested_trace(request, write, by_resource=True), "application/json")


_ANY = dict[str, Any]


def _both(name: str, description: str, **options: Any) -> tuple[Parameter, ...]:
    older = _older(name)
    return (
        Parameter(name=name, description=description, **options),
        Parameter(name=older, description=f"The older name of `{name}`.", **options),
    )


_RANGE: Final = (
    *_both("startTime", "Start of the range.", kind="time"),
    *_both("endTime", "End of the range.", kind="time"),
)
_QUERY: Final = (
    *_both("query.serviceName", "Only traces with a span of this service."),
    *_both("query.operationName", "Only traces with a span of this name."),
    Parameter(name="query.attributes",
              description="Only traces with a span that has these attributes: a JSON object of strings.",
              example='{"error":"true"}'),
    *_both("query.startTimeMin", "Start of the range.", kind="time"),
    *_both("query.startTimeMax", "End of the range.", kind="time"),
    *_both("query.durationMin", "Only traces with a span at least this long.", kind="duration"),
    *_both("query.durationMax", "Only traces with a span at most this long.", kind="duration"),
    *_both("query.searchDepth", f"Traces to return at most; {search.MAX_TRACES} at most.", kind="integer",
           default=DEFAULT_DEPTH),
    Parameter(name="query.num_traces", kind="integer", description="The oldest name of `query.searchDepth`."),
    Parameter(name="query.filter", description="Not supported."),
)  # fmt: skip

ROUTES: Sequence[Route] = (
    Route(method="GET", path="/jaeger/api/v3/services", handler=jaeger_v3_services, response=_ANY),
    Route(method="GET", path="/jaeger/api/v3/operations", handler=jaeger_v3_operations, response=_ANY, query=(
        Parameter(name="service", description="The service."),
        *_both("spanKind", "Only spans of this kind."))),
    Route(method="GET", path="/jaeger/api/v3/dependencies", handler=jaeger_v3_dependencies, response=_ANY,
          query=_RANGE),
    Route(method="GET", path="/jaeger/api/v3/trace-summaries", handler=jaeger_v3_summaries, response=_ANY,
          codes=("not_supported",), query=_QUERY),
    Route(method="GET", path="/jaeger/api/v3/traces", handler=jaeger_v3_search, response=_ANY,
          codes=("not_supported", "trace_not_found"), query=_QUERY),
    Route(method="GET", path="/jaeger/api/v3/traces/{trace_id}", handler=jaeger_v3_trace, response=_ANY,
          codes=("trace_not_found",), query=_RANGE),
)  # fmt: skip
