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

import calendar
import functools
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

import msgspec
from sqlalchemy import Connection, Table, and_, bindparam, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from tachograph.analysis import critical_path
from tachograph.events import NS
from tachograph.exporter.store.schema import (
    FIRST_TERMINAL_RANK,
    FIRST_TERMINAL_STEP_RANK,
    rollup_heads,
    store_state,
    workflow_executions,
    workflow_rollups,
    workflow_step_executions,
    workflow_step_reports,
)
from tachograph.exporter.store.steps import steps_of
from tachograph.exporter.store.tally import ExecutionItem, Pack, ReportItem, StepItem

FINE: Final = 300
HOUR: Final = 3_600
DAY: Final = 86_400
FINE_DAYS: Final = 7
"""How many days before the head's day keep their five-minute rows."""
ALL: Final = "all"
WATERMARK: Final = "archived_before_s"
"""Name in ``store_state``: what ended before this (unix seconds, a whole day) may be gone from the tables."""

_CHUNK: Final = 400
_LOCK: Final = 0x7461_6368
_executions = workflow_executions.c
_steps = workflow_step_executions.c
_rollups = workflow_rollups.c
_heads = rollup_heads.c

Key = tuple[str, str]
"""(workspace id, workflow id)"""


# --- times ----------------------------------------------------------------------------------------------------------


def floor(moment_s: int, unit: int) -> int:
    """The start of the five minutes, hour or day a moment is in."""
    return moment_s - moment_s % unit


def month_of(moment_s: int) -> int:
    """The start of the calendar month (UTC) a moment is in."""
    moment = datetime.fromtimestamp(moment_s, UTC)
    return calendar.timegm((moment.year, moment.month, 1, 0, 0, 0))


def next_month(month_s: int) -> int:
    """The start of the month after."""
    return month_of(month_s + 32 * DAY)


def fine_from(head_s: int) -> int:
    """Since when there are five-minute rows, by the head."""
    return floor(head_s, DAY) - FINE_DAYS * DAY


# --- executions as what is added up ---------------------------------------------------------------------------------


class Ended(NamedTuple):
    """One execution that ended, as it is counted."""

    key: Key
    execution: ExecutionItem
    steps: dict[str, tuple[StepItem, bool]]
    reports: dict[tuple[str, int], ReportItem]

    @property
    def bucket(self) -> int:
        """The five minutes it ended in."""
        return _bucket(self.execution.finished_ns)

    def add_to(self, pack: Pack) -> None:
        """Count it."""
        pack.add_execution(self.execution)
        for step in self.steps.values():
            pack.add_step(*step, self.execution.status)
        for report in self.reports.values():
            pack.add_report(report)


_ENDED_EXECUTIONS: Final = select(
    _executions.execution_id, _executions.workspace_id, _executions.workflow_id, _executions.status,
    _executions.started_ns, _executions.finished_ns, _executions.queued_ns, _executions.work_ns,
    _executions.critical_path_ns, _executions.critical_path,
).where(
    _executions.rank >= FIRST_TERMINAL_RANK, _executions.execution_id.in_(bindparam("ids", expanding=True))
)  # fmt: skip
_STEPS_OF: Final = select(
    _steps.execution_id, _steps.step_id, _steps.name, _steps.status, _steps.started_ns, _steps.finished_ns,
    _steps.attempt, _steps.dependency_ns, _steps.queue_ns, _steps.backoff_ns, _steps.run_ns,
).where(
    _steps.rank >= FIRST_TERMINAL_STEP_RANK, _steps.execution_id.in_(bindparam("ids", expanding=True))
)  # fmt: skip
_STEPS_IN_ONE: Final = (
    select(
        _steps.execution_id,
        func.json_group_array(
            func.json_array(
                _steps.step_id, _steps.name, _steps.status, _steps.started_ns, _steps.finished_ns, _steps.attempt,
                _steps.dependency_ns, _steps.queue_ns, _steps.backoff_ns, _steps.run_ns,
            )
        ),
    )
    .where(_steps.rank >= FIRST_TERMINAL_STEP_RANK, _steps.execution_id.in_(bindparam("ids", expanding=True)))
    .group_by(_steps.execution_id)
)  # fmt: skip
_REPORTS_OF: Final = select(
    workflow_step_reports.c.execution_id,
    workflow_step_reports.c.step_id,
    workflow_step_reports.c.sequence,
    workflow_step_reports.c.kind,
    workflow_step_reports.c.name,
    workflow_step_reports.c.unit,
    workflow_step_reports.c.value,
    workflow_step_reports.c.tokens_in,
    workflow_step_reports.c.tokens_out,
    workflow_step_executions.c.name.label("step"),
    workflow_step_executions.c.status,
).join(
    workflow_step_executions,
    and_(
        _steps.execution_id == workflow_step_reports.c.execution_id,
        _steps.step_id == workflow_step_reports.c.step_id,
    ),
).where(
    workflow_step_reports.c.execution_id.in_(bindparam("ids", expanding=True)), workflow_step_reports.c.kind != "log"
)  # fmt: skip


_decode_ids: Final = msgspec.json.Decoder(list[str]).decode
_decode_steps: Final = msgspec.json.Decoder(list[tuple[Any, ...]]).decode


class _Found(NamedTuple):
    key: Key
    execution: ExecutionItem
    on_path: frozenset[str]


def _executions_of(connection: Connection, ids: Sequence[str]) -> dict[str, _Found]:
    found = {}
    for row in connection.execute(_ENDED_EXECUTIONS, {"ids": ids}):
        execution_id, workspace, workflow, status, started, finished, queued, work, critical, path = row
        if path is not None:
            on_path = frozenset(_decode_ids(path))
        else:
            # Recorded before executions told their path.
            on_path = frozenset(step.step_id for step in critical_path(steps_of(connection, execution_id)))
        begun = started if started is not None else finished
        waited = max(0, begun - queued) if queued is not None else 0
        item = ExecutionItem(status, begun, finished, waited, work or 0, critical or 0)
        found[execution_id] = _Found((workspace, workflow), item, on_path)
    return found


def _steps_of(connection: Connection, found: Mapping[str, _Found]) -> Iterator[tuple[Any, ...]]:
    """(execution id, step id, and the fields of a `StepItem`) of each step that ended."""
    if found and connection.dialect.name == "sqlite":
        # In one row: the driver gives up the interpreter for every row, and a busy workflow does not give it back soon.
        for execution_id, steps in connection.execute(_STEPS_IN_ONE, {"ids": list(found)}):
            for step in _decode_steps(steps):
                yield (execution_id, *step)
    elif found:
        result = connection.execute(_STEPS_OF, {"ids": list(found)})
        # The driver's own tuples, one at a time: a run of ten thousand steps must not wake the garbage collector.
        yield from cast(Any, result.cursor)
        result.close()


def _reports_of(connection: Connection, found: Mapping[str, _Found]) -> Iterator[tuple[str, str, int, ReportItem]]:
    """(execution id, step id, sequence, item) of each report that is counted."""
    if not found:
        return
    for row in connection.execute(_REPORTS_OF, {"ids": list(found)}):
        status = found[row[0]].execution.status
        item = ReportItem(row[9], row[10], status, *row[3:9])
        yield row[0], row[1], row[2], item


def ended(connection: Connection, ids: Iterable[str]) -> dict[str, Ended]:
    """Those of the executions that have ended, by id, with all that is counted of them."""
    known: dict[str, Ended] = {}
    for chunk in _chunks(ids):
        found = _executions_of(connection, chunk)
        known |= {execution_id: Ended(one.key, one.execution, {}, {}) for execution_id, one in found.items()}
        for row in _steps_of(connection, found):
            known[row[0]].steps[row[1]] = (StepItem(*row[2:]), row[1] in found[row[0]].on_path)
        for execution_id, step_id, sequence, report in _reports_of(connection, found):
            known[execution_id].reports[step_id, sequence] = report
    return known


def count(connection: Connection, ids: Iterable[str], packs: Callable[[Key, int], Pack]) -> None:
    """Add those of the executions that have ended to the packs of their five minutes (unix seconds)."""
    for chunk in _chunks(ids):
        found = _executions_of(connection, chunk)
        own = {}
        for execution_id, one in found.items():
            pack = packs(one.key, _bucket(one.execution.finished_ns))
            pack.add_execution(one.execution)
            own[execution_id] = (pack, one.execution.status, one.on_path)
        for row in _steps_of(connection, found):
            pack, status, on_path = own[row[0]]
            pack.add_step(row[2:], row[1] in on_path, status)
        for execution_id, _, _, report in _reports_of(connection, found):
            own[execution_id][0].add_report(report)


def _bucket(moment_ns: int) -> int:
    return floor(moment_ns // NS, FINE)


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    wanted = list(ids)
    for i in range(0, len(wanted), _CHUNK):
        yield wanted[i : i + _CHUNK]


# --- writing --------------------------------------------------------------------------------------------------------


def lock(connection: Connection) -> None:
    """One writer at a time, across processes; until the transaction ends. SQLite has its own such lock."""
    if connection.dialect.name == "postgresql":
        # Tables that grow fast are estimated by what they were; what a writer looks up it finds by their keys.
        no_scan = "set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true)"
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK}), {no_scan}")


def fold(connection: Connection, before: Mapping[str, Ended], ids: Iterable[str]) -> None:
    """Bring the rollups up to date with executions whose rows were written.

    ``before``: those among them that had ended already, as they were. What was added is added. Where something that
    was counted has changed (a run given up as lost that ended after all), the rows it is in are made anew from the
    executions.
    """
    added: dict[Key, dict[int, Pack]] = defaultdict(lambda: defaultdict(Pack))
    stale: dict[Key, set[int]] = defaultdict(set)
    count(connection, [one for one in ids if one not in before], lambda key, bucket: added[key][bucket])
    after = ended(connection, before) if before else {}
    for execution_id, old in before.items():
        now = after.get(execution_id)
        if now is None:
            stale[old.key].add(old.bucket)
            continue
        if old == now:
            continue
        if old.execution == now.execution and _is_part(old.steps, now.steps) and _is_part(old.reports, now.reports):
            pack = added[now.key][now.bucket]
            for step_id, step in now.steps.items():
                if step_id not in old.steps:
                    pack.add_step(*step, now.execution.status)
            for name, report in now.reports.items():
                if name not in old.reports:
                    pack.add_report(report)
        else:
            stale[old.key].add(old.bucket)
            if (now.key, now.bucket) != (old.key, old.bucket):
                now.add_to(added[now.key][now.bucket])
    for key in added.keys() | stale.keys():
        book = Book(connection, key)
        for bucket, pack in sorted(added.get(key, {}).items()):
            book.add(bucket, pack)
        if key in stale:
            book.correct(stale[key])
        book.close()


def _is_part(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> bool:
    return all(new.get(key) == value for key, value in old.items())


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


class Book:
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

    def add(self, bucket: int, pack: Pack) -> None:
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
                self._put("5m", bucket, _exactly(self._connection, key, bucket * NS, (bucket + FINE) * NS))
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
                else _exactly(self._connection, key, hour * NS, (hour + HOUR) * NS)
            )
            self._put("1h", hour, whole)
        days = {day for day in days if day < floor(head, DAY)}
        for day in days:
            self._put("1d", day, self._sum("1h", day, day + DAY))
        for month in {month_of(day) for day in days}:
            self._put("1mo", month, self._sum("1d", month, next_month(month)))
        if days:
            self._put(ALL, 0, self._sum("1mo", 0, _END_OF_TIME))

    def _sum(self, kind: str, low: int, high: int) -> Pack | None:
        total: Pack | None = None
        for row in self._connection.execute(_SELECT_RANGE, {**self._key, "kind": kind, "low": low, "high": high}):
            pack = Pack.decoded(row[1], row[2])
            if total is None:
                total = pack
            else:
                total.add(pack)
        return total

    def _add(self, kind: str, start: int, pack: Pack) -> None:
        row = self._connection.execute(_SELECT_ROW, {**self._key, "kind": kind, "start": start}).first()
        self._write(kind, start, pack.encoded() if row is None else pack.added_to(row[0], row[1]))

    def _put(self, kind: str, start: int, pack: Pack | None) -> None:
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


# --- the executions themselves --------------------------------------------------------------------------------------


def _ids_between(connection: Connection, key: Key, low_ns: int, high_ns: int) -> list[str]:
    statement = select(_executions.execution_id).where(
        _executions.workspace_id == key[0],
        _executions.workflow_id == key[1],
        _executions.finished_ns >= low_ns,
        _executions.finished_ns < high_ns,
        _executions.rank >= FIRST_TERMINAL_RANK,
    )
    return list(connection.execute(statement).scalars())


def _exactly(connection: Connection, key: Key, low_ns: int, high_ns: int) -> Pack | None:
    """What ended in a range, from the executions' own rows."""
    ids = _ids_between(connection, key, low_ns, high_ns)
    if not ids:
        return None
    pack = Pack()
    count(connection, ids, lambda _key, _bucket: pack)
    return pack


# --- making them anew -----------------------------------------------------------------------------------------------


def watermark_of(connection: Connection) -> int:
    """Before when (unix seconds) executions may be gone from the tables; 0: never."""
    found = connection.execute(select(store_state.c.value).where(store_state.c.name == WATERMARK)).scalar()
    return int(found) if found is not None else 0


def workflows_with_executions(connection: Connection) -> list[Key]:
    """Every (workspace, workflow) that has executions or rollups."""
    keys = {
        tuple(row) for row in connection.execute(select(_executions.workspace_id, _executions.workflow_id).distinct())
    }
    keys |= {tuple(row) for row in connection.execute(select(_rollups.workspace_id, _rollups.workflow_id).distinct())}
    return sorted(cast("set[Key]", keys))


def rebuilt(connection: Connection, key: Key) -> dict[tuple[str, int], tuple[bytes, bytes]]:
    """A workflow's rollup rows as its executions give them, by (period, start).

    Where executions may be gone (archived), the rows of those days are taken as they are.
    """
    watermark = watermark_of(connection)
    rows: dict[tuple[str, int], tuple[bytes, bytes]] = {}
    days: dict[int, Pack] = {}
    fine: dict[int, tuple[bytes, bytes]] = {}
    hours: dict[int, tuple[bytes, bytes]] = {}
    named = {"workspace": key[0], "workflow": key[1], "low": 0, "high": watermark}
    if watermark:
        for kind, kept in (("5m", fine), ("1h", hours)):
            for row in connection.execute(_SELECT_RANGE, {**named, "kind": kind}):
                kept[row[0]] = (row[1], row[2])
        for row in connection.execute(_SELECT_RANGE, {**named, "kind": "1d"}):
            days[row[0]] = Pack.decoded(row[1], row[2])
    hour, hour_pack, head = 0, Pack(), max(fine, default=None)
    for bucket, pack in _by_bucket(connection, key, watermark):
        if head is not None and floor(bucket, HOUR) > hour and hour_pack.executions:
            hours[hour] = hour_pack.encoded()
            hour_pack = Pack()
        hour, head = floor(bucket, HOUR), bucket
        fine[bucket] = pack.encoded()
        hour_pack.add(pack)
        days.setdefault(floor(bucket, DAY), Pack()).add(pack)
    if head is None:
        return {}
    if hour_pack.executions:
        hours[hour] = hour_pack.encoded()
    rows |= {("5m", start): blobs for start, blobs in fine.items() if start >= fine_from(head)}
    rows |= {("1h", start): blobs for start, blobs in hours.items() if start < floor(head, HOUR)}
    months: dict[int, Pack] = {}
    total = Pack()
    for day, pack in sorted(days.items()):
        if day < floor(head, DAY):
            rows["1d", day] = pack.encoded()
            months.setdefault(month_of(day), Pack()).add(pack)
            total.add(pack)
    rows |= {("1mo", month): pack.encoded() for month, pack in months.items()}
    if months:
        rows[ALL, 0] = total.encoded()
    return rows


def _by_bucket(connection: Connection, key: Key, watermark_s: int) -> Iterator[tuple[int, Pack]]:
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
    packs: dict[int, Pack] = {}
    for i in range(0, len(pending), _CHUNK):
        chunk = pending[i : i + _CHUNK]
        count(connection, [row[0] for row in chunk], lambda _, bucket: packs.setdefault(bucket, Pack()))
        # More of the newest may follow in the next chunk.
        newest = _bucket(chunk[-1][1])
        yield from [(bucket, packs.pop(bucket)) for bucket in sorted(packs) if bucket < newest]
    yield from sorted(packs.items())


def stored(connection: Connection, key: Key) -> dict[tuple[str, int], tuple[bytes, bytes]]:
    """A workflow's rollup rows as they are, by (period, start)."""
    statement = select(_rollups.period, _rollups.start_s, _rollups.executions, _rollups.steps).where(
        _rollups.workspace_id == key[0], _rollups.workflow_id == key[1]
    )
    return {(row[0], row[1]): (row[2], row[3]) for row in connection.execute(statement)}


def rebuild_one(connection: Connection, key: Key, *, write: bool = True) -> int:
    """Make a workflow's rollups anew; how many rows were not as they should be."""
    lock(connection)
    wanted, there = rebuilt(connection, key), stored(connection, key)
    wrong = sum(1 for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if write and (wrong or (head_of(connection, key) is None) is not (not wanted)):
        book = Book(connection, key)
        book.replace(wanted)
        book.close()
    return wrong


def rebuild_all(connection: Connection) -> None:
    """Make every workflow's rollups anew, in the transaction of ``connection``."""
    for key in workflows_with_executions(connection):
        rebuild_one(connection, key)


# --- reading --------------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Rows of one kind that start in a range of unix seconds."""

    kind: str
    low_s: int
    high_s: int


class Cover(NamedTuple):
    """How a range of time is put together: rollup rows, and executions' own rows in ranges of unix nanoseconds."""

    pieces: tuple[Piece, ...]
    edges: tuple[tuple[int, int], ...]


def cover(head: int | None, from_ns: int | None, to_ns: int | None, *, coarsest: str = ALL) -> Cover:
    """The fewest rows that make up a range, given the head. ``coarsest``: no larger unit than this one.

    Between its edges a range is made of whole units; `cover` is exact for any range, since what is left over at the
    edges is read from the executions.
    """
    if head is None:
        return Cover((), ())
    end = head + FINE
    fine, hour, day = fine_from(head), floor(head, HOUR), floor(head, DAY)
    edges: list[tuple[int, int]] = []
    low = 0
    if from_ns is not None and from_ns > 0:
        low = -(-from_ns // (FINE * NS)) * FINE
        if low < fine:
            low = -(-from_ns // (HOUR * NS)) * HOUR
    high = end
    if to_ns is not None and to_ns < end * NS:
        high = floor(max(0, to_ns // NS), FINE)
        if high < fine:
            high = floor(high, HOUR)
    if from_ns is not None and low > high:
        # Not even one whole unit.
        last = min(to_ns, end * NS) if to_ns is not None else end * NS
        return Cover((), ((from_ns, last),) if from_ns < last else ())
    if from_ns is not None and from_ns < low * NS:
        edges.append((from_ns, low * NS))
    if to_ns is not None and high * NS < to_ns and high < end:
        edges.append((high * NS, to_ns))
    allowed = _KINDS[_KINDS.index(coarsest) :]
    closed = {ALL: day, "1mo": day, "1d": day, "1h": hour, "5m": end}
    pieces: list[Piece] = []
    at = low
    if not low:
        # From the beginning, whenever that was: rows of the largest kind, as far as they go.
        for kind in allowed:
            stop = month_of(high) if kind == "1mo" and high < day else min(high, closed[kind])
            if kind == ALL and high < day:
                continue
            if kind in _SECONDS:
                stop = floor(stop, _SECONDS[kind])
            pieces.append(Piece(kind, 0, stop))
            at = stop
            break
    while at < high:
        kind, stop = _next_piece(at, high, allowed, closed)
        if pieces and pieces[-1].kind == kind and pieces[-1].high_s == at:
            pieces[-1] = Piece(kind, pieces[-1].low_s, stop)
        else:
            pieces.append(Piece(kind, at, stop))
        at = stop
    return Cover(tuple(piece for piece in pieces if piece.low_s < piece.high_s), tuple(edges))


_KINDS: Final = (ALL, "1mo", "1d", "1h", "5m")
_SECONDS: Final = {"1d": DAY, "1h": HOUR, "5m": FINE}


def _next_piece(at: int, high: int, allowed: Sequence[str], closed: Mapping[str, int]) -> tuple[str, int]:
    """The largest kind of row that starts at ``at`` and ends by ``high``, and how far rows of that kind go on."""
    if "1mo" in allowed and at == month_of(at) and at < closed["1mo"]:
        stop = min(next_month(at), closed["1mo"])
        if stop <= high:
            return "1mo", stop
    larger = next_month(month_of(at)) if "1mo" in allowed else high
    for kind, unit in _SECONDS.items():
        if kind not in allowed:
            continue
        until = floor(min(high, closed[kind]), unit)
        if at % unit == 0 and at + unit <= until:
            return kind, min(until, larger)
        larger = min(larger, floor(at, unit) + unit)
    raise AssertionError(f"{at} is not between whole units")  # pragma: no cover


def _rows(connection: Connection, key: Key, pieces: Sequence[Piece], *columns: Any) -> Sequence[Any]:
    if not pieces:
        return ()
    wanted = or_(
        *(and_(_rollups.period == p.kind, _rollups.start_s >= p.low_s, _rollups.start_s < p.high_s) for p in pieces)
    )
    statement = select(*columns).where(_rollups.workspace_id == key[0], _rollups.workflow_id == key[1], wanted)
    return cast("Sequence[Any]", connection.execute(statement).all())


class Kept:
    """Sums of rollup rows that were read before, for as long as nothing in them has changed.

    A dashboard asks for the same weeks again and again; only the newest hour of them is new each time.
    """

    LIMIT: Final = 500

    def __init__(self) -> None:
        self._sums: OrderedDict[tuple[Key, Piece], tuple[int, Pack]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, piece: Piece, closed: int) -> Pack | None:
        """The sum of a piece, if it was kept at this revision. It must not be changed."""
        with self._lock:
            found = self._sums.get((key, piece))
            if found is None or found[0] != closed:
                return None
            self._sums.move_to_end((key, piece))
            return found[1]

    def put(self, key: Key, piece: Piece, closed: int, pack: Pack) -> None:
        """Keep the sum of a piece."""
        with self._lock:
            self._sums[key, piece] = (closed, pack)
            while len(self._sums) > self.LIMIT:
                self._sums.popitem(last=False)


def read(
    connection: Connection, key: Key, from_ns: int | None = None, to_ns: int | None = None, *, steps: bool = True
) -> Pack:
    """Everything of a workflow that ended in a range (unix nanoseconds, the end exclusive)."""
    return read_from(connection, key, head_of(connection, key), from_ns, to_ns, steps=steps)


def read_from(
    connection: Connection,
    key: Key,
    head: Head | None,
    from_ns: int | None,
    to_ns: int | None,
    *,
    steps: bool = True,
    kept: Kept | None = None,
) -> Pack:
    """`read`, by who knows the head already, and may keep sums for the next time."""
    found = cover(head.start_s if head is not None else None, from_ns, to_ns)
    total = Pack()
    missing: list[Piece] = []
    for piece in found.pieces:
        known = kept.get(key, piece, head.closed) if kept is not None and head is not None and steps else None
        if known is not None:
            total.add(known)
        else:
            missing.append(piece)
    columns = (_rollups.period, _rollups.start_s, _rollups.executions, *((_rollups.steps,) if steps else ()))
    sums: dict[Piece, Pack] = {piece: Pack() for piece in missing}
    for kind, start, executions, *rest in _rows(connection, key, missing, *columns):
        pack = Pack.decoded(executions, rest[0] if rest else None)
        piece = next(one for one in missing if one.kind == kind and one.low_s <= start < one.high_s)
        sums[piece].add(pack)
    for piece, pack in sums.items():
        total.add(pack)
        if kept is not None and head is not None and steps and piece.kind != "5m":
            kept.put(key, piece, head.closed, pack)
    for low, high in found.edges:
        exact = _exactly(connection, key, low, high)
        if exact is not None:
            total.add(exact)
    return total


def series(
    connection: Connection,
    key: Key,
    low_s: int,
    high_s: int,
    unit: int,
) -> dict[int, Pack]:
    """What ended in each ``unit`` (five minutes, an hour, a day) of a range of whole units, by its start."""
    head = head_of(connection, key)
    coarsest = {FINE: "5m", HOUR: "1h", DAY: "1d"}[unit]
    found = cover(head.start_s if head is not None else None, low_s * NS, high_s * NS, coarsest=coarsest)
    buckets: dict[int, Pack] = {}
    for start, executions, steps in _rows(
        connection, key, found.pieces, _rollups.start_s, _rollups.executions, _rollups.steps
    ):
        pack, bucket = Pack.decoded(executions, steps), floor(start, unit)
        if bucket in buckets:
            buckets[bucket].add(pack)
        else:
            buckets[bucket] = pack
    return buckets


def totals(connection: Connection, workspace: str) -> dict[str, Pack]:
    """All that ever ended in a workspace, by workflow id; executions only."""
    heads = connection.execute(select(_heads.workflow_id, _heads.head_s).where(_heads.workspace_id == workspace)).all()
    found: dict[str, Pack] = {}
    wanted = [
        and_(
            _rollups.workflow_id == workflow,
            or_(*(and_(_rollups.period == p.kind, _rollups.start_s >= p.low_s, _rollups.start_s < p.high_s)
                  for p in cover(head, None, None).pieces)),
        )
        for workflow, head in heads
    ]  # fmt: skip
    for i in range(0, len(wanted), 50):
        statement = select(_rollups.workflow_id, _rollups.executions).where(
            _rollups.workspace_id == workspace, or_(*wanted[i : i + 50])
        )
        for workflow, executions in connection.execute(statement):
            found.setdefault(workflow, Pack()).add(Pack.decoded(executions, None))
    return found


def set_watermark(connection: Connection, moment_s: int) -> None:
    """Note that executions that ended before a moment (a whole day) may be gone."""
    set_state(connection, WATERMARK, str(max(moment_s, watermark_of(connection))))


def set_state(connection: Connection, name: str, value: str) -> None:
    """Keep a value under a name."""
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(store_state)
    values = {"name": name, "value": value, "updated_ns": time.time_ns()}
    changed = {key: insert.excluded[key] for key in ("value", "updated_ns")}
    connection.execute(insert.values(values).on_conflict_do_update(index_elements=["name"], set_=changed))
