"""Metrics of a workflow, from its totals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.events import UNSUCCESSFUL, ExecutionStatus
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store.rollups import read, rows
from tachograph_exporter.store.totals import (
    MEASURE_SEPARATOR,
    Measure,
    StepTotals,
    Totals,
    WorkflowTotals,
    combined,
)
from tachograph_exporter.times import rfc3339_or_none
from tachograph_exporter.views.machine import average_use, combined_use
from tachograph_exporter.views.schemas.common import MeasureSummary, Wait
from tachograph_exporter.views.schemas.metrics import (
    DistributionBucket,
    DurationSummary,
    StepMetrics,
    WorkflowMetricsSummary,
)
from tachograph_exporter.views.spending import dollars

COMPLETED: Final = ExecutionStatus.COMPLETED.value
MAX_DISTRIBUTION_BUCKETS: Final = 24


def success_rate(counts: Mapping[str, int]) -> float | None:
    """Percentage of completed among completed and failed, from counts by status; None if there are neither."""
    completed, failed = counts.get(COMPLETED, 0), failures(counts)
    return 100.0 * completed / (completed + failed) if completed + failed else None


def failures(counts: Mapping[str, int]) -> int:
    """How many failed: with an error, by a timeout, or because their process died."""
    return sum(counts.get(status, 0) for status in UNSUCCESSFUL)


def metrics_summary(
    workflow_id: str, name: str, totals: WorkflowTotals, open_executions: int, *, with_steps: bool = True
) -> WorkflowMetricsSummary:
    """The metrics of a workflow. ``open_executions`` count in ``total_executions``."""
    counts = {status: of_status.count for status, of_status in totals.executions.items()}
    all_ended = combined(totals.executions.values())
    completed = totals.executions.get(COMPLETED)
    durations = _durations(all_ended)
    of_steps = totals.steps.items() if with_steps else ()
    steps = [_step_metrics(step, of_step, all_ended.critical_ns) for step, of_step in of_steps]
    steps.sort(key=lambda step: (-step.critical_path_seconds, step.step_name))
    return WorkflowMetricsSummary(
        workflow_id=workflow_id,
        workflow_name=name,
        total_executions=durations.pop("count") + open_executions,
        successful_executions=counts.get(COMPLETED, 0),
        failed_executions=failures(counts),
        open_executions=open_executions,
        success_rate=success_rate(counts) or 0.0,
        **{**durations, "average_duration_seconds": durations["average_duration_seconds"] or 0.0},
        percentile_error=all_ended.histogram().relative_error,
        last_completed_at=rfc3339_or_none(completed.last_ns if completed is not None else None),
        average_queued_seconds=average_seconds(all_ended.queue_ns, all_ended.count),
        retry_count=all_ended.retries,
        critical_path_seconds=all_ended.critical_ns / NS,
        work_seconds=all_ended.run_ns / NS,
        cost_usd=dollars(all_ended.cost_nano_usd),
        tokens_in=all_ended.tokens_in,
        tokens_out=all_ended.tokens_out,
        distribution=[DistributionBucket(*bar) for bar in completed.histogram().bars(MAX_DISTRIBUTION_BUCKETS)]
        if completed is not None
        else [],
        by_status={
            status: DurationSummary(**_durations(of_status)) for status, of_status in sorted(totals.executions.items())
        },
        steps=steps,
    )


def _step_metrics(name: str, step: StepTotals, critical_ns: int) -> StepMetrics:
    """Metrics of one step; ``critical_ns`` is the time on the critical paths of all executions."""
    runs = combined(totals for status, totals in step.by_status.items() if status != "skipped")
    counts = {status: totals.count for status, totals in sorted(step.by_status.items()) if totals.count}
    completed = step.by_status.get(COMPLETED)
    return StepMetrics(
        step_name=name,
        **_durations(runs),
        by_status=counts,
        success_rate=success_rate(counts),
        last_completed_at=rfc3339_or_none(completed.last_ns if completed is not None else None),
        retry_count=runs.retries,
        retry_rate=runs.retries / runs.count if runs.count else None,
        wait=_average_wait(runs),
        critical_path_seconds=runs.critical_ns / NS,
        critical_path_share=runs.critical_ns / critical_ns if critical_ns else None,
        cost_usd=dollars(runs.cost_nano_usd),
        tokens_in=runs.tokens_in,
        tokens_out=runs.tokens_out,
        measures=measure_summaries(step.measures),
        resources=average_use(combined_use(step.uses.values())),
    )


def measure_summaries(measures: Mapping[str, Measure]) -> list[MeasureSummary]:
    """Summaries of measures, sorted by name."""
    summaries = []
    for key, measure in sorted(measures.items()):
        name, _, unit = key.partition(MEASURE_SEPARATOR)
        total = measure.sum
        summaries.append(
            MeasureSummary(
                name=name,
                unit=unit,
                count=measure.count,
                sum=total,
                average=total / measure.count,
                min=measure.min,
                max=measure.max,
            )
        )
    return summaries


def average_seconds(sum_ns: int, count: int) -> float | None:
    """Average of ``count`` durations with this sum, in seconds; None without any."""
    return sum_ns / NS / count if count else None


def _durations(totals: Totals) -> dict[str, Any]:
    """Fields of `DurationSummary`."""
    p50, p90, p95, p99 = totals.histogram().quantiles((0.5, 0.9, 0.95, 0.99))
    return {
        "count": totals.count,
        "total_duration_seconds": totals.sum_ns / NS,
        "average_duration_seconds": average_seconds(totals.sum_ns, totals.count),
        "min_duration_seconds": totals.min_ns / NS if totals.count else None,
        "max_duration_seconds": totals.max_ns / NS if totals.count else None,
        "p50": p50,
        "p90": p90,
        "p95": p95,
        "p99": p99,
    }


def _average_wait(totals: Totals) -> Wait | None:
    if not totals.count:
        return None
    divisor = totals.count * NS
    return Wait(
        totals.dependency_ns / divisor,
        totals.queue_ns / divisor,
        totals.backoff_ns / divisor,
        totals.unaccounted_ns / divisor,
        totals.scheduled_ns / divisor,
    )


def read_metrics(
    connection: Connection,
    workspace_id: str,
    workflow: str,
    from_ns: int | None,
    to_ns: int | None,
    now_ns: int,
    *,
    with_steps: bool = True,
) -> WorkflowMetricsSummary | None:
    """Metrics of a workflow (by id or name) over a range of unix nanoseconds, end exclusive; None if not found."""
    overview = definition_rows.overview(connection, workspace_id, workflow, from_ns or 0)
    if overview is None:
        return None
    return read_overview_metrics(connection, overview, from_ns, to_ns, now_ns, with_steps=with_steps)


def read_overview_metrics(
    connection: Connection,
    overview: Row[Any],
    from_ns: int | None,
    to_ns: int | None,
    now_ns: int,
    cache: read.SumCache | None = None,
    *,
    with_steps: bool = True,
) -> WorkflowMetricsSummary:
    """`read_metrics` for a row of `definitions.overview`."""
    head = None
    if overview.head_s is not None:
        head = rows.Head(overview.head_s, overview.revision, overview.closed_revision)
    totals = read.read_from(connection, (overview.workspace_id, overview.id), head, from_ns, to_ns, kept=cache)
    open_executions = overview.open_count if to_ns is None or to_ns >= now_ns else 0
    return metrics_summary(overview.id, overview.name, totals, open_executions, with_steps=with_steps)
