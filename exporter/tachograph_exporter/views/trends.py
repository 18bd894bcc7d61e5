"""Trends of a workflow: its totals bucket by bucket, and the times since when something takes longer or shorter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph.resources import UseTotals
from tachograph_exporter.store.rollups import counting, periods, read
from tachograph_exporter.store.totals import Measure, StepTotals, Totals, WorkflowTotals, combined
from tachograph_exporter.times import format_duration, rfc3339
from tachograph_exporter.views.changepoints import Shift, shifts
from tachograph_exporter.views.machine import average_use, combined_use
from tachograph_exporter.views.metrics import COMPLETED, average_seconds, failures, measure_summaries, success_rate
from tachograph_exporter.views.schemas.trends import ChangePoint, TrendBucket, WorkflowTrends
from tachograph_exporter.views.spending import dollars

BUCKETS: Final = {"5m": periods.FIVE_MINUTES, "1h": periods.HOUR, "1d": periods.DAY}
"""Bucket sizes in seconds, by name."""
DEFAULT_RANGE: Final = {"5m": 86_400, "1h": 14 * 86_400, "1d": 180 * 86_400}
"""Length of a trend without a start, in seconds, by bucket."""
MAX_BUCKETS: Final = 2_500
_NO_RUNS: Final = StepTotals()


def bucket_range(bucket: str, from_ns: int | None, to_ns: int) -> tuple[int, int]:
    """A range of unix nanoseconds, widened to whole buckets, in unix seconds; without a start, of default length."""
    size = BUCKETS[bucket]
    high = -(-to_ns // (size * NS)) * size
    return from_ns // (size * NS) * size if from_ns is not None else high - DEFAULT_RANGE[bucket], high


def workflow_trends(
    workflow: Row[Any],
    totals_by_start: Mapping[int, WorkflowTotals],
    *,
    bucket: str,
    low_s: int,
    high_s: int,
    step: str | None,
) -> WorkflowTrends:
    """The trends of a workflow, or of one of its steps, from the totals of each bucket by its start, in order."""
    if step is None:
        buckets = [
            _trend_bucket(start, totals.executions, _all_measures(totals.steps.values()))
            for start, totals in totals_by_start.items()
        ]
        changes = list(_change_points(None, {start: totals.executions for start, totals in totals_by_start.items()}))
        names = sorted({name for totals in totals_by_start.values() for name in totals.steps})
    else:
        buckets = [
            _trend_bucket(start, totals.steps[step].by_status, totals.steps[step].measures, totals.steps[step].uses)
            for start, totals in totals_by_start.items()
            if step in totals.steps
        ]
        changes, names = [], [step]
    for name in names:
        changes += _change_points(
            name, {start: totals.steps.get(name, _NO_RUNS).by_status for start, totals in totals_by_start.items()}
        )
    changes.sort(key=lambda change: change.since)
    return WorkflowTrends(
        workflow_id=workflow.id,
        workflow_name=workflow.name,
        step_name=step,
        bucket=bucket,
        start=rfc3339(low_s * NS),
        end=rfc3339(high_s * NS),
        buckets=buckets,
        change_points=changes,
    )


def _trend_bucket(
    start_s: int,
    by_status: Mapping[str, Totals],
    measures: Mapping[str, Measure],
    uses: Mapping[str, UseTotals] = MappingProxyType({}),
) -> TrendBucket:
    """One bucket of executions or of the runs of a step."""
    counts = {status: totals.count for status, totals in by_status.items()}
    total = combined(totals for status, totals in by_status.items() if status != "skipped")
    histogram = total.histogram()
    return TrendBucket(
        start=rfc3339(start_s * NS),
        total_executions=total.count,
        successful_executions=counts.get(COMPLETED, 0),
        failed_executions=failures(counts),
        success_rate=success_rate(counts),
        average_duration_seconds=average_seconds(total.sum_ns, total.count),
        p50=histogram.quantile(0.5),
        p95=histogram.quantile(0.95),
        p99=histogram.quantile(0.99),
        retry_count=total.retries,
        average_wait_seconds=average_seconds(
            total.dependency_ns + total.unaccounted_ns + total.scheduled_ns + total.queue_ns + total.backoff_ns,
            total.count,
        ),
        cost_usd=dollars(total.cost_nano_usd),
        tokens_in=total.tokens_in,
        tokens_out=total.tokens_out,
        measures=measure_summaries(measures),
        resources=average_use(combined_use(uses.values())),
    )


def _all_measures(steps: Iterable[StepTotals]) -> dict[str, Measure]:
    """The measures of all steps, added up by name."""
    total: dict[str, Measure] = {}
    for step in steps:
        for key, measure in step.measures.items():
            total.setdefault(key, Measure()).add(measure)
    return total


def _change_points(step: str | None, series: Mapping[int, Mapping[str, Totals]]) -> Iterator[ChangePoint]:
    """Changes of the median duration of completed runs only: a run that failed early is not a faster one."""
    starts, medians, counts = [], [], []
    for start, by_status in series.items():
        completed = by_status.get(COMPLETED)
        median = completed.histogram().quantile(0.5) if completed is not None else None
        if completed is not None and median:
            starts.append(start)
            medians.append(median)
            counts.append(completed.count)
    changes = shifts(medians, counts)
    borders = [0, *(shift.start for shift in changes)]
    for low, shift in zip(borders, changes, strict=False):
        runs = (sum(counts[low : shift.start]), sum(counts[shift.start : shift.end]))
        yield _change_point(step, shift, starts, runs, is_last=shift is changes[-1])


def _change_point(
    step: str | None, shift: Shift, starts: Sequence[int], runs: tuple[int, int], *, is_last: bool
) -> ChangePoint:
    since = rfc3339(starts[shift.start] * NS)
    until = None if is_last else rfc3339(starts[shift.end] * NS)
    is_slower = shift.ratio > 1
    subject = f"Step “{step}”" if step is not None else "A run"
    change = f"{shift.ratio:.3g} times as long" if is_slower else f"{100 * (1 - shift.ratio):.0f} % less time"
    time = f"takes {change} since {since}" if until is None else f"took {change} from {since} until {until}"
    before, after = (format_duration(round(value * NS)) for value in (shift.before, shift.after))
    return ChangePoint(
        step_name=step,
        since=since,
        until=until,
        direction="slower" if is_slower else "faster",
        before_seconds=shift.before,
        after_seconds=shift.after,
        ratio=shift.ratio,
        before_count=runs[0],
        after_count=runs[1],
        sentence=f"{subject} {time}: {after} instead of {before} ({runs[1]:,} runs against {runs[0]:,}).",
    )


def read_trends(
    connection: Connection,
    key: counting.Key,
    workflow: Row[Any],
    bucket: str,
    low_s: int,
    high_s: int,
    step: str | None,
) -> WorkflowTrends:
    """`workflow_trends` of a range between two bucket borders (unix seconds), read from the rollups."""
    totals_by_start = dict(sorted(read.series(connection, key, low_s, high_s, BUCKETS[bucket]).items()))
    return workflow_trends(workflow, totals_by_start, bucket=bucket, low_s=low_s, high_s=high_s, step=step)
