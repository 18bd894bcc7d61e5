"""What Jaeger UI's Monitor page asks for: call rates, error rates and latencies of a service and its operations.

Shapes: ``MetricFamily`` in ``openmetrics.proto`` of jaeger-idl, in protobuf's JSON; parameters: ``query_parser.go`` of
Jaeger; names: its Prometheus reader. Latencies are milliseconds, error rates shares from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from aiohttp import web

from tachograph.clock import NS
from tachograph_exporter.api.jaeger import read
from tachograph_exporter.api.request import json_response, workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.api.viewer_query import ViewerQuery
from tachograph_exporter.times import rfc3339
from tachograph_exporter.views.service_rates import MIN_STEP_SECONDS, Point, Range, at_least, service_rates

_LOOKBACK_SECONDS: Final = 3600
_WINDOW_SECONDS: Final = 600
_MAX_SECONDS: Final = 600 * 86_400
_KIND: Final = "server"
_TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})


async def _family(request: web.Request, query: ViewerQuery, name: str, help_text: str,
                  value: Callable[[Point], float | None]) -> web.Response:  # fmt: skip
    await workspace_of(request)  # Named wrongly, it is the first thing to say.
    services = query.all("service")
    kinds = query.all("spanKind") or [_KIND]
    by_operation = query.text("groupByOperation") in _TRUE
    end_ns, lookback_ns = query.milliseconds("endTs"), query.milliseconds("lookback")
    window_ns = query.milliseconds("ratePer")
    query.milliseconds("step")
    if not services:
        query.fault("service", "name at least one service")
    query.done()
    of = Range(
        (query.now_ns if end_ns is None else end_ns) // NS,
        min(at_least(lookback_ns, _LOOKBACK_SECONDS), _MAX_SECONDS),
        min(at_least(window_ns, _WINDOW_SECONDS), _MAX_SECONDS),
    )
    subjects = await read(
        request,
        lambda c, workspace, _: service_rates(
            c, workspace, set(services), set(kinds), of, query.now_ns // NS, by_operation=by_operation
        ),
    )
    metrics = []
    for subject, points in subjects.items():
        labels = [{"name": "service_name", "value": subject.service}]
        if subject.operation is not None:
            labels.append({"name": "operation", "value": subject.operation})
        metrics.append({"labels": labels, "metricPoints": [_point(point, value) for point in points]})
    if by_operation:
        name, help_text = name.replace("service", "service_operation", 1), f"{help_text} & operation"
    return json_response({"name": name, "type": "GAUGE", "help": help_text, "metrics": metrics})


def _point(point: Point, value: Callable[[Point], float | None]) -> dict[str, Any]:
    number = value(point)
    # Protobuf's JSON has this for a number that is none; Jaeger's UI shows a gap.
    shown: float | str = "NaN" if number is None else number
    return {"timestamp": rfc3339(point.time_s * NS), "gaugeValue": {"doubleValue": shown}}


async def jaeger_calls(request: web.Request) -> web.Response:
    """``GET /jaeger/api/metrics/calls``: Jaeger's metrics API: executions, or steps, a second, from the rollups."""
    query = ViewerQuery(request)
    return await _family(request, query, "service_call_rate", "calls/sec, grouped by service", lambda point: point.rate)


async def jaeger_errors(request: web.Request) -> web.Response:
    """``GET /jaeger/api/metrics/errors``: Jaeger's metrics API: share of executions, or of steps, that failed."""
    query = ViewerQuery(request)
    help_text = "error rate, computed as a fraction of errors/sec over calls/sec, grouped by service"
    return await _family(request, query, "service_error_rate", help_text, lambda point: point.error_ratio)


async def jaeger_latencies(request: web.Request) -> web.Response:
    """``GET /jaeger/api/metrics/latencies``: Jaeger's metrics API: a quantile of durations, in milliseconds."""
    query = ViewerQuery(request)
    given = query.parsed("quantile", _quantile)
    quantile = 0.95 if given is None else given

    def value(point: Point) -> float | None:
        seconds = point.quantile_seconds(quantile)
        return None if seconds is None else 1000 * seconds

    help_text = f"{quantile:.2f}th quantile latency, grouped by service"
    return await _family(request, query, "service_latencies", help_text, value)


def _quantile(text: str) -> float:
    quantile = float(text)
    if not 0 <= quantile <= 1:
        raise ValueError(f"{text[:40]} is not between 0 and 1")
    return quantile


async def jaeger_min_step(request: web.Request) -> web.Response:
    """``GET /jaeger/api/metrics/minstep``: Jaeger's metrics API: the finest resolution, in milliseconds."""
    ViewerQuery(request).done()
    body = {"data": MIN_STEP_SECONDS * 1000, "total": 0, "limit": 0, "offset": 0, "errors": None}
    return json_response(body)


_ANY = dict[str, Any]
_QUERY: Final = (
    Parameter(name="service", kind="texts", description="A service; may be repeated.", example="tachograph"),
    Parameter(name="spanKind", kind="texts", default=_KIND,
              description="`server`: executions; `internal`: steps; may be repeated. Other kinds have no figures."),
    Parameter(name="groupByOperation", description="`true`: by operation, too."),
    Parameter(name="endTs", kind="integer", description="End of the range, in unix milliseconds (default: now)."),
    Parameter(name="lookback", kind="integer", description="Length of the range, in milliseconds (default: an hour)."),
    Parameter(name="ratePer", kind="integer",
              description="Time that each point covers, in milliseconds (default: ten minutes)."),
    Parameter(name="step", kind="integer",
              description="Not used: points are five minutes, an hour or a day apart, by the length of the range."),
)  # fmt: skip

ROUTES: Sequence[Route] = (
    Route(method="GET", path="/jaeger/api/metrics/calls", handler=jaeger_calls, response=_ANY, query=_QUERY),
    Route(method="GET", path="/jaeger/api/metrics/errors", handler=jaeger_errors, response=_ANY, query=_QUERY),
    Route(method="GET", path="/jaeger/api/metrics/latencies", handler=jaeger_latencies, response=_ANY, query=(
        *_QUERY, Parameter(name="quantile", description="From 0 to 1.", default=0.95))),
    Route(method="GET", path="/jaeger/api/metrics/minstep", handler=jaeger_min_step, in_workspace=False,
          response=_ANY),
)  # fmt: skip
