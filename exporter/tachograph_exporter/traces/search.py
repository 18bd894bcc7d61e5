"""Traces as viewers read them: the spans that arrived under an id and, for executions recorded here, those their rows
make; where both are there, those that arrived.

A search looks at the traces in its time range, newest first, until it has found enough or looked at `MOST_LOOKED_AT`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, func, select

from tachograph.spans import semconv
from tachograph_exporter.ingest.span_rows import of_trace
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.store import definitions as definition_rows
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store.recovery import INGESTED
from tachograph_exporter.store.schema import span_operations, workflow_executions
from tachograph_exporter.store.schema import spans as spans_table
from tachograph_exporter.store.schema import traces as traces_table
from tachograph_exporter.traces.traceql import Around, TraceQuery, everything
from tachograph_exporter.views.otlp_spans import SERVICE, spans_of_run

MOST: Final = 500
"""Traces that one search answers at most."""
MAX_LOOKED_AT: Final = 5_000
"""Traces that one search looks into at most."""
MAX_SPANS_LOOKED_AT: Final = 200_000
MAX_NAMES: Final = 1_000
_SAMPLE: Final = 100
_LOOKBACK_NS: Final = 7 * 86_400 * 1_000_000_000

_spans = spans_table.c
_traces = traces_table.c
_operations = span_operations.c
_executions = workflow_executions.c


class Found(NamedTuple):
    """A trace, and those of its spans that were looked for."""

    trace_id: str
    spans: list[SpanRecord]
    matched: Sequence[SpanRecord] = ()

    @property
    def root(self) -> SpanRecord:
        """Its first span without a parent here."""
        known = {span.span_id for span in self.spans}
        return next((span for span in self.spans if span.parent_span_id not in known), self.spans[0])

    @property
    def start_ns(self) -> int:
        """When its first span began."""
        return min(span.start_ns for span in self.spans)

    @property
    def duration_ns(self) -> int:
        """From its first start to its last end."""
        return max((span.end_ns or span.start_ns) for span in self.spans) - self.start_ns

    def around(self) -> Around:
        """What it says of itself."""
        root = self.root
        return Around(self.trace_id, root.name, root.service, self.duration_ns)


def trace(connection: Connection, workspace_id: str, slug: str, wanted: str) -> Found | None:
    """One trace of a workspace, or None."""
    trace_id = wanted.lower().zfill(32)
    arrived = of_trace(connection, workspace_id, trace_id)
    known = {span.span_id for span in arrived}
    rows = connection.execute(
        select(_executions.execution_id).where(
            _executions.trace_id == trace_id,
            _executions.workspace_id == workspace_id,
            func.coalesce(_executions.process, "") != INGESTED,
        )
    ).scalars()
    for execution_id in rows.all():
        run = execution_rows.run(connection, workspace_id, execution_id)
        if run is not None:
            arrived += [span for span in spans_of_run(run, slug) if span.span_id not in known]
    arrived.sort(key=lambda span: (span.start_ns, span.span_id))
    return Found(trace_id, arrived) if arrived else None


class Search(msgspec.Struct, kw_only=True):
    """What traces are looked for. Times and durations are nanoseconds.

    ``service``, ``name`` and ``tags`` are of one span; ``query`` is TraceQL beside that.
    """

    query: TraceQuery = msgspec.field(default_factory=everything)
    service: str | None = None
    name: str | None = None
    tags: Mapping[str, str] = {}
    start_ns: int | None = None
    end_ns: int | None = None
    min_ns: int | None = None
    max_ns: int | None = None
    limit: int = 20

    def match(self, found: Found) -> Found | None:
        """The trace with its matching spans, if it is one of those looked for."""
        around = found.around()
        duration = around.duration_ns
        if (self.min_ns is not None and duration < self.min_ns) or (self.max_ns is not None and duration > self.max_ns):
            return None
        matched = self.query.find(found.spans, around)
        if matched is None:
            return None
        if self.service is not None or self.name is not None or self.tags:
            matched = [span for span in found.spans if self._fits(span)]
            if not matched:
                return None
        return found._replace(matched=matched)

    def _fits(self, span: SpanRecord) -> bool:
        if self.service is not None and span.service != self.service:
            return False
        if self.name is not None and span.name != self.name:
            return False
        return all(_has(span, key, value) for key, value in self.tags.items())


def _has(span: SpanRecord, key: str, value: str) -> bool:
    if key == "error" and "error" not in span.attributes:
        return span.is_error is (value == "true")
    found = span.attributes.get(key, span.around.get(key))
    return as_text(found) == value if found is not None else False


def as_text(value: Any) -> str:
    """An attribute's value as viewers show it and ask for it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.hex()
    return msgspec.json.encode(value).decode() if isinstance(value, list | dict) else str(value)


class Searched(NamedTuple):
    """What a search found, and how many traces it looked into."""

    traces: list[Found]
    looked_at: int


def search(connection: Connection, workspace_id: str, slug: str, wanted: Search) -> Searched:
    """The newest traces that fit."""
    found: list[Found] = []
    looked, spans = 0, 0
    for trace_id in _candidates(connection, workspace_id, wanted):
        if len(found) >= wanted.limit or spans >= MAX_SPANS_LOOKED_AT:
            break
        looked += 1
        one = trace(connection, workspace_id, slug, trace_id)
        if one is not None:
            spans += len(one.spans)
            matched = wanted.match(one)
            if matched is not None:
                found.append(matched)
    return Searched(found, looked)


def _candidates(connection: Connection, workspace_id: str, wanted: Search) -> list[str]:
    """Ids of traces that may fit, newest first."""
    service = wanted.service or _text(wanted.query.only("resource.service.name"))
    name = wanted.name or _text(wanted.query.only("name"))
    ids: dict[str, int] = {}
    if service in (None, SERVICE):
        own = select(_executions.trace_id, _executions.created_ns).where(
            _executions.workspace_id == workspace_id, func.coalesce(_executions.process, "") != INGESTED
        )
        own = _between(own, _executions.created_ns, wanted).order_by(_executions.created_ns.desc())
        ids |= {row[0]: row[1] for row in connection.execute(own.limit(MAX_LOOKED_AT))}
    there = select(_traces.trace_id, _traces.start_ns).where(_traces.workspace_id == workspace_id)
    if wanted.min_ns is not None:
        there = there.where(_traces.end_ns - _traces.start_ns >= wanted.min_ns)
    if service is not None or name is not None:
        of_spans = select(_spans.trace_id).where(_spans.workspace_id == workspace_id)
        if service is not None:
            of_spans = of_spans.where(_spans.service == service)
        if name is not None:
            of_spans = of_spans.where(_spans.name == name)
        # By the index on service and start, or on start: a trace's spans are not long after its first.
        of_spans = _between(of_spans, _spans.start_ns, wanted).order_by(_spans.start_ns.desc())
        there = there.where(_traces.trace_id.in_(of_spans.limit(MAX_SPANS_LOOKED_AT)))
    else:
        there = _between(there, _traces.start_ns, wanted)
    there = there.order_by(_traces.start_ns.desc()).limit(MAX_LOOKED_AT)
    ids |= {row[0]: row[1] for row in connection.execute(there)}
    return sorted(ids, key=lambda one: (-ids[one], one))[:MAX_LOOKED_AT]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _between(statement: Any, column: Any, wanted: Search) -> Any:
    if wanted.start_ns is not None:
        statement = statement.where(column >= wanted.start_ns)
    if wanted.end_ns is not None:
        statement = statement.where(column <= wanted.end_ns)
    return statement


def services(connection: Connection, workspace_id: str) -> list[str]:
    """The services that have spans."""
    rows = connection.execute(
        select(_operations.service).where(_operations.workspace_id == workspace_id).distinct()
    ).scalars()
    own = select(_executions.execution_id).where(
        _executions.workspace_id == workspace_id, func.coalesce(_executions.process, "") != INGESTED
    )
    return sorted({*rows, *([SERVICE] if connection.execute(own.limit(1)).first() is not None else [])})


KINDS: Final = {0: "", 1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}


def operations(connection: Connection, workspace_id: str, service: str | None = None) -> list[tuple[str, str]]:
    """The span names of a service (None: of all), each with its kind."""
    found: set[tuple[str, str]] = set()
    if service in (None, SERVICE):
        rows, _ = definition_rows.definitions(connection, workspace_id, None, 0, MAX_NAMES)
        found |= {(semconv.run_span_name(row.name), "server") for row in rows}
    wanted = select(_operations.name, _operations.kind).where(_operations.workspace_id == workspace_id).distinct()
    if service is not None:
        wanted = wanted.where(_operations.service == service)
    found |= {(row[0], KINDS.get(row[1], "")) for row in connection.execute(wanted.limit(MAX_NAMES))}
    return sorted(found)


def dependencies(
    connection: Connection, workspace_id: str, end_ns: int | None, lookback_ns: int | None
) -> list[tuple[str, str, int]]:
    """(service, service it calls, how often): spans whose parent is of another service, by when they began."""
    until = time.time_ns() if end_ns is None else end_ns
    since = until - (_LOOKBACK_NS if lookback_ns is None else lookback_ns)
    caller = spans_table.alias("caller")
    wanted = (
        select(caller.c.service, _spans.service, func.count())
        .select_from(
            spans_table.join(
                caller,
                (caller.c.workspace_id == _spans.workspace_id)
                & (caller.c.trace_id == _spans.trace_id)
                & (caller.c.span_id == _spans.parent_span_id),
            )
        )
        .where(
            _spans.workspace_id == workspace_id,
            _spans.start_ns >= since,
            _spans.start_ns <= until,
            caller.c.service != _spans.service,
        )
        .group_by(caller.c.service, _spans.service)
        .order_by(caller.c.service, _spans.service)
    )
    return [(row[0], row[1], row[2]) for row in connection.execute(wanted)]


def attributes(
    connection: Connection, workspace_id: str, slug: str, wanted: Search
) -> dict[str, dict[str, dict[str, Any]]]:
    """Attributes of the newest traces in a range: by scope (span, resource) and name, each value by its text."""
    found: dict[str, dict[str, dict[str, Any]]] = {"span": defaultdict(dict), "resource": defaultdict(dict)}
    for trace_id in _candidates(connection, workspace_id, wanted)[:_SAMPLE]:
        one = trace(connection, workspace_id, slug, trace_id)
        for span in one.spans[:MAX_NAMES] if one is not None else ():
            _collect(found["span"], span.attributes.items())
            _collect(found["resource"], span.around.items())
    return found


def _collect(into: dict[str, dict[str, Any]], values: Iterable[tuple[str, Any]]) -> None:
    for name, value in values:
        known = into[name]
        if len(known) < MAX_NAMES and value is not None:
            known[as_text(value)] = value
