"""Jaeger's query API, for its UI and Grafana's Jaeger data source.

Shapes: the JSON of ``/api/services``, ``/api/traces`` … (cmd/query/app/http_handler.go and ``model/json`` in Jaeger's
source): times and durations are microseconds.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import msgspec
from aiohttp import web
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from sqlalchemy import Connection

from tachograph_exporter.api import problems
from tachograph_exporter.api.otlp import ExportRequest
from tachograph_exporter.api.request import DATABASE, WORKERS, json_response, read_body, workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.api.spool import Spool, send, spooled
from tachograph_exporter.api.viewer_query import ViewerQuery
from tachograph_exporter.ingest.envelope import BadRequest
from tachograph_exporter.ingest.otlp_json import scopes_of_json
from tachograph_exporter.ingest.spans import SpanRecord, StoredSpan, attributes_of, records_of
from tachograph_exporter.store.database import Lane
from tachograph_exporter.traces import search
from tachograph_exporter.traces.search import KINDS, Search

_TRACE_ID: Final = re.compile(r"[0-9a-fA-F]{1,32}")
_BASE64_TRACE_ID: Final = re.compile(r"[0-9A-Za-z+/_-]{21}[AQgw](?:==)?")
"""Sixteen bytes: the last character carries two bits."""


async def read(request: web.Request, work: Callable[[Connection, str, str], Any]) -> Any:
    """The result of ``work`` on a connection, given the id and slug of the request's workspace."""
    workspace = await workspace_of(request)
    return await request.app[DATABASE].read(lambda c: work(c, workspace.id, workspace.slug), Lane.SEARCH)


def trace_id_of(text: str) -> str | None:
    """A trace id in hex, which viewers may write without leading zeros or in base64; None if it is neither."""
    if _TRACE_ID.fullmatch(text):
        return text
    if not _BASE64_TRACE_ID.fullmatch(text):
        return None
    return base64.b64decode(text.rstrip("=").replace("-", "+").replace("_", "/") + "==").hex()


def end_of(span: SpanRecord, now: int) -> int:
    """When a span ended, or ``now`` while it is open. Unix nanoseconds."""
    return span.end_ns or max(span.start_ns, now)


async def requested_trace(
    request: web.Request,
    write: Callable[[Iterator[SpanRecord | StoredSpan], Callable[[bytes], object]], None],
    *,
    by_resource: bool = False,
) -> Spool:
    """What ``write`` writes of the spans of the trace in the path. Raises 404."""
    trace_id = trace_id_of(request.match_info["trace_id"])
    if trace_id is None:
        raise problems.trace_not_found(request.match_info["trace_id"])

    def work(connection: Connection, workspace_id: str, slug: str) -> Spool | None:
        spans = search.spans_of_trace(connection, workspace_id, slug, trace_id, by_resource=by_resource)
        first = next(spans, None)
        if first is None:
            return None
        return spooled(lambda put: write(chain((first,), spans), put))

    spool: Spool | None = await read(request, work)
    if spool is None:
        raise problems.trace_not_found(trace_id)
    return spool


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


def _tags(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_tag(key, value) for key, value in attributes.items()]


_START: Final = b'{"data":['
_NOT_ALL: Final = "no trace matches among the newest {} that were looked at; search a shorter time, or by more"


def _end(count: int, errors: Sequence[Mapping[str, Any]] = ()) -> bytes:
    return b'],"total":%d,"limit":0,"offset":0,"errors":%b}' % (count, msgspec.json.encode(errors or None))


def _write_trace(spans: Iterable[SpanRecord | StoredSpan], write: Callable[[bytes], object]) -> None:
    processes: dict[str, dict[str, Any]] = {}
    process_ids: dict[str, str] = {}
    written = False
    for stored in spans:
        span = search.record_of(stored)
        process = process_ids.get(span.resource_id)
        if process is None:
            process = process_ids[span.resource_id] = f"p{len(processes) + 1}"
            resource = {key: value for key, value in span.resource_attributes.items() if key != "service.name"}
            processes[process] = {"serviceName": span.service, "tags": _tags(resource)}
        start = b"," if written else b'{"traceID":"%b","spans":[' % span.trace_id.encode()
        write(start + msgspec.json.encode(_span(span, process)))
        written = True
    write(b'],"processes":' + msgspec.json.encode(processes) + b',"warnings":null}')


def _span(span: SpanRecord, process: str) -> dict[str, Any]:
    message = Span.FromString(span.payload)
    references = []
    if span.parent_span_id:
        references.append({"refType": "CHILD_OF", "traceID": span.trace_id, "spanID": span.parent_span_id})
    references += [
        {"refType": "FOLLOWS_FROM", "traceID": link.trace_id.hex(), "spanID": link.span_id.hex()}
        for link in message.links
    ]
    tags = _tags(span.attributes)
    tags.append(_tag("span.kind", KINDS.get(span.kind) or "internal"))
    if span.scope:
        tags.append(_tag("otel.scope.name", span.scope))
    if span.is_error:
        tags += [_tag("error", True), _tag("otel.status_code", "ERROR")]
        if span.status_message:
            tags.append(_tag("otel.status_description", span.status_message))
    logs = [
        {
            "timestamp": event.time_unix_nano // 1000,
            "fields": [_tag("event", event.name), *_tags(attributes_of(event.attributes))],
        }
        for event in message.events
    ]
    duration = end_of(span, time.time_ns()) - span.start_ns
    return {
        "traceID": span.trace_id,
        "spanID": span.span_id,
        "operationName": span.name,
        "references": references,
        "startTime": span.start_ns // 1000,
        "duration": duration // 1000,
        "tags": tags,
        "logs": logs,
        "processID": process,
        "warnings": None if span.end_ns else ["this span has not ended"],
    }


async def jaeger_services(request: web.Request) -> web.Response:
    """``GET /jaeger/api/services``: Jaeger's query API: the services that have spans."""
    ViewerQuery(request).done()
    services = await read(request, lambda c, workspace, _: search.services(c, workspace))
    return json_response(_body(services))


async def jaeger_operations(request: web.Request) -> web.Response:
    """``GET /jaeger/api/services/{service}/operations``: Jaeger's query API: a service's span names."""
    ViewerQuery(request).done()
    service = request.match_info["service"]
    operations = await read(request, lambda c, workspace, _: search.operations(c, workspace, service))
    return json_response(_body(sorted({name for name, _ in operations})))


async def jaeger_trace(request: web.Request) -> web.StreamResponse:
    """``GET /jaeger/api/traces/{trace_id}``: Jaeger's query API: one trace."""
    ViewerQuery(request).done()

    def write(spans: Iterator[SpanRecord | StoredSpan], put: Callable[[bytes], object]) -> None:
        put(_START)
        _write_trace(spans, put)
        put(_end(1))

    return await send(request, await requested_trace(request, write), "application/json")


async def jaeger_search(request: web.Request) -> web.StreamResponse:
    """``GET /jaeger/api/traces``: Jaeger's query API: traces by id, or by service, name, tags, time and duration."""
    query = ViewerQuery(request)
    criteria = Search(
        service=query.text("service"),
        name=query.text("operation"),
        tags=query.tags("tags") | query.pairs("tag"),
        start_ns=query.microseconds("start"),
        end_ns=query.microseconds("end"),
        span_min_ns=query.duration("minDuration"),
        span_max_ns=query.duration("maxDuration"),
        limit=query.integer("limit", 20, 1, search.MAX_TRACES),
    )
    given_ids = list(dict.fromkeys(query.all("traceID")))[: search.MAX_TRACES]
    query.done()

    def work(connection: Connection, workspace_id: str, slug: str) -> Spool:
        def write(put: Callable[[bytes], object]) -> None:
            found: list[str] = []
            count, errors = 0, list[dict[str, Any]]()
            if not given_ids:
                outcome = search.search(
                    connection, workspace_id, slug, criteria, lambda trace: found.append(trace.trace_id)
                )
                # With some traces, viewers would show nothing but the error.
                if not outcome.is_complete and not found:
                    errors.append({"code": 504, "msg": _NOT_ALL.format(outcome.inspected)})
            put(_START)
            for text in given_ids or found:
                trace_id = trace_id_of(text)
                spans = iter(search.spans_of_trace(connection, workspace_id, slug, trace_id) if trace_id else ())
                first = next(spans, None)
                if first is None:
                    errors.append({"code": 404, "msg": "trace not found", "traceID": text})
                    continue
                put(b"," if count else b"")
                _write_trace(chain((first,), spans), put)
                count += 1
            put(_end(count, errors))

        return spooled(write)

    return await send(request, await read(request, work), "application/json")


async def jaeger_all_operations(request: web.Request) -> web.Response:
    """``GET /jaeger/api/operations``: Jaeger's query API: a service's span names, with their kinds."""
    query = ViewerQuery(request)
    service, kind = query.text("service"), query.text("spanKind")
    query.done()
    operations = await read(request, lambda c, workspace, _: search.operations(c, workspace, service))
    data = [{"name": name, "spanKind": of_kind} for name, of_kind in operations if kind in (None, of_kind)]
    return json_response(_body(data))


async def jaeger_dependencies(request: web.Request) -> web.Response:
    """``GET /jaeger/api/dependencies``: Jaeger's query API: which services call which, in a range of time."""
    query = ViewerQuery(request)
    end, lookback = query.milliseconds("endTs"), query.milliseconds("lookback")
    query.done()
    calls = await read(request, lambda c, workspace, _: search.dependencies(c, workspace, end, lookback))
    data = [{"parent": caller, "child": called, "callCount": count} for caller, called, count in calls]
    return json_response(_body(data))


async def jaeger_transform(request: web.Request) -> web.StreamResponse:
    """``POST /jaeger/api/transform``: Jaeger's query API: OTLP JSON as Jaeger's, for its UI's upload of a file.

    Nothing is stored. Spans that are not valid are left out, and `errors` says why.
    """
    kind = request.headers.get("Content-Type", "")
    if request.content_type != "application/json" and not _PLAIN_TEXT.fullmatch(kind):
        raise problems.not_json(kind)
    body = await read_body(request)
    return await send(request, await request.app[WORKERS].run(lambda: _transformed(body)), "application/json")


def _transformed(body: bytes) -> Spool:
    """Raises 400 if the body is no OTLP JSON."""
    traces: dict[str, list[SpanRecord]] = {}
    faults: list[dict[str, Any]] = []
    try:
        for span in records_of(scopes_of_json(body)):
            if isinstance(span, SpanRecord):
                traces.setdefault(span.trace_id, []).append(span)
            else:
                faults.append({"code": 400, "msg": span})
    except BadRequest as error:
        raise problems.invalid_json(str(error)) from None

    def write(put: Callable[[bytes], object]) -> None:
        put(_START)
        for i, spans in enumerate(traces.values()):
            put(b"," if i else b"")
            _write_trace(spans, put)
        put(_end(len(traces), faults))

    return spooled(write)


# Jaeger's UI does not say what it sends: this is what a browser says of any text.
_PLAIN_TEXT: Final = re.compile(r"text/plain(?:; *charset=[\w-]+)?", re.IGNORECASE)
_ANY = dict[str, Any]
_SERVICE: Final = Parameter(name="service", description="The service.")

ROUTES: Sequence[Route] = (
    Route(method="GET", path="/jaeger/api/services", handler=jaeger_services, response=_ANY),
    Route(method="GET", path="/jaeger/api/services/{service}/operations", handler=jaeger_operations, response=_ANY),
    Route(method="GET", path="/jaeger/api/operations", handler=jaeger_all_operations, response=_ANY,
          query=(_SERVICE, Parameter(name="spanKind", description="Only spans of this kind."))),
    Route(method="GET", path="/jaeger/api/dependencies", handler=jaeger_dependencies, response=_ANY, query=(
        Parameter(name="endTs", kind="integer", description="End of the range, in unix milliseconds (default: now).",
                  low=0, high=1 << 43),
        Parameter(name="lookback", kind="integer",
                  description="Length of the range, in milliseconds (default: a week).",
                  low=0, high=1 << 43))),
    Route(method="GET", path="/jaeger/api/traces", handler=jaeger_search, response=_ANY, query=(
        Parameter(name="service", description="Only traces with a span of this service."),
        Parameter(name="operation", description="Only traces with a span of this name."),
        Parameter(name="traceID", kind="texts", description="These traces, and nothing else; may be repeated."),
        Parameter(name="tags",
                  description="Only traces with a span that has these attributes: a JSON object of strings.",
                  example='{"error":"true"}'),
        Parameter(name="tag", kind="texts",
                  description="Only traces with a span that has this attribute: `key:value`; may be repeated."),
        Parameter(name="start", kind="integer", description="Start of the range, in unix microseconds.", low=0,
                  high=1 << 53),
        Parameter(name="end", kind="integer", description="End of the range, in unix microseconds.", low=0,
                  high=1 << 53),
        Parameter(name="minDuration", kind="duration", description="Only traces with a span at least this long."),
        Parameter(name="maxDuration", kind="duration", description="Only traces with a span at most this long."),
        Parameter(name="limit", kind="integer", default=20,
                  description=f"Traces to return at most; {search.MAX_TRACES} at most."),
        Parameter(name="lookback", description="Not used; see `start` and `end`."))),
    Route(method="GET", path="/jaeger/api/traces/{trace_id}", handler=jaeger_trace, response=_ANY,
          codes=("trace_not_found",), query=(Parameter(name="prettyPrint", description="Not used."),)),
    Route(method="POST", path="/jaeger/api/transform", handler=jaeger_transform, in_workspace=False, response=_ANY,
          body=ExportRequest, media=("text/plain",), body_example={"resourceSpans": []}),
)  # fmt: skip
