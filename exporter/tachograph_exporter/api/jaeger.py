"""Jaeger's query API, as its UI and Grafana's Jaeger data source read it.

Shapes: the JSON of ``/api/services``, ``/api/traces`` … (cmd/query/app/http_handler.go of Jaeger's source, and its
``model/json``): times and durations are microseconds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span
from sqlalchemy import Connection

from tachograph_exporter.api import problems
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, json_response, workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.ingest.spans import value_of
from tachograph_exporter.traces import search
from tachograph_exporter.traces.search import KINDS, Found, Search

_TRACE_ID: Final = re.compile(r"[0-9a-fA-F]{1,32}")


async def read(request: web.Request, work: Callable[[Connection, str, str], Any]) -> Any:
    """What ``work`` reads of the request's workspace, given its id and slug."""
    workspace = await workspace_of(request)
    return await request.app[DATABASE].read(lambda c: work(c, workspace.id, workspace.slug))


async def one_trace(request: web.Request) -> Found:
    """The trace in the path. Raises 404."""
    wanted = request.match_info["trace_id"]
    if not _TRACE_ID.fullmatch(wanted):
        raise problems.trace_not_found(wanted)
    found: Found | None = await read(request, lambda c, workspace, slug: search.trace(c, workspace, slug, wanted))
    if found is None:
        raise problems.trace_not_found(wanted)
    return found


def _body(data: Sequence[Any]) -> dict[str, Any]:
    return {"data": data, "total": len(data), "limit": 0, "offset": 0, "errors": None}


def _tag(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"key": key, "type": "bool", "value": value}
    if isinstance(value, int):
        return {"key": key, "type": "int64", "value": value}
    if isinstance(value, float):
        return {"key": key, "type": "float64", "value": value}
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return {"key": key, "type": "string", "value": text}


def _jaeger_trace(found: Found) -> dict[str, Any]:
    processes: dict[str, dict[str, Any]] = {}
    by_resource: dict[str, str] = {}
    spans = []
    for one in found.spans:
        process = by_resource.get(one.resource_id)
        if process is None:
            process = by_resource[one.resource_id] = f"p{len(processes) + 1}"
            resource = ResourceSpans.FromString(one.resource).resource
            tags = [_tag(a.key, value_of(a.value)) for a in resource.attributes if a.key != "service.name"]
            processes[process] = {"serviceName": one.service, "tags": tags}
        whole = Span.FromString(one.payload)
        references = []
        if one.parent_span_id:
            references.append({"refType": "CHILD_OF", "traceID": one.trace_id, "spanID": one.parent_span_id})
        references += [
            {"refType": "FOLLOWS_FROM", "traceID": link.trace_id.hex(), "spanID": link.span_id.hex()}
            for link in whole.links
        ]
        tags = [_tag(key, value) for key, value in one.attributes.items()]
        tags.append(_tag("span.kind", KINDS.get(one.kind) or "internal"))
        if one.scope:
            tags.append(_tag("otel.scope.name", one.scope))
        if one.is_error:
            tags += [_tag("error", True), _tag("otel.status_code", "ERROR")]
            if one.status_message:
                tags.append(_tag("otel.status_description", one.status_message))
        logs = [
            {
                "timestamp": event.time_unix_nano // 1000,
                "fields": [_tag("event", event.name), *[_tag(a.key, value_of(a.value)) for a in event.attributes]],
            }
            for event in whole.events
        ]
        open_since = time.time_ns() - one.start_ns
        spans.append(
            {
                "traceID": one.trace_id,
                "spanID": one.span_id,
                "operationName": one.name,
                "references": references,
                "startTime": one.start_ns // 1000,
                "duration": ((one.end_ns - one.start_ns) if one.end_ns else max(0, open_since)) // 1000,
                "tags": tags,
                "logs": logs,
                "processID": process,
                "warnings": None if one.end_ns else ["this span has not ended"],
            }
        )
    return {"traceID": found.trace_id, "spans": spans, "processes": processes, "warnings": None}


async def jaeger_services(request: web.Request) -> web.Response:
    """``GET /jaeger/api/services``: Jaeger's query API: the services that have spans."""
    Query(request).done()
    found = await read(request, lambda c, workspace, _: search.services(c, workspace))
    return json_response(_body(found))


async def jaeger_operations(request: web.Request) -> web.Response:
    """``GET /jaeger/api/services/{service}/operations``: Jaeger's query API: a service's span names."""
    Query(request).done()
    service = request.match_info["service"]
    found = await read(request, lambda c, workspace, _: search.operations(c, workspace, service))
    return json_response(_body(sorted({name for name, _ in found})))


async def jaeger_trace(request: web.Request) -> web.Response:
    """``GET /jaeger/api/traces/{trace_id}``: Jaeger's query API: one trace."""
    Query(request).done()
    return json_response(_body([_jaeger_trace(await one_trace(request))]))


async def jaeger_search(request: web.Request) -> web.Response:
    """``GET /jaeger/api/traces``: Jaeger's query API: traces by service, name, tags, time (microseconds) and length."""
    query = Query(request)
    wanted = Search(
        service=query.text("service"),
        name=query.text("operation"),
        tags=query.tags("tags"),
        start_ns=query.microseconds("start"),
        end_ns=query.microseconds("end"),
        min_ns=query.duration("minDuration"),
        max_ns=query.duration("maxDuration"),
        limit=query.whole("limit", 20, 1, search.MOST),
    )
    query.done()
    found = await read(request, lambda c, workspace, slug: search.search(c, workspace, slug, wanted))
    return json_response(_body([_jaeger_trace(one) for one in found.traces]))


async def jaeger_all_operations(request: web.Request) -> web.Response:
    """``GET /jaeger/api/operations``: Jaeger's query API: a service's span names, with their kinds."""
    query = Query(request)
    service, kind = query.text("service"), query.text("spanKind")
    query.done()
    found = await read(request, lambda c, workspace, _: search.operations(c, workspace, service))
    data = [{"name": name, "spanKind": of} for name, of in found if kind in (None, of)]
    return json_response(_body(data))


async def jaeger_dependencies(request: web.Request) -> web.Response:
    """``GET /jaeger/api/dependencies``: Jaeger's query API: which services call which, in a stretch of time."""
    query = Query(request)
    end, lookback = query.milliseconds("endTs"), query.milliseconds("lookback")
    query.done()
    found = await read(request, lambda c, workspace, _: search.dependencies(c, workspace, end, lookback))
    data = [{"parent": caller, "child": called, "callCount": count} for caller, called, count in found]
    return json_response(_body(data))


_ANY = dict[str, Any]
_SERVICE: Final = Parameter(name="service", about="The service.")

ROUTES: Sequence[Route] = (
    Route(method="GET", path="/jaeger/api/services", handler=jaeger_services, answer=_ANY),
    Route(method="GET", path="/jaeger/api/services/{service}/operations", handler=jaeger_operations, answer=_ANY),
    Route(method="GET", path="/jaeger/api/operations", handler=jaeger_all_operations, answer=_ANY,
          query=(_SERVICE, Parameter(name="spanKind", about="Only spans of this kind."))),
    Route(method="GET", path="/jaeger/api/dependencies", handler=jaeger_dependencies, answer=_ANY, query=(
        Parameter(name="endTs", kind="integer", about="Until, in unix milliseconds (default: now).", low=0,
                  high=1 << 43),
        Parameter(name="lookback", kind="integer", about="How many milliseconds before (default: a week).", low=0,
                  high=1 << 43))),
    Route(method="GET", path="/jaeger/api/traces", handler=jaeger_search, answer=_ANY, query=(
        Parameter(name="service", about="With a span of this service."),
        Parameter(name="operation", about="With a span of this name."),
        Parameter(name="tags", about="With a span that has these attributes: a JSON object of texts.",
                  example='{"error":"true"}'),
        Parameter(name="start", kind="integer", about="Since, in unix microseconds.", low=0, high=1 << 53),
        Parameter(name="end", kind="integer", about="Until, in unix microseconds.", low=0, high=1 << 53),
        Parameter(name="minDuration", kind="duration", about="Only traces at least so long."),
        Parameter(name="maxDuration", kind="duration", about="Only traces at most so long."),
        Parameter(name="limit", kind="integer", about="How many at most.", default=20, low=1, high=search.MOST),
        Parameter(name="lookback", about="Not used; `start` and `end` say it."))),
    Route(method="GET", path="/jaeger/api/traces/{trace_id}", handler=jaeger_trace, answer=_ANY,
          codes=("trace_not_found",), query=(Parameter(name="prettyPrint", about="Not used."),)),
)  # fmt: skip
