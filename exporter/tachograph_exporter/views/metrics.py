"""Rollups as the figures people read: metrics and trends. Pure functions, whatever shows them (API, terminal, page)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.events import ExecutionStatus
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store.rollups import read, rows
from tachograph_exporter.store.totals import (
    MEASURE_SEPARATOR,
    NANO,
    Measure,
    StepTotals,
    Totals,
    WorkflowTotals,
    combined,
)
from tachograph_exporter.times import rfc3339, rfc3339_or_none
from tachograph_exporter.views.schemas.metrics import Bar, Figures, MeasureFigures, StepFigures, WorkflowMetricsSummary
from tachograph_exporter.views.schemas.timeline import Wait
from tachograph_exporter.views.schemas.trends import TrendBucket

COMPLETED = ExecutionStatus.COMPLETED.value
BARS = 24
UNSUCCESSFUL = frozenset({"failed", "timeout", "lost"})


def success_rate(counts: Mapping[str, int]) -> float | None:
    """Percent that completed, of those that completed or failed; None when neither happened."""
    good, bad = counts.get(COMPLETED, 0), failures(counts)
    return 100.0 * good / (good + bad) if good + bad else None


def failures(counts: Mapping[str, int]) -> int:
    """How many failed: by an error, a time-out, or with their process."""
    return sum(counts.get(status, 0) for status in UNSUCCESSFUL)


def figures(totals: Totals) -> Figures:
    """Durations of what a tally holds."""
    return Figures(**_durations(totals))


def _durations(totals: Totals) -> dict[str, Any]:
    histogram = totals.histogram()
    return {
        "count": totals.count,
        "total_duration_seconds": totals.sum_ns / NS,
        "average_duration_seconds": _average(totals.sum_ns, totals.count),
        "min_duration_seconds": totals.min_ns / NS if totals.count else None,
        "max_duration_seconds": totals.max_ns / NS if totals.count else None,
        "p50": histogram.quantile(0.5),
        "p90": histogram.quantile(0.9),
        "p95": histogram.quantile(0.95),
        "p99": histogram.quantile(0.99),
    }


def metrics_summary(workflow_id: str, name: str, pack: WorkflowTotals, open_executions: int) -> WorkflowMetricsSummary:
    """A workflow's figures."""
    counts = {status: totals.count for status, totals in pack.executions.items()}
    total = combined(pack.executions.values())
    completed = pack.executions.get(COMPLETED)
    durations = _durations(total)
    steps = [step_figures(step, found, total.critical_ns) for step, found in pack.steps.items()]
    steps.sort(key=lambda one: (-one.critical_path_seconds, one.step_name))
    return WorkflowMetricsSummary(
        workflow_id=workflow_id,
        workflow_name=name,
        total_executions=durations.pop("count") + open_executions,
        successful_executions=counts.get(COMPLETED, 0),
        failed_executions=failures(counts),
        open_executions=open_executions,
        success_rate=success_rate(counts),
        **durations,
        percentile_error=total.histogram().relative_error,
        last_completed_at=rfc3339_or_none(completed.last_ns if completed is not None else None),
        average_queued_seconds=_average(total.queue_ns, total.count),
        retry_count=total.retries,
        critical_path_seconds=total.critical_ns / NS,
        work_seconds=total.run_ns / NS,
        cost_usd=total.cost_nano_usd / NANO,
        tokens_in=total.tokens_in,
        tokens_out=total.tokens_out,
        distribution=[Bar(*bar) for bar in completed.histogram().bars(BARS)] if completed is not None else [],
        by_status={status: figures(totals) for status, totals in sorted(pack.executions.items())},
        steps=steps,
    )


def step_figures(name: str, step: StepTotals, critical_ns: int) -> StepFigures:
    """One step's figures; ``critical_ns`` is the critical path of all executions together."""
    ran = ran_tally(step)
    counts = {status: totals.count for status, totals in sorted(step.by_status.items()) if totals.count}
    completed = step.by_status.get(COMPLETED)
    return StepFigures(
        step_name=name,
        **_durations(ran),
        by_status=counts,
        success_rate=success_rate(counts),
        last_completed_at=rfc3339_or_none(completed.last_ns if completed is not None else None),
        retry_count=ran.retries,
        retry_rate=ran.retries / ran.count if ran.count else None,
        wait=_wait(ran),
        critical_path_seconds=ran.critical_ns / NS,
        critical_path_share=ran.critical_ns / critical_ns if critical_ns else None,
        cost_usd=ran.cost_nano_usd / NANO,
        tokens_in=ran.tokens_in,
        tokens_out=ran.tokens_out,
        measures=measure_figures(step.measures),
    )


def ran_tally(step: StepTotals) -> Totals:
    """A step's runs, without those where it was skipped."""
    return combined(totals for status, totals in step.by_status.items() if status != "skipped")


def _wait(totals: Totals) -> Wait | None:
    if not totals.count:
        return None
    each = totals.count * NS
    return Wait(totals.dependency_ns / each, totals.queue_ns / each, totals.backoff_ns / each)


def measure_figures(measures: Mapping[str, Measure]) -> list[MeasureFigures]:
    """What was measured, by name."""
    found = []
    for key, measure in sorted(measures.items()):
        name, _, unit = key.partition(MEASURE_SEPARATOR)
        total = measure.sum
        found.append(
            MeasureFigures(
                name=name,
                unit=unit,
                count=measure.count,
                sum=total,
                average=total / measure.count,
                min=measure.min,
                max=measure.max,
            )
        )
    return found


def trend_bucket(start_s: int, by_status: Mapping[str, Totals], measures: Mapping[str, Measure]) -> TrendBucket:
    """One bucket of a trend, of executions or of a step's runs."""
    counts = {status: totals.count for status, totals in by_status.items()}
    total = combined(totals for status, totals in by_status.items() if status != "skipped")
    histogram = total.histogram()
    return TrendBucket(
        start=rfc3339(start_s * NS),
        total_executions=total.count,
        successful_executions=counts.get(COMPLETED, 0),
        failed_executions=failures(counts),
        success_rate=success_rate(counts),
        average_duration_seconds=_average(total.sum_ns, total.count),
        p50=histogram.quantile(0.5),
        p95=histogram.quantile(0.95),
        p99=histogram.quantile(0.99),
        retry_count=total.retries,
        average_wait_seconds=_average(total.dependency_ns + total.queue_ns + total.backoff_ns, total.count),
        cost_usd=total.cost_nano_usd / NANO,
        tokens_in=total.tokens_in,
        tokens_out=total.tokens_out,
        measures=measure_figures(measures),
    )


def all_measures(steps: Iterable[StepTotals]) -> dict[str, Measure]:
    """What all steps measured, added up by name."""
    total: dict[str, Measure] = {}
    for step in steps:
        for key, measure in step.measures.items():
            total.setdefault(key, Measure()).add(measure)
    return total


def _average(sum_ns: int, count: int) -> float | None:
    return sum_ns / NS / count if count else None


def read_metrics(
    connection: Connection, workspace: str, wanted: str, from_ns: int | None, to_ns: int | None, now_ns: int
) -> WorkflowMetricsSummary | None:
    """Figures of a workflow (by id or name) over a range (unix nanoseconds, the end exclusive); None: there is none."""
    workflow = definition_rows.overview(connection, workspace, wanted, from_ns or 0)
    return None if workflow is None else figures_of(connection, workflow, from_ns, to_ns, now_ns)


def figures_of(
    connection: Connection,
    workflow: Row[Any],
    from_ns: int | None,
    to_ns: int | None,
    now_ns: int,
    kept: read.SumCache | None = None,
) -> WorkflowMetricsSummary:
    """Figures of a workflow known by `queries.overview`."""
    head = None
    if workflow.head_s is not None:
        head = rows.Head(workflow.head_s, workflow.revision, workflow.closed_revision)
    pack = read.read_from(connection, (workflow.workspace_id, workflow.id), head, from_ns, to_ns, kept=kept)
    still_open = workflow.open_count if to_ns is None or to_ns >= now_ns else 0
    return metrics_summary(workflow.id, workflow.name, pack, still_open)
