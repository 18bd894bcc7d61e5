"""The rollup rows that a workflow's executions add up to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, bindparam, select

from tachograph.clock import NS
from tachograph_exporter.store.merging import FIRST_TERMINAL_RANK
from tachograph_exporter.store.rollups.counting import CHUNK, Key, count
from tachograph_exporter.store.rollups.periods import ALL, DAY, HOUR, bucket_of, first_five_minutes, floor, month_of
from tachograph_exporter.store.schema import workflow_executions, workflow_rollups
from tachograph_exporter.store.state import watermark_of
from tachograph_exporter.store.totals import WorkflowTotals

_executions = workflow_executions.c
_rollups = workflow_rollups.c

ROWS_BETWEEN: Final = (
    select(_rollups.start_s, _rollups.executions, _rollups.steps)
    .where(
        _rollups.workspace_id == bindparam("workspace"),
        _rollups.workflow_id == bindparam("workflow"),
        _rollups.period == bindparam("period"),
        _rollups.start_s >= bindparam("low"),
        _rollups.start_s < bindparam("high"),
    )
    .order_by(_rollups.start_s)
)
"""(start, executions, steps) of one period's rows that start in a range, in order."""


def expected_rows(connection: Connection, key: Key) -> dict[tuple[str, int], tuple[bytes, bytes]]:
    """A workflow's rollup rows as its executions give them, by (period, start).

    For days whose executions may be archived, the stored rows are taken as they are.
    """
    watermark = watermark_of(connection)
    rows: dict[tuple[str, int], tuple[bytes, bytes]] = {}
    days: dict[int, WorkflowTotals] = {}
    five_minutes: dict[int, tuple[bytes, bytes]] = {}
    hours: dict[int, tuple[bytes, bytes]] = {}
    parameters = {"workspace": key[0], "workflow": key[1], "low": 0, "high": watermark}
    if watermark:
        for period, stored in (("5m", five_minutes), ("1h", hours)):
            for start, executions, steps in connection.execute(ROWS_BETWEEN, {**parameters, "period": period}):
                stored[start] = (executions, steps)
        for start, executions, steps in connection.execute(ROWS_BETWEEN, {**parameters, "period": "1d"}):
            days[start] = WorkflowTotals.decode(executions, steps)
    hour, hour_totals, head = 0, WorkflowTotals(), max(five_minutes, default=None)
    for bucket, totals in _by_bucket(connection, key, watermark):
        if head is not None and floor(bucket, HOUR) > hour and hour_totals.executions:
            hours[hour] = hour_totals.encode()
            hour_totals = WorkflowTotals()
        hour, head = floor(bucket, HOUR), bucket
        five_minutes[bucket] = totals.encode()
        hour_totals.add(totals)
        days.setdefault(floor(bucket, DAY), WorkflowTotals()).add(totals)
    if head is None:
        return {}
    if hour_totals.executions:
        hours[hour] = hour_totals.encode()
    oldest = first_five_minutes(head)
    rows |= {("5m", start): encoded for start, encoded in five_minutes.items() if start >= oldest}
    rows |= {("1h", start): encoded for start, encoded in hours.items() if start < floor(head, HOUR)}
    months: dict[int, WorkflowTotals] = {}
    total = WorkflowTotals()
    for day, totals in sorted(days.items()):
        if day < floor(head, DAY):
            rows["1d", day] = totals.encode()
            months.setdefault(month_of(day), WorkflowTotals()).add(totals)
            total.add(totals)
    rows |= {("1mo", month): totals.encode() for month, totals in months.items()}
    if months:
        rows[ALL, 0] = total.encode()
    return rows


def _by_bucket(connection: Connection, key: Key, watermark_s: int) -> Iterator[tuple[int, WorkflowTotals]]:
    """(start, totals) of each five minutes in which an execution ended, in order."""
    statement = (
        select(_executions.execution_id, _executions.finished_ns)
        .where(
            _executions.workspace_id == key[0],
            _executions.workflow_id == key[1],
            _executions.finished_ns >= watermark_s * NS,
            _executions.rank >= FIRST_TERMINAL_RANK,
        )
        .order_by(_executions.finished_ns)
    )
    executions = connection.execute(statement).all()
    buckets: dict[int, WorkflowTotals] = {}
    for i in range(0, len(executions), CHUNK):
        chunk = executions[i : i + CHUNK]
        count(connection, [row[0] for row in chunk], lambda _, bucket: buckets.setdefault(bucket, WorkflowTotals()))
        # The next chunk may add to the newest bucket.
        newest = bucket_of(chunk[-1][1])
        yield from [(bucket, buckets.pop(bucket)) for bucket in sorted(buckets) if bucket < newest]
    yield from sorted(buckets.items())
