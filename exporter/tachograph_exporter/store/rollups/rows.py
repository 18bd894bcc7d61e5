"""Rollups: what executions add up to, kept as they end, so that no question about them costs their number.

A row of ``workflow_rollups`` is a `Pack` of everything of one workflow that *ended* in one stretch of time: five
minutes (``5m``), an hour (``1h``), a day (``1d``), a calendar month (``1mo``), or all time (``all``), in UTC. An
execution is counted as a whole, with its steps, in the transaction in which it ends. That touches one row: of the
newest five minutes, the *head*. When the head moves on, what it leaves is added up into the row above:

- an hour's row is there once a later hour has begun; a day's once a later day has;
- a month's row and the ``all`` row hold the days that have a row;
- five-minute rows are kept for `FINE_DAYS` days before the head's.

What ends late goes into all rows that its time already has. So which rows there are, and what is in them, depends on
the executions alone, not on the order in which they were told: `rebuilt` makes the same rows, to the byte.

Any range of time is then a few rows of each kind, and the executions themselves at its two ragged edges (`read`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Table, bindparam, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from tachograph.clock import NS
from tachograph_exporter.store.merging import FIRST_TERMINAL_RANK
from tachograph_exporter.store.rollups.counting import CHUNK, Key, count, count_exactly
from tachograph_exporter.store.rollups.periods import (
    ALL,
    DAY,
    FINE,
    HOUR,
    bucket_of,
    fine_from,
    floor,
    month_of,
    next_month,
)
from tachograph_exporter.store.schema import (
    rollup_heads,
    workflow_executions,
    workflow_rollups,
)
from tachograph_exporter.store.state import watermark_of
from tachograph_exporter.store.totals import WorkflowTotals

_executions = workflow_executions.c
_rollups = workflow_rollups.c
_heads = rollup_heads.c


_SELECT_ROW: Final = select(_rollups.executions, _rollups.steps).where(
    _rollups.workspace_id == bindparam("workspace"),
    _rollups.workflow_id == bindparam("workflow"),
    _rollups.period == bindparam("kind"),
    _rollups.start_s == bindparam("start"),
)
_SELECT_RANGE: Final = (
    select(_rollups.start_s, _rollups.executions, _rollups.steps)
    .where(
        _rollups.workspace_id == bindparam("workspace"),
        _rollups.workflow_id == bindparam("workflow"),
        _rollups.period == bindparam("kind"),
        _rollups.start_s >= bindparam("low"),
        _rollups.start_s < bindparam("high"),
    )
    .order_by(_rollups.start_s)
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
    """The newest five minutes (unix seconds) in which something of a workflow ended, and how often its rows changed.

    ``closed``: how often rows other than five-minute ones did.
    """

    start_s: int
    revision: int
    closed: int


def head_of(connection: Connection, key: Key) -> Head | None:
    """A workflow's head, or None when nothing has ended."""
    found = connection.execute(_SELECT_HEAD, {"workspace": key[0], "workflow": key[1]}).first()
    return Head(*found) if found is not None else None


class RollupRows:
    """One workflow's rollup rows, open for writing."""

    def __init__(self, connection: Connection, key: Key) -> None:
        self._connection = connection
        self._key = {"workspace": key[0], "workflow": key[1]}
        self._ids = {"workspace_id": key[0], "workflow_id": key[1]}
        head = head_of(connection, key)
        self.head = head.start_s if head is not None else None
        self._revision, self._closed = (head.revision, head.closed) if head is not None else (0, 0)

    def close(self) -> None:
        """Note where the head is now, and that rows changed."""
        if self.head is None:
            return
        values = {**self._ids, "head_s": self.head, "revision": self._revision + 1, "closed_revision": self._closed}
        self._connection.execute(_upsert(self._connection.dialect, rollup_heads), values)

    def add(self, bucket: int, pack: WorkflowTotals) -> None:
        """Add what ended in one five minutes."""
        if self.head is None:
            self.head = bucket
        elif bucket > self.head:
            self._advance(bucket)
        if bucket >= fine_from(self.head):
            self._add("5m", bucket, pack)
        if floor(bucket, HOUR) < floor(self.head, HOUR):
            self._add("1h", floor(bucket, HOUR), pack)
        if floor(bucket, DAY) < floor(self.head, DAY):
            self._add("1d", floor(bucket, DAY), pack)
            self._add("1mo", month_of(bucket), pack)
            self._add(ALL, 0, pack)

    def _advance(self, head: int) -> None:
        """Add up what the head leaves behind, and let go of five minutes grown old."""
        assert self.head is not None  # noqa: S101
        hour, day = floor(self.head, HOUR), floor(self.head, DAY)
        if floor(head, HOUR) > hour:
            self._put("1h", hour, self._sum("5m", hour, hour + HOUR))
        if floor(head, DAY) > day:
            whole = self._sum("1h", day, day + DAY)
            self._put("1d", day, whole)
            if whole is not None:
                self._add("1mo", month_of(day), whole)
                self._add(ALL, 0, whole)
            self._delete("5m", 0, fine_from(head))
        self.head = head

    def correct(self, buckets: Iterable[int]) -> None:
        """Make the rows that hold these five minutes anew."""
        assert self.head is not None  # noqa: S101
        head, key = self.head, (self._key["workspace"], self._key["workflow"])
        watermark = watermark_of(self._connection)
        hours, days = set[int](), set[int]()
        for bucket in buckets:
            if bucket < watermark:
                continue  # Its executions may be gone; what was counted stays.
            if bucket >= fine_from(head):
                self._put("5m", bucket, count_exactly(self._connection, key, bucket * NS, (bucket + FINE) * NS))
            hours.add(floor(bucket, HOUR))
            days.add(floor(bucket, DAY))
        if self._connection.execute(_SELECT_NEWEST, self._key).scalar() != head:
            # The newest five minutes turned out to be empty: rows above may stand that should not.
            self.replace(rebuilt(self._connection, key))
            return
        for hour in hours:
            if hour >= floor(head, HOUR):
                continue
            is_fine = hour >= fine_from(head)
            whole = (
                self._sum("5m", hour, hour + HOUR)
                if is_fine
                else count_exactly(self._connection, key, hour * NS, (hour + HOUR) * NS)
            )
            self._put("1h", hour, whole)
        days = {day for day in days if day < floor(head, DAY)}
        for day in days:
            self._put("1d", day, self._sum("1h", day, day + DAY))
        for month in {month_of(day) for day in days}:
            self._put("1mo", month, self._sum("1d", month, next_month(month)))
        if days:
            self._put(ALL, 0, self._sum("1mo", 0, _END_OF_TIME))

    def _sum(self, kind: str, low: int, high: int) -> WorkflowTotals | None:
        total: WorkflowTotals | None = None
        for row in self._connection.execute(_SELECT_RANGE, {**self._key, "kind": kind, "low": low, "high": high}):
            pack = WorkflowTotals.decoded(row[1], row[2])
            if total is None:
                total = pack
            else:
                total.add(pack)
        return total

    def _add(self, kind: str, start: int, pack: WorkflowTotals) -> None:
        row = self._connection.execute(_SELECT_ROW, {**self._key, "kind": kind, "start": start}).first()
        self._write(kind, start, pack.encoded() if row is None else pack.added_to(row[0], row[1]))

    def _put(self, kind: str, start: int, pack: WorkflowTotals | None) -> None:
        if pack is None:
            self._delete(kind, start, start + 1)
        else:
            self._write(kind, start, pack.encoded())

    def _write(self, kind: str, start: int, blobs: tuple[bytes, bytes]) -> None:
        if kind != "5m":
            self._closed += 1
        values = {**self._ids, "period": kind, "start_s": start, "executions": blobs[0], "steps": blobs[1]}
        self._connection.execute(_upsert(self._connection.dialect, workflow_rollups), values)

    def _delete(self, kind: str, low: int, high: int) -> None:
        if kind != "5m":
            self._closed += 1
        self._connection.execute(
            delete(workflow_rollups).where(
                _rollups.workspace_id == self._ids["workspace_id"],
                _rollups.workflow_id == self._ids["workflow_id"],
                _rollups.period == kind,
                _rollups.start_s >= low,
                _rollups.start_s < high,
            )
        )

    def replace(self, rows: Mapping[tuple[str, int], tuple[bytes, bytes]]) -> None:
        """Make these the workflow's rows, whatever there was."""
        self._connection.execute(
            delete(workflow_rollups).where(
                _rollups.workspace_id == self._ids["workspace_id"], _rollups.workflow_id == self._ids["workflow_id"]
            )
        )
        values = [
            {**self._ids, "period": kind, "start_s": start, "executions": blobs[0], "steps": blobs[1]}
            for (kind, start), blobs in rows.items()
        ]
        self._closed += 1
        self.head = max((start for kind, start in rows if kind == "5m"), default=None)
        if values:
            self._connection.execute(_upsert(self._connection.dialect, workflow_rollups), values)
        else:
            forget(self._connection, (self._key["workspace"], self._key["workflow"]))


@functools.cache
def _upsert_for(name: str, table: Table) -> Any:
    insert = (postgresql if name == "postgresql" else sqlite).insert(table)
    values = [column.name for column in table.columns if not column.primary_key]
    return insert.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={value: insert.excluded[value] for value in values}
    )


def _upsert(dialect: Dialect, table: Table) -> Any:
    return _upsert_for(dialect.name, table)


def forget(connection: Connection, key: Key) -> None:
    """Delete a workflow's rollups."""
    for table in (workflow_rollups, rollup_heads):
        own = (table.c.workspace_id == key[0]) & (table.c.workflow_id == key[1])
        connection.execute(delete(table).where(own))


def rebuilt(connection: Connection, key: Key) -> dict[tuple[str, int], tuple[bytes, bytes]]:
    """A workflow's rollup rows as its executions give them, by (period, start).

    Where executions may be gone (archived), the rows of those days are taken as they are.
    """
    watermark = watermark_of(connection)
    rows: dict[tuple[str, int], tuple[bytes, bytes]] = {}
    days: dict[int, WorkflowTotals] = {}
    fine: dict[int, tuple[bytes, bytes]] = {}
    hours: dict[int, tuple[bytes, bytes]] = {}
    named = {"workspace": key[0], "workflow": key[1], "low": 0, "high": watermark}
    if watermark:
        for kind, kept in (("5m", fine), ("1h", hours)):
            for row in connection.execute(_SELECT_RANGE, {**named, "kind": kind}):
                kept[row[0]] = (row[1], row[2])
        for row in connection.execute(_SELECT_RANGE, {**named, "kind": "1d"}):
            days[row[0]] = WorkflowTotals.decoded(row[1], row[2])
    hour, hour_pack, head = 0, WorkflowTotals(), max(fine, default=None)
    for bucket, pack in _by_bucket(connection, key, watermark):
        if head is not None and floor(bucket, HOUR) > hour and hour_pack.executions:
            hours[hour] = hour_pack.encoded()
            hour_pack = WorkflowTotals()
        hour, head = floor(bucket, HOUR), bucket
        fine[bucket] = pack.encoded()
        hour_pack.add(pack)
        days.setdefault(floor(bucket, DAY), WorkflowTotals()).add(pack)
    if head is None:
        return {}
    if hour_pack.executions:
        hours[hour] = hour_pack.encoded()
    rows |= {("5m", start): blobs for start, blobs in fine.items() if start >= fine_from(head)}
    rows |= {("1h", start): blobs for start, blobs in hours.items() if start < floor(head, HOUR)}
    months: dict[int, WorkflowTotals] = {}
    total = WorkflowTotals()
    for day, pack in sorted(days.items()):
        if day < floor(head, DAY):
            rows["1d", day] = pack.encoded()
            months.setdefault(month_of(day), WorkflowTotals()).add(pack)
            total.add(pack)
    rows |= {("1mo", month): pack.encoded() for month, pack in months.items()}
    if months:
        rows[ALL, 0] = total.encoded()
    return rows


def _by_bucket(connection: Connection, key: Key, watermark_s: int) -> Iterator[tuple[int, WorkflowTotals]]:
    """(start, figures) of every five minutes something ended in, in order."""
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
    pending = connection.execute(statement).all()
    packs: dict[int, WorkflowTotals] = {}
    for i in range(0, len(pending), CHUNK):
        chunk = pending[i : i + CHUNK]
        count(connection, [row[0] for row in chunk], lambda _, bucket: packs.setdefault(bucket, WorkflowTotals()))
        # More of the newest may follow in the next chunk.
        newest = bucket_of(chunk[-1][1])
        yield from [(bucket, packs.pop(bucket)) for bucket in sorted(packs) if bucket < newest]
    yield from sorted(packs.items())
