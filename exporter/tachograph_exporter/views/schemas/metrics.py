"""Metrics of a workflow: response types."""

from __future__ import annotations

import msgspec

from tachograph_exporter.views.schemas.common import AverageUse, MeasureSummary, Wait


class DurationSummary(msgspec.Struct, kw_only=True):
    """Summary of durations in seconds; null where nothing ended."""

    count: int
    total_duration_seconds: float
    average_duration_seconds: float | None
    min_duration_seconds: float | None
    max_duration_seconds: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class DistributionBucket(msgspec.Struct):
    """Number of executions that took between ``low`` (exclusive) and ``high`` (inclusive) seconds."""

    low: float
    high: float
    count: int


class StepMetrics(DurationSummary, kw_only=True):
    """Metrics of one step. Skipped runs count in ``by_status`` only.

    ``wait`` is the average per run, ``retry_rate`` the retries per run, ``critical_path_share`` the step's share of the
    time on the critical paths of all executions. ``resources`` is what a run used on average,
    null if nothing measured it.
    """

    step_name: str
    by_status: dict[str, int]
    success_rate: float | None
    last_completed_at: str | None
    retry_count: int
    retry_rate: float | None
    wait: Wait | None
    critical_path_seconds: float
    critical_path_share: float | None
    cost_usd: float | None
    tokens_in: int
    tokens_out: int
    measures: list[MeasureSummary]
    resources: AverageUse | None


class WorkflowMetricsSummary(msgspec.Struct, kw_only=True):
    """Metrics of the executions of a workflow that ended in a range, and the number of open ones.

    ``success_rate`` is the percentage of completed executions among the completed and failed ones; cancelled ones do
    not count; 0 if there are neither. Durations are those of ended executions in seconds; if none ended, their average
    is 0 and the others are null. ``percentile_error`` is the
    maximum relative error of percentiles. ``distribution`` is a histogram of the completed executions' durations: at
    most 24 buckets of constant growth factor, without the empty ones. ``steps`` are sorted by share of the critical
    path, largest first.
    """

    workflow_id: str
    workflow_name: str
    total_executions: int
    successful_executions: int
    failed_executions: int
    open_executions: int
    success_rate: float
    total_duration_seconds: float
    average_duration_seconds: float
    min_duration_seconds: float | None
    max_duration_seconds: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    percentile_error: float
    last_completed_at: str | None
    average_queued_seconds: float | None
    retry_count: int
    critical_path_seconds: float
    work_seconds: float
    cost_usd: float | None
    tokens_in: int
    tokens_out: int
    distribution: list[DistributionBucket]
    by_status: dict[str, DurationSummary]
    steps: list[StepMetrics]
