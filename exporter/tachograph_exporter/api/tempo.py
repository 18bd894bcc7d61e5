"""Tempo's query API, as far as Grafana's Tempo data source needs it.

Shapes: https://grafana.com/docs/tempo/latest/api_docs/. Searches and metrics have files of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from aiohttp import web

from tachograph.version import version
from tachograph_exporter.api import tempo_tags
from tachograph_exporter.api.jaeger import requested_trace
from tachograph_exporter.api.request import json_response
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.api.spool import send
from tachograph_exporter.api.tempo_metrics import MAX_EXEMPLARS, tempo_metrics, tempo_metrics_range
from tachograph_exporter.api.tempo_search import tempo_search
from tachograph_exporter.api.viewer_query import ViewerQuery
from tachograph_exporter.ingest.spans import SpanRecord, StoredSpan, write_otlp, write_otlp_json
from tachograph_exporter.traces import search

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


_ANY = dict[str, Any]
_MISSING: Final = ("trace_not_found",)
_RANGE: Final = (
    Parameter(name="start", kind="time", description="Only traces that started at or after this time."),
    Parameter(name="end", kind="time", description="Only traces that started at or before this time."),
)
_Q: Final = Parameter(
    name="q", description="A TraceQL query.", example='{ resource.service.name = "etl" && duration > 5s }'
)
_NONE: Final = ("not_supported",)
_METRICS: Final = (
    Parameter(name="q", description="A TraceQL query that ends with a metric.",
              example="{ status = error } | rate() by (resource.service.name)"),
    Parameter(name="query", description="The same, under its older name."),
    Parameter(name="start", kind="time", description="Begin of the range; unix seconds or nanoseconds, or RFC 3339."),
    Parameter(name="end", kind="time", description="End of the range; default: now."),
    Parameter(name="since", kind="duration", description="Length of the range before its end, if it has no start.",
              default="1h"),
)  # fmt: skip

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
    *tempo_tags.ROUTES,
    Route(method="GET", path="/tempo/api/metrics/query", handler=tempo_metrics, response=_ANY, codes=_NONE,
          query=_METRICS),
    Route(method="GET", path="/tempo/api/metrics/query_range", handler=tempo_metrics_range, response=_ANY, codes=_NONE,
          query=(*_METRICS,
                 Parameter(name="step", description="Time between values: `1m`, or seconds; default: 1/240."),
                 Parameter(name="exemplars", kind="integer", default=0,
                           description=f"Spans to name with the values; {MAX_EXEMPLARS} at most."))),
)  # fmt: skip
