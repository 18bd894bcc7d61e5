"""What arrives by OTLP goes into the store: spans whole, and what they tell as executions, in one transaction.

A request is answered when that is committed, so what was acknowledged is not lost; a request that comes again changes
nothing. Metrics hear of a step once, when its span first ends.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, select, true
from sqlalchemy.dialects import postgresql, sqlite

from tachograph.events import Event
from tachograph.exporter.ingest.assemble import Assembled, assemble
from tachograph.exporter.ingest.spans import SpanRecord, stored_record
from tachograph.exporter.store import log as event_log
from tachograph.exporter.store import rollups
from tachograph.exporter.store.recovery import INGESTED
from tachograph.exporter.store.schema import span_resources, spans, workflow_executions
from tachograph.exporter.store.writer import StoreWriter

_CHUNK: Final = 500
_spans = spans.c
_OF_TRACE: Final = (
    select(_spans.payload, span_resources.c.payload.label("resource"), _spans.resource_id)
    .join(span_resources, span_resources.c.id == _spans.resource_id)
    .where(_spans.workspace_id == bindparam("workspace"), _spans.trace_id == bindparam("trace"))
)


def take(
    connection: Connection, writer: StoreWriter, workspace_id: str, workspace: str, arrived: Sequence[SpanRecord]
) -> list[Event]:
    """Keep spans and bring the executions of their traces up to date; the events that were not known before."""
    rollups.lock(connection)
    fresh = _keep(connection, workspace_id, arrived)
    if not fresh:
        return []
    now = time.time_ns()
    events: list[Event] = []
    new: list[Event] = []
    outdated: set[str] = set()
    for trace_id in sorted({trace for trace, _ in fresh}):
        kept = of_trace(connection, workspace_id, trace_id)
        found = assemble(workspace, kept, now)
        others = _of_others(connection, workspace_id, [one.execution.execution_id for one in found])
        if others:
            found = assemble(workspace, kept, now, avoid=others)
        ids = [one.execution.execution_id for one in found]
        theirs = _recorded_here(connection, ids)
        # What the trace was taken for before, when less of it was known.
        outdated |= _put_together(connection, workspace_id, trace_id) - set(ids)
        for one in found:
            if one.execution.execution_id in theirs:
                continue  # Who ran it recorded it in this very database, and knows more than its spans.
            events += one.events
            new += _new(one, trace_id, fresh)
    if events or outdated:
        writer.replace(connection, events, outdated)
    if event_log.is_listened_to(connection):
        event_log.append(connection, INGESTED, new)
    return new


def _new(one: Assembled, trace_id: str, fresh: set[tuple[str, str]]) -> list[Event]:
    """What of an execution nobody was told yet: nothing before its own span has come and says what it is."""
    if one.root is None:
        return []
    everything = (trace_id, one.root.span_id) in fresh
    told: dict[int, Event] = {}
    for span_id, events in one.of_span.items():
        if everything or (trace_id, span_id) in fresh:
            told |= {id(event): event for event in events}
    # In the order they are in: the start first, the end last.
    return [event for event in one.events if id(event) in told]


def _put_together(connection: Connection, workspace_id: str, trace_id: str) -> set[str]:
    executions = workflow_executions.c
    wanted = select(executions.execution_id).where(
        executions.trace_id == trace_id, executions.workspace_id == workspace_id, executions.process == INGESTED
    )
    return set(connection.execute(wanted).scalars())


def _keep(connection: Connection, workspace_id: str, arrived: Sequence[SpanRecord]) -> set[tuple[str, str]]:
    """Store what is new: spans never seen, and those that have ended since. Their (trace id, span id)."""
    best: dict[tuple[str, str], SpanRecord] = {}
    for one in arrived:
        key = (one.trace_id, one.span_id)
        if key not in best or one.end_ns > best[key].end_ns:
            best[key] = one
    known: dict[tuple[str, str], int] = {}
    traces = sorted({trace for trace, _ in best})
    ids = sorted({span for _, span in best})
    for i in range(0, len(ids), _CHUNK):
        wanted = select(_spans.trace_id, _spans.span_id, _spans.end_ns).where(
            _spans.workspace_id == workspace_id,
            _spans.trace_id.in_(traces) if len(traces) <= _CHUNK else true(),
            _spans.span_id.in_(ids[i : i + _CHUNK]),
        )
        known |= {(row[0], row[1]): row[2] for row in connection.execute(wanted)}
    changed = {key: one for key, one in best.items() if key not in known or one.end_ns > known[key]}
    if not changed:
        return set()
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    resources = {one.resource_id: one.resource for one in changed.values()}
    connection.execute(
        insert(span_resources).on_conflict_do_nothing(), [{"id": k, "payload": v} for k, v in resources.items()]
    )
    statement: Any = insert(spans)
    updated = {name: statement.excluded[name] for name in _UPDATED}
    statement = statement.on_conflict_do_update(index_elements=list(spans.primary_key), set_=updated)
    connection.execute(
        statement,
        [
            {
                "workspace_id": workspace_id,
                "trace_id": one.trace_id,
                "span_id": one.span_id,
                "parent_span_id": one.parent_span_id,
                "name": one.name,
                "service": one.service,
                "start_ns": one.start_ns,
                "end_ns": one.end_ns,
                "resource_id": one.resource_id,
                "payload": one.payload,
            }
            for one in changed.values()
        ],
    )
    return set(changed)


_UPDATED: Final = ("parent_span_id", "name", "service", "start_ns", "end_ns", "resource_id", "payload")


def of_trace(connection: Connection, workspace_id: str, trace_id: str) -> list[SpanRecord]:
    """All that is kept of a trace, by start."""
    rows = connection.execute(_OF_TRACE, {"workspace": workspace_id, "trace": trace_id})
    found = [stored_record(row[0], row[1], row[2]) for row in rows]
    found.sort(key=lambda span: (span.start_ns, span.span_id))
    return found


def _of_others(connection: Connection, workspace_id: str, ids: Sequence[str]) -> frozenset[str]:
    """Those of the ids that are executions of other workspaces: nobody writes over what is not theirs."""
    executions = workflow_executions.c
    wanted = select(executions.execution_id).where(
        executions.execution_id.in_(ids), executions.workspace_id != workspace_id
    )
    return frozenset(connection.execute(wanted).scalars())


def _recorded_here(connection: Connection, ids: Sequence[str]) -> set[str]:
    executions = workflow_executions.c
    wanted = select(executions.execution_id).where(
        executions.execution_id.in_(ids), func.coalesce(executions.process, "") != INGESTED
    )
    return set(connection.execute(wanted).scalars())
