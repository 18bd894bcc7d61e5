"""Executions: response types."""

from __future__ import annotations

import msgspec

from tachograph_exporter.views.schemas.timeline import WorkflowExecutionTimeline


class ExecutionPage(msgspec.Struct):
    """A page of executions. ``next`` is the cursor of the next page (``after=``), null on the last page."""

    items: list[WorkflowExecutionResponse]
    total: int
    skip: int
    limit: int
    next: str | None


class Cancelling(msgspec.Struct, kw_only=True):
    """A cancellation was accepted."""

    execution_id: str
    workflow_id: str
    status: str = "cancelling"
    message: str = "the execution is being cancelled"


class WorkflowExecutionResponse(msgspec.Struct, kw_only=True):
    """An execution in a list. One that ran inside a step of another execution names both of them."""

    id: str
    execution_id: str
    workflow_id: str
    workflow_name: str
    workflow_version: str
    project_id: str
    status: str
    created_at: str
    started_at: str | None
    completed_at: str | None
    duration_seconds: float | None
    elapsed_seconds: float | None
    error_type: str | None
    error_message: str | None
    trace_id: str
    parent_execution_id: str | None
    parent_step_id: str | None
    step_count: int
    completed_step_count: int
    failed_step_count: int
    skipped_step_count: int
    critical_path_seconds: float | None
    work_seconds: float | None
    is_archived: bool = False


class WorkflowExecutionDetailedResponse(WorkflowExecutionResponse, kw_only=True):
    """An execution with its inputs, the stack trace of its error, and its timeline."""

    error_stack: str | None
    input_summary: msgspec.Raw | None
    last_seen_at: str | None
    timeline: WorkflowExecutionTimeline


class ExecutionState(msgspec.Struct, kw_only=True):
    """Status and progress of an execution."""

    execution_id: str
    workflow_id: str
    status: str
    started_at: str | None
    completed_at: str | None
    elapsed_seconds: float | None
    step_count: int
    completed_step_count: int
    failed_step_count: int
    skipped_step_count: int
    running_steps: list[str]
    error_message: str | None


class WorkflowStats(msgspec.Struct, kw_only=True):
    """Execution counts of one workflow."""

    workflow_id: str
    workflow_name: str
    total_executions: int
    running_executions: int
    success_rate: float | None
    by_status: dict[str, int]
    last_ended_at: str | None


class ExecutionStats(msgspec.Struct, kw_only=True):
    """Execution counts of a workspace."""

    total_executions: int
    running_executions: int
    successful_executions: int
    failed_executions: int
    success_rate: float | None
    by_status: dict[str, int]
    workflows: list[WorkflowStats]
