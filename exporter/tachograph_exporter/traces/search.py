"""Traces as viewers read them: the spans that arrived under an id and, for executions recorded here, those made from
their rows. Where both have a span, the one that arrived counts.

A search looks at the traces in its time range, newest first, until it has found enough or inspected `MAX_INSPECTED`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, func, select

from tachograph_exporter.attribute_text import as_text as as_text
from tachograph_exporter.ingest.span_rows import stream_trace
from tachograph_exporter.ingest.spans import SpanRecord, StoredSpan, stored_record
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import span_index_reading as index
from tachograph_exporter.store.recovery import INGESTED_PROCESS
from tachograph_exporter.store.schema import spans as spans_table
from tachograph_exporter.store.schema import traces as traces_table
from tachograph_exporter.store.schema import workflow_executions
from tachograph_exporter.store.span_index_reading import ALWAYS, Days
from tachograph_exporter.traces.trace_query import TraceQuery, TraceSummary, everything
from tachograph_exporter.views.otlp_spans import SERVICE, spans_of_run

MAX_TRACES: Final = 500
"""Traces one search returns at most."""
MAX_INSPECTED: Final = 5_000
"""Traces one search inspects at most."""
MAX_INSPECTED_SPANS: Final = 200_000
MAX_SEARCHED_SPANS: Final = 20_000
"""Spans of one trace that a search looks at."""
MAX_NAMES: Final = 1_000
_SAMPLED_TRACES: Final = 100
_LOOKBACK_NS: Final = 7 * 86_400 * 1_000_000_000

KINDS: Final = {0: "", 1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
"""Jaeger's names of span kinds."""

_spans = spans_table.c
_traces = traces_table.c
_executions = workflow_executions.c


class Trace(NamedTuple):
    """A trace, and those of its spans that match the search."""

    trace_id: str
    spans: list[SpanRecord]
    matched: Sequence[SpanRecord] = ()

    @property
    def root(self) -> SpanRecord:
        """The first span without a parent in the trace."""
        ids = {span.span_id for span in self.spans}
        return next((span for span in self.spans if span.parent_span_id not in ids), self.spans[0])

    @property
    def start_ns(self) -> int:
        """When the first span started."""
        return min(span.start_ns for span in self.spans)

    @property
    def duration_ns(self) -> int:
        """From the first start to the last end."""
        return max((span.end_ns or span.start_ns) for span in self.spans) - self.start_ns

    def summary(self) -> TraceSummary:
        """What a query can ask of the trace."""
        root = self.root
        return TraceSummary(self.trace_id, root.name, root.service, self.duration_ns)


def spans_of_trace(
    connection: Connection, workspace_id: str, slug: str, trace_id: str, *, by_resource: bool = False
) -> Iterator[SpanRecord | StoredSpan]:
    """The spans of a trace of a workspace, those that arrived first, each part by start.

    ``trace_id`` may lack leading zeros. ``by_resource``: those of one resource follow each other.
    """
    trace_id = trace_id.lower().zfill(32)
    arrived = set()
    for span in stream_trace(connection, workspace_id, trace_id, by_resource=by_resource):
        arrived.add(span.span_id)
        yield span
    rows = connection.execute(
        select(_executions.execution_id).where(
            _executions.trace_id == trace_id,
            _executions.workspace_id == workspace_id,
            func.coalesce(_executions.process, "") != INGESTED_PROCESS,
        )
    ).scalars()
    for execution_id in rows.all():
        run = execution_rows.run(connection, workspace_id, execution_id)
        if run is not None:
            yield from [span for span in spans_of_run(run, slug) if span.span_id not in arrived]


def record_of(span: SpanRecord | StoredSpan) -> SpanRecord:
    """A span, read."""
    return span if isinstance(span, SpanRecord) else stored_record(span.payload, span.resource, span.resource_id)


def trace(
    connection: Connection, workspace_id: str, slug: str, trace_id: str, limit: int = MAX_SEARCHED_SPANS
) -> Trace | None:
    """One trace of a workspace with its first ``limit`` spans, or None. ``trace_id`` may lack leading zeros."""
    spans = [record_of(span) for span in islice(spans_of_trace(connection, workspace_id, slug, trace_id), limit)]
    spans.sort(key=lambda span: (span.start_ns, span.span_id))
    return Trace(trace_id.lower().zfill(32), spans) if spans else None


class Search(msgspec.Struct, kw_only=True):
    """Which traces to find. Times and durations are nanoseconds.

    ``service``, ``name``, ``tags``, ``span_min_ns`` and ``span_max_ns`` are those of one span; ``query`` is TraceQL and
    must match, too.
    """

    query: TraceQuery = msgspec.field(default_factory=everything)
    service: str | None = None
    name: str | None = None
    tags: Mapping[str, str] = {}
    start_ns: int | None = None
    end_ns: int | None = None
    min_ns: int | None = None
    max_ns: int | None = None
    span_min_ns: int | None = None
    span_max_ns: int | None = None
    limit: int = 20

    def match(self, trace: Trace) -> Trace | None:
        """The trace with its matching spans, or None if it does not match."""
        summary = trace.summary()
        duration = summary.duration_ns
        if (self.min_ns is not None and duration < self.min_ns) or (self.max_ns is not None and duration > self.max_ns):
            return None
        matched = self.query.find(trace.spans, summary)
        if matched is None:
            return None
        lengths = (self.span_min_ns, self.span_max_ns)
        if self.service is not None or self.name is not None or self.tags or lengths != (None, None):
            matched = [span for span in trace.spans if self._fits(span)]
            if not matched:
                return None
        return trace._replace(matched=matched)

    def _fits(self, span: SpanRecord) -> bool:
        if self.service is not None and span.service != self.service:
            return False
        if self.name is not None and span.name != self.name:
            return False
        length = max(0, span.end_ns - span.start_ns)
        if (self.span_min_ns or 0) > length or (self.span_max_ns is not None and length > self.span_max_ns):
            return False
        return all(_has(span, key, value) for key, value in self.tags.items())


def _has(span: SpanRecord, key: str, text: str) -> bool:
    if key == "error" and "error" not in span.attributes:
        return span.is_error is (text == "true")
    value = span.attributes.get(key, span.resource_attributes.get(key))
    if value is None and key in _SHOWN_AS_TAGS:
        value = _SHOWN_AS_TAGS[key](span) or None
    return as_text(value) == text if value is not None else False


# What Jaeger shows as tags although OTLP has it elsewhere: its UI searches for what it shows.
_SHOWN_AS_TAGS: Final[Mapping[str, Callable[[SpanRecord], str]]] = {
    "span.kind": lambda span: KINDS.get(span.kind) or "internal",
    "otel.scope.name": lambda span: span.scope,
    "otel.status_code": lambda span: "ERROR" if span.is_error else "",
    "otel.status_description": lambda span: span.status_message,
}


def search(
    connection: Connection, workspace_id: str, slug: str, request: Search, take: Callable[[Trace], object]
) -> int:
    """Call ``take`` with each of the newest traces that match, one at a time; returns how many were inspected.

    Of a trace with more than `MAX_SEARCHED_SPANS` spans, only the first ones are there.
    """
    count, inspected, span_count = 0, 0, 0
    for trace_id in _candidates(connection, workspace_id, request):
        if count >= request.limit or span_count >= MAX_INSPECTED_SPANS:
            break
        inspected += 1
        candidate = trace(connection, workspace_id, slug, trace_id)
        if candidate is not None:
            span_count += len(candidate.spans)
            matching = request.match(candidate)
            if matching is not None:
                count += 1
                take(matching)
    return inspected


def _candidates(connection: Connection, workspace_id: str, request: Search) -> list[str]:
    """Ids of traces that may match, newest first."""
    service = request.service or _text(request.query.only("resource.service.name"))
    name = request.name or _text(request.query.only("name"))
    starts: dict[str, int] = {}
    if service in (None, SERVICE):
        recorded = select(_executions.trace_id, _executions.created_ns).where(
            _executions.workspace_id == workspace_id, func.coalesce(_executions.process, "") != INGESTED_PROCESS
        )
        recorded = _between(recorded, _executions.created_ns, request).order_by(_executions.created_ns.desc())
        starts |= {row[0]: row[1] for row in connection.execute(recorded.limit(MAX_INSPECTED))}
    arrived = select(_traces.trace_id, _traces.start_ns).where(_traces.workspace_id == workspace_id)
    if request.min_ns is not None:
        arrived = arrived.where(_traces.end_ns - _traces.start_ns >= request.min_ns)
    if service is not None or name is not None:
        matching = select(_spans.trace_id).where(_spans.workspace_id == workspace_id)
        if service is not None:
            matching = matching.where(_spans.service == service)
        if name is not None:
            matching = matching.where(_spans.name == name)
        # By the index on service and start, or on start: a trace's spans start soon after its first.
        matching = _between(matching, _spans.start_ns, request).order_by(_spans.start_ns.desc())
        arrived = arrived.where(_traces.trace_id.in_(matching.limit(MAX_INSPECTED_SPANS)))
    else:
        arrived = _between(arrived, _traces.start_ns, request)
    arrived = arrived.order_by(_traces.start_ns.desc()).limit(MAX_INSPECTED)
    starts |= {row[0]: row[1] for row in connection.execute(arrived)}
    return sorted(starts, key=lambda trace_id: (-starts[trace_id], trace_id))[:MAX_INSPECTED]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _between(statement: Any, column: Any, request: Search) -> Any:
    if request.start_ns is not None:
        statement = statement.where(column >= request.start_ns)
    if request.end_ns is not None:
        statement = statement.where(column <= request.end_ns)
    return statement


def services(connection: Connection, workspace_id: str, days: Days = ALWAYS) -> list[str]:
    """The services that have spans on these days."""
    return index.services(connection, workspace_id, days)


def operations(
    connection: Connection, workspace_id: str, service: str | None = None, days: Days = ALWAYS
) -> list[tuple[str, str]]:
    """The span names of a service (None: of all services) on these days, each with its kind."""
    names = index.operations(connection, workspace_id, service, days)
    return sorted({(name, KINDS.get(kind, "")) for name, kind in names})


def dependencies(
    connection: Connection, workspace_id: str, end_ns: int | None, lookback_ns: int | None
) -> list[tuple[str, str, int]]:
    """(calling service, called service, calls): spans whose parent is of another service, by when they started.

    The range ends at ``end_ns`` (default: now) and is ``lookback_ns`` long (default: a week).
    """
    until = time.time_ns() if end_ns is None else end_ns
    since = until - (_LOOKBACK_NS if lookback_ns is None else lookback_ns)
    caller = spans_table.alias("caller")
    statement = (
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
    return [(row[0], row[1], row[2]) for row in connection.execute(statement)]


def attributes(
    connection: Connection, workspace_id: str, slug: str, request: Search
) -> dict[str, dict[str, dict[str, Any]]]:
    """Attributes of the newest traces in a range: by scope (span, resource) and name, each value by its text."""
    by_scope: dict[str, dict[str, dict[str, Any]]] = {"span": defaultdict(dict), "resource": defaultdict(dict)}
    left = MAX_SEARCHED_SPANS
    for trace_id in _candidates(connection, workspace_id, request)[:_SAMPLED_TRACES]:
        sample = trace(connection, workspace_id, slug, trace_id, min(left, MAX_NAMES)) if left > 0 else None
        left -= len(sample.spans) if sample is not None else 0
        for span in sample.spans if sample is not None else ():
            _collect(by_scope["span"], span.attributes.items())
            _collect(by_scope["resource"], span.resource_attributes.items())
    return by_scope


def _collect(into: dict[str, dict[str, Any]], attributes: Iterable[tuple[str, Any]]) -> None:
    for name, value in attributes:
        values = into[name]
        if len(values) < MAX_NAMES and value is not None:
            values[as_text(value)] = value
