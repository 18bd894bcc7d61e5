"""Timeline of an execution."""

from __future__ import annotations

import time
from typing import Final

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from tachograph.events import StepStatus
from tachograph_exporter.api.large_runs import json_of_runs
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.ingest.spans import otlp_json
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.store.trace_groups import spans_beside
from tachograph_exporter.views.chrome_trace import chrome_trace
from tachograph_exporter.views.expected_end import read_expected_end
from tachograph_exporter.views.otlp_spans import spans_of_run
from tachograph_exporter.views.schemas.timeline import ChromeTrace, OtlpTraces, WorkflowExecutionTimeline
from tachograph_exporter.views.step_below import read_below
from tachograph_exporter.views.timeline import TimelineFilter, build_timeline

MAX_STEPS_BELOW: Final = 1_000
FORMATS: Final = ("json", "chrome", "otlp")


async def timeline(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}/timeline``: every step with its times, also while running."""
    query = Query(request)
    step_filter = TimelineFilter(
        status=query.step_statuses(),
        min_duration_ns=query.duration("min_duration"),
        max_duration_ns=query.duration("max_duration"),
        step=query.texts("step"),
    )
    has_below = query.boolean("below")
    format_name = query.choice("format", FORMATS, "json")
    query.done()
    workspace = await workspace_of(request)
    execution_id = request.match_info["execution_id"]

    def read(connection: Connection) -> bytes:
        # Built and encoded off the event loop too: ten thousand steps take a while.
        run = find_run(connection, workspace.id, execution_id)
        if format_name == "otlp":
            return msgspec.json.encode(otlp_json(spans_of_run(run, workspace.slug)))
        now_ns = time.time_ns()
        expected = read_expected_end(connection, run.execution, run.steps, now_ns)
        elsewhere = spans_beside(connection, workspace.id, run.execution.trace_id)
        run_timeline = build_timeline(run, step_filter, now_ns=now_ns, expected=expected, traces=elsewhere)
        if has_below:
            shown = {entry.step_id: entry for entry in run_timeline.step_timeline}
            steps = [step for step in run.steps if step.step_id in shown][:MAX_STEPS_BELOW]
            for step_id, below in read_below(connection, workspace.id, run, steps).items():
                shown[step_id].below = below
        if format_name == "chrome":
            return msgspec.json.encode(chrome_trace(run, run_timeline, now_ns=now_ns))
        return msgspec.json.encode(run_timeline)

    return await json_of_runs(request, workspace.id, read, execution_id)


ROUTES: Final = (
    Route(
        method="GET",
        path="/api/workflows/executions/{execution_id}/timeline",
        handler=timeline,
        query=(
            Parameter(
                name="status", kind="texts", description="Only steps in one of these states.", choices=tuple(StepStatus)
            ),
            Parameter(name="min_duration", kind="duration", description="Only steps that took at least this long."),
            Parameter(name="max_duration", kind="duration", description="Only steps that took at most this long."),
            Parameter(name="step", kind="texts", description="Only steps with these names or ids."),
            Parameter(
                name="below",
                kind="boolean",
                description="Say what lies below each step, for at most 1,000 steps: the spans under it, by name.",
            ),
            Parameter(
                name="format",
                description="`chrome`: Trace Event JSON for Perfetto, speedscope and "
                "chrome://tracing; `otlp`: OTLP JSON.",
                choices=FORMATS,
                default="json",
            ),
        ),
        response=WorkflowExecutionTimeline,
        other_responses=(ChromeTrace, OtlpTraces),
        codes=("archive_unavailable",),
    ),
)
