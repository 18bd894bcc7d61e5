"""What arrives by OTLP, stored: spans whole, and what they tell as executions, in one transaction.

Spans that come again change nothing. Metrics hear of a step once: when its span has come and it is known what it is a
step of; of steps that may have further spans (attempts, or work that goes on after the span above it has ended), when
their execution has ended and nothing came of it for a moment. The executions of a trace are read from its spans each
time some arrive; of a long trace later, and of one whose own span is missing once more when it has been quiet
(`look_again`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tachograph.clock import NS
from tachograph.events import Event, ExecutionFinished, ExecutionStarted, ExecutionStatus, Heartbeat
from tachograph_exporter.ingest.assembly.executions import EventKey, assemble
from tachograph_exporter.ingest.built_in_rules import BUILT_IN
from tachograph_exporter.ingest.rules import Rulebook
from tachograph_exporter.ingest.spans import SpanRecord, stored_record
from tachograph_exporter.store import event_log as event_log
from tachograph_exporter.store import locking
from tachograph_exporter.store.inserting import insert_many
from tachograph_exporter.store.recovery import INGESTED
from tachograph_exporter.store.schema import (
    span_operations,
    span_resources,
    spans,
    traces,
    workflow_executions,
    workspaces,
)
from tachograph_exporter.store.writer import StoreWriter

MAX_OF_TRACE: Final = 200_000
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
# What metrics have heard of a span: nothing, all, or only that the execution it begins has started.
UNTOLD: Final = 0
TOLD: Final = 1
BEGUN: Final = 2
_SPAN: Final = (_spans.payload, span_resources.c.payload.label("resource"), _spans.resource_id)
_JOINED: Final = spans.join(span_resources, span_resources.c.id == _spans.resource_id)
_WHOLE: Final = (
    select(*_SPAN, _spans.trace_id, _spans.told)
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
    """A trace's spans, what metrics have heard of them (by span id), and whether nothing more is expected."""

    spans: Sequence[SpanRecord]
    told: Mapping[str, int] = {}
    earlier: Sequence[SpanRecord] = ()
    """Those told, as they were then."""
    is_quiet: bool = False


class _Recorded(NamedTuple):
    """What was made of traces: events nobody was told, when to look again, and traces of which only that was told that
    the executions which begin with these spans have started."""

    new: list[Event]
    again: dict[str, int]
    held: Mapping[str, AbstractSet[str]]


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
        locking.lock(connection)
        best: dict[str, dict[str, SpanRecord]] = defaultdict(dict)
        for one in arrived:
            of_trace = best[one.trace_id]
            known = of_trace.get(one.span_id)
            if known is None or one.end_ns > known.end_ns:
                of_trace[one.span_id] = one
        now = time.time_ns()
        rows = self._traces(connection, workspace_id, list(best))
        small = [trace for trace, row in rows.items() if row.span_count <= AT_ONCE]
        kept, told = self._whole(connection, workspace_id, small)
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
            room = MAX_OF_TRACE - (row.span_count if row is not None else 0)
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
        readings = {}
        for trace_id, chosen in fresh.items():
            if counts[trace_id] <= AT_ONCE:
                before = kept.get(trace_id, {})
                whole = {**before, **{one.span_id: one for one in chosen}}
                heard = told.get(trace_id, {})
                earlier = [span for span in before.values() if heard.get(span.span_id) == TOLD]
                readings[trace_id] = _Reading(list(whole.values()), heard, earlier)
        recorded = self._record(connection, workspace_id, workspace, readings, now)
        self._keep(connection, workspace_id, fresh, counts, recorded.held)
        self._note(connection, workspace_id, fresh, counts, rows, recorded.again, now)
        return Taken(recorded.new, sum(map(len, fresh.values())), refused)

    def _traces(self, connection: Connection, workspace_id: str, ids: Sequence[str]) -> dict[str, Row[Any]]:
        found: dict[str, Row[Any]] = {}
        for i in range(0, len(ids), _CHUNK):
            wanted = {"workspace": workspace_id, "traces": ids[i : i + _CHUNK]}
            found |= {row.trace_id: row for row in connection.execute(_KNOWN, wanted)}
        return found

    def _whole(
        self, connection: Connection, workspace_id: str, ids: Sequence[str]
    ) -> tuple[dict[str, dict[str, SpanRecord]], dict[str, dict[str, int]]]:
        """All spans of these traces, and what metrics have heard of them."""
        found: dict[str, dict[str, SpanRecord]] = {trace: {} for trace in ids}
        told: dict[str, dict[str, int]] = {trace: {} for trace in ids}
        for i in range(0, len(ids), _CHUNK):
            wanted = {"workspace": workspace_id, "traces": ids[i : i + _CHUNK]}
            for row in connection.execute(_WHOLE, wanted):
                one = stored_record(row[0], row[1], row[2])
                found[row[3]][one.span_id] = one
                told[row[3]][one.span_id] = row[4]
        return found, told

    def _keep(
        self,
        connection: Connection,
        workspace_id: str,
        fresh: Mapping[str, Sequence[SpanRecord]],
        counts: Mapping[str, int],
        held: Mapping[str, AbstractSet[str]],
    ) -> None:
        resources: dict[str, bytes] = {}
        operations: dict[tuple[str, str, str, int], int] = {}
        rows = []
        for trace_id, found in fresh.items():
            otherwise = UNTOLD if counts[trace_id] > AT_ONCE or trace_id in held else TOLD
            begun = held.get(trace_id, frozenset())
            for one in found:
                told = BEGUN if one.span_id in begun else otherwise
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
    ) -> _Recorded:
        """Store what traces tell."""
        if not readings:
            return _Recorded([], {}, {})
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
        avoided: dict[str, frozenset[str]] = {}
        for trace, several in found.items():
            others = frozenset(
                one.execution.execution_id
                for one in several
                if one.execution.execution_id in taken
                or ((known := rows.get(one.execution.execution_id)) is not None and known.trace_id != trace)
            )
            if others:
                # Nobody writes over what is another workspace's, or of another trace.
                avoided[trace] = others
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
        held: dict[str, set[str]] = {}
        for trace, several in found.items():
            reading = readings[trace]
            begun = {span_id for span_id, heard in reading.told.items() if heard == BEGUN}
            told: set[EventKey] = set()
            if reading.earlier:
                earlier = assemble(workspace, reading.earlier, now, self.book, avoid=avoided.get(trace, frozenset()))
                told = {key for one in earlier if one.is_named for key, _ in one.keyed()}
            for one in several:
                execution_id = one.execution.execution_id
                if execution_id in recorded or (one.root is None and not one.is_named and trace in hosts):
                    continue
                ids.add(execution_id)
                events += one.events
                is_held = one.is_named and one.settles and not reading.is_quiet
                first = one.root if one.root is not None else one.spans[0]
                if begun and any(span.span_id in begun for span in (first, *one.spans)):
                    told.add((ExecutionStarted, execution_id, 0))
                if is_held:
                    held.setdefault(trace, set()).add(first.span_id)
                known = rows.get(execution_id)
                is_known_ended = (
                    known is not None
                    and not one.settles
                    and ExecutionStatus(known.status).is_terminal
                    and known.status != ExecutionStatus.LOST
                )
                new += [
                    event
                    for key, event in (one.keyed() if one.is_named else ())
                    if key not in told
                    and key[0] is not Heartbeat
                    and not (is_held and key[0] is not ExecutionStarted)
                    and not (is_known_ended and key[0] is ExecutionFinished)
                ]
                if is_held and one.is_finished:
                    again[trace] = now + round(QUIET_SECONDS * NS)
                elif one.root is None and not one.is_finished and not reading.is_quiet:
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
        return _Recorded(new, again, held)

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

    def reassemble_due_traces(self, due: Due) -> list[Event]:
        """Read a trace's executions again; the events nobody was told. Blocks; reads outside of the transaction."""
        database = self.writer.database
        kept = database.look(lambda c: of_trace(c, due.workspace_id, due.trace_id, is_slim=True))
        if not kept:
            return []

        def write(connection: Connection) -> list[Event]:
            locking.lock(connection)
            here = (_traces.workspace_id == due.workspace_id) & (_traces.trace_id == due.trace_id)
            changed = connection.execute(select(_traces.changed_ns).where(here)).scalar()
            if changed is None:
                return []  # Deleted meanwhile.
            of_trace = (_spans.workspace_id == due.workspace_id) & (_spans.trace_id == due.trace_id)
            heard = {row[0]: row[1] for row in connection.execute(select(_spans.span_id, _spans.told).where(of_trace))}
            earlier = [one for one in kept if heard.get(one.span_id) == TOLD]
            reading = _Reading(kept, heard, earlier, due.is_quiet and changed == due.changed_ns)
            now = time.time_ns()
            done = self._record(connection, due.workspace_id, due.workspace, {due.trace_id: reading}, now)
            begun = done.held.get(due.trace_id)
            if begun is None:
                fresh = {one.span_id for one in kept if heard.get(one.span_id, TOLD) != TOLD}
                _tell(connection, of_trace, fresh, TOLD)
            else:
                _tell(connection, of_trace, begun, BEGUN)
            soon = now + round(_LATER_SECONDS * NS) if changed != due.changed_ns else done.again.get(due.trace_id)
            connection.execute(update(traces).where(here).values(due_ns=soon))
            return done.new

        return database.run(write)


def has_due(connection: Connection) -> bool:
    """Whether traces are to be looked at again by now."""
    return (
        connection.execute(select(_traces.trace_id).where(_traces.due_ns <= time.time_ns()).limit(1)).first()
        is not None
    )


def _tell(connection: Connection, of_trace: Any, ids: Collection[str], told: int) -> None:
    """Note what metrics have heard of these spans."""
    ordered = sorted(ids)
    for i in range(0, len(ordered), _CHUNK):
        wanted = update(spans).where(of_trace, _spans.span_id.in_(ordered[i : i + _CHUNK]))
        connection.execute(wanted.values(told=told))


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
