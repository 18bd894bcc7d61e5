"""Executions: list items, details, status and statistics, from their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Row

from tachograph.events import FAILED
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.steps import status_counts
from tachograph_exporter.store.totals import WorkflowTotals
from tachograph_exporter.times import rfc3339, rfc3339_or_none, seconds
from tachograph_exporter.views.metrics import failures, success_rate
from tachograph_exporter.views.schemas.executions import (
    ExecutionState,
    ExecutionStats,
    WorkflowExecutionDetailedResponse,
    WorkflowExecutionResponse,
    WorkflowStats,
)
from tachograph_exporter.views.timeline import build_timeline


def execution_summary(row: Row[Any], now_ns: int) -> WorkflowExecutionResponse:
    """An execution as an item of a list."""
    return WorkflowExecutionResponse(**_summary_fields(row, now_ns))


def execution_detail(run: StoredRun, now_ns: int) -> WorkflowExecutionDetailedResponse:
    """An execution with its inputs, error and timeline."""
    row = run.execution
    timeline = build_timeline(run, now_ns=now_ns)
    fields = _summary_fields(row, now_ns)
    # The row of a running execution does not count its steps yet.
    for name in ("step_count", "completed_step_count", "failed_step_count", "skipped_step_count"):
        fields[name] = getattr(timeline, name)
    return WorkflowExecutionDetailedResponse(
        **fields,
        error_stack=row.error_stack,
        input_summary=msgspec.Raw(row.inputs.encode()) if row.inputs is not None else None,
        last_seen_at=timeline.last_seen_at,
        timeline=timeline,
    )


def execution_state(run: StoredRun, now_ns: int) -> ExecutionState:
    """Status and progress of an execution."""
    row = run.execution
    counts = status_counts(run.steps)
    started, finished = row.started_ns, row.finished_ns
    return ExecutionState(
        execution_id=row.execution_id,
        workflow_id=row.workflow_id,
        status=row.status,
        started_at=rfc3339_or_none(started),
        completed_at=rfc3339_or_none(finished),
        elapsed_seconds=seconds((finished or now_ns) - started) if started is not None else None,
        step_count=max(counts.total(), row.step_count),
        completed_step_count=counts["completed"],
        failed_step_count=sum(counts[status] for status in FAILED),
        skipped_step_count=counts["skipped"],
        running_steps=[step.name for step in run.steps if step.status in ("running", "retrying")],
        error_message=row.error_message,
    )


def execution_stats(
    totals_by_workflow: Mapping[str, WorkflowTotals],
    open_executions: Iterable[tuple[str, str, str, int, int | None]],
    workflow_names: Mapping[str, str],
) -> ExecutionStats:
    """Execution counts of a workspace.

    Args:
        totals_by_workflow: totals of ended executions, by workflow id.
        open_executions: rows of `store.executions.open_by_workflow`.
        workflow_names: names by workflow id.
    """
    names = dict(workflow_names)
    counts: dict[str, dict[str, int]] = {
        workflow_id: {status: totals.count for status, totals in workflow.executions.items()}
        for workflow_id, workflow in totals_by_workflow.items()
    }
    last_ended = {
        workflow_id: max((totals.last_ns for totals in workflow.executions.values()), default=0)
        for workflow_id, workflow in totals_by_workflow.items()
    }
    for workflow_id, name, status, count, _ in open_executions:
        names.setdefault(workflow_id, name)
        by_status = counts.setdefault(workflow_id, {})
        by_status[status] = by_status.get(status, 0) + count
    total = Counter[str]()
    for by_status in counts.values():
        total.update(by_status)
    return ExecutionStats(
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
                total_executions=sum(by_status.values()),
                running_executions=by_status.get("running", 0),
                success_rate=success_rate(by_status),
                by_status=dict(sorted(by_status.items())),
                last_ended_at=rfc3339_or_none(last_ended.get(workflow_id) or None),
            )
            for workflow_id, by_status in sorted(counts.items(), key=lambda item: names.get(item[0], item[0]))
        ],
    )


def _summary_fields(row: Row[Any], now_ns: int) -> dict[str, Any]:
    """Fields of `WorkflowExecutionResponse`."""
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
        "parent_execution_id": row.parent_execution_id,
        "parent_step_id": row.parent_step_id,
        "step_count": row.step_count,
        "completed_step_count": row.completed_step_count,
        "failed_step_count": row.failed_step_count,
        "skipped_step_count": row.skipped_step_count,
        "critical_path_seconds": seconds(row.critical_path_ns),
        "work_seconds": seconds(row.work_ns),
        "is_archived": getattr(row, "archive", None) is not None,
    }
