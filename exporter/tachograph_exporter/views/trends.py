"""A workflow over time: bucket by bucket, and since when something takes longer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy import Connection, Row

from tachograph.clock import NS
from tachograph_exporter.store.rollups import counting, periods, read
from tachograph_exporter.store.totals import StepTotals, Totals
from tachograph_exporter.times import human, rfc3339
from tachograph_exporter.views.changepoints import Shift, shifts
from tachograph_exporter.views.metrics import COMPLETED, all_measures, trend_bucket
from tachograph_exporter.views.schemas.trends import ChangePoint, WorkflowTrends

BUCKETS: Final = {"5m": periods.FINE, "1h": periods.HOUR, "1d": periods.DAY}
USUAL_RANGE: Final = {"5m": 86_400, "1h": 14 * 86_400, "1d": 180 * 86_400}
"""How far back a trend goes when nobody says, in seconds."""
MAX_BUCKETS: Final = 2_500


def bucket_range(bucket: str, from_ns: int | None, to_ns: int) -> tuple[int, int]:
    """A range (unix nanoseconds) widened to whole buckets, in unix seconds; without a start, the usual range."""
    unit = BUCKETS[bucket]
    high = -(-to_ns // (unit * NS)) * unit
    return from_ns // (unit * NS) * unit if from_ns is not None else high - USUAL_RANGE[bucket], high


def build_trends(
    connection: Connection,
    key: counting.Key,
    workflow: Row[Any],
    bucket: str,
    low_s: int,
    high_s: int,
    step: str | None,
) -> WorkflowTrends:
    """A workflow's trend between two borders of buckets (unix seconds); with ``step``, that step's."""
    packs = dict(sorted(read.series(connection, key, low_s, high_s, BUCKETS[bucket]).items()))
    if step is None:
        buckets = [
            trend_bucket(start, pack.executions, all_measures(pack.steps.values())) for start, pack in packs.items()
        ]
        changes = list(_changes(None, {start: pack.executions for start, pack in packs.items()}, bucket))
        names = sorted({name for pack in packs.values() for name in pack.steps})
    else:
        of_step = {start: pack.steps[step] for start, pack in packs.items() if step in pack.steps}
        buckets = [trend_bucket(start, found.by_status, found.measures) for start, found in of_step.items()]
        changes, names = [], [step]
    for name in names:
        series = {start: pack.steps.get(name, _NO_STEP).by_status for start, pack in packs.items()}
        changes += _changes(name, series, bucket)
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


_NO_STEP: Final = StepTotals()


def _changes(step: str | None, series: Mapping[int, Mapping[str, Totals]], bucket: str) -> Iterator[ChangePoint]:
    """Changes of the duration of what completed: a run that failed early is not a faster one."""
    starts, medians, tallies = [], [], []
    for start, by_status in series.items():
        totals = by_status.get(COMPLETED)
        median = totals.histogram().quantile(0.5) if totals is not None else None
        if totals is not None and median:
            starts.append(start)
            medians.append(median)
            tallies.append(totals)
    found = shifts(medians)
    for shift in found:
        yield _change_point(step, shift, starts, is_last=shift is found[-1])


def _change_point(step: str | None, shift: Shift, starts: list[int], *, is_last: bool) -> ChangePoint:
    since = rfc3339(starts[shift.start] * NS)
    until = None if is_last else rfc3339(starts[shift.end] * NS)
    is_slower = shift.ratio > 1
    what = f"Step “{step}” takes" if step is not None else "An execution takes"
    how = f"{shift.ratio:.3g} times as long" if is_slower else f"{100 * (1 - shift.ratio):.0f} % less time"
    sentence = (
        f"{what} {how} since {since}: {human(round(shift.after * NS))} instead of {human(round(shift.before * NS))}."
    )
    if until is not None:
        sentence = sentence.replace(" takes ", " took ").replace(f" since {since}", f" from {since} until {until}")
    return ChangePoint(
        step_name=step,
        since=since,
        until=until,
        direction="slower" if is_slower else "faster",
        before_seconds=shift.before,
        after_seconds=shift.after,
        ratio=shift.ratio,
        sentence=sentence,
    )
