"""The rollup rows of one workflow: reading and writing them, and moving the head."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, select

from tachograph.clock import NS
from tachograph_exporter.store.inserting import upsert
from tachograph_exporter.store.rollups.counting import Key, count_exactly
from tachograph_exporter.store.rollups.expected import ROWS_BETWEEN, expected_rows
from tachograph_exporter.store.rollups.periods import (
    ALL,
    DAY,
    FIVE_MINUTES,
    HOUR,
    first_five_minutes,
    floor,
    month_of,
    next_month,
)
from tachograph_exporter.store.schema import (
    rollup_heads,
    workflow_rollups,
)
from tachograph_exporter.store.state import watermark_of
from tachograph_exporter.store.totals import WorkflowTotals

_rollups = workflow_rollups.c
_heads = rollup_heads.c


_SELECT_ROW: Final = select(_rollups.executions, _rollups.steps).where(
    _rollups.workspace_id == bindparam("workspace"),
    _rollups.workflow_id == bindparam("workflow"),
    _rollups.period == bindparam("period"),
    _rollups.start_s == bindparam("start"),
)
_SELECT_NEWEST: Final = select(func.max(_rollups.start_s)).where(
    _rollups.workspace_id == bindparam("workspace"),
    _rollups.workflow_id == bindparam("workflow"),
    _rollups.period == "5m",
)
_SELECT_HEAD: Final = select(_heads.head_s, _heads.revision, _heads.closed_revision).where(
    _heads.workspace_id == bindparam("workspace"), _heads.workflow_id == bindparam("workflow")
)
_END_OF_TIME: Final = 1 << 60


class Head(NamedTuple):
    """The newest five minutes (unix seconds) in which an execution of a workflow ended, and its rows' revision.

    ``revision`` grows when any row changes, ``closed`` when a row other than a five-minute one does.
    """

    start_s: int
    revision: int
    closed: int


def head_of(connection: Connection, key: Key) -> Head | None:
    """A workflow's head, or None when nothing has ended."""
    row = connection.execute(_SELECT_HEAD, {"workspace": key[0], "workflow": key[1]}).first()
    return Head(*row) if row is not None else None


class RollupRows:
    """One workflow's rollup rows, open for writing."""

    def __init__(self, connection: Connection, key: Key) -> None:
        self._connection = connection
        self._key = {"workspace": key[0], "workflow": key[1]}
        self._ids = {"workspace_id": key[0], "workflow_id": key[1]}
        head = head_of(connection, key)
        self.head = head.start_s if head is not None else None
        # A new head starts at a number that no earlier head of the workflow has reached: caches compare revisions, and
        # a workflow may be deleted and recorded again.
        self._revision, self._closed = (head.revision, head.closed) if head is not None else (time.time_ns(),) * 2

    def close(self) -> None:
        """Store the head and its new revision."""
        if self.head is None:
            return
        values = {**self._ids, "head_s": self.head, "revision": self._revision + 1, "closed_revision": self._closed}
        self._connection.execute(upsert(self._connection.dialect, rollup_heads), values)

    def add(self, bucket: int, totals: WorkflowTotals) -> None:
        """Add the totals of one five minutes."""
        if self.head is None:
            self.head = bucket
        elif bucket > self.head:
            self._advance(bucket)
        if bucket >= first_five_minutes(self.head):
            self._add("5m", bucket, totals)
        if floor(bucket, HOUR) < floor(self.head, HOUR):
            self._add("1h", floor(bucket, HOUR), totals)
        if floor(bucket, DAY) < floor(self.head, DAY):
            self._add("1d", floor(bucket, DAY), totals)
            self._add("1mo", month_of(bucket), totals)
            self._add(ALL, 0, totals)

    def _advance(self, head: int) -> None:
        """Move the head: add up the periods it leaves, and delete five-minute rows that are too old."""
        assert self.head is not None  # noqa: S101
        hour, day = floor(self.head, HOUR), floor(self.head, DAY)
        if floor(head, HOUR) > hour:
            self._replace("1h", hour, self._sum("5m", hour, hour + HOUR))
        if floor(head, DAY) > day:
            whole = self._sum("1h", day, day + DAY)
            self._replace("1d", day, whole)
            if whole is not None:
                self._add("1mo", month_of(day), whole)
                self._add(ALL, 0, whole)
            self._delete("5m", 0, first_five_minutes(head))
        self.head = head

    def recount(self, buckets: Iterable[int]) -> None:
        """Count the rows that hold these five minutes again, from the executions."""
        assert self.head is not None  # noqa: S101
        head, key = self.head, (self._key["workspace"], self._key["workflow"])
        watermark = watermark_of(self._connection)
        hours, days = set[int](), set[int]()
        for bucket in buckets:
            if bucket < watermark:
                continue  # Its executions may be archived: the rows keep what was counted.
            if bucket >= first_five_minutes(head):
                self._replace(
                    "5m", bucket, count_exactly(self._connection, key, bucket * NS, (bucket + FIVE_MINUTES) * NS)
                )
            hours.add(floor(bucket, HOUR))
            days.add(floor(bucket, DAY))
        if self._connection.execute(_SELECT_NEWEST, self._key).scalar() != head:
            # The newest five minutes are empty now, so longer periods may have rows that they should not have.
            self.replace(expected_rows(self._connection, key))
            return
        for hour in hours:
            if hour >= floor(head, HOUR):
                continue
            whole = (
                self._sum("5m", hour, hour + HOUR)
                if hour >= first_five_minutes(head)
                else count_exactly(self._connection, key, hour * NS, (hour + HOUR) * NS)
            )
            self._replace("1h", hour, whole)
        days = {day for day in days if day < floor(head, DAY)}
        for day in days:
            self._replace("1d", day, self._sum("1h", day, day + DAY))
        for month in {month_of(day) for day in days}:
            self._replace("1mo", month, self._sum("1d", month, next_month(month)))
        if days:
            self._replace(ALL, 0, self._sum("1mo", 0, _END_OF_TIME))

    def _sum(self, period: str, low: int, high: int) -> WorkflowTotals | None:
        total: WorkflowTotals | None = None
        for row in self._connection.execute(ROWS_BETWEEN, {**self._key, "period": period, "low": low, "high": high}):
            totals = WorkflowTotals.decode(row[1], row[2])
            if total is None:
                total = totals
            else:
                total.add(totals)
        return total

    def _add(self, period: str, start: int, totals: WorkflowTotals) -> None:
        row = self._connection.execute(_SELECT_ROW, {**self._key, "period": period, "start": start}).first()
        self._write(period, start, totals.encode() if row is None else totals.add_to_encoded(row[0], row[1]))

    def _replace(self, period: str, start: int, totals: WorkflowTotals | None) -> None:
        if totals is None:
            self._delete(period, start, start + 1)
        else:
            self._write(period, start, totals.encode())

    def _write(self, period: str, start: int, encoded: tuple[bytes, bytes]) -> None:
        if period != "5m":
            self._closed += 1
        values = {**self._ids, "period": period, "start_s": start, "executions": encoded[0], "steps": encoded[1]}
        self._connection.execute(upsert(self._connection.dialect, workflow_rollups), values)

    def _delete(self, period: str, low: int, high: int) -> None:
        if period != "5m":
            self._closed += 1
        self._connection.execute(
            delete(workflow_rollups).where(
                _rollups.workspace_id == self._ids["workspace_id"],
                _rollups.workflow_id == self._ids["workflow_id"],
                _rollups.period == period,
                _rollups.start_s >= low,
                _rollups.start_s < high,
            )
        )

    def replace(self, rows: Mapping[tuple[str, int], tuple[bytes, bytes]]) -> None:
        """Replace all of the workflow's rows by these, by (period, start)."""
        self._connection.execute(
            delete(workflow_rollups).where(
                _rollups.workspace_id == self._ids["workspace_id"], _rollups.workflow_id == self._ids["workflow_id"]
            )
        )
        values = [
            {**self._ids, "period": period, "start_s": start, "executions": encoded[0], "steps": encoded[1]}
            for (period, start), encoded in rows.items()
        ]
        self._closed += 1
        self.head = max((start for period, start in rows if period == "5m"), default=None)
        if values:
            self._connection.execute(upsert(self._connection.dialect, workflow_rollups), values)
        else:
            forget(self._connection, (self._key["workspace"], self._key["workflow"]))


def forget(connection: Connection, key: Key) -> None:
    """Delete a workflow's rollup rows and its head."""
    for table in (workflow_rollups, rollup_heads):
        is_of_workflow = (table.c.workspace_id == key[0]) & (table.c.workflow_id == key[1])
        connection.execute(delete(table).where(is_of_workflow))
