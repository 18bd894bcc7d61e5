"""What arrives by OTLP, stored: spans whole, and what they tell as executions, in one transaction.

Spans that come again change nothing. Metrics hear of a step once, when its span first ends and it is known what it is
a step of. The executions of a trace are read from its spans each time some arrive; of a long trace later, and of one
whose own span is missing once more when it has been quiet (`look_again`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tachograph.events import NS, Event, ExecutionFinished, ExecutionStarted, ExecutionStatus
from tachograph.exporter.ingest.assemble import Assembled, assemble
from tachograph.exporter.ingest.mapping import BUILT_IN, Rulebook
from tachograph.exporter.ingest.spans import SpanRecord, stored_record
from tachograph.exporter.store import log as event_log
from tachograph.exporter.store import rollups
from tachograph.exporter.store.recovery import INGESTED
from tachograph.exporter.store.schema import (
    span_operations,
    span_resources,
    spans,
    traces,
    workflow_executions,
    workspaces,
)
from tachograph.exporter.store.writer import StoreWriter, insert_many

MOST_OF_TRACE: Final = 200_000
"""Spans of one trace that are kept."""
AT_ONCE: Final = 2_000
"""Up to so many spans, a trace's executions are read from them as they arrive."""
QUIET_SECONDS: Final = 10.0
"""After how long without a new span a trace without its own root is looked at again."""
ENDED_SECONDS: Final = 300.0
"""After how long without a new span an execution whose engine makes no span for it has ended with its last step."""
_CLAIM_SECONDS: Final = 120.0
_LATER_SECONDS: Final = 1.0
_PER_SECOND: Final = 10_000
_CHUNK: Final = 500
_OPERATION_NS: Final = 3600 * NS
_OPERATIONS_KNOWN: Final = 20_000
_NAME: Final = 200

_spans = spans.c
_traces = traces.c
_executions = workflow_executions.c
_SPAN: Final = (_spans.payload, span_resources.c.payload.label("resource"), _spans.resource_id)
_JOINED: Final = spans.join(span_resources, span_resources.c.id == _spans.resource_id)
_WHOLE: Final = (
    select(*_SPAN, _spans.trace_id)
    .select_from(_JOINED)
    .where(
        _spans.workspace_id == bindparam("workspace"), _spans.trace_id.in_(bindparam("traces", expanding=True))
    )
)  # fmt: skip
_ENDS: Final = select(_spans.span_id, _spans.end_ns).where(
    _spans.workspace_id == bindparam("workspace"),
    _spans.trace_id == bindparam("trace"),
    _spans.span_id.in_(bindparam("ids", expanding=True)),
)
_KNOWN: Final = select(traces).where(
    _traces.workspace_id == bindparam("workspace"), _traces.trace_id.in_(bindparam("traces", expanding=True))
)
_COUNTED: Final = ("execution_id", "workspace_id", "trace_id", "process", "status")
_OF_TRACES: Final = select(*[_executions[name] for name in _COUNTED]).where(
    _executions.trace_id.in_(bindparam("traces", expanding=True))
)
_OF_IDS: Final = select(*[_executions[name] for name in _COUNTED]).where(
    _executions.execution_id.in_(bindparam("ids", expanding=True))
)

SpanKey = tuple[str, str]
"""(trace id, span id)"""


class Taken(NamedTuple):
    """What became of spans: events nobody was told before, how many were new, and those that there was no room for."""

    events: list[Event]
    stored: int
    refused: AbstractSet[SpanKey]


class Due(NamedTuple):
    """A trace to look at again."""

    workspace_id: str
    workspace: str
    trace_id: str
    changed_ns: int
    is_quiet: bool


class _Reading(NamedTuple):
    """A trace's spans, which of them are new to metrics, and whether nothing more is expected."""

    spans: Sequence[SpanRecord]
    fresh: AbstractSet[str]
    is_quiet: bool = False


class SpanStore:
    """Spans and the executions they tell of, in the tables that ``writer`` writes; ``book`` says what is what."""

    def __init__(self, writer: StoreWriter, book: Rulebook = BUILT_IN) -> None:
        self.writer = writer
        self.book = book
        dialect = writer.database.dialect
        insert = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
        self._insert = insert

        def upsert(table: Any, *changed: str) -> str:
            statement = insert(table)
            sets = {name: statement.excluded[name] for name in changed}
            keys = list(table.primary_key)
            return str(statement.on_conflict_do_update(index_elements=keys, set_=sets).compile(dialect=dialect))

        changed = ("parent_span_id", "name", "service", "start_ns", "end_ns", "resource_id", "payload", "told")
        self._put_span = upsert(spans, *changed)
        self._put_trace = upsert(traces, *[c.name for c in traces.columns if not c.primary_key])
        self._put_operation = upsert(span_operations, "last_ns")
        self._put_resource = str(insert(span_resources).on_conflict_do_nothing().compile(dialect=dialect))
        self._operations: dict[tuple[str, str, str, int], int] = {}

    def take(self, connection: Connection, workspace_id: str, workspace: str, arrived: Iterable[SpanRecord]) -> Taken:
        """Keep spans and bring the executions of their traces up to date."""
        rollups.lock(connection)
        best: dict[str, dict[str, SpanRecord]] = defaultdict(dict)
        for one in arrived:
            of_trace = best[one.trace_id]
            known = of_trace.get(one.span_id)
            if known is None or one.end_ns > known.end_ns:
                of_trace[one.span_id] = one
        now = time.time_ns()
        rows = self._traces(connection, workspace_id, list(best))
        small = [trace for trace, row in rows.items() if row.span_count <= AT_ONCE]
        kept = self._whole(connection, workspace_id, small)
        fresh: dict[str, list[SpanRecord]] = {}
        refused: set[SpanKey] = set()
        counts: dict[str, int] = {}
        for trace_id, found in best.items():
            row = rows.get(trace_id)
            ends: Mapping[str, int] = {}
            if row is not None:
                before = kept.get(trace_id)
                ends = (
                    {span_id: span.end_ns for span_id, span in before.items()}
                    if before is not None
                    else _ends(connection, workspace_id, trace_id, list(found))
                )
            room = MOST_OF_TRACE - (row.span_count if row is not None else 0)
            chosen = []
            count = 0
            for span_id, one in found.items():
                end = ends.get(span_id)
                if end is None:
                    if count >= room:
                        refused.add((trace_id, span_id))
                        continue
                    count += 1
                elif one.end_ns <= end:
                    continue
                chosen.append(one)
            if chosen:
                fresh[trace_id] = chosen
                counts[trace_id] = (row.span_count if row is not None else 0) + count
        if not fresh:
            return Taken([], 0, refused)
        self._keep(connection, workspace_id, fresh, counts)
        readings = {}
        for trace_id, chosen in fresh.items():
            if counts[trace_id] <= AT_ONCE:
                whole = {**kept.get(trace_id, {}), **{one.span_id: one for one in chosen}}
                readings[trace_id] = _Reading(list(whole.values()), {one.span_id for one in chosen})
        events, again = self._record(connection, workspace_id, workspace, readings, now)
        self._note(connection, workspace_id, fresh, counts, rows, again, now)
        return Taken(events, sum(map(len, fresh.values())), refused)

    def _traces(self, connection: Connection, workspace_id: str, ids: Sequence[str]) -> dict[str, Row[Any]]:
        found: dict[str, Row[Any]] = {}
        for i in range(0, len(ids), _CHUNK):
            wanted = {"workspace": workspace_id, "traces": ids[i : i + _CHUNK]}
            found |= {row.trace_id: row for row in connection.execute(_KNOWN, wanted)}
        return found

    def _whole(self, connection: Connection, workspace_id: str, ids: Sequence[str]) -> dict[str, dict[str, SpanRecord]]:
        found: dict[str, dict[str, SpanRecord]] = {trace: {} for trace in ids}
        for i in range(0, len(ids), _CHUNK):
            wanted = {"workspace": workspace_id, "traces": ids[i : i + _CHUNK]}
            for row in connection.execute(_WHOLE, wanted):
                one = stored_record(row[0], row[1], row[2])
                found[row[3]][one.span_id] = one
        return found

    def _keep(
        self,
        connection: Connection,
        workspace_id: str,
        fresh: Mapping[str, Sequence[SpanRecord]],
        counts: Mapping[str, int],
    ) -> None:
        resources: dict[str, bytes] = {}
        operations: dict[tuple[str, str, str, int], int] = {}
        rows = []
        for trace_id, found in fresh.items():
            told = 1 if counts[trace_id] <= AT_ONCE else 0
            for one in found:
                resources[one.resource_id] = one.resource
                rows.append(
                    (workspace_id, trace_id, one.span_id, one.parent_span_id, one.name, one.service, one.start_ns,
                     one.end_ns, one.resource_id, one.payload, told)
                )  # fmt: skip
                operation = (workspace_id, one.service, one.name[:_NAME], one.kind)
                if one.start_ns - self._operations.get(operation, 0) >= _OPERATION_NS:
                    operations[operation] = max(operations.get(operation, 0), one.start_ns)
        insert_many(connection, self._put_resource, list(resources.items()))
        insert_many(connection, self._put_span, rows)
        if operations:
            insert_many(connection, self._put_operation, [(*key, last) for key, last in operations.items()])
            if len(self._operations) > _OPERATIONS_KNOWN:
                self._operations.clear()
            self._operations |= operations

    def _note(
        self,
        connection: Connection,
        workspace_id: str,
        fresh: Mapping[str, Sequence[SpanRecord]],
        counts: Mapping[str, int],
        rows: Mapping[str, Row[Any]],
        again: Mapping[str, int],
        now: int,
    ) -> None:
        """Write what lists say of these traces, and when they are to be looked at again."""
        made = []
        for trace_id, found in fresh.items():
            row = rows.get(trace_id)
            start = min([one.start_ns for one in found])
            end = max([one.end_ns or one.start_ns for one in found])
            root = min(found, key=lambda one: (one.parent_span_id != "", one.start_ns, one.span_id))
            rank, root_start = int(not root.parent_span_id), root.start_ns
            service, name = root.service, root.name[:_NAME]
            due = again.get(trace_id)
            if row is not None:
                start, end = min(start, row.start_ns), max(end, row.end_ns)
                if (-row.root_rank, row.root_start_ns) <= (-rank, root_start):
                    rank, root_start = row.root_rank, row.root_start_ns
                    service, name = row.root_service, row.root_name
            if counts[trace_id] > AT_ONCE:
                # The longer a trace is, the longer it waits, so that reading it again and again stays cheap.
                later = now + round((_LATER_SECONDS + counts[trace_id] / _PER_SECOND) * NS)
                due = row.due_ns if row is not None and row.due_ns is not None else later
            made.append(
                (workspace_id, trace_id, counts[trace_id], now, start, end, rank, root_start, service, name, due)
            )
        insert_many(connection, self._put_trace, made)

    # --- executions -------------------------------------------------------------------------------------------------

    def _record(
        self,
        connection: Connection,
        workspace_id: str,
        workspace: str,
        readings: Mapping[str, _Reading],
        now: int,
    ) -> tuple[list[Event], dict[str, int]]:
        """Store what traces tell; the events nobody was told, and when to look at some of the traces again."""
        if not readings:
            return [], {}
        found = {
            trace: assemble(workspace, one.spans, now, self.book, is_quiet=one.is_quiet)
            for trace, one in readings.items()
        }
        rows = _executions_of(connection, readings, [one.execution.execution_id for f in found.values() for one in f])
        taken = {
            row.execution_id
            for row in rows.values()
            if row.workspace_id != workspace_id or row.trace_id not in readings
        }
        for trace, several in found.items():
            others = frozenset(
                one.execution.execution_id
                for one in several
                if one.execution.execution_id in taken
                or ((known := rows.get(one.execution.execution_id)) is not None and known.trace_id != trace)
            )
            if others:
                # Nobody writes over what is another workspace's, or of another trace.
                reading = readings[trace]
                found[trace] = assemble(
                    workspace, reading.spans, now, self.book, avoid=others, is_quiet=reading.is_quiet
                )
        # Who ran it recorded it in this very database, and knows more than its spans.
        recorded = {row.execution_id for row in rows.values() if row.process != INGESTED}
        hosts = {row.trace_id for row in rows.values() if row.execution_id in recorded}
        events: list[Event] = []
        new: list[Event] = []
        again: dict[str, int] = {}
        ids: set[str] = set()
        for trace, several in found.items():
            for one in several:
                execution_id = one.execution.execution_id
                if execution_id in recorded or (one.root is None and not one.is_named and trace in hosts):
                    continue
                ids.add(execution_id)
                events += one.events
                known = rows.get(execution_id)
                new += _new(one, readings[trace].fresh, known.status if known is not None else None)
                if one.root is None and not one.is_finished and not readings[trace].is_quiet:
                    again[trace] = now + round((ENDED_SECONDS if one.is_named else QUIET_SECONDS) * NS)
        # What these traces were taken for before, when less of them was known.
        ours = {
            row.execution_id
            for row in rows.values()
            if row.workspace_id == workspace_id and row.trace_id in readings and row.process == INGESTED
        }
        if events or ours - ids:
            self.writer.replace(connection, events, ours - ids, known=ours)
        if new and event_log.is_listened_to(connection):
            event_log.append(connection, INGESTED, new)
        return new, again

    def claim_due(self, connection: Connection, limit: int = 20) -> list[Due]:
        """Traces that are to be looked at again by now; whoever claims one has `_CLAIM_SECONDS` to do it."""
        now = time.time_ns()
        wanted = (
            select(_traces.workspace_id, workspaces.c.slug, _traces.trace_id, _traces.changed_ns, _traces.span_count)
            .join(workspaces, workspaces.c.id == _traces.workspace_id)
            .where(_traces.due_ns <= now)
            .order_by(_traces.due_ns)
            .limit(limit)
        )
        found = []
        for workspace_id, slug, trace_id, changed, count in connection.execute(wanted).all():
            connection.execute(
                update(traces)
                .where(_traces.workspace_id == workspace_id, _traces.trace_id == trace_id)
                .values(due_ns=now + round(_CLAIM_SECONDS * NS))
            )
            # A long trace is looked at while it still grows.
            is_quiet = now - changed >= QUIET_SECONDS * NS or count <= AT_ONCE
            found.append(Due(workspace_id, slug, trace_id, changed, is_quiet))
        return found

    def look_again(self, due: Due) -> list[Event]:
        """Read a trace's executions again; the events nobody was told. Blocks; reads outside of the transaction."""
        database = self.writer.database
        kept = database.look(lambda c: of_trace(c, due.workspace_id, due.trace_id, is_slim=True))
        if not kept:
            return []

        def write(connection: Connection) -> list[Event]:
            rollups.lock(connection)
            here = (_traces.workspace_id == due.workspace_id) & (_traces.trace_id == due.trace_id)
            changed = connection.execute(select(_traces.changed_ns).where(here)).scalar()
            if changed is None:
                return []  # Deleted meanwhile.
            of_trace = (_spans.workspace_id == due.workspace_id) & (_spans.trace_id == due.trace_id)
            untold = set(connection.execute(select(_spans.span_id).where(of_trace, _spans.told == 0)).scalars())
            fresh = untold & {one.span_id for one in kept}
            reading = _Reading(kept, fresh, due.is_quiet and changed == due.changed_ns)
            now = time.time_ns()
            events, again = self._record(connection, due.workspace_id, due.workspace, {due.trace_id: reading}, now)
            if fresh:
                _tell(connection, of_trace, fresh, everything=fresh == untold)
            soon = now + round(_LATER_SECONDS * NS) if changed != due.changed_ns else again.get(due.trace_id)
            connection.execute(update(traces).where(here).values(due_ns=soon))
            return events

        return database.run(write)


def has_due(connection: Connection) -> bool:
    """Whether traces are to be looked at again by now."""
    return (
        connection.execute(select(_traces.trace_id).where(_traces.due_ns <= time.time_ns()).limit(1)).first()
        is not None
    )


def _tell(connection: Connection, of_trace: Any, ids: Collection[str], *, everything: bool) -> None:
    """Note that metrics have heard of these spans."""
    untold = update(spans).where(of_trace, _spans.told == 0).values(told=1)
    if everything:
        connection.execute(untold)
        return
    ordered = sorted(ids)
    for i in range(0, len(ordered), _CHUNK):
        connection.execute(untold.where(_spans.span_id.in_(ordered[i : i + _CHUNK])))


def _new(one: Assembled, fresh: AbstractSet[str], status: str | None) -> list[Event]:
    """What of an execution nobody was told yet: nothing before it is known what it is an execution of."""
    if not one.is_named:
        return []
    everything = one.root is not None and one.root.span_id in fresh
    ended_before = status is not None and ExecutionStatus(status).is_terminal and status != ExecutionStatus.LOST
    told: set[int] = set()
    for span_id, events in one.of_span.items():
        if everything or span_id in fresh:
            told.update(map(id, events))
    is_end_new = one.is_finished and (everything or not ended_before)
    # In the order they are in: the start first, the end last.
    return [
        event
        for event in one.events
        if id(event) in told or (is_end_new and type(event) in (ExecutionStarted, ExecutionFinished))
    ]


def _ends(connection: Connection, workspace_id: str, trace_id: str, ids: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for i in range(0, len(ids), _CHUNK):
        wanted = {"workspace": workspace_id, "trace": trace_id, "ids": ids[i : i + _CHUNK]}
        found |= {row[0]: row[1] for row in connection.execute(_ENDS, wanted)}
    return found


def _executions_of(connection: Connection, trace_ids: Iterable[str], ids: Sequence[str]) -> dict[str, Row[Any]]:
    """The executions that are known of these traces, and those that have these ids."""
    found: dict[str, Row[Any]] = {}
    traces_wanted = list(trace_ids)
    for i in range(0, len(traces_wanted), _CHUNK):
        rows = connection.execute(_OF_TRACES, {"traces": traces_wanted[i : i + _CHUNK]})
        found |= {row.execution_id: row for row in rows}
    # Ids of version 5 are made from the trace's; others come from an engine.
    given = [one for one in ids if one not in found and one[14] != "5"]
    for i in range(0, len(given), _CHUNK):
        found |= {row.execution_id: row for row in connection.execute(_OF_IDS, {"ids": given[i : i + _CHUNK]})}
    return found


def of_trace(connection: Connection, workspace_id: str, trace_id: str, *, is_slim: bool = False) -> list[SpanRecord]:
    """All that is kept of a trace, by start. ``is_slim``: without the encoded spans themselves, to be read only."""
    rows = connection.execute(_WHOLE, {"workspace": workspace_id, "traces": [trace_id]})
    found = []
    for row in rows:
        one = stored_record(row[0], row[1], row[2])
        if is_slim:
            one.payload = one.resource = b""
        found.append(one)
    found.sort(key=lambda span: (span.start_ns, span.span_id))
    return found
