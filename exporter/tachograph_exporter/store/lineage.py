"""The rows of OpenLineage events, and the traces that their runs are in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from tachograph_exporter.store.inserting import insert_many, upsert
from tachograph_exporter.store.keyed import change_each
from tachograph_exporter.store.schema import lineage_events, spans, trace_keys, traces, workspaces

_CHUNK: Final = 500
_events = lineage_events.c
_keys = trace_keys.c
_TRACES_OF: Final = select(_keys.key, _keys.trace_id).where(
    _keys.workspace_id == bindparam("workspace"), _keys.key.in_(bindparam("keys", expanding=True))
)
_OF_TRACES: Final = (_events.workspace_id == bindparam("workspace")) & _events.trace_id.in_(
    bindparam("traces", expanding=True)
)
_KNOWN: Final = select(_events.trace_id, _events.event_id).where(
    _OF_TRACES, _events.event_id.in_(bindparam("ids", expanding=True))
)
_COUNTS: Final = select(_events.trace_id, func.count()).where(_OF_TRACES).group_by(_events.trace_id)
_SUMMARIES: Final = select(_events.trace_id, _events.summary).where(_OF_TRACES)


class StoredEvent(NamedTuple):
    """An event as its row has it."""

    event_id: str
    time_ns: int
    summary: bytes
    payload: bytes


class UnreadTrace(NamedTuple):
    """A trace with events that its spans do not have yet."""

    workspace_id: str
    workspace: str
    trace_id: str


class LineageRows:
    """Writes events, and in which trace their runs are."""

    def __init__(self, dialect: Dialect) -> None:
        insert_into = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
        self._put_event = str(insert_into(lineage_events).on_conflict_do_nothing().compile(dialect=dialect))
        self._put_key = str(upsert(dialect, trace_keys).compile(dialect=dialect))

    def put_events(
        self,
        connection: Connection,
        workspace_id: str,
        events: Mapping[str, Sequence[StoredEvent]],
        unread: AbstractSet[str],
    ) -> None:
        """Insert events, by trace. ``unread``: traces whose spans are not made of them yet."""
        insert_many(
            connection,
            self._put_event,
            [(workspace_id, trace_id, e.event_id, e.time_ns, int(trace_id not in unread), e.summary, e.payload)
             for trace_id, own in events.items() for e in own],
        )  # fmt: skip

    def put_keys(self, connection: Connection, workspace_id: str, trace_ids: Mapping[str, str]) -> None:
        """Note in which trace the runs with these keys are."""
        insert_many(connection, self._put_key, [(workspace_id, key, trace) for key, trace in sorted(trace_ids.items())])


def traces_of(connection: Connection, workspace_id: str, keys: Sequence[str]) -> dict[str, str]:
    """The traces that runs with these keys are in, by key."""
    result: dict[str, str] = {}
    for i in range(0, len(keys), _CHUNK):
        parameters = {"workspace": workspace_id, "keys": keys[i : i + _CHUNK]}
        result |= {row[0]: row[1] for row in connection.execute(_TRACES_OF, parameters)}
    return result


def known_events(
    connection: Connection, workspace_id: str, trace_ids: Sequence[str], event_ids: Sequence[str]
) -> set[tuple[str, str]]:
    """Those of these events that are stored already, as (trace id, event id)."""
    known: set[tuple[str, str]] = set()
    for i in range(0, len(event_ids), _CHUNK):
        for k in range(0, len(trace_ids), _CHUNK):
            parameters = {
                "workspace": workspace_id, "traces": trace_ids[k : k + _CHUNK], "ids": event_ids[i : i + _CHUNK],
            }  # fmt: skip
            known.update((row[0], row[1]) for row in connection.execute(_KNOWN, parameters))
    return known


def counts_of(connection: Connection, workspace_id: str, trace_ids: Sequence[str]) -> dict[str, int]:
    """How many events each of these traces has."""
    counts: dict[str, int] = {}
    for i in range(0, len(trace_ids), _CHUNK):
        parameters = {"workspace": workspace_id, "traces": trace_ids[i : i + _CHUNK]}
        counts |= {row[0]: row[1] for row in connection.execute(_COUNTS, parameters)}
    return counts


def summaries(connection: Connection, workspace_id: str, trace_ids: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """What is read of the events of these traces, each with its trace."""
    for i in range(0, len(trace_ids), _CHUNK):
        parameters = {"workspace": workspace_id, "traces": trace_ids[i : i + _CHUNK]}
        for row in connection.execute(_SUMMARIES, parameters):
            yield row[0], row[1]


def has_events(connection: Connection, workspace_id: str) -> bool:
    """Whether a workspace has any events."""
    statement = select(_events.event_id).where(_events.workspace_id == workspace_id).limit(1)
    return connection.execute(statement).first() is not None


def unread(connection: Connection, limit: int = 1_000) -> list[UnreadTrace]:
    """Traces with events that their spans do not have yet."""
    query = (
        select(_events.workspace_id, workspaces.c.slug, _events.trace_id)
        .join(workspaces, workspaces.c.id == _events.workspace_id)
        .where(_events.is_read == 0)
        .distinct()
        .limit(limit)
    )
    return [UnreadTrace(*row) for row in connection.execute(query)]


def mark_read(connection: Connection, workspace_id: str, trace_ids: Sequence[str]) -> list[str]:
    """From now on the spans of these traces have all their events. Returns the traces of which they did not."""
    is_unread = (_events.workspace_id == workspace_id) & _events.trace_id.in_(trace_ids) & (_events.is_read == 0)
    changed = sorted(connection.execute(select(_events.trace_id).where(is_unread).distinct()).scalars())
    if changed:
        connection.execute(update(lineage_events).where(is_unread).values(is_read=1))
    return changed


def move(connection: Connection, workspace_id: str, source: str, target: str) -> None:
    """Move the events and runs of a trace into another one."""
    there = select(_events.event_id).where(_in_trace(workspace_id, target))
    connection.execute(delete(lineage_events).where(_in_trace(workspace_id, source), _events.event_id.in_(there)))
    connection.execute(update(lineage_events).where(_in_trace(workspace_id, source)).values(trace_id=target))
    is_source = (_keys.workspace_id == workspace_id) & (_keys.trace_id == source)
    connection.execute(update(trace_keys).where(is_source).values(trace_id=target))


def delete_spans(connection: Connection, workspace_id: str, trace_id: str, span_ids: Sequence[str]) -> None:
    """Delete spans of a trace that stand for nothing any more."""
    are_of_trace = delete(spans).where(spans.c.workspace_id == workspace_id, spans.c.trace_id == trace_id)
    change_each(connection, are_of_trace, spans.c.span_id, span_ids)


def delete_trace(connection: Connection, workspace_id: str, trace_id: str) -> None:
    """Delete the row of a trace that has no spans any more."""
    connection.execute(delete(traces).where(traces.c.workspace_id == workspace_id, traces.c.trace_id == trace_id))


def _in_trace(workspace_id: str, trace_id: str) -> Any:
    return (_events.workspace_id == workspace_id) & (_events.trace_id == trace_id)
