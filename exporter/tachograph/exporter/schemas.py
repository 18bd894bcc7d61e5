"""What the API answers, as types. Field names are a contract; durations are seconds, times RFC 3339 UTC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tachograph.workflow.errors import Fault


class Page(msgspec.Struct):
    """A page of a list: ``total`` is how many there are in all."""

    items: list[Any]
    total: int
    skip: int
    limit: int


class WorkflowSummary(msgspec.Struct, kw_only=True):
    """A workflow in a list."""

    id: str
    name: str
    description: str
    version: str
    workspace_id: str
    project_id: str
    is_runnable: bool
    created_at: str
    updated_at: str


class WorkflowDetail(WorkflowSummary, kw_only=True):
    """A workflow with its definition. ``is_runnable`` is False where only runs recorded elsewhere are known of it."""

    timeout_seconds: float | None = None
    max_retries: int = 0
    config: Any = {}
    metadata: Any = {}
    variables: list[Any] = []
    steps: list[Any] = []
    warnings: list[Fault] = []


class ValidationResult(msgspec.Struct):
    """What validation found."""

    is_valid: bool
    errors: list[Fault]
    warnings: list[Fault]


class Submitted(msgspec.Struct, kw_only=True):
    """An execution was accepted."""

    execution_id: str
    workflow_id: str
    trace_id: str
    status: str = "submitted"
    message: str = "the execution was accepted"


class Attempt(msgspec.Struct, kw_only=True, gc=False):
    """One attempt of a step. The waits are those before this attempt."""

    attempt: int
    status: str
    started_at: str
    completed_at: str | None
    duration_seconds: float | None
    queue_seconds: float
    backoff_seconds: float
    error_type: str | None = None
    error_message: str | None = None


class Wait(msgspec.Struct, gc=False):
    """Where a step's time went while it was not running, in seconds over all its attempts."""

    dependency: float
    queue: float
    backoff: float


class Measure(msgspec.Struct):
    """A value a step reported."""

    name: str
    value: float
    unit: str
    at: str


class LogLine(msgspec.Struct):
    """A line a step logged."""

    level: str
    message: str
    at: str


class Cost(msgspec.Struct):
    """What a step reported as spent, added up."""

    usd: float
    tokens_in: int
    tokens_out: int
    models: list[str]


class WorkflowStepTimelineEntry(msgspec.Struct, kw_only=True, gc=False):
    """One step of a timeline.

    ``duration_seconds`` runs from the start of the first attempt to the end of the last; ``run_seconds`` counts only
    the attempts. ``wait_seconds`` is all waiting; with ``run_seconds`` it adds up to the time from the start of the
    run to the end of the step.
    """

    step_id: str
    step_name: str
    step_type: str
    step_order: int
    status: str
    started_at: str | None
    completed_at: str | None
    duration_seconds: float | None
    elapsed_seconds: float | None
    run_seconds: float | None
    retry_count: int
    error_type: str | None
    error_message: str | None
    error_stack: str | None
    skip_reason: str | None
    input_summary: msgspec.Raw | None
    output_summary: msgspec.Raw | None
    wait_seconds: float | None
    wait: Wait | None
    depends_on: Sequence[str]
    parent_step_id: str | None
    attempts: tuple[Attempt, ...]
    on_critical_path: bool
    slack_seconds: float | None
    trace_id: str
    span_id: str
    measures: tuple[Measure, ...]
    cost: Cost | None
    logs: tuple[LogLine, ...]


class CriticalStep(msgspec.Struct, gc=False):
    """A step on the critical path."""

    step_id: str
    step_name: str
    duration_seconds: float


class WorkflowExecutionTimeline(msgspec.Struct, kw_only=True):
    """A run's timeline. Counts are those of the whole run, whatever the filters leave of ``step_timeline``."""

    execution_id: str
    workflow_id: str
    workflow_name: str
    workflow_version: str
    status: str
    started_at: str | None
    completed_at: str | None
    total_duration_seconds: float | None
    elapsed_seconds: float | None
    step_count: int
    completed_step_count: int
    failed_step_count: int
    skipped_step_count: int
    running_step_count: int
    error_type: str | None
    error_message: str | None
    input_summary: msgspec.Raw | None
    queued_seconds: float | None
    last_seen_at: str | None
    trace_id: str
    span_id: str
    critical_path: list[CriticalStep]
    critical_path_seconds: float
    work_seconds: float
    parallelism: float | None
    cost_usd: float
    step_timeline: list[WorkflowStepTimelineEntry]


class WorkflowExecutionResponse(msgspec.Struct, kw_only=True):
    """An execution in a list."""

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
    step_count: int
    completed_step_count: int
    failed_step_count: int
    skipped_step_count: int
    critical_path_seconds: float | None
    work_seconds: float | None


class WorkflowExecutionDetailedResponse(WorkflowExecutionResponse, kw_only=True):
    """An execution with its inputs, its stack if it failed, and its timeline."""

    error_stack: str | None
    input_summary: msgspec.Raw | None
    last_seen_at: str | None
    timeline: WorkflowExecutionTimeline


class ExecutionState(msgspec.Struct, kw_only=True):
    """Where an execution stands."""

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


class WorkflowMetricsSummary(msgspec.Struct, kw_only=True):
    """Figures over a workflow's executions. ``success_rate`` is a percentage of those that succeeded or failed.

    Cancelled executions count neither way. Durations are those of executions that ended; null when none did.
    """

    workflow_id: str
    workflow_name: str
    total_executions: int
    successful_executions: int
    failed_executions: int
    success_rate: float | None
    total_duration_seconds: float
    average_duration_seconds: float | None
    min_duration_seconds: float | None
    max_duration_seconds: float | None
    by_status: dict[str, int]


class WorkflowStats(msgspec.Struct, kw_only=True):
    """One workflow's share of a workspace's statistics."""

    workflow_id: str
    workflow_name: str
    total_executions: int
    success_rate: float | None
    by_status: dict[str, int]
    last_started_at: str | None


class ExecutionStats(msgspec.Struct, kw_only=True):
    """A workspace's executions, counted."""

    total_executions: int
    running_executions: int
    successful_executions: int
    failed_executions: int
    success_rate: float | None
    by_status: dict[str, int]
    workflows: list[WorkflowStats]


class Difference(msgspec.Struct):
    """One thing two views of a run say differently."""

    step_id: str
    field: str
    values: dict[str, Any]


class Reconciliation(msgspec.Struct, kw_only=True):
    """Whether the views of a run agree. ``views`` says which could be compared and how many steps each has.

    Rows are always there; events, spans and counters only in the process that recorded the run, and only for a while.
    """

    execution_id: str
    agrees: bool
    views: dict[str, int | None]
    differences: list[Difference]
