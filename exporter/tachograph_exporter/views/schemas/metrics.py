"""A workflow's metrics, as the API answers them."""

from __future__ import annotations

import msgspec

from tachograph_exporter.views.schemas.timeline import Wait


class Figures(msgspec.Struct, kw_only=True):
    """Durations of what ended, in seconds; null when nothing did."""

    count: int
    total_duration_seconds: float
    average_duration_seconds: float | None
    min_duration_seconds: float | None
    max_duration_seconds: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class Bar(msgspec.Struct):
    """How many of something took between ``low`` (exclusive) and ``high`` (inclusive) seconds."""

    low: float
    high: float
    count: int


class MeasureFigures(msgspec.Struct, kw_only=True):
    """What steps reported under one name."""

    name: str
    unit: str
    count: int
    sum: float
    average: float
    min: float
    max: float


class StepFigures(Figures, kw_only=True):
    """Figures over one step. Skipped ones count in ``by_status`` only.

    ``wait`` is waiting per run on the average; ``retry_rate`` retries per run; ``critical_path_share`` the step's part
    of all time that executions spent on their critical paths.
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
    cost_usd: float
    tokens_in: int
    tokens_out: int
    measures: list[MeasureFigures]


class WorkflowMetricsSummary(msgspec.Struct, kw_only=True):
    """Figures over a workflow's executions that ended in a range, and those that are open.

    ``success_rate`` is a percentage of those that succeeded or failed; cancelled ones count neither way. Durations
    (seconds) are those of executions that ended, null when none did. Percentiles are at most ``percentile_error`` (a
    part of the value) from the exact ones. ``distribution`` counts the completed ones by how long they took, in at most
    24 buckets that grow by the same factor; those that hold nothing are left out. ``steps`` comes with the largest
    share of the critical path first.
    """

    workflow_id: str
    workflow_name: str
    total_executions: int
    successful_executions: int
    failed_executions: int
    open_executions: int
    success_rate: float | None
    total_duration_seconds: float
    average_duration_seconds: float | None
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
    cost_usd: float
    tokens_in: int
    tokens_out: int
    distribution: list[Bar]
    by_status: dict[str, Figures]
    steps: list[StepFigures]
