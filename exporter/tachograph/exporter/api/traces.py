"""Traces for viewers: the query APIs of Jaeger and of Tempo, over spans that arrived and executions recorded here.

Jaeger: the JSON its UI reads (``/api/services``, ``/api/traces`` …, cmd/query/app/http_handler.go of its source).
Tempo: https://grafana.com/docs/tempo/latest/api_docs/. A trace is the spans that arrived under its id and, for
executions recorded here, the spans their rows make; where both are there, those that arrived.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from aiohttp import web
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from sqlalchemy import Connection, func, select

from tachograph.exporter.api import errors
from tachograph.exporter.api.request import DATABASE, Query, json_response, workspace_of
from tachograph.exporter.api.routes import Parameter, Route
from tachograph.exporter.ingest.of_run import SERVICE, spans_of_run
from tachograph.exporter.ingest.span_store import of_trace
from tachograph.exporter.ingest.spans import SpanRecord, otlp_json, resource_spans, value_of
from tachograph.exporter.store import queries
from tachograph.exporter.store.recovery import INGESTED
from tachograph.exporter.store.schema import spans as spans_table
from tachograph.exporter.store.schema import workflow_executions
from tachograph.exporter.times import parse_duration

_spans = spans_table.c
_executions = workflow_executions.c
_TRACE_ID: Final = re.compile(r"[0-9a-fA-F]{1,32}")
MOST: Final = 500


class Found(NamedTuple):
    """A trace."""

    trace_id: str
    spans: list[SpanRecord]

    @property
    def root(self) -> SpanRecord:
        """Its first span without a parent here."""
        known = {span.span_id for span in self.spans}
        return next((span for span in self.spans if span.parent_span_id not in known), self.spans[0])

    @property
    def duration_ns(self) -> int:
        """From its first start to its last end."""
        return max((s.end_ns or s.start_ns) for s in self.spans) - min(s.start_ns for s in self.spans)


def trace(connection: Connection, workspace_id: str, slug: str, wanted: str) -> Found | None:
    """One trace of a workspace, or None."""
    trace_id = wanted.lower().zfill(32)
    arrived = of_trace(connection, workspace_id, trace_id)
    known = {span.span_id for span in arrived}
    rows = connection.execute(
        select(_executions.execution_id).where(
            _executions.trace_id == trace_id,
            _executions.workspace_id == workspace_id,
            func.coalesce(_executions.process, "") != INGESTED,
        )
    ).scalars()
    for execution_id in rows.all():
        run = queries.run(connection, workspace_id, execution_id)
        if run is not None:
            arrived += [span for span in spans_of_run(run, slug) if span.span_id not in known]
    arrived.sort(key=lambda span: (span.start_ns, span.span_id))
    return Found(trace_id, arrived) if arrived else None


class Search(msgspec.Struct, kw_only=True):
    """What traces are looked for. Times and durations are nanoseconds."""

    service: str | None = None
    name: str | None = None
    tags: dict[str, str] = {}
    is_error: bool = False
    start_ns: int | None = None
    end_ns: int | None = None
    min_ns: int | None = None
    max_ns: int | None = None
    limit: int = 20

    def fits(self, found: Found) -> bool:
        """Whether a trace is one of them: a span of it fits, and its length."""
        duration = found.duration_ns
        if (self.min_ns is not None and duration < self.min_ns) or (self.max_ns is not None and duration > self.max_ns):
            return False
        return any(self._fits(span) for span in found.spans)

    def _fits(self, span: SpanRecord) -> bool:
        if (self.service is not None and span.service != self.service) or (self.is_error and not span.is_error):
            return False
        if self.name is not None and span.name != self.name:
            return False
        return all(str(span.attributes.get(key)) == value for key, value in self.tags.items())


def search(connection: Connection, workspace_id: str, slug: str, wanted: Search) -> list[Found]:
    """The newest traces that fit."""
    ids: dict[str, int] = {}
    # A few times as many as asked for are looked at; what fits is only known from the spans themselves.
    limit = min(MOST, max(wanted.limit * 5, 50))
    if wanted.service in (None, SERVICE):
        own = select(_executions.trace_id, _executions.created_ns).where(_executions.workspace_id == workspace_id)
        own = own.where(func.coalesce(_executions.process, "") != INGESTED)
        own = _between(own, _executions.created_ns, wanted).order_by(_executions.created_ns.desc()).limit(limit)
        ids |= {row[0]: row[1] for row in connection.execute(own)}
    others = select(_spans.trace_id, func.min(_spans.start_ns)).where(_spans.workspace_id == workspace_id)
    if wanted.service is not None:
        others = others.where(_spans.service == wanted.service)
    others = _between(others, _spans.start_ns, wanted).group_by(_spans.trace_id)
    others = others.order_by(func.min(_spans.start_ns).desc()).limit(limit)
    ids |= {row[0]: row[1] for row in connection.execute(others)}
    found: list[Found] = []
    for trace_id in sorted(ids, key=ids.__getitem__, reverse=True):
        one = trace(connection, workspace_id, slug, trace_id)
        if one is not None and wanted.fits(one):
            found.append(one)
            if len(found) == wanted.limit:
                break
    return found


def _between(statement: Any, column: Any, wanted: Search) -> Any:
    if wanted.start_ns is not None:
        statement = statement.where(column >= wanted.start_ns)
    if wanted.end_ns is not None:
        statement = statement.where(column <= wanted.end_ns)
    return statement


async def _read(request: web.Request, read: Callable[[Connection, str, str], Any]) -> Any:
    workspace = await workspace_of(request)
    return await request.app[DATABASE].read(lambda c: read(c, workspace.id, workspace.slug))


def services(connection: Connection, workspace_id: str) -> list[str]:
    """The services that have spans."""
    rows = connection.execute(select(_spans.service).where(_spans.workspace_id == workspace_id).distinct()).scalars()
    own = select(_executions.execution_id).where(_executions.workspace_id == workspace_id).limit(1)
    return sorted({*rows, *([SERVICE] if connection.execute(own).first() is not None else [])})


def operations(connection: Connection, workspace_id: str, service: str) -> list[str]:
    """The span names of a service."""
    if service == SERVICE:
        rows, _ = queries.definitions(connection, workspace_id, None, 0, 1000)
        return [f"run {row.name}" for row in rows]
    wanted = select(_spans.name).where(_spans.workspace_id == workspace_id, _spans.service == service).distinct()
    return sorted(connection.execute(wanted.limit(1000)).scalars())


# --- Jaeger -----------------------------------------------------------------------------------------------------------


def _jaeger_body(data: Any, total: int = 0) -> dict[str, Any]:
    return {"data": data, "total": total, "limit": 0, "offset": 0, "errors": None}


def _tag(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"key": key, "type": "bool", "value": value}
    if isinstance(value, int):
        return {"key": key, "type": "int64", "value": value}
    if isinstance(value, float):
        return {"key": key, "type": "float64", "value": value}
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return {"key": key, "type": "string", "value": text}


_KINDS: Final = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}


def _jaeger_trace(found: Found) -> dict[str, Any]:
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

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
        tags.append(_tag("span.kind", _KINDS.get(one.kind, "internal")))
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
    found = await _read(request, lambda c, workspace, _: services(c, workspace))
    return json_response(_jaeger_body(found, len(found)))


async def jaeger_operations(request: web.Request) -> web.Response:
    """``GET /jaeger/api/services/{service}/operations``: Jaeger's query API: a service's span names."""
    Query(request).done()
    service = request.match_info["service"]
    found = await _read(request, lambda c, workspace, _: operations(c, workspace, service))
    return json_response(_jaeger_body(found, len(found)))


async def jaeger_trace(request: web.Request) -> web.Response:
    """``GET /jaeger/api/traces/{trace_id}``: Jaeger's query API: one trace."""
    Query(request).done()
    return json_response(_jaeger_body([_jaeger_trace(await _one(request))]))


async def _one(request: web.Request) -> Found:
    wanted = request.match_info["trace_id"]
    if not _TRACE_ID.fullmatch(wanted):
        raise errors.trace_not_found(wanted)
    found: Found | None = await _read(request, lambda c, workspace, slug: trace(c, workspace, slug, wanted))
    if found is None:
        raise errors.trace_not_found(wanted)
    return found


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
        limit=query.whole("limit", 20, 1, MOST),
    )
    query.done()
    if wanted.tags.pop("error", None) == "true":
        wanted.is_error = True
    found = await _read(request, lambda c, workspace, slug: search(c, workspace, slug, wanted))
    return json_response(_jaeger_body([_jaeger_trace(one) for one in found]))


# --- Tempo ------------------------------------------------------------------------------------------------------------


async def tempo_echo(_request: web.Request) -> web.Response:
    """``GET /tempo/api/echo``: Tempo's query API: whether it is there."""
    return web.Response(text="echo")


def _wants_protobuf(request: web.Request) -> bool:
    return "application/protobuf" in request.headers.get("Accept", "")


async def tempo_trace(request: web.Request) -> web.Response:
    """``GET /tempo/api/traces/{trace_id}``: Tempo's query API: one trace, as OTLP."""
    Query(request).done()
    found = await _one(request)
    if _wants_protobuf(request):
        # Tempo's Trace message and OTLP's TracesData are the same on the wire.
        body = TracesData(resource_spans=resource_spans(found.spans)).SerializeToString()
        return web.Response(body=body, content_type="application/protobuf")
    return json_response(otlp_json(found.spans, key="batches"))


async def tempo_trace_v2(request: web.Request) -> web.Response:
    """``GET /tempo/api/v2/traces/{trace_id}``: Tempo's query API, version 2: one trace, as OTLP."""
    Query(request).done()
    found = await _one(request)
    if _wants_protobuf(request):
        inner = TracesData(resource_spans=resource_spans(found.spans)).SerializeToString()
        # TraceByIDResponse: field 1 is the trace.
        return web.Response(body=b"\x0a" + _varint(len(inner)) + inner, content_type="application/protobuf")
    return json_response({"trace": otlp_json(found.spans)})


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


_CONDITION: Final = re.compile(
    r'\s*(?P<key>[\w.:-]+)\s*(?P<how>>=|<=|=|>|<)\s*(?P<value>"(?:[^"\\]|\\.)*"|[\w.]+)\s*(?:&&|$)'
)


def traceql(text: str) -> Search:
    """What a TraceQL query of one spanset, its conditions joined by ``&&``, looks for. Raises ValueError for others."""
    inner = text.strip()
    if not (inner.startswith("{") and inner.endswith("}")):
        raise ValueError("only one spanset is understood: { conditions }")
    inner, at, found = inner[1:-1].strip(), 0, Search()
    while at < len(inner):
        match = _CONDITION.match(inner, at)
        if match is None:
            raise ValueError(f"not understood: {inner[at:][:60]!r}; conditions are joined by &&")
        _apply(found, match["key"], match["how"], match["value"])
        at = match.end()
    return found


def _apply(found: Search, key: str, how: str, raw: str) -> None:
    value = msgspec.json.decode(raw) if raw.startswith('"') else raw
    if key in ("duration", "traceDuration", "trace:duration", "span:duration"):
        length = parse_duration(value)
        if how in (">", ">="):
            found.min_ns = length
        elif how in ("<", "<="):
            found.max_ns = length
        else:
            raise ValueError("a duration is compared with >, >=, < or <=")
        return
    if how != "=":
        raise ValueError(f"{key} is compared with =")
    if key in ("name", "span:name", "rootName", "trace:rootName"):
        found.name = value
    elif key in ("resource.service.name", ".service.name", "rootServiceName", "trace:rootService"):
        found.service = value
    elif key in ("status", "span:status"):
        if value != "error":
            raise ValueError("status is compared with error")
        found.is_error = True
    elif key.startswith(("span.", ".")):
        found.tags[key.partition(".")[2]] = value
    else:
        raise ValueError(f"{key} is not understood")


async def tempo_search(request: web.Request) -> web.Response:
    """``GET /tempo/api/search``: Tempo's query API: traces by a TraceQL query (`q`) or tags.

    TraceQL: one spanset, `{ resource.service.name = "x" && name = "y" && span.key = "z" && status = error && duration >
    5s }`.
    """
    query = Query(request)
    wanted = query.parsed("q", traceql) or Search()
    tags = query.logfmt("tags")
    wanted.service = tags.pop("service.name", wanted.service)
    wanted.name = tags.pop("name", wanted.name)
    wanted.tags |= tags
    wanted.start_ns, wanted.end_ns = query.time("start"), query.time("end")
    minimum, maximum = query.duration("minDuration"), query.duration("maxDuration")
    wanted.min_ns = minimum if minimum is not None else wanted.min_ns
    wanted.max_ns = maximum if maximum is not None else wanted.max_ns
    wanted.limit = query.whole("limit", 20, 1, MOST)
    query.done()
    found = await _read(request, lambda c, workspace, slug: search(c, workspace, slug, wanted))
    traces = [
        {
            "traceID": one.trace_id,
            "rootServiceName": one.root.service,
            "rootTraceName": one.root.name,
            "startTimeUnixNano": str(min(span.start_ns for span in one.spans)),
            "durationMs": one.duration_ns // 1_000_000,
        }
        for one in found
    ]
    return json_response({"traces": traces, "metrics": {"inspectedTraces": len(found)}})


_TAGS: Final = {
    "resource": ["service.name"],
    "span": ["workflow.definition.name", "workflow.execution.id", "workflow.step.name", "workflow.step.status"],
    "intrinsic": ["duration", "name", "status"],
}


async def tempo_tags(request: web.Request) -> web.Response:
    """``GET /tempo/api/search/tags``: Tempo's query API: names to search by."""
    Query(request).done()
    return json_response({"tagNames": ["service.name", "name", *_TAGS["span"]]})


async def tempo_tags_v2(request: web.Request) -> web.Response:
    """``GET /tempo/api/v2/search/tags``: Tempo's query API, version 2: names to search by, by scope."""
    Query(request).done()
    return json_response({"scopes": [{"name": name, "tags": tags} for name, tags in _TAGS.items()]})


async def _values(request: web.Request) -> list[str]:
    Query(request).done()
    tag = request.match_info["tag"].removeprefix("resource.").removeprefix("span.").removeprefix(".")

    def read(connection: Connection, workspace: str, _slug: str) -> list[str]:
        if tag == "service.name":
            return services(connection, workspace)
        if tag == "name":
            return sorted({n for s in services(connection, workspace) for n in operations(connection, workspace, s)})
        if tag == "workflow.definition.name":
            rows, _ = queries.definitions(connection, workspace, None, 0, 1000)
            return [row.name for row in rows]
        return ["error"] if tag == "status" else []

    found: list[str] = await _read(request, read)
    return found


async def tempo_values(request: web.Request) -> web.Response:
    """``GET /tempo/api/search/tag/{tag}/values``: Tempo's query API: values of a name."""
    return json_response({"tagValues": await _values(request)})


async def tempo_values_v2(request: web.Request) -> web.Response:
    """``GET /tempo/api/v2/search/tag/{tag}/values``: Tempo's query API, version 2: values of a name."""
    return json_response({"tagValues": [{"type": "string", "value": value} for value in await _values(request)]})


def _parameters(*names: str, kind: str = "text") -> tuple[Parameter, ...]:
    return tuple(Parameter(name=name, about="As in Tempo.", kind=kind) for name in names)


_ANY = dict[str, Any]
_LIMIT = Parameter(name="limit", kind="integer", about="How many at most.", default=20, low=1, high=MOST)
_LENGTHS = (
    Parameter(name="minDuration", kind="duration", about="Only traces at least so long."),
    Parameter(name="maxDuration", kind="duration", about="Only traces at most so long."),
)
_MISSING = ("trace_not_found",)

ROUTES: Sequence[Route] = (
    Route(method="GET", path="/jaeger/api/services", handler=jaeger_services, answer=_ANY),
    Route(method="GET", path="/jaeger/api/services/{service}/operations", handler=jaeger_operations, answer=_ANY),
    Route(method="GET", path="/jaeger/api/traces", handler=jaeger_search, answer=_ANY, query=(
        Parameter(name="service", about="With a span of this service."),
        Parameter(name="operation", about="With a span of this name."),
        Parameter(name="tags", about="With a span that has these attributes: a JSON object of texts.",
                  example='{"error":"true"}'),
        Parameter(name="start", kind="integer", about="Since, in unix microseconds.", low=0, high=1 << 53),
        Parameter(name="end", kind="integer", about="Until, in unix microseconds.", low=0, high=1 << 53),
        *_LENGTHS, _LIMIT, Parameter(name="lookback", about="Not used; `start` and `end` say it."))),
    Route(method="GET", path="/jaeger/api/traces/{trace_id}", handler=jaeger_trace, answer=_ANY, codes=_MISSING,
          query=(Parameter(name="prettyPrint", about="Not used."),)),
    Route(method="GET", path="/tempo/api/echo", handler=tempo_echo, in_workspace=False, media=("text/plain",)),
    Route(method="GET", path="/tempo/api/traces/{trace_id}", handler=tempo_trace, answer=_ANY, codes=_MISSING,
          query=_parameters("start", "end"), media=("application/protobuf",)),
    Route(method="GET", path="/tempo/api/v2/traces/{trace_id}", handler=tempo_trace_v2, answer=_ANY, codes=_MISSING,
          query=_parameters("start", "end"), media=("application/protobuf",)),
    Route(method="GET", path="/tempo/api/search", handler=tempo_search, answer=_ANY, query=(
        Parameter(name="q", about="A TraceQL query of one spanset.",
                  example='{ resource.service.name = "etl" && duration > 5s }'),
        Parameter(name="tags", about="logfmt: `service.name=etl key=value`."),
        *_parameters("start", "end", kind="time"), *_LENGTHS, _LIMIT, *_parameters("spss"))),
    Route(method="GET", path="/tempo/api/search/tags", handler=tempo_tags, in_workspace=False, answer=_ANY),
    Route(method="GET", path="/tempo/api/v2/search/tags", handler=tempo_tags_v2, in_workspace=False, answer=_ANY,
          query=_parameters("scope", "q", "start", "end", "limit")),
    Route(method="GET", path="/tempo/api/search/tag/{tag}/values", handler=tempo_values, answer=_ANY,
          query=_parameters("q", "start", "end", "limit")),
    Route(method="GET", path="/tempo/api/v2/search/tag/{tag}/values", handler=tempo_values_v2, answer=_ANY,
          query=_parameters("q", "start", "end", "limit")),
)  # fmt: skip
