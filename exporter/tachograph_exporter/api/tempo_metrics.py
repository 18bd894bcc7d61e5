"""Tempo's TraceQL metrics, as Grafana's Tempo data source and Traces Drilldown ask for them.

Shapes: ``QueryRangeResponse`` and ``QueryInstantResponse`` in Tempo's ``pkg/tempopb/tempo.proto``, in protobuf's JSON.
Older versions of Grafana also read ``promLabels``. Grafana reads an instant answer strictly, so it has none there.
"""

from __future__ import annotations

import re
from typing import Any, Final

from aiohttp import web

from tachograph_exporter.api import problems
from tachograph_exporter.api.jaeger import read
from tachograph_exporter.api.request import json_response, workspace_of
from tachograph_exporter.api.tempo_search import any_value, json_number, parsed
from tachograph_exporter.api.viewer_query import ViewerQuery
from tachograph_exporter.times import parse_go_duration
from tachograph_exporter.traces.series import MAX_SERIES, Exemplar, Labels, Series
from tachograph_exporter.traces.time_steps import NS, TimeSteps, default_step_ns
from tachograph_exporter.traces.trace_metrics import Answer, compute
from tachograph_exporter.traces.traceql.syntax import Query

MAX_EXEMPLARS: Final = 1_000
_LOOKBACK_NS: Final = 3600 * NS
_UNIX: Final = re.compile(r"\d+(?:\.\d+)?")
_MAX_NS: Final = (1 << 63) - 1


def parse_unix_time(text: str) -> int:
    """A time as Tempo reads it: unix seconds of up to ten digits or with a fraction, otherwise nanoseconds."""
    if not _UNIX.fullmatch(text) or len(text) > 30:
        raise ValueError(f"{text[:40]!r} is not a time in unix seconds or nanoseconds")
    seconds, _, fraction = text.partition(".")
    is_seconds = "." in text or len(text) <= 10
    time_ns = int(seconds) * NS + int(fraction[:9].ljust(9, "0")) if is_seconds else int(text)
    if time_ns > _MAX_NS:
        raise ValueError(f"{text[:40]!r} is too late")
    return time_ns


def _range(query: ViewerQuery) -> tuple[int, int]:
    """When it starts and ends: by `start` and `end`, or the time `since` before the end (default: an hour)."""

    def time_ns(name: str) -> int | None:
        text = query.text(name)
        return query.parsed(name, parse_unix_time) if text is not None and _UNIX.fullmatch(text) else query.time(name)

    end = time_ns("end")
    end = query.now_ns if end is None else end
    start = time_ns("start")
    since = query.duration("since")
    if start is None:
        start = end - (_LOOKBACK_NS if since is None else since)
    if not 0 < start < end:
        query.fault("start", "the range has to start before it ends")
    query.done()
    return start, end


def _query(query: ViewerQuery) -> Query:
    text = query.text("q") or query.text("query")
    if text is None:
        raise problems.not_supported("TraceQL: a query (q) is needed, as `{ } | rate()`")
    tree = parsed(text)
    if tree.metrics is None:
        raise problems.not_supported("TraceQL: this is a search: end it with a metric, as `| rate()`")
    return tree


async def tempo_metrics_range(request: web.Request) -> web.Response:
    """``GET /tempo/api/metrics/query_range``: Tempo's query API: TraceQL metrics over time.

    A value belongs to the spans that started in the `step` that ends at its time. `docs/trace-viewers.md` says what of
    TraceQL is supported.
    """
    await workspace_of(request)  # Named wrongly, it is the first thing to say.
    query = ViewerQuery(request)
    tree = _query(query)
    exemplars = query.integer("exemplars", 0, 0, MAX_EXEMPLARS)
    step = query.parsed("step", _step)
    start, end = _range(query)
    try:
        steps = TimeSteps.over(start, end, step or default_step_ns(start, end))
    except ValueError as error:
        raise problems.not_supported(str(error)) from None
    answer = await _computed(request, tree, steps, exemplars)
    body: dict[str, Any] = {
        "series": [_series(series, steps) for series in answer.series if series.values],
        "metrics": _inspected(answer),
    }
    if answer.is_partial:
        body |= {"status": "PARTIAL", "message": f"more than {MAX_SERIES} series or values; some are left out"}
    return json_response(body)


def _step(text: str) -> int:
    """A positive duration; a number without a unit is seconds."""
    step = round(float(text) * NS) if _UNIX.fullmatch(text) and len(text) < 20 else parse_go_duration(text)
    if step <= 0:
        raise ValueError("a step has to be longer than 0")
    return step


async def tempo_metrics(request: web.Request) -> web.Response:
    """``GET /tempo/api/metrics/query``: Tempo's query API: TraceQL metrics of a whole range: one value a series."""
    await workspace_of(request)  # Named wrongly, it is the first thing to say.
    query = ViewerQuery(request)
    tree = _query(query)
    answer = await _computed(request, tree, TimeSteps.instant(*_range(query)), 0)
    series = [
        {"labels": _labels(each.labels), "value": json_number(each.values[0])}
        for each in answer.series
        if 0 in each.values
    ]
    return json_response({"series": series, "metrics": _inspected(answer)})


async def _computed(request: web.Request, tree: Query, steps: TimeSteps, exemplars: int) -> Answer:
    answer: Answer = await read(request, lambda c, workspace, slug: compute(c, workspace, slug, tree, steps, exemplars))
    return answer


def _inspected(answer: Answer) -> dict[str, Any]:
    return {"inspectedSpans": str(answer.inspected_spans), "totalBlocks": 1, "completedJobs": 1, "totalJobs": 1}


def _series(series: Series, steps: TimeSteps) -> dict[str, Any]:
    values = series.values
    encoded: dict[str, Any] = {
        "labels": _labels(series.labels),
        "samples": [
            {"timestampMs": str(steps.timestamp_ms(step)), "value": json_number(values[step])}
            for step in sorted(values)
        ],
        "promLabels": _prom_labels(series.labels),
    }
    exemplars = [exemplar for exemplar in series.exemplars if steps.index(exemplar.time_ns) in values]
    if exemplars:
        encoded["exemplars"] = [_exemplar(exemplar, series, steps) for exemplar in exemplars]
    return encoded


def _labels(labels: Labels) -> list[dict[str, Any]]:
    return [{"key": name, "value": any_value(value)} for name, value in labels]


def _prom_labels(labels: Labels) -> str:
    """The labels as Prometheus writes them."""
    pairs = []
    for name, value in sorted(labels, key=lambda label: label[0]):
        text = next(iter(any_value(value).values())) if value is not None else "<nil>"
        if value == "":
            text = "<empty>"
        elif isinstance(value, bool):
            text = "true" if value else "false"
        elif type(value) is int:
            text = f"int({value})"
        escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        shown = name if re.fullmatch(r"[A-Za-z_]\w*", name) else f'"{name}"'
        pairs.append(f'{shown}="{escaped}"')
    return "{" + ", ".join(pairs) + "}"


def _exemplar(exemplar: Exemplar, series: Series, steps: TimeSteps) -> dict[str, Any]:
    value = exemplar.value
    if value is None:
        step = steps.index(exemplar.time_ns)
        value = series.values.get(step, 0.0) if step is not None else 0.0
    return {
        "labels": [
            {"key": "trace:id", "value": {"stringValue": exemplar.trace_id}},
            {"key": "span:id", "value": {"stringValue": exemplar.span_id}},
            {"key": "name", "value": {"stringValue": exemplar.name}},
        ],
        "value": json_number(value),
        "timestampMs": str(exemplar.time_ns // 1_000_000),
    }
