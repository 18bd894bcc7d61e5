"""Tempo's query API, as far as Grafana's Tempo data source needs it.

Shapes: https://grafana.com/docs/tempo/latest/api_docs/. Metrics from traces are not supported: they are answered 400.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from aiohttp import web

from tachograph.version import version
from tachograph_exporter.api import problems
from tachograph_exporter.api.jaeger import read, requested_trace
from tachograph_exporter.api.request import json_response
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.api.spool import send
from tachograph_exporter.api.viewer_query import ViewerQuery
from tachograph_exporter.ingest.spans import SpanRecord, StoredSpan, write_otlp, write_otlp_json
from tachograph_exporter.traces import search, traceql
from tachograph_exporter.traces.search import Search, Trace, as_text
from tachograph_exporter.traces.trace_query import INTRINSICS, TraceQuery, everything

TEMPO_VERSION: Final = "2.6.0"
"""The version of Tempo whose API this is. Grafana asks for it, to know which features it can use."""
_PROTOBUF: Final = "application/protobuf"


async def tempo_echo(_request: web.Request) -> web.Response:
    """``GET /tempo/api/echo``: Tempo's query API: always `echo`."""
    return web.Response(text="echo")


async def tempo_build(_request: web.Request) -> web.Response:
    """``GET /tempo/api/status/buildinfo``: Tempo's query API: the version of Tempo whose API this is."""
    return json_response(
        {"version": TEMPO_VERSION, "revision": f"tachograph {version()}", "branch": "", "buildDate": ""}
    )


def _wants_protobuf(request: web.Request) -> bool:
    return _PROTOBUF in request.headers.get("Accept", "")


async def tempo_trace(request: web.Request) -> web.StreamResponse:
    """``GET /tempo/api/traces/{trace_id}``: Tempo's query API: one trace, as OTLP."""
    ViewerQuery(request).done()
    if _wants_protobuf(request):
        # Tempo's Trace message and OTLP's TracesData are the same on the wire.
        return await send(request, await requested_trace(request, write_otlp, by_resource=True), _PROTOBUF)
    spool = await requested_trace(request, _in_json(b'{"batches":', b"}"), by_resource=True)
    return await send(request, spool, "application/json")


def _in_json(
    before: bytes, after: bytes
) -> Callable[[Iterable[SpanRecord | StoredSpan], Callable[[bytes], object]], None]:
    def write(spans: Iterable[SpanRecord | StoredSpan], put: Callable[[bytes], object]) -> None:
        put(before)
        write_otlp_json(spans, put)
        put(after)

    return write


async def tempo_trace_v2(request: web.Request) -> web.StreamResponse:
    """``GET /tempo/api/v2/traces/{trace_id}``: Tempo's query API, version 2: one trace, as OTLP."""
    ViewerQuery(request).done()
    if _wants_protobuf(request):
        inner = await requested_trace(request, write_otlp, by_resource=True)
        # TraceByIDResponse: field 1 is the trace.
        return await send(request, inner, _PROTOBUF, b"\x0a" + _varint(inner.size))
    write = _in_json(b'{"trace":{"resourceSpans":', b"}}")
    spool = await requested_trace(request, write, by_resource=True)
    return await send(request, spool, "application/json")


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _any_value(value: Any) -> dict[str, Any]:
    """An attribute's value as OTLP's JSON has it."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": as_text(value)}


def _parse(query: ViewerQuery) -> TraceQuery:
    text = query.text("q")
    if text is None:
        return everything()
    try:
        return traceql.parse(text)
    except traceql.TraceQLError as error:
        raise problems.not_supported(f"TraceQL: {error}") from None


async def tempo_search(request: web.Request) -> web.Response:
    """``GET /tempo/api/search``: Tempo's query API: traces by a TraceQL query (`q`) or by `tags`.

    TraceQL: spansets of comparisons (`=` `!=` `>` `>=` `<` `<=` `=~` `!~`) of attributes and intrinsics, joined by `&&`
    and `||`: `{ resource.service.name = "x" && span.key > 5 && (status = error || duration > 5s) }`. The newest traces
    come first; `metrics.inspectedTraces` says how many were inspected.
    """
    query = ViewerQuery(request)
    tags = query.logfmt("tags")
    criteria = Search(
        query=_parse(query),
        service=tags.pop("service.name", None),
        name=tags.pop("name", None),
        tags=tags,
        start_ns=query.time("start"),
        end_ns=query.time("end"),
        min_ns=query.duration("minDuration"),
        max_ns=query.duration("maxDuration"),
        limit=query.integer("limit", 20, 1, search.MAX_TRACES),
    )
    shown = query.integer("spss", 3, 0, 1000)
    query.done()
    traces: list[dict[str, Any]] = []
    inspected = await read(
        request,
        lambda c, workspace, slug: search.search(
            c, workspace, slug, criteria, lambda trace: traces.append(_summary(trace, shown))
        ),
    )
    return json_response(
        {
            "traces": traces,
            "metrics": {"inspectedTraces": inspected, "totalBlocks": 1, "completedJobs": 1, "totalJobs": 1},
        }
    )


def _summary(trace: Trace, shown: int) -> dict[str, Any]:
    root = trace.root
    spans = {"spans": [_span(span) for span in trace.matched[: shown or None]], "matched": len(trace.matched)}
    return {
        "traceID": trace.trace_id,
        "rootServiceName": root.service,
        "rootTraceName": root.name,
        "startTimeUnixNano": str(trace.start_ns),
        "durationMs": trace.duration_ns // 1_000_000,
        "spanSet": spans,
        "spanSets": [spans],
    }


def _span(span: SpanRecord) -> dict[str, Any]:
    return {
        "spanID": span.span_id,
        "name": span.name,
        "startTimeUnixNano": str(span.start_ns),
        "durationNanos": str(max(0, span.end_ns - span.start_ns)),
        "attributes": [{"key": "service.name", "value": _any_value(span.service)}],
    }


async def _attributes(request: web.Request, query: ViewerQuery) -> dict[str, dict[str, dict[str, Any]]]:
    """Attributes of the traces that match: by scope and name, each value by its text."""
    criteria = Search(query=_parse(query), start_ns=query.time("start"), end_ns=query.time("end"))
    query.done()
    attributes: dict[str, dict[str, dict[str, Any]]] = await read(
        request, lambda c, workspace, slug: search.attributes(c, workspace, slug, criteria)
    )
    return attributes


async def tempo_tags(request: web.Request) -> web.Response:
    """``GET /tempo/api/search/tags``: Tempo's query API: names of attributes, of the newest traces."""
    query = ViewerQuery(request)
    scope = query.choice("scope", _SCOPES, "none")
    query.integer("limit", 0, 0, 1 << 31)
    by_scope = await _attributes(request, query)
    names = {name for of, attributes in by_scope.items() if scope in ("none", of) for name in attributes}
    return json_response(
        {"tagNames": sorted(names | ({"name", "status"} if scope in ("none", "intrinsic") else set()))}
    )


async def tempo_tags_v2(request: web.Request) -> web.Response:
    """``GET /tempo/api/v2/search/tags``: Tempo's query API, version 2: names of attributes, by scope."""
    query = ViewerQuery(request)
    scope = query.choice("scope", _SCOPES, "none")
    query.integer("limit", 0, 0, 1 << 31)
    names: Mapping[str, Sequence[str]] = {
        **{of: sorted(attributes) for of, attributes in (await _attributes(request, query)).items()},
        "intrinsic": sorted(INTRINSICS),
    }
    scopes = [{"name": of, "tags": tags} for of, tags in names.items() if scope in ("none", of)]
    return json_response({"scopes": scopes})


_SCOPES: Final = ("none", "resource", "span", "intrinsic")


def _without_range(query: ViewerQuery) -> None:
    """Read and ignore the query and the range: all values are returned."""
    query.text("q"), query.time("start"), query.time("end")
    query.done()


async def _values(request: web.Request) -> dict[str, Any]:
    """Values of the attribute or intrinsic in the path, by their text."""
    query = ViewerQuery(request)
    query.integer("limit", 0, 0, 1 << 31)
    tag = request.match_info["tag"]
    scope, _, name = tag.partition(".")
    if scope not in ("span", "resource", ""):
        scope, name = "", tag
    if tag in ("status", "span:status", "kind", "span:kind"):
        _without_range(query)
        words = ("error", "ok", "unset") if tag.endswith("status") else tuple(filter(None, search.KINDS.values()))
        return dict.fromkeys(words)
    if tag in ("name", "span:name", "rootName", "trace:rootName"):
        _without_range(query)
        rows = await read(request, lambda c, workspace, _: search.operations(c, workspace))
        return {name: name for name, _ in rows}
    if name == "service.name" or tag in ("rootServiceName", "trace:rootService"):
        _without_range(query)
        return {name: name for name in await read(request, lambda c, workspace, _: search.services(c, workspace))}
    values: dict[str, Any] = {}
    for of, attributes in (await _attributes(request, query)).items():
        if scope in ("", of):
            values |= attributes.get(name, {})
    return values


async def tempo_values(request: web.Request) -> web.Response:
    """``GET /tempo/api/search/tag/{tag}/values``: Tempo's query API: values of an attribute."""
    return json_response({"tagValues": sorted(await _values(request))})


async def tempo_values_v2(request: web.Request) -> web.Response:
    """``GET /tempo/api/v2/search/tag/{tag}/values``: Tempo's query API, version 2: values of an attribute."""
    by_text = await _values(request)
    values = [{"type": _type(value), "value": text} for text, value in sorted(by_text.items())]
    return json_response({"tagValues": values})


def _type(value: Any) -> str:
    if value is None:
        return "keyword"
    for kind, name in ((bool, "bool"), (int, "int"), (float, "float")):
        if isinstance(value, kind):
            return name
    return "string"


async def tempo_metrics(_request: web.Request) -> web.Response:
    """``GET /tempo/api/metrics/query``: Tempo's TraceQL metrics: not supported, answered 400."""
    raise problems.not_supported("metrics from traces are not supported; use the histograms of /metrics")


async def tempo_metrics_range(request: web.Request) -> web.Response:
    """``GET /tempo/api/metrics/query_range``: Tempo's TraceQL metrics: not supported, answered 400."""
    return await tempo_metrics(request)


_ANY = dict[str, Any]
_MISSING: Final = ("trace_not_found",)
_RANGE: Final = (
    Parameter(name="start", kind="time", description="Only traces that started at or after this time."),
    Parameter(name="end", kind="time", description="Only traces that started at or before this time."),
)
_Q: Final = Parameter(
    name="q", description="A TraceQL query.", example='{ resource.service.name = "etl" && duration > 5s }'
)
_NAMES: Final = (
    _Q, *_RANGE, Parameter(name="scope", description="Only names of this scope.", choices=_SCOPES, default="none"),
    Parameter(name="limit", kind="integer", description="Not used."),
)  # fmt: skip
_VALUES: Final = (_Q, *_RANGE, _NAMES[-1])
_NONE: Final = ("not_supported",)

ROUTES: Sequence[Route] = (
    Route(method="GET", path="/tempo/api/echo", handler=tempo_echo, in_workspace=False, media=("text/plain",)),
    Route(method="GET", path="/tempo/api/status/buildinfo", handler=tempo_build, in_workspace=False, response=_ANY),
    Route(method="GET", path="/tempo/api/traces/{trace_id}", handler=tempo_trace, response=_ANY, codes=_MISSING,
          query=_RANGE, media=(_PROTOBUF,)),
    Route(method="GET", path="/tempo/api/v2/traces/{trace_id}", handler=tempo_trace_v2, response=_ANY, codes=_MISSING,
          query=_RANGE, media=(_PROTOBUF,)),
    Route(method="GET", path="/tempo/api/search", handler=tempo_search, response=_ANY, codes=_NONE, query=(
        _Q, Parameter(name="tags", description="logfmt: `service.name=etl key=value`."), *_RANGE,
        Parameter(name="minDuration", kind="duration", description="Only traces at least this long."),
        Parameter(name="maxDuration", kind="duration", description="Only traces at most this long."),
        Parameter(name="limit", kind="integer", default=20,
                  description=f"Traces to return at most; {search.MAX_TRACES} at most."),
        Parameter(name="spss", kind="integer", default=3,
                  description="Matching spans to return of each trace; 0: all; 1000 at most."))),
    Route(method="GET", path="/tempo/api/search/tags", handler=tempo_tags, response=_ANY, codes=_NONE, query=_NAMES),
    Route(method="GET", path="/tempo/api/v2/search/tags", handler=tempo_tags_v2, response=_ANY, codes=_NONE,
          query=_NAMES),
    Route(method="GET", path="/tempo/api/search/tag/{tag}/values", handler=tempo_values, response=_ANY, codes=_NONE,
          query=_VALUES),
    Route(method="GET", path="/tempo/api/v2/search/tag/{tag}/values", handler=tempo_values_v2, response=_ANY,
          codes=_NONE, query=_VALUES),
    Route(method="GET", path="/tempo/api/metrics/query", handler=tempo_metrics, in_workspace=False, status=400,
          codes=_NONE),
    Route(method="GET", path="/tempo/api/metrics/query_range", handler=tempo_metrics_range, in_workspace=False,
          status=400, codes=_NONE),
)  # fmt: skip
