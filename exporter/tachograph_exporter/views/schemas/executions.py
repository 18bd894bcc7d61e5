"""Executions: response types."""

from __future__ import annotations

from typing import Any

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


class ErrorDetails(msgspec.Struct, kw_only=True, gc=False):
    """What failed. ``error_stack`` is null in lists."""

    error_type: str
    error_stack: str | None = None


class ExecutionResults(msgspec.Struct, kw_only=True):
    """Outputs and statuses of the steps that have ended, by step id; summarised as in the timeline."""

    step_outputs: dict[str, msgspec.Raw]
    step_statuses: dict[str, str]


class WorkflowExecutionResponse(msgspec.Struct, kw_only=True):
    """An execution in a list. One that ran inside a step of another execution names both of them.

    ``execution_number`` counts the executions of the workflow from 1, in the order in which they were first stored.
    ``duration`` is ``duration_seconds`` under the name that older clients read. ``updated_at`` is when the execution
    was last heard of. ``results`` is null in lists: outputs are stored with the steps.

    ``expected_end_at`` is when a running execution is expected to end, by what remains of its critical path and what
    is usual; null if nothing like it ever took so long. ``usual_duration_seconds`` is the median of the workflow's
    completed executions of the last four weeks; null for executions that have ended.
    """

    id: str
    execution_id: str
    execution_number: int | None
    workspace_id: str
    workflow_id: str
    workflow_name: str
    workflow_version: str
    project_id: str
    status: str
    created_at: str
    updated_at: str
    started_at: str | None
    completed_at: str | None
    duration_seconds: float | None
    duration: float | None
    elapsed_seconds: float | None
    input_variables: msgspec.Raw | None
    results: ExecutionResults | None = None
    error_type: str | None
    error_message: str | None
    error_details: ErrorDetails | None
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
    expected_end_at: str | None = None
    usual_duration_seconds: float | None = None


class WorkflowStepExecutionResponse(msgspec.Struct, kw_only=True, gc=False):
    """A step of an execution, as older clients read it: the same values as in the timeline."""

    id: str
    execution_id: str
    step_id: str
    step_name: str
    status: str
    input_data: msgspec.Raw | None
    output_data: msgspec.Raw | None
    started_at: str | None
    completed_at: str | None
    duration: float | None
    retry_count: int
    error_message: str | None
    error_details: ErrorDetails | None
    created_at: str
    updated_at: str


class WorkflowExecutionDetailedResponse(WorkflowExecutionResponse, kw_only=True):
    """An execution with its inputs, the stack trace of its error, and its timeline.

    ``results`` is null while the execution is open, and if it has more than 1,000 steps: ``step_executions`` and the
    timeline have every output.
    """

    error_stack: str | None
    input_summary: msgspec.Raw | None
    last_seen_at: str | None
    step_executions: list[WorkflowStepExecutionResponse]
    timeline: WorkflowExecutionTimeline


class ExecutionState(msgspec.Struct, kw_only=True):
    """Status and progress of an execution. ``results``: see `WorkflowExecutionDetailedResponse`.

    ``expected_end_at`` and ``usual_duration_seconds``: see `WorkflowExecutionResponse`.
    """

    execution_id: str
    workflow_id: str
    status: str
    started_at: str | None
    completed_at: str | None
    elapsed_seconds: float | None
    duration: float | None
    step_count: int
    completed_step_count: int
    failed_step_count: int
    skipped_step_count: int
    running_steps: list[str]
    error_message: str | None
    results: ExecutionResults | None
    expected_end_at: str | None = None
    usual_duration_seconds: float | None = None


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
    """Execution counts of a workspace.

    ``recent_executions_24h`` were created in the last 24 hours. ``status_counts`` is ``by_status`` under the name that
    older clients read. ``workflow_engine_stats`` is about this process: its running and queued executions.
    """

    total_executions: int
    recent_executions_24h: int
    running_executions: int
    successful_executions: int
    failed_executions: int
    success_rate: float | None
    by_status: dict[str, int]
    status_counts: dict[str, int]
    workflow_engine_stats: dict[str, Any]
    workflows: list[WorkflowStats]
