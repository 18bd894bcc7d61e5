"""The rows of log records: bounded for each span and each trace, and for traces that nobody knows.

A record that arrives again changes nothing. Beyond `MAX_SPAN_RECORDS` the oldest records of a span make room for the
newest, exceptions last. Records of traces without spans and without an execution wait `UNKNOWN_SECONDS` for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Connection,
    Select,
    bindparam,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from tachograph.clock import NS
from tachograph_exporter.store import locking
from tachograph_exporter.store.inserting import insert_many, upsert
from tachograph_exporter.store.keyed import KEYS, keyed
from tachograph_exporter.store.schema import log_traces, span_logs, spans, traces, workflow_executions

MAX_SPAN_RECORDS: Final = 1_000
MAX_TRACE_RECORDS: Final = 50_000
"""Further records of a trace are dropped."""
UNKNOWN_SECONDS: Final = 3_600.0
MAX_UNKNOWN: Final = 10_000
"""Traces of which only log records are known; the oldest ones make room."""
_CHUNK: Final = 500
_MAX_DEPTH: Final = 100

_logs = span_logs.c
_traces = log_traces.c


class LogRow(NamedTuple):
    """A row of ``span_logs``, but for its workspace; see `tachograph_exporter.store.schema`."""

    trace_id: str
    span_id: str
    time_ns: int
    id: str
    severity: int
    service: str
    event_name: str
    body: str
    attributes: str | None
    error_type: str | None
    error_message: str | None
    error_stack: str | None


class Position(NamedTuple):
    """A record's place in the order of a trace's records."""

    time_ns: int
    span_id: str
    id: str


class Error(NamedTuple):
    """An exception that a record told of."""

    event_name: str
    type: str
    message: str
    stack: str


class Kept(NamedTuple):
    """What became of records: how many are new, how many were dropped, and the traces with new exceptions."""

    new: int
    dropped: int
    with_errors: set[str]
    new_traces: int


class LogRows:
    """Writes log records."""

    def __init__(self, dialect: Dialect) -> None:
        insert = (postgresql if dialect.name == "postgresql" else sqlite).insert
        self._put = str(insert(span_logs).on_conflict_do_nothing().compile(dialect=dialect))
        self._dialect = dialect

    def put(self, connection: Connection, workspace_id: str, records: Iterable[LogRow], now_ns: int) -> Kept:
        """Store records."""
        by_trace: dict[str, dict[str, list[LogRow]]] = {}
        for record in records:
            by_trace.setdefault(record.trace_id, {}).setdefault(record.span_id, []).append(record)
        stored = _stored_traces(connection, workspace_id, list(by_trace))
        new = dropped = 0
        rows: list[tuple[Any, ...]] = []
        changes = []
        with_errors: set[str] = set()
        for trace_id, by_span in by_trace.items():
            trace = stored.get(trace_id)
            count = trace.record_count if trace is not None else 0
            dropped_before = dropped
            kept = _kept_of(connection, workspace_id, trace_id, list(by_span)) if trace is not None else {}
            before = new
            for span_id, arrived in by_span.items():
                fresh, lost, gone = _merged(kept.get(span_id, {}), arrived, MAX_TRACE_RECORDS - count)
                _remove(connection, workspace_id, trace_id, span_id, gone)
                rows += [(workspace_id, *record) for record in fresh]
                count += len(fresh) - len(gone)
                new, dropped = new + len(fresh), dropped + lost + len(gone)
                if any(record.error_type is not None for record in fresh):
                    with_errors.add(trace_id)
            if new != before or dropped != dropped_before:
                lost_before = trace.dropped_count if trace is not None else 0
                changes.append({
                    "workspace_id": workspace_id, "trace_id": trace_id, "record_count": count,
                    "dropped_count": lost_before + dropped - dropped_before, "changed_ns": now_ns,
                    "is_known": trace is not None and trace.is_known,
                })  # fmt: skip
        insert_many(connection, self._put, rows)
        if changes:
            connection.execute(upsert(self._dialect, log_traces), changes)
        return Kept(new, dropped, with_errors, sum(trace_id not in stored for trace_id in by_trace))


def _merged(
    kept: Mapping[str, tuple[bool, int]], arrived: Sequence[LogRow], room: int
) -> tuple[list[LogRow], int, list[tuple[int, str]]]:
    """The records of a span to insert, the number of those that are not kept, and (time, id) of those to remove.

    ``kept``: whether each stored one tells of an exception, and its time, by id.
    """
    fresh = {record.id: record for record in arrived if record.id not in kept}
    order: list[tuple[bool, int, str]] = [(is_error, at, key) for key, (is_error, at) in kept.items()]
    order += [(record.error_type is not None, record.time_ns, key) for key, record in fresh.items()]
    order.sort()
    surplus = order[: max(0, len(order) - MAX_SPAN_RECORDS)]
    gone = [(at, key) for _, at, key in surplus if key in kept]
    for _, _, key in surplus:
        fresh.pop(key, None)
    lost = len(surplus) - len(gone)
    over = max(0, len(fresh) - len(gone) - max(0, room))
    for key in list(fresh)[len(fresh) - over :] if over else ():
        del fresh[key]
    return list(fresh.values()), lost + over, gone


def _stored_traces(connection: Connection, workspace_id: str, trace_ids: Sequence[str]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for i in range(0, len(trace_ids), _CHUNK):
        parameters = {"workspace": workspace_id, KEYS: trace_ids[i : i + _CHUNK]}
        rows |= {row.trace_id: row for row in connection.execute(_TRACES.of(connection.dialect), parameters)}
    return rows


_TRACES: Final = keyed(select(log_traces).where(_traces.workspace_id == bindparam("workspace")), log_traces.c.trace_id)


def _kept_of(
    connection: Connection, workspace_id: str, trace_id: str, span_ids: Sequence[str]
) -> dict[str, dict[str, tuple[bool, int]]]:
    kept: dict[str, dict[str, tuple[bool, int]]] = {}
    for i in range(0, len(span_ids), _CHUNK):
        parameters = {"workspace": workspace_id, "trace": trace_id, KEYS: span_ids[i : i + _CHUNK]}
        for span_id, time_ns, key, is_error in connection.execute(_KEPT.of(connection.dialect), parameters):
            kept.setdefault(span_id, {})[key] = (bool(is_error), time_ns)
    return kept


_KEPT: Final = keyed(
    select(_logs.span_id, _logs.time_ns, _logs.id, _logs.error_type.is_not(None).label("is_error")).where(
        _logs.workspace_id == bindparam("workspace"), _logs.trace_id == bindparam("trace")
    ),
    span_logs.c.span_id,
)


def _remove(
    connection: Connection, workspace_id: str, trace_id: str, span_id: str, gone: Sequence[tuple[int, str]]
) -> None:
    for i in range(0, len(gone), _CHUNK):
        connection.execute(
            delete(span_logs).where(
                _logs.workspace_id == workspace_id,
                _logs.trace_id == trace_id,
                _logs.span_id == span_id,
                _logs.time_ns.in_([at for at, _ in gone[i : i + _CHUNK]]),
                _logs.id.in_([key for _, key in gone[i : i + _CHUNK]]),
            )
        )


def errors_of(connection: Connection, workspace_id: str, trace_ids: Sequence[str]) -> dict[str, dict[str, Error]]:
    """The exceptions that records of these traces tell of, by trace id and span id: of each span the last one.

    One that is an exception by its name comes before one that mentions it.
    """
    errors: dict[str, dict[str, tuple[tuple[bool, int, str], Error]]] = {}
    for i in range(0, len(trace_ids), _CHUNK):
        parameters = {"workspace": workspace_id, KEYS: trace_ids[i : i + _CHUNK]}
        for trace_id, span_id, time_ns, key, *error in connection.execute(_ERRORS.of(connection.dialect), parameters):
            of_trace = errors.setdefault(trace_id, {})
            rank = (error[0] == "exception", time_ns, key)
            if span_id not in of_trace or of_trace[span_id][0] < rank:
                of_trace[span_id] = (rank, Error(*error))
    return {
        trace_id: {span_id: error for span_id, (_, error) in of_trace.items()} for trace_id, of_trace in errors.items()
    }


_ERRORS: Final = keyed(
    select(
        _logs.trace_id, _logs.span_id, _logs.time_ns, _logs.id, _logs.event_name, _logs.error_type, _logs.error_message,
        _logs.error_stack,
    ).where(_logs.workspace_id == bindparam("workspace"), _logs.error_type.is_not(None)),
    span_logs.c.trace_id,
)  # fmt: skip


def span_ids_of(connection: Connection, workspace_id: str, trace_id: str) -> list[str]:
    """The spans of a trace that have log records; "" stands for the trace itself."""
    statement = select(_logs.span_id).where(_logs.workspace_id == workspace_id, _logs.trace_id == trace_id).distinct()
    return list(connection.execute(statement).scalars())


def ancestors_of(
    connection: Connection, workspace_id: str, trace_id: str, span_ids: Iterable[str], known: Mapping[str, Any]
) -> dict[str, str]:
    """For each of these spans, the nearest span at or above it that is ``known``; those without one are left out."""
    owners = {span_id: span_id for span_id in span_ids}
    nearest: dict[str, str] = {}
    for _ in range(_MAX_DEPTH):
        nearest |= {span_id: at for span_id, at in owners.items() if at in known}
        owners = {span_id: at for span_id, at in owners.items() if span_id not in nearest}
        if not owners:
            break
        parents = _parents(connection, workspace_id, trace_id, sorted(set(owners.values())))
        owners = {span_id: parents[at] for span_id, at in owners.items() if parents.get(at)}
    return nearest


def _parents(connection: Connection, workspace_id: str, trace_id: str, span_ids: Sequence[str]) -> dict[str, str]:
    parents: dict[str, str] = {}
    for i in range(0, len(span_ids), _CHUNK):
        parameters = {"workspace": workspace_id, "trace": trace_id, KEYS: span_ids[i : i + _CHUNK]}
        parents |= {row[0]: row[1] for row in connection.execute(_PARENTS.of(connection.dialect), parameters)}
    return parents


_PARENTS: Final = keyed(
    select(spans.c.span_id, spans.c.parent_span_id).where(
        spans.c.workspace_id == bindparam("workspace"), spans.c.trace_id == bindparam("trace")
    ),
    spans.c.span_id,
)


def page(
    connection: Connection,
    workspace_id: str,
    trace_id: str,
    span_ids: Sequence[str],
    *,
    after: Position | None,
    min_severity: int,
    limit: int,
) -> list[LogRow]:
    """Records of these spans in order of time, beginning after a position."""
    statement = (
        select(*span_logs.columns[1:])
        .where(_logs.workspace_id == workspace_id, _logs.trace_id == trace_id, _logs.severity >= min_severity)
        .order_by(_logs.time_ns, _logs.span_id, _logs.id)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(tuple_(_logs.time_ns, _logs.span_id, _logs.id) > tuple_(*map(literal, after)))
    rows: list[LogRow] = []
    for i in range(0, len(span_ids), _CHUNK):
        chunk = statement.where(_logs.span_id.in_(span_ids[i : i + _CHUNK]))
        rows += [LogRow(*row) for row in connection.execute(chunk)]
    rows.sort(key=lambda row: (row.time_ns, row.span_id, row.id))
    return rows[:limit]


def dropped_of(connection: Connection, workspace_id: str, trace_id: str) -> int:
    """How many records of a trace were not kept."""
    statement = select(_traces.dropped_count).where(_traces.workspace_id == workspace_id, _traces.trace_id == trace_id)
    return connection.execute(statement).scalar() or 0


def forget_traces(connection: Connection, workspace_id: str, trace_ids: Sequence[str]) -> None:
    """Delete the records of traces."""
    for table in (span_logs, log_traces):
        connection.execute(delete(table).where(table.c.workspace_id == workspace_id, table.c.trace_id.in_(trace_ids)))


def old_traces(connection: Connection, before_ns: int, limit: int) -> Sequence[Any]:
    """(workspace id, trace id) of traces without spans that have received nothing since a moment."""
    statement = (
        select(_traces.workspace_id, _traces.trace_id)
        .where(_traces.changed_ns < before_ns, ~_has_spans())
        .order_by(_traces.changed_ns)
        .limit(limit)
    )
    return connection.execute(statement).all()


def prune_unknown(connection: Connection, now_ns: int) -> int:
    """Note which traces are known by now, and delete the records of others that waited too long. Returns their number.

    Deletes up to a chunk of them; the caller goes on while there are some.
    """
    locking.lock(connection)
    connection.execute(
        update(log_traces).where(~_traces.is_known, or_(_has_spans(), _has_execution())).values(is_known=True)
    )
    unknown = select(_traces.workspace_id, _traces.trace_id).where(~_traces.is_known).order_by(_traces.changed_ns)
    count = connection.execute(select(func.count()).select_from(log_traces).where(~_traces.is_known)).scalar_one()
    surplus = min(_CHUNK, max(0, count - MAX_UNKNOWN))
    too_old = _traces.changed_ns < now_ns - round(UNKNOWN_SECONDS * NS)
    gone = connection.execute(unknown.where(too_old).limit(_CHUNK)).all()
    if len(gone) < surplus:
        gone = connection.execute(unknown.limit(surplus)).all()
    ids: dict[str, list[str]] = {}
    for workspace_id, trace_id in gone:
        ids.setdefault(workspace_id, []).append(trace_id)
    for workspace_id, trace_ids in ids.items():
        forget_traces(connection, workspace_id, trace_ids)
    return len(gone)


def _has_spans() -> Any:
    of_trace: Select[Any] = select(traces.c.trace_id).where(
        traces.c.workspace_id == _traces.workspace_id, traces.c.trace_id == _traces.trace_id
    )
    return exists(of_trace)


def _has_execution() -> Any:
    columns = workflow_executions.c
    of_trace: Select[Any] = select(columns.execution_id).where(
        columns.trace_id == _traces.trace_id, columns.workspace_id == _traces.workspace_id
    )
    return exists(of_trace)
