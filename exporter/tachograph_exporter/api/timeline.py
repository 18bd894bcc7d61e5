"""A run's timeline, and whether the views of it agree."""

from __future__ import annotations

import asyncio
import time

import msgspec
from aiohttp import web
from sqlalchemy import Connection

from tachograph.events import StepStatus
from tachograph.outcomes import Outcomes
from tachograph_exporter.api.executions import stored_run
from tachograph_exporter.api.query import Query
from tachograph_exporter.api.request import DATABASE, RECORDER, json_response, workspace_of
from tachograph_exporter.api.routes import Parameter, Route
from tachograph_exporter.ingest.spans import otlp_json
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.views.chrome_trace import chrome_trace
from tachograph_exporter.views.otlp_spans import spans_of_run
from tachograph_exporter.views.reconcile import reconcile
from tachograph_exporter.views.schemas.reconciliation import Reconciliation
from tachograph_exporter.views.schemas.timeline import ChromeTrace, OtlpTraces, WorkflowExecutionTimeline
from tachograph_exporter.views.timeline import TimelineFilter, build_timeline

FORMATS = ("json", "chrome", "otlp")


async def timeline(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}/timeline``: every step in time; also while it runs."""
    query = Query(request)
    wanted = TimelineFilter(
        status=query.step_statuses(),
        min_duration_ns=query.duration("min_duration"),
        max_duration_ns=query.duration("max_duration"),
        step=query.texts("step"),
    )
    form = query.choice("format", FORMATS, "json")
    query.done()
    workspace = await workspace_of(request)
    execution_id = request.match_info["execution_id"]

    def read(connection: Connection) -> bytes:
        # Read, put together and encoded off the event loop: ten thousand steps take a while.
        run = find_run(connection, workspace.id, execution_id)
        if form == "otlp":
            return msgspec.json.encode(otlp_json(spans_of_run(run, workspace.slug)))
        built = build_timeline(run, wanted, now_ns=time.time_ns())
        return msgspec.json.encode(chrome_trace(run, built) if form == "chrome" else built)

    body = await request.app[DATABASE].read(read)
    return web.Response(body=body, content_type="application/json")


async def compare_views(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}/reconcile``: do rows, events, spans and counters agree?"""
    Query(request).done()
    workspace = await workspace_of(request)
    queues = request.app[RECORDER].queues
    # A view that is merely behind does not differ.
    await asyncio.get_running_loop().run_in_executor(None, lambda: [queue.flush(1.0) for queue in queues.values()])
    run = await stored_run(request, workspace)
    outcomes_by_listener = {
        name: outcomes
        for name, queue in queues.items()
        if isinstance(outcomes := getattr(queue.listener, "outcomes", None), Outcomes)
    }
    return json_response(reconcile(run, outcomes_by_listener))


ROUTES = (
    Route(
        method="GET",
        path="/api/workflows/executions/{execution_id}/timeline",
        handler=timeline,
        query=(
            Parameter(
                name="status", kind="texts", about="Only steps in one of these states.", choices=tuple(StepStatus)
            ),
            Parameter(name="min_duration", kind="duration", about="Only steps that took at least so long."),
            Parameter(name="max_duration", kind="duration", about="Only steps that took at most so long."),
            Parameter(name="step", kind="texts", about="Only steps of these names or ids."),
            Parameter(
                name="format",
                about="`chrome`: Trace Event JSON for Perfetto, speedscope and chrome://tracing; `otlp`: OTLP JSON.",
                choices=FORMATS,
                default="json",
            ),
        ),
        answer=WorkflowExecutionTimeline,
        other_answers=(ChromeTrace, OtlpTraces),
        codes=("archive_unavailable",),
    ),
    Route(
        method="GET",
        path="/api/workflows/executions/{execution_id}/reconcile",
        handler=compare_views,
        answer=Reconciliation,
        codes=("archive_unavailable",),
    ),
)
