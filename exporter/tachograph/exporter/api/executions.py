"""Executions: list, detail, status, cancel, statistics."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import msgspec
from aiohttp import web
from sqlalchemy import Connection, Row

from tachograph.exporter.api import errors
from tachograph.exporter.api.request import (
    DATABASE,
    EXECUTOR,
    Query,
    Workspace,
    json_response,
    workflow_of,
    workspace_of,
)
from tachograph.exporter.schemas import (
    ExecutionState,
    ExecutionStats,
    Page,
    WorkflowExecutionDetailedResponse,
    WorkflowExecutionResponse,
    WorkflowStats,
)
from tachograph.exporter.store import queries
from tachograph.exporter.store.queries import ExecutionFilter, StoredRun
from tachograph.exporter.timeline import build_timeline
from tachograph.exporter.times import rfc3339, rfc3339_or_none, seconds


async def list_executions(request: web.Request) -> web.Response:
    """``GET /api/workflows/{workflow_id}/executions``: newest first.

    Filters: ``status``, ``from``, ``to``, ``min_duration``, ``max_duration``.
    """
    query = Query(request)
    skip, limit = query.page()
    wanted: dict[str, Any] = {
        "status": query.execution_statuses(),
        "from_ns": query.time("from"),
        "to_ns": query.time("to"),
        "min_duration_ns": query.duration("min_duration"),
        "max_duration_ns": query.duration("max_duration"),
    }
    query.done()
    workspace = await workspace_of(request)
    workflow = await workflow_of(request, workspace)
    chosen = ExecutionFilter(workspace=workspace.id, workflow_id=workflow.id, **wanted)
    rows, total = await request.app[DATABASE].read(lambda c: queries.executions(c, chosen, skip, limit))
    now = time.time_ns()
    return json_response(Page([summarise_execution(row, now) for row in rows], total, skip, limit))


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
    }


async def stored_run(request: web.Request, workspace: Workspace) -> StoredRun:
    """Everything stored of the execution in the path. Raises 404."""
    wanted = request.match_info["execution_id"]
    found = await request.app[DATABASE].read(lambda c: queries.run(c, workspace.id, wanted))
    if found is None:
        raise errors.execution_not_found(wanted)
    return found


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
    row = await request.app[DATABASE].read(lambda c: queries.execution(c, workspace.id, wanted))
    if row is None:
        raise errors.execution_not_found(wanted)
    if not request.app[EXECUTOR].cancel(wanted, "cancelled through the API"):
        raise errors.not_running(wanted, row.status)
    body = {"execution_id": wanted, "workflow_id": row.workflow_id, "status": "cancelling"}
    return json_response({**body, "message": "the execution is being cancelled"}, 202)


async def statistics(request: web.Request) -> web.Response:
    """``GET /api/workflows/executions/stats``: the workspace's executions, counted by status and workflow."""
    Query(request).done()
    workspace = await workspace_of(request)

    def read(connection: Connection) -> list[tuple[str, str, str, int, int | None]]:
        return queries.stats(connection, workspace.id)

    workflows: dict[str, WorkflowStats] = {}
    newest: dict[str, int] = {}
    total = defaultdict[str, int](int)
    for workflow_id, name, state, count, started in await request.app[DATABASE].read(read):
        one = workflows.setdefault(
            workflow_id,
            WorkflowStats(
                workflow_id=workflow_id,
                workflow_name=name,
                total_executions=0,
                success_rate=None,
                by_status={},
                last_started_at=None,
            ),
        )
        one.total_executions += count
        one.by_status[state] = count
        total[state] += count
        newest[workflow_id] = max(newest.get(workflow_id, 0), started or 0)
    for one in workflows.values():
        one.success_rate = success_rate(one.by_status)
        one.last_started_at = rfc3339_or_none(newest[one.workflow_id] or None)
    return json_response(
        ExecutionStats(
            total_executions=sum(total.values()),
            running_executions=total["running"],
            successful_executions=total["completed"],
            failed_executions=_failed(total),
            success_rate=success_rate(total),
            by_status={state: count for state, count in total.items() if count},
            workflows=sorted(workflows.values(), key=lambda one: one.workflow_name),
        )
    )


def _failed(counts: dict[str, int]) -> int:
    return sum(counts.get(state, 0) for state in ("failed", "timeout", "lost"))


def success_rate(counts: dict[str, int]) -> float | None:
    """Percent of executions that completed, of those that completed or failed; None when neither happened."""
    good, bad = counts.get("completed", 0), _failed(counts)
    return 100.0 * good / (good + bad) if good + bad else None


ROUTES = (
    ("GET", "/api/workflows/executions/stats", statistics),
    ("GET", "/api/workflows/executions/{execution_id}", detail),
    ("GET", "/api/workflows/executions/{execution_id}/status", status),
    ("POST", "/api/workflows/executions/{execution_id}/cancel", cancel),
    ("GET", "/api/workflows/{workflow_id}/executions", list_executions),
)
