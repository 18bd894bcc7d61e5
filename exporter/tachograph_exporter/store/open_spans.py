"""Spans that have not ended, and their leases.

A span that arrives without an end has a row until its end arrives. Whenever it arrives again (a heartbeat), or another
span of the same process does, the row notes when: by the clock of the service, because the sender's may be wrong. A
span that was not heard of for a lease is lost, until it is heard of again or ends.

The rows say who was heard of, so services that share a database agree. How long a row has stayed the same each service
measures itself, while it looks (see `Silences`): time in which no service ran, or could not reach the database, counts
against nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Connection, Row, and_, bindparam, delete, func, null, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from tachograph.clock import NS
from tachograph_exporter.store import locking
from tachograph_exporter.store.inserting import insert_many
from tachograph_exporter.store.schema import open_spans, traces

SpanKey: TypeAlias = tuple[str, str, str]
"""(workspace id, trace id, span id)"""
_CHUNK: Final = 500
_NOTE_NS: Final = NS

_open = open_spans.c
_COLUMNS: Final = [_open.trace_id, _open.span_id, _open.size, _open.lost_ns, _open.told_lost_ns]
_OF_TRACES: Final = select(*_COLUMNS).where(
    _open.workspace_id == bindparam("workspace"), _open.trace_id.in_(bindparam("traces", expanding=True))
)
_LEASED: Final = select(_open.workspace_id, _open.trace_id, _open.span_id, _open.seen_ns).where(_open.lost_ns.is_(None))
_IS_ALIVE: Final = (
    select(_open.span_id)
    .where(_open.workspace_id == bindparam("workspace"), _open.trace_id == bindparam("trace"), _open.lost_ns.is_(None))
    .limit(1)
)
_IS_UNNOTED: Final = (
    _open.workspace_id == bindparam("workspace"),
    _open.process.in_(bindparam("processes", expanding=True)),
    or_(_open.seen_ns < bindparam("before"), _open.lost_ns.is_not(None)),
)
_UNNOTED: Final = select(_open.trace_id).where(*_IS_UNNOTED).limit(1)
_SIGN_OF_LIFE: Final = (
    update(open_spans)
    .where(*_IS_UNNOTED)
    .values(seen_ns=bindparam("now"), lost_ns=None)
    .returning(_open.trace_id, _open.told_lost_ns)
)
_TOLD: Final = (
    update(open_spans)
    .where(
        _open.workspace_id == bindparam("workspace"),
        _open.trace_id == bindparam("trace"),
        _open.told_lost_ns.is_distinct_from(_open.lost_ns),
    )
    .values(told_lost_ns=_open.lost_ns)
)


class OpenSpan(NamedTuple):
    """An open span.

    ``size`` is the length of the payload that is stored of it. ``lost_ns``: when it was last seen, by its sender's
    clock, if its lease has run out; ``told_lost_ns``: the same, as far as listeners have heard.
    """

    size: int
    lost_ns: int
    told_lost_ns: int


class Sighting(NamedTuple):
    """A span that has arrived without an end, in the order of the table's columns.

    ``process`` is a key of the process that sent it, or empty if its resource does not tell processes apart.
    """

    workspace_id: str
    trace_id: str
    span_id: str
    start_ns: int
    first_ns: int
    seen_ns: int
    size: int
    process: str


class Leased(NamedTuple):
    """An open span whose lease runs; ``seen_ns`` changes whenever it is heard of."""

    key: SpanKey
    seen_ns: int


class OpenSpans:
    """Writes the rows of open spans."""

    def __init__(self, dialect: Dialect) -> None:
        statement = (postgresql if dialect.name == "postgresql" else sqlite).insert(open_spans)
        new, old = statement.excluded, _open
        columns = [open_spans.c[name] for name in Sighting._fields]
        larger = func.greatest if dialect.name == "postgresql" else func.max
        self._see = str(
            statement.values({column: bindparam(column.name) for column in columns})
            .on_conflict_do_update(
                index_elements=list(open_spans.primary_key),
                set_={"seen_ns": new.seen_ns, "size": larger(old.size, new.size), "lost_ns": null()},
            )
            .compile(dialect=dialect)
        )

    def see(self, connection: Connection, sightings: Sequence[Sighting]) -> None:
        """Note that these spans are open; one that was lost is not any more."""
        insert_many(connection, self._see, sightings)


def of_traces(connection: Connection, workspace_id: str, trace_ids: Sequence[str]) -> dict[str, dict[str, OpenSpan]]:
    """The open spans of these traces, by trace id and span id; without traces that have none."""
    found: dict[str, dict[str, OpenSpan]] = {}
    for i in range(0, len(trace_ids), _CHUNK):
        parameters = {"workspace": workspace_id, "traces": trace_ids[i : i + _CHUNK]}
        for trace_id, span_id, size, lost_ns, told_ns in connection.execute(_OF_TRACES, parameters):
            found.setdefault(trace_id, {})[span_id] = OpenSpan(size, lost_ns or 0, told_ns or 0)
    return found


def note_processes(connection: Connection, workspace_id: str, processes: Collection[str], now_ns: int) -> None:
    """Note a sign of life of these processes: all that they have open is alive, at most once in `_NOTE_NS`."""
    ordered, revived = sorted(processes), dict[str, None]()
    for i in range(0, len(ordered), _CHUNK):
        parameters = {
            "workspace": workspace_id,
            "processes": ordered[i : i + _CHUNK],
            "before": now_ns - _NOTE_NS,
        }
        if locking.is_shared(connection):
            if connection.execute(_UNNOTED, parameters).first() is None:
                continue
            # They are in any traces.
            locking.lock(connection)
        parameters["now"] = now_ns
        for trace_id, told_ns in connection.execute(_SIGN_OF_LIFE, parameters):
            if told_ns is not None:
                revived[trace_id] = None
    assemble_again(connection, workspace_id, revived, now_ns)


def close(connection: Connection, keys: Sequence[SpanKey]) -> None:
    """Forget spans that have ended."""
    for i in range(0, len(keys), _CHUNK):
        connection.execute(delete(open_spans).where(_among(keys[i : i + _CHUNK])))


def mark_told(connection: Connection, workspace_id: str, trace_ids: Iterable[str]) -> None:
    """Note that listeners know which spans of these traces are lost."""
    for trace_id in trace_ids:
        connection.execute(_TOLD, {"workspace": workspace_id, "trace": trace_id})


def is_alive(connection: Connection, workspace_id: str, trace_id: str) -> bool:
    """Whether a trace has an open span whose lease runs."""
    return connection.execute(_IS_ALIVE, {"workspace": workspace_id, "trace": trace_id}).first() is not None


def leased(connection: Connection) -> list[Leased]:
    """All open spans whose lease runs."""
    return [Leased((row[0], row[1], row[2]), row[3]) for row in connection.execute(_LEASED)]


def assemble_again(connection: Connection, workspace_id: str, trace_ids: Collection[str], now_ns: int) -> None:
    """Make traces due at once, because a span of theirs was lost or is alive after all."""
    for trace_id in trace_ids:
        is_trace = (traces.c.workspace_id == workspace_id) & (traces.c.trace_id == trace_id)
        connection.execute(update(traces).where(is_trace).values(due_ns=now_ns))


def lose(connection: Connection, silent: Sequence[Leased], now_ns: int) -> int:
    """Give up open spans that have been silent for a lease, unless they were heard of meanwhile; returns how many.

    Such a span was last seen as long after its start as its last arrival was after its first one: both by one clock.
    """
    locking.lock(connection)
    seen_ns = {span.key: span.seen_ns for span in silent}
    lost: list[Row[Any]] = []
    keys = sorted(seen_ns)
    for i in range(0, len(keys), _CHUNK):
        rows = connection.execute(select(open_spans).where(_among(keys[i : i + _CHUNK]), _open.lost_ns.is_(None)))
        lost += [row for row in rows if seen_ns[row.workspace_id, row.trace_id, row.span_id] == row.seen_ns]
    if not lost:
        return 0
    statement = (
        update(open_spans)
        .where(
            _open.workspace_id == bindparam("of"),
            _open.trace_id == bindparam("trace"),
            _open.span_id == bindparam("id"),
        )
        .values(lost_ns=bindparam("at"))
    )
    connection.execute(
        statement,
        [
            {
                "of": row.workspace_id,
                "trace": row.trace_id,
                "id": row.span_id,
                "at": row.start_ns + max(0, row.seen_ns - row.first_ns),
            }
            for row in lost
        ],
    )
    by_workspace: dict[str, set[str]] = {}
    for row in lost:
        by_workspace.setdefault(row.workspace_id, set()).add(row.trace_id)
    for workspace_id, trace_ids in by_workspace.items():
        assemble_again(connection, workspace_id, sorted(trace_ids), now_ns)
    return len(lost)


def _among(keys: Sequence[SpanKey]) -> Any:
    if len(keys) == 1:
        (workspace_id, trace_id, span_id) = keys[0]
        return and_(_open.workspace_id == workspace_id, _open.trace_id == trace_id, _open.span_id == span_id)
    return tuple_(_open.workspace_id, _open.trace_id, _open.span_id).in_(keys)
