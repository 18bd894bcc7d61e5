"""Executions: list, detail, status, cancel, statistics."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web
from sqlalchemy import Connection, Row

from tachograph.errors import ExecutionNotFound
from tachograph.events import ExecutionStatus, StepStatus
from tachograph_exporter.api import problems
from tachograph_exporter.api.caching import is_far
from tachograph_exporter.api.query import Query, encode_cursor
from tachograph_exporter.api.request import (
    DATABASE,
    EXECUTOR,
    Workspace,
    json_response,
    project_of,
    workflow_of,
    workspace_of,
)
from tachograph_exporter.api.routes import PAGE, Parameter, Route
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import execution_list
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store.execution_list import ExecutionFilter, Order, Position
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.rollups import read as read_rollups
from tachograph_exporter.store.runs import find_run
from tachograph_exporter.store.tokens import WRITE
from tachograph_exporter.store.totals import WorkflowTotals
from tachograph_exporter.times import rfc3339, rfc3339_or_none, seconds
from tachograph_exporter.views.metrics import failures, success_rate
from tachograph_exporter.views.schemas.executions import (
    Cancelling,
    ExecutionPage,
    ExecutionState,
    ExecutionStats,
    WorkflowExecutionDetailedResponse,
    WorkflowExecutionResponse,
    WorkflowStats,
)
from tachograph_exporter.views.timeline import build_timeline


async def list_executions(request: web.Request) -> web.StreamResponse:
    """``GET /api/workflows/{workflow_id}/executions``: a workflow's executions, newest first.

    Archived ones are among them. With ``format=ndjson`` (or ``Accept: application/x-ndjson``) all that match are
    answered, a line each, instead of a page.
    """
    query = Query(request)
    workspace = await workspace_of(request)
    return await _list(request, query, workspace, (await workflow_of(request, workspace)).id)


async def list_all(request: web.Request) -> web.StreamResponse:
    """``GET /api/workflows/executions``: the executions of all workflows of a workspace, newest first.

    Takes the same parameters as a workflow's own list.
    """
    query = Query(request)
    return await _list(request, query, await workspace_of(request), None)


async def _list(
    request: web.Request, query: Query, workspace: Workspace, workflow_id: str | None
) -> web.StreamResponse:
    skip, limit = query.page()
    sort = query.choice("sort", _SORTS, "-created")
    order = Order(sort.removeprefix("-"), sort.startswith("-"))
    form = query.choice("format", ("json", "ndjson"), "json")
    after = query.cursor("after", sort)
    wanted: dict[str, Any] = {
        "status": query.execution_statuses(),
        "from_ns": query.time("from"),
        "to_ns": query.time("to"),
        "min_duration_ns": query.duration("min_duration"),
        "max_duration_ns": query.duration("max_duration"),
        "step": query.text("step"),
        "step_status": tuple(sorted(query.step_statuses("step_status"))),
        "error": query.text("error"),
        "input": query.text("input"),
    }
    query.done()
    wanted["project"] = await project_of(request, workspace)
    chosen = ExecutionFilter(workspace=workspace.id, workflow_id=workflow_id, **wanted)
    if form == "ndjson" or "application/x-ndjson" in request.headers.get("Accept", ""):
        return await _stream(request, chosen, order, after)

    def read(connection: Connection) -> tuple[Sequence[Row[Any]], int]:
        # One more than asked for tells whether there is a next page.
        rows = execution_list.executions(connection, chosen, skip, limit + 1, order, after)
        return rows, execution_list.count_executions(connection, chosen)

    rows, total = await request.app[DATABASE].read(read)
    now = time.time_ns()
    more = _cursor(rows[limit - 1], sort) if len(rows) > limit else None
    return json_response(
        ExecutionPage([summarise_execution(row, now) for row in rows[:limit]], total, skip, limit, more)
    )


def _cursor(row: Row[Any], sort: str) -> str:
    return encode_cursor(sort, Position(row.sorted_by, row.execution_id))


_STREAM_PAGE = 1_000


async def _stream(
    request: web.Request, chosen: ExecutionFilter, order: Order, after: Position | None
) -> web.StreamResponse:
    """All that match, a JSON line each, read a thousand at a time."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    if is_far(request):
        response.enable_compression()
    position = after
    first: Sequence[Row[Any]] | None = None
    while True:

        def read(connection: Connection, position: Position | None = position) -> Sequence[Row[Any]]:
            return execution_list.executions(connection, chosen, 0, _STREAM_PAGE, order, position)

        rows = await request.app[DATABASE].read(read)
        if first is None:
            # Whatever can go wrong with the query has gone wrong by now, and could still be said.
            first = rows
            await response.prepare(request)
        now = time.time_ns()
        lines = [msgspec.json.encode(summarise_execution(row, now)) for row in rows]
        if lines:
            await response.write(b"\n".join(lines) + b"\n")
        if len(rows) < _STREAM_PAGE:
            break
        position = Position(rows[-1].sorted_by, rows[-1].execution_id)
    await response.write_eof()
    return response


def summarise_execution(row: Row[Any], now_ns: int) -> WorkflowExecutionResponse:
    """An execution's row as a list shows it."""
    return WorkflowExecutionResponse(**_common(row, now_ns))


def _common(row: Row[Any], now_ns: int) -> dict[str, Any]:
    started, finished = row.started_ns, row.finished_ns
    is_timed = started is not None and finished is not None
    return {
        "id": row.execution_id,
        "execution_id": row.execution_id,
        "workflow_id": row.workflow_id,
        "workflow_name": row.workflow,
        "workflow_version": row.version,
        "project_id": row.project,
        "status": row.status,
        "created_at": rfc3339(row.created_ns),
        "started_at": rfc3339_or_none(started),
        "completed_at": rfc3339_or_none(finished),
        "duration_seconds": seconds(finished - started) if is_timed else None,
        "elapsed_seconds": seconds(now_ns - started) if started is not None and finished is None else None,
        "error_type": row.error_type,
        "error_message": row.error_message,
        "trace_id": row.trace_id,
        "step_count": row.step_count,
        "completed_step_count": row.completed_step_count,
        "failed_step_count": row.failed_step_count,
        "skipped_step_count": row.skipped_step_count,
        "critical_path_seconds": seconds(row.critical_path_ns),
        "work_seconds": seconds(row.work_ns),
        "is_archived": getattr(row, "archive", None) is not None,
    }


async def stored_run(request: web.Request, workspace: Workspace) -> StoredRun:
    """Everything stored of the execution in the path. Raises `ExecutionNotFound`, `ArchiveError`."""
    execution_id = request.match_info["execution_id"]
    return await request.app[DATABASE].read(lambda c: find_run(c, workspace.id, execution_id))


async def detail(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}``: the execution with its timeline."""
    Query(request).done()
    run = await stored_run(request, await workspace_of(request))
    row, now = run.execution, time.time_ns()
    timeline = build_timeline(run, now_ns=now)
    common = _common(row, now)
    # While it runs, its own row does not count steps yet.
    for name in ("step_count", "completed_step_count", "failed_step_count", "skipped_step_count"):
        common[name] = getattr(timeline, name)
    return json_response(
        WorkflowExecutionDetailedResponse(
            **common,
            error_stack=row.error_stack,
            input_summary=msgspec.Raw(row.inputs.encode()) if row.inputs is not None else None,
            last_seen_at=timeline.last_seen_at,
            timeline=timeline,
        )
    )


async def status(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/{execution_id}/status``: where it stands, which steps run."""
    Query(request).done()
    run = await stored_run(request, await workspace_of(request))
    row, now = run.execution, time.time_ns()
    counts = defaultdict[str, int](int)
    for step in run.steps:
        counts[step.status] += 1
    started, finished = row.started_ns, row.finished_ns
    return json_response(
        ExecutionState(
            execution_id=row.execution_id,
            workflow_id=row.workflow_id,
            status=row.status,
            started_at=rfc3339_or_none(started),
            completed_at=rfc3339_or_none(finished),
            elapsed_seconds=seconds((finished or now) - started) if started is not None else None,
            step_count=max(len(run.steps), row.step_count),
            completed_step_count=counts["completed"],
            failed_step_count=counts["failed"] + counts["timeout"],
            skipped_step_count=counts["skipped"],
            running_steps=[step.name for step in run.steps if step.status in ("running", "retrying")],
            error_message=row.error_message,
        )
    )


async def cancel(request: web.Request) -> web.Response:
    """``POST /api/workflows/executions/{execution_id}/cancel``: cancel it; 409 when it is not running here."""
    workspace = await workspace_of(request)
    wanted = request.match_info["execution_id"]
    row = await request.app[DATABASE].read(lambda c: execution_rows.execution(c, workspace.id, wanted))
    if row is None:
        raise ExecutionNotFound(wanted)
    if not request.app[EXECUTOR].cancel(wanted, "cancelled through the API"):
        raise problems.not_running(wanted, row.status)
    return json_response(Cancelling(execution_id=wanted, workflow_id=row.workflow_id), 202)


async def statistics(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/stats``: the workspace's executions, counted by status and workflow."""
    Query(request).done()
    workspace = await workspace_of(request)

    def read(connection: Connection) -> tuple[dict[str, WorkflowTotals], list[Any], dict[str, str]]:
        names, _ = definition_rows.definitions(connection, workspace.id, None, 0, 100_000)
        return (
            read_rollups.totals(connection, workspace.id),
            execution_rows.open_by_workflow(connection, workspace.id),
            {row.id: row.name for row in names},
        )

    packs, still_open, names = await request.app[DATABASE].read(read)
    counts: dict[str, dict[str, int]] = {
        workflow_id: {status: totals.count for status, totals in pack.executions.items()}
        for workflow_id, pack in packs.items()
    }
    newest = {
        workflow_id: max((totals.last_ns for totals in pack.executions.values()), default=0)
        for workflow_id, pack in packs.items()
    }
    for workflow_id, name, state, count, _ in still_open:
        names.setdefault(workflow_id, name)
        own = counts.setdefault(workflow_id, {})
        own[state] = own.get(state, 0) + count
    total = Counter[str]()
    for own in counts.values():
        total.update(own)
    return json_response(
        ExecutionStats(
            total_executions=total.total(),
            running_executions=total["running"],
            successful_executions=total["completed"],
            failed_executions=failures(total),
            success_rate=success_rate(total),
            by_status=dict(sorted(total.items())),
            workflows=[
                WorkflowStats(
                    workflow_id=workflow_id,
                    workflow_name=names.get(workflow_id, workflow_id),
                    total_executions=sum(own.values()),
                    running_executions=own.get("running", 0),
                    success_rate=success_rate(own),
                    by_status=dict(sorted(own.items())),
                    last_ended_at=rfc3339_or_none(newest.get(workflow_id) or None),
                )
                for workflow_id, own in sorted(counts.items(), key=lambda pair: names.get(pair[0], pair[0]))
            ],
        )
    )


_SORTS = tuple(sign + name for name in execution_list.SORTS for sign in ("-", ""))
_FILTERS = (
    *PAGE,
    Parameter(name="after", about="The cursor of the page before (its `next`): the page behind it, at the same cost."),
    Parameter(name="sort", about="By what; with a minus, the greatest first.", choices=_SORTS, default="-created"),
    Parameter(name="format", about="`ndjson`: all that match, line by line.", choices=("json", "ndjson"),
              default="json"),
    Parameter(
        name="status", kind="texts", about="Only with one of these statuses.", choices=tuple(ExecutionStatus),
        example="failed,timeout",
    ),
    Parameter(name="from", kind="time", about="Only what was created at or after this time.", example="24h"),
    Parameter(name="to", kind="time", about="Only what was created before this time."),
    Parameter(name="min_duration", kind="duration", about="Only what took at least so long.", example="1.5h"),
    Parameter(name="max_duration", kind="duration", about="Only what took at most so long."),
    Parameter(name="step", about="Only those with a step of this name or id."),
    Parameter(
        name="step_status", kind="texts", about="Only those with a step (that one) in one of these states.",
        choices=tuple(StepStatus),
    ),
    Parameter(name="error", about="Only those whose error's type or message has this text in it."),
    Parameter(name="input", about="Only those with this input: `name=value`, or any text.", example="region=eu"),
)  # fmt: skip

ROUTES = (
    Route(method="GET", path="/api/workflows/executions", handler=list_all, query=_FILTERS, answer=ExecutionPage,
          media=("application/x-ndjson",), codes=("project_not_found",)),
    Route(method="GET", path="/api/workflows/executions/stats", handler=statistics, answer=ExecutionStats),
    Route(method="GET", path="/api/workflows/executions/{execution_id}", handler=detail,
          answer=WorkflowExecutionDetailedResponse, codes=("archive_unavailable",)),
    Route(method="GET", path="/api/workflows/executions/{execution_id}/status", handler=status, answer=ExecutionState,
          codes=("archive_unavailable",)),
    Route(method="POST", path="/api/workflows/executions/{execution_id}/cancel", handler=cancel, scope=WRITE,
          answer=Cancelling, status=202, codes=("not_cancellable",)),
    Route(method="GET", path="/api/workflows/{workflow_id}/executions", handler=list_executions, query=_FILTERS,
          answer=ExecutionPage, media=("application/x-ndjson",), codes=("project_not_found",)),
)  # fmt: skip
