"""Trends of a workflow: response types."""

from __future__ import annotations

import msgspec

from tachograph_exporter.views.schemas.common import AverageUse, MeasureSummary


class TrendBucket(msgspec.Struct, kw_only=True):
    """What ended in one bucket of time: executions, or the runs of one step.

    ``resources`` is what a run of the step used on average; null for executions, and if nothing measured it.
    """

    start: str
    total_executions: int
    successful_executions: int
    failed_executions: int
    success_rate: float | None
    average_duration_seconds: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    retry_count: int
    average_wait_seconds: float | None
    cost_usd: float | None
    tokens_in: int
    tokens_out: int
    measures: list[MeasureSummary]
    resources: AverageUse | None


class ChangePoint(msgspec.Struct, kw_only=True):
    """A time since when executions (``step_name`` null) or runs of a step take longer or shorter.

    ``ratio`` is the median after divided by the median before; ``until`` is the next change, null for the last one.
    ``before_count`` and ``after_count`` are how many completed runs say so.
    """

    step_name: str | None
    since: str
    until: str | None
    direction: str
    before_seconds: float
    after_seconds: float
    ratio: float
    before_count: int
    after_count: int
    sentence: str


class WorkflowTrends(msgspec.Struct, kw_only=True):
    """A workflow or one of its steps over time. Buckets in which nothing ended are left out."""

    workflow_id: str
    workflow_name: str
    step_name: str | None
    bucket: str
    start: str
    end: str
    buckets: list[TrendBucket]
    change_points: list[ChangePoint]
