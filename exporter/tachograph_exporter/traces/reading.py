"""Traces read one after another, a bounded number of spans in memory at a time.

A trace is the spans that arrived under an id and, for executions recorded here, those made from their rows. Where both
have a span, the one that arrived counts.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from typing import Final, NamedTuple

from sqlalchemy import Connection

from tachograph.spans import semconv
from tachograph_exporter.ingest.span_rows import stored_spans, stream_trace, trace_rows
from tachograph_exporter.ingest.spans import SpanRecord, StoredSpan, stored_record
from tachograph_exporter.store import span_index_reading as index
from tachograph_exporter.store.recorded_names import UNIQUE
from tachograph_exporter.store.recorded_search import recorded_in, recorded_runs, recorded_traces
from tachograph_exporter.store.span_criteria import Place, SpanCriteria, Window
from tachograph_exporter.store.span_index import Source
from tachograph_exporter.store.span_index_reading import Days
from tachograph_exporter.store.span_search import arrived_traces
from tachograph_exporter.traces.traceql.fields import TraceView
from tachograph_exporter.traces.traceql.pipelines import Spanset
from tachograph_exporter.views.otlp_spans import SERVICE, spans_of_run

MAX_SEARCHED_SPANS: Final = 20_000
"""Spans of one trace that a search looks at."""
_CHUNK_TRACES: Final = 64
_CHUNK_SPANS: Final = 4_000
_FIRST_CHUNK: Final = 8
_RUN_NAME: Final = semconv.run_span_name("")


class Trace(NamedTuple):
    """A trace, its spans by start, and the spansets of them that match a search."""

    trace_id: str
    spans: list[SpanRecord]
    spansets: Sequence[Spanset] = ()

    @property
    def root(self) -> SpanRecord:
        """The first span without a parent; if all have one, the first whose parent is not in the trace."""
        root = next((span for span in self.spans if not span.parent_span_id), None)
        if root is not None:
            return root
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

    def view(self) -> TraceView:
        """What a query can ask of the trace."""
        root = self.root
        return TraceView(self.trace_id, root.name, root.service, self.duration_ns, self.spans)


def record_of(span: SpanRecord | StoredSpan) -> SpanRecord:
    """A span, read."""
    return span if isinstance(span, SpanRecord) else stored_record(span.payload, span.resource, span.resource_id)


def places(
    connection: Connection, workspace_id: str, criteria: Sequence[SpanCriteria], window: Window
) -> Generator[Place, None, None]:
    """Where to look for traces that started in a window and may have a span with one of the criteria, newest first."""
    sources = [arrived_traces(connection, workspace_id, criteria, window)]
    of_ours = [each for each in criteria if _may_be_ours(connection, workspace_id, each, Days(window.start_ns))]
    if of_ours:
        sources.append(recorded_traces(connection, workspace_id, of_ours, window, _RUN_NAME))
    given: set[str] = set()
    with ExitStack() as stack:
        for source in sources:
            stack.enter_context(closing(source))
        for place in heapq.merge(*sources, key=lambda place: -place.start_ns):
            if place.trace_id not in given:
                given.add(place.trace_id)
                yield place


def _may_be_ours(connection: Connection, workspace_id: str, criteria: SpanCriteria, days: Days) -> bool:
    """Whether a span of an execution recorded here may have what is searched for, as far as the index knows."""
    if criteria.service not in (None, SERVICE) or criteria.root_service not in (None, SERVICE):
        return False
    names = [name for name in (criteria.name, criteria.root_name) if name is not None]
    return all(index.has_name(connection, workspace_id, SERVICE, name, days) for name in names) and all(
        name in UNIQUE or index.has_value(connection, workspace_id, name, text, days, Source.RECORDED)
        for name, text in criteria.values
    )


def read_traces(connection: Connection, workspace_id: str, slug: str, where: Iterable[Place]) -> Iterator[Trace]:
    """The traces at these places, in their order; of a long one its first `MAX_SEARCHED_SPANS` spans."""
    remaining = iter(where)
    size = _FIRST_CHUNK
    while ids := [place.trace_id for place in islice(remaining, size)]:
        yield from _chunk(connection, workspace_id, slug, ids)
        size = min(_CHUNK_TRACES, size * 2)


def _chunk(connection: Connection, workspace_id: str, slug: str, ids: Sequence[str]) -> Iterator[Trace]:
    rows = trace_rows(connection, workspace_id, ids)
    runs = recorded_in(connection, workspace_id, ids)
    together: list[str] = []
    count = 0
    for trace_id in ids:
        size = rows[trace_id].span_count if trace_id in rows else 0
        size += runs.get(trace_id, 0)
        if together and count + size > _CHUNK_SPANS:
            yield from _read(connection, workspace_id, slug, together)
            together, count = [], 0
        if size > _CHUNK_SPANS:
            spans = [record_of(span) for span in islice(spans_of_trace(connection, workspace_id, slug, trace_id),
                                                        MAX_SEARCHED_SPANS)]  # fmt: skip
            yield _sorted(trace_id, spans)
        else:
            together.append(trace_id)
            count += size
    yield from _read(connection, workspace_id, slug, together)


def _read(connection: Connection, workspace_id: str, slug: str, ids: Sequence[str]) -> Iterator[Trace]:
    if not ids:
        return
    arrived, _ = stored_spans(connection, workspace_id, ids)
    for run in recorded_runs(connection, workspace_id, ids):
        of_trace = arrived.setdefault(run.execution.trace_id, {})
        for span in spans_of_run(run, slug):
            of_trace.setdefault(span.span_id, span)
    for trace_id in ids:
        spans = arrived.get(trace_id)
        if spans:
            yield _sorted(trace_id, list(spans.values()))


def _sorted(trace_id: str, spans: list[SpanRecord]) -> Trace:
    spans.sort(key=lambda span: (span.start_ns, span.span_id))
    return Trace(trace_id, spans)


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
    for run in recorded_runs(connection, workspace_id, [trace_id]):
        yield from [span for span in spans_of_run(run, slug) if span.span_id not in arrived]


def trace(
    connection: Connection, workspace_id: str, slug: str, trace_id: str, limit: int = MAX_SEARCHED_SPANS
) -> Trace | None:
    """One trace of a workspace with its first ``limit`` spans, or None. ``trace_id`` may lack leading zeros."""
    spans = [record_of(span) for span in islice(spans_of_trace(connection, workspace_id, slug, trace_id), limit)]
    return _sorted(trace_id.lower().zfill(32), spans) if spans else None
