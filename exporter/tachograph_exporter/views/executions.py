"""Executions: list items, details, status and statistics, from their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Row

from tachograph.events import FAILED, ExecutionStatus
from tachograph_exporter.store.executions import StoredRun
from tachograph_exporter.store.steps import Progress, StoredStep, status_counts
from tachograph_exporter.store.totals import WorkflowTotals
from tachograph_exporter.times import rfc3339, rfc3339_or_none, seconds
from tachograph_exporter.views.expected_end import UNKNOWN, ExpectedEnd
from tachograph_exporter.views.metrics import failures, success_rate
from tachograph_exporter.views.schemas.executions import (
    ErrorDetails,
    ExecutionResults,
    ExecutionState,
    ExecutionStats,
    WorkflowExecutionDetailedResponse,
    WorkflowExecutionResponse,
    WorkflowStats,
    WorkflowStepExecutionResponse,
)
from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline, WorkflowStepTimelineEntry
from tachograph_exporter.views.timeline import build_timeline

MAX_RESULT_STEPS: Final = 1_000
"""Steps of an execution up to which its results are listed; more are read from the timeline."""


def execution_summary(row: Row[Any], now_ns: int, expected: ExpectedEnd = UNKNOWN) -> WorkflowExecutionResponse:
    """An execution as an item of a list."""
    return WorkflowExecutionResponse(**_summary_fields(row, now_ns, expected))


def page_of_executions(
    rows: Sequence[Row[Any]],
    open_counts: Mapping[str, Mapping[str, int]],
    expected_ends: Mapping[str, ExpectedEnd],
    now_ns: int,
) -> list[WorkflowExecutionResponse]:
    """The items of a list. ``open_counts``: steps by status of the open ones, whose rows do not count them yet."""
    items = [execution_summary(row, now_ns, expected_ends.get(row.execution_id, UNKNOWN)) for row in rows]
    for item in items:
        counts = open_counts.get(item.execution_id)
        if counts:
            item.step_count = max(item.step_count, sum(counts.values()))
            item.completed_step_count = counts.get("completed", 0)
            item.failed_step_count = sum(counts.get(status, 0) for status in FAILED)
            item.skipped_step_count = counts.get("skipped", 0)
    return items


def execution_detail(run: StoredRun, now_ns: int, expected: ExpectedEnd = UNKNOWN) -> WorkflowExecutionDetailedResponse:
    """An execution with its inputs, error and timeline."""
    row = run.execution
    timeline = build_timeline(run, now_ns=now_ns, expected=expected)
    fields = _summary_fields(row, now_ns, expected)
    # The row of a running execution does not count its steps yet.
    for name in ("step_count", "completed_step_count", "failed_step_count", "skipped_step_count"):
        fields[name] = getattr(timeline, name)
    fields["error_details"] = _error_details(row.error_type, row.error_stack)
    return WorkflowExecutionDetailedResponse(
        **fields,
        error_stack=row.error_stack,
        input_summary=fields["input_variables"],
        last_seen_at=timeline.last_seen_at,
        results=_results(row, run.steps),
        step_executions=[_step_execution(timeline, entry, fields["created_at"]) for entry in timeline.step_timeline],
        timeline=timeline,
    )


def execution_state(run: StoredRun, now_ns: int, expected: ExpectedEnd = UNKNOWN) -> ExecutionState:
    """Status and progress of an execution."""
    running = [step.name for step in run.steps if step.status in ("running", "retrying")]
    results = _results(run.execution, run.steps)
    return _state(run.execution, Progress(status_counts(run.steps), running), results, now_ns, expected)


def large_execution_state(row: Row[Any], progress: Progress, now_ns: int, expected: ExpectedEnd) -> ExecutionState:
    """The same of an execution with more than `MAX_RESULT_STEPS` steps, which need not be read."""
    return _state(row, progress, None, now_ns, expected)


def _state(
    row: Row[Any], progress: Progress, results: ExecutionResults | None, now_ns: int, expected: ExpectedEnd
) -> ExecutionState:
    counts, started, finished = progress.counts, row.started_ns, row.finished_ns
    return ExecutionState(
        execution_id=row.execution_id,
        workflow_id=row.workflow_id,
        status=row.status,
        started_at=rfc3339_or_none(started),
        completed_at=rfc3339_or_none(finished),
        elapsed_seconds=seconds((finished or now_ns) - started) if started is not None else None,
        duration=_duration_seconds(row),
        step_count=max(counts.total(), row.step_count),
        completed_step_count=counts["completed"],
        failed_step_count=sum(counts[status] for status in FAILED),
        skipped_step_count=counts["skipped"],
        running_steps=progress.running,
        error_message=row.error_message,
        results=results,
        expected_end_at=rfc3339_or_none(expected.end_ns),
        usual_duration_seconds=expected.usual_seconds,
    )


def execution_stats(
    totals_by_workflow: Mapping[str, WorkflowTotals],
    open_executions: Iterable[tuple[str, str, str, int, int | None]],
    workflow_names: Mapping[str, str],
    recent_executions: int,
    active_executions: int,
) -> ExecutionStats:
    """Execution counts of a workspace.

    Args:
        totals_by_workflow: totals of ended executions, by workflow id.
        open_executions: rows of `store.executions.open_by_workflow`.
        workflow_names: names by workflow id.
        recent_executions: how many were created in the last 24 hours.
        active_executions: how many run, or wait to run, in this process.
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
        of_workflow = counts.setdefault(workflow_id, {})
        of_workflow[status] = of_workflow.get(status, 0) + count
    total = Counter[str]()
    for of_workflow in counts.values():
        total.update(of_workflow)
    by_status = dict(sorted(total.items()))
    return ExecutionStats(
        total_executions=total.total(),
        recent_executions_24h=recent_executions,
        running_executions=total["running"],
        successful_executions=total["completed"],
        failed_executions=failures(total),
        success_rate=success_rate(total),
        by_status=by_status,
        status_counts=by_status,
        workflow_engine_stats={"engine_stats": {"active_executions": active_executions}},
        workflows=[
            WorkflowStats(
                workflow_id=workflow_id,
                workflow_name=names.get(workflow_id, workflow_id),
                total_executions=sum(of_workflow.values()),
                running_executions=of_workflow.get("running", 0),
                success_rate=success_rate(of_workflow),
                by_status=dict(sorted(of_workflow.items())),
                last_ended_at=rfc3339_or_none(last_ended.get(workflow_id) or None),
            )
            for workflow_id, of_workflow in sorted(counts.items(), key=lambda item: names.get(item[0], item[0]))
        ],
    )


def _summary_fields(row: Row[Any], now_ns: int, expected: ExpectedEnd) -> dict[str, Any]:
    """Fields of `WorkflowExecutionResponse`."""
    started, finished = row.started_ns, row.finished_ns
    duration = _duration_seconds(row)
    return {
        "id": row.execution_id,
        "execution_id": row.execution_id,
        "execution_number": row.number,
        "workspace_id": row.workspace_id,
        "workflow_id": row.workflow_id,
        "workflow_name": row.workflow,
        "workflow_version": row.version,
        "project_id": row.project,
        "status": row.status,
        "created_at": rfc3339(row.created_ns),
        "updated_at": rfc3339(row.last_seen_ns),
        "started_at": rfc3339_or_none(started),
        "completed_at": rfc3339_or_none(finished),
        "duration_seconds": duration,
        "duration": duration,
        "elapsed_seconds": seconds(now_ns - started) if started is not None and finished is None else None,
        "input_variables": msgspec.Raw(row.inputs.encode()) if row.inputs is not None else None,
        "error_type": row.error_type,
        "error_message": row.error_message,
        "error_details": _error_details(row.error_type, None),
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
        "expected_end_at": rfc3339_or_none(expected.end_ns),
        "usual_duration_seconds": expected.usual_seconds,
    }


def _duration_seconds(row: Row[Any]) -> float | None:
    """Seconds that an execution took; None if it has not ended, or did not start."""
    return None if row.started_ns is None or row.finished_ns is None else seconds(row.finished_ns - row.started_ns)


def _error_details(error_type: str | None, error_stack: str | None) -> ErrorDetails | None:
    return ErrorDetails(error_type=error_type, error_stack=error_stack) if error_type is not None else None


def _results(row: Row[Any], steps: Sequence[StoredStep]) -> ExecutionResults | None:
    """Outputs and statuses of an ended execution's steps; None while it is open, or if it has too many steps."""
    if not ExecutionStatus(row.status).is_terminal or len(steps) > MAX_RESULT_STEPS:
        return None
    return ExecutionResults(
        step_outputs={step.step_id: msgspec.Raw(step.output.encode()) for step in steps if step.output is not None},
        step_statuses={step.step_id: step.status for step in steps},
    )


def _step_execution(
    timeline: WorkflowExecutionTimeline, entry: WorkflowStepTimelineEntry, created_at: str
) -> WorkflowStepExecutionResponse:
    """An entry of a timeline as older clients read it; ``created_at`` is that of the execution."""
    return WorkflowStepExecutionResponse(
        id=f"{timeline.execution_id}:{entry.step_id}",
        execution_id=timeline.execution_id,
        step_id=entry.step_id,
        step_name=entry.step_name,
        status=entry.status,
        input_data=entry.input_summary,
        output_data=entry.output_summary,
        started_at=entry.started_at,
        completed_at=entry.completed_at,
        duration=entry.duration_seconds,
        retry_count=entry.retry_count,
        error_message=entry.error_message,
        error_details=_error_details(entry.error_type, entry.error_stack),
        created_at=entry.started_at or created_at,
        updated_at=entry.completed_at or entry.started_at or created_at,
    )
