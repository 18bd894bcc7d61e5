"""A run's timeline, as the API answers it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


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


class ChromeTrace(msgspec.Struct, kw_only=True):
    """A run in the Trace Event Format, as Perfetto, speedscope and chrome://tracing read it. Times are microseconds."""

    displayTimeUnit: str  # noqa: N815 - the format's own name
    traceEvents: list[Any]  # noqa: N815
    otherData: dict[str, Any]  # noqa: N815


class OtlpTraces(msgspec.Struct, kw_only=True):
    """Spans in OTLP's JSON."""

    resourceSpans: list[Any]  # noqa: N815 - the format's own name
