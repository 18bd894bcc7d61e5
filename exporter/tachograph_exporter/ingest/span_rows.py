"""The rows of spans, and of their resources, operations and traces."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from tachograph.clock import NS
from tachograph_exporter.ingest.announcements import Announced, with_more_untold
from tachograph_exporter.ingest.rests import Rests
from tachograph_exporter.ingest.spans import SpanRecord, StoredSpan, stored_record
from tachograph_exporter.store.inserting import insert_many, insert_new, upsert
from tachograph_exporter.store.keyed import KEYS, keyed
from tachograph_exporter.store.schema import span_resources, spans, traces
from tachograph_exporter.store.span_index import Notes, Source, SpanIndex, day_of
from tachograph_exporter.store.span_values import Noted, SpanValues

MAX_AT_ONCE: Final = 2_000
"""A trace with at most this many spans is assembled whenever a span arrives, a longer one later."""
LATER_SECONDS: Final = 1.0
"""How long a longer trace waits at least."""
CLAIM_SECONDS: Final = 120.0
"""How long nobody else assembles a trace that somebody has begun to assemble."""
SPANS_PER_SECOND: Final = 10_000
"""A longer trace waits another second for every so many spans, so that assembling it repeatedly stays cheap."""
_CHUNK: Final = 500
_MAX_NAME: Final = 200

_spans = spans.c
_traces = traces.c
_WHOLE: Final = (
    select(_spans.payload, span_resources.c.payload.label("resource"), _spans.resource_id, _spans.trace_id, _spans.told)
    .select_from(spans.join(span_resources, span_resources.c.id == _spans.resource_id))
    .where(_spans.workspace_id == bindparam("workspace"), _spans.trace_id.in_(bindparam("traces", expanding=True)))
)
_STREAMED: Final = (
    select(_spans.payload, span_resources.c.payload.label("resource"), _spans.resource_id, _spans.span_id)
    .select_from(spans.join(span_resources, span_resources.c.id == _spans.resource_id))
    .where(_spans.workspace_id == bindparam("workspace"), _spans.trace_id == bindparam("trace"))
    .order_by(_spans.start_ns, _spans.span_id)
)
_STREAMED_BY_RESOURCE: Final = _STREAMED.order_by(None).order_by(_spans.resource_id, _spans.start_ns, _spans.span_id)
_ENDS: Final = keyed(
    select(_spans.span_id, _spans.end_ns).where(
        _spans.workspace_id == bindparam("workspace"), _spans.trace_id == bindparam("trace")
    ),
    spans.c.span_id,
)
_ANNOUNCED: Final = select(_spans.span_id, _spans.told).where(
    _spans.workspace_id == bindparam("workspace"), _spans.trace_id == bindparam("trace")
)
_STATES: Final = keyed(_ANNOUNCED, spans.c.span_id)
_TRACES: Final = keyed(select(traces).where(_traces.workspace_id == bindparam("workspace")), traces.c.trace_id)


class SpanRows:
    """Writes spans and the rows that list them."""

    def __init__(self, dialect: Dialect) -> None:
        insert = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
        self._put_span = str(upsert(dialect, spans).compile(dialect=dialect))
        self._put_trace = str(upsert(dialect, traces).compile(dialect=dialect))
        self._put_resource = str(insert(span_resources).on_conflict_do_nothing().compile(dialect=dialect))
        self._index = SpanIndex(dialect, Source.ARRIVED)
        self._notes: list[Notes] = []
        self._values = SpanValues(dialect)
        self._noted: list[Noted] = []
        self.rests = Rests()
        """How long longer traces wait, too."""

    def put(
        self,
        connection: Connection,
        workspace_id: str,
        fresh: Mapping[str, Sequence[SpanRecord]],
        counts: Mapping[str, int],
        withheld: Mapping[str, Mapping[str, Announced]],
        again: Mapping[str, Mapping[str, Announced]] = {},
        new: Collection[str] = (),
    ) -> None:
        """Write spans (by trace id) with their resources, and note in the index what they say.

        ``counts``: spans that are assembled together, by trace id. ``withheld``: see `Update`. ``again``: by trace,
        what is announced of those of the spans that are there already. ``new``: ids of traces of which no span was
        stored before.
        """
        resources: dict[str, bytes] = {}
        index, notes = self._index, self._index.begin()
        rows, new_rows = list[tuple[Any, ...]](), list[tuple[Any, ...]]()
        for trace_id, trace_spans in fresh.items():
            into = new_rows if trace_id in new else rows
            is_announced = counts[trace_id] <= MAX_AT_ONCE and trace_id not in withheld
            others = Announced.EVERYTHING if is_announced else Announced.NOTHING
            starts = {**withheld.get(trace_id, {}), **again.get(trace_id, {})}
            for span in trace_spans:
                told = starts.get(span.span_id, others).value
                resources[span.resource_id] = span.resource
                into.append(
                    (workspace_id, trace_id, span.span_id, span.parent_span_id, span.name, span.service, span.start_ns,
                     span.end_ns, span.resource_id, span.payload, told, _small(span.kind), _small(span.status_code))
                )  # fmt: skip
                day = day_of(workspace_id, span.start_ns)
                index.note_operation(notes, day, span.service, span.name, span.kind)
                index.note_resource(notes, day, span.resource_id, span.resource_attributes)
                index.note_attributes(notes, day, span.attributes)
        # In order: other writers may add the same ones now.
        insert_many(connection, self._put_resource, sorted(resources.items()))
        insert_many(connection, self._put_span, rows)
        insert_new(connection, spans, self._put_span, new_rows)
        scopes = {
            trace_id: [(span.start_ns, (span.attributes, span.resource_attributes)) for span in trace_spans]
            for trace_id, trace_spans in fresh.items()
        }
        self._noted.append(self._values.note(connection, workspace_id, scopes, new))
        if notes.pending:
            index.write(connection, notes)
        self._notes.append(notes)

    def settle(self, *, is_committed: bool) -> None:
        """The transaction of the last `put` was committed, or rolled back."""
        notes, self._notes = self._notes, []
        values, self._noted = self._noted, []
        if is_committed:
            for note in notes:
                self._index.remember(note)
            for noted in values:
                self._values.remember(noted)

    def put_traces(
        self,
        connection: Connection,
        workspace_id: str,
        fresh: Mapping[str, Sequence[SpanRecord]],
        counts: Mapping[str, int],
        rows: Mapping[str, Row[Any]],
        due: Mapping[str, int],
        now: int,
        sizes: Mapping[str, int] | None = None,
        *,
        deferred_ns: int | None = None,
    ) -> None:
        """Write the traces of these spans.

        ``rows``: as they are stored; ``due``: when to assemble a trace again; ``sizes``: how many spans are assembled
        together with those of a trace, these included, where it is not alone. ``deferred_ns``: the traces have not been
        assembled with these spans; by then they are.
        """
        changed, new = list[tuple[Any, ...]](), list[tuple[Any, ...]]()
        for trace_id, trace_spans in fresh.items():
            row = rows.get(trace_id)
            start = min([span.start_ns for span in trace_spans])
            end = max([span.end_ns or span.start_ns for span in trace_spans])
            root = min(trace_spans, key=lambda span: (span.parent_span_id != "", span.start_ns, span.span_id))
            rank, root_start = int(not root.parent_span_id), root.start_ns
            service, name = root.service, root.name[:_MAX_NAME]
            due_ns, untold = due.get(trace_id), None
            if row is not None:
                start, end = min(start, row.start_ns), max(end, row.end_ns)
                if (-row.root_rank, row.root_start_ns) <= (-rank, root_start):
                    rank, root_start = row.root_rank, row.root_start_ns
                    service, name = row.root_service, row.root_name
            if (size := (sizes or counts)[trace_id]) > MAX_AT_ONCE:
                later = now + round((LATER_SECONDS + size / SPANS_PER_SECOND) * NS)
                later = max(later, self.rests.until_ns(workspace_id, trace_id))
                due_ns = row.due_ns if row is not None else None
                # What waits for an end that no span tells need not wait for it with spans that have arrived.
                if due_ns is None or due_ns > now + round(CLAIM_SECONDS * NS):
                    due_ns = later
                untold = row.untold if row is not None and deferred_ns is not None else None
            elif deferred_ns is not None:
                due_ns = min(row.due_ns, deferred_ns) if row is not None and row.due_ns is not None else deferred_ns
                untold = with_more_untold(row, [span.span_id for span in trace_spans])
            (new if row is None else changed).append(
                (workspace_id, trace_id, counts[trace_id], now, start, end, rank, root_start, service, name, due_ns,
                 untold)
            )  # fmt: skip
        insert_many(connection, self._put_trace, changed)
        insert_new(connection, traces, self._put_trace, new)


def _small(number: int) -> int:
    """An enum's number as a SMALLINT; those that OTLP does not define are 0."""
    return number if 0 <= number <= 5 else 0


def trace_rows(connection: Connection, workspace_id: str, trace_ids: Sequence[str]) -> dict[str, Row[Any]]:
    """The stored ones of these traces, by id."""
    rows: dict[str, Row[Any]] = {}
    for i in range(0, len(trace_ids), _CHUNK):
        parameters = {"workspace": workspace_id, KEYS: trace_ids[i : i + _CHUNK]}
        rows |= {row.trace_id: row for row in connection.execute(_TRACES.of(connection.dialect), parameters)}
    return rows


def stored_spans(
    connection: Connection, workspace_id: str, trace_ids: Sequence[str]
) -> tuple[dict[str, dict[str, SpanRecord]], dict[str, dict[str, Announced]]]:
    """All spans of these traces and what their rows say was announced of them, both by trace id and span id."""
    records: dict[str, dict[str, SpanRecord]] = {trace_id: {} for trace_id in trace_ids}
    announced: dict[str, dict[str, Announced]] = {trace_id: {} for trace_id in trace_ids}
    for i in range(0, len(trace_ids), _CHUNK):
        parameters = {"workspace": workspace_id, "traces": trace_ids[i : i + _CHUNK]}
        for row in connection.execute(_WHOLE, parameters):
            span = stored_record(row[0], row[1], row[2])
            records[row[3]][span.span_id] = span
            announced[row[3]][span.span_id] = Announced(row[4])
    return records, announced


def make_due(connection: Connection, workspace_id: str, trace_ids: Iterable[str], due_ns: int) -> None:
    """Assemble traces again at a time, unless they are due already."""
    for trace_id in sorted(trace_ids):
        is_trace = (_traces.workspace_id == workspace_id) & (_traces.trace_id == trace_id) & _traces.due_ns.is_(None)
        connection.execute(update(traces).where(is_trace).values(due_ns=due_ns))


def announced_of(connection: Connection, workspace_id: str, trace_id: str) -> dict[str, Announced]:
    """What the rows of a trace's spans say was announced of them, by span id."""
    rows = connection.execute(_ANNOUNCED, {"workspace": workspace_id, "trace": trace_id})
    return {row[0]: Announced(row[1]) for row in rows}


def states_of(
    connection: Connection, workspace_id: str, trace_id: str, span_ids: Sequence[str]
) -> dict[str, Announced]:
    """What the rows of these spans say was announced of them, by span id."""
    states: dict[str, Announced] = {}
    for i in range(0, len(span_ids), _CHUNK):
        parameters = {"workspace": workspace_id, "trace": trace_id, KEYS: span_ids[i : i + _CHUNK]}
        rows = connection.execute(_STATES.of(connection.dialect), parameters)
        states |= {row[0]: Announced(row[1]) for row in rows}
    return states


def ends_of(connection: Connection, workspace_id: str, trace_id: str, span_ids: Sequence[str]) -> dict[str, int]:
    """The stored ends of these spans, by span id."""
    ends: dict[str, int] = {}
    for i in range(0, len(span_ids), _CHUNK):
        parameters = {"workspace": workspace_id, "trace": trace_id, KEYS: span_ids[i : i + _CHUNK]}
        ends |= {row[0]: row[1] for row in connection.execute(_ENDS.of(connection.dialect), parameters)}
    return ends


def stream_trace(
    connection: Connection, workspace_id: str, trace_id: str, *, by_resource: bool = False
) -> Iterator[StoredSpan]:
    """The spans of a trace, by start (or by resource, then start), a few of them in memory at a time."""
    statement = _STREAMED_BY_RESOURCE if by_resource else _STREAMED
    parameters = {"workspace": workspace_id, "trace": trace_id}
    with connection.execute(statement, parameters, execution_options={"yield_per": _CHUNK}) as rows:
        for row in rows:
            yield StoredSpan(row[0], row[1], row[2], row[3])


def of_trace(connection: Connection, workspace_id: str, trace_id: str, *, is_slim: bool = False) -> list[SpanRecord]:
    """All spans of a trace, by start. ``is_slim``: without their encoded payloads, for reading only."""
    records = []
    for row in connection.execute(_WHOLE, {"workspace": workspace_id, "traces": [trace_id]}):
        span = stored_record(row[0], row[1], row[2])
        if is_slim:
            span.payload = span.resource = b""
        records.append(span)
    records.sort(key=lambda span: (span.start_ns, span.span_id))
    return records
