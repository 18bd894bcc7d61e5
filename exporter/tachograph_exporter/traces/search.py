"""Searches for traces: by a TraceQL query, and by what one span of theirs has; and what viewers offer to search for.

A search looks at the traces that started in its time range, newest first, until it has enough or inspected
`MAX_INSPECTED`. What the database can look for (see `requirements`) it does not read in vain.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from itertools import islice
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, func, select

from tachograph_exporter.attribute_text import as_text
from tachograph_exporter.ingest.spans import SpanRecord
from tachograph_exporter.store import span_index_reading as index
from tachograph_exporter.store.recorded_names import UNIQUE
from tachograph_exporter.store.schema import spans as spans_table
from tachograph_exporter.store.span_index_reading import ALWAYS, Days
from tachograph_exporter.store.span_search import START, SpanCriteria, Window
from tachograph_exporter.traces.reading import (
    MAX_SEARCHED_SPANS,
    Trace,
    places,
    read_traces,
    record_of,
    spans_of_trace,
    trace,
)
from tachograph_exporter.traces.traceql.pipelines import Evaluate, Spanset, stage
from tachograph_exporter.traces.traceql.requirements import both, criteria_of
from tachograph_exporter.traces.traceql.syntax import EVERYTHING, Query

__all__ = ["MAX_SEARCHED_SPANS", "Search", "Trace", "record_of", "search", "spans_of_trace", "trace"]

MAX_TRACES: Final = 500
"""Traces one search returns at most."""
MAX_INSPECTED: Final = 5_000
"""Traces one search inspects at most."""
MAX_INSPECTED_SPANS: Final = 200_000
MAX_NAMES: Final = 1_000
_SAMPLED_TRACES: Final = 100
_LOOKBACK_NS: Final = 7 * 86_400 * 1_000_000_000
_ERROR: Final = 2

KINDS: Final = {0: "", 1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
"""Jaeger's names of span kinds."""

_spans = spans_table.c


class Search(msgspec.Struct, kw_only=True):
    """Which traces to find. Times and durations are nanoseconds.

    ``service``, ``name``, ``tags``, ``span_min_ns`` and ``span_max_ns`` are those of one span; ``query`` is TraceQL and
    must match, too.
    """

    query: Query = EVERYTHING
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

    @property
    def criteria(self) -> tuple[SpanCriteria, ...]:
        """What a span of every trace has that is searched for: one of these."""
        is_error = self.tags.get("error") == "true"
        of_span = SpanCriteria(
            service=self.service, name=self.name, status=_ERROR if is_error else None,
            min_ns=self.span_min_ns, trace_min_ns=self.min_ns,
            values=tuple((key, text) for key, text in sorted(self.tags.items()) if _is_attribute(key)),
        )  # fmt: skip
        return tuple(both((of_span,), criteria_of(self.query)))

    @property
    def window(self) -> Window:
        """When the traces started."""
        return Window(self.start_ns, self.end_ns)

    def matcher(self) -> Callable[[Trace], Trace | None]:
        """The function that gives a trace with its matching spansets, or None if it does not match."""
        evaluate = stage(self.query.pipeline)
        return lambda trace: self._match(trace, evaluate)

    def _match(self, trace: Trace, evaluate: Evaluate) -> Trace | None:
        view = trace.view()
        duration = view.duration_ns
        if (self.min_ns is not None and duration < self.min_ns) or (self.max_ns is not None and duration > self.max_ns):
            return None
        spansets = evaluate([Spanset(trace.spans)], view)
        if spansets and self._is_of_span:
            fitting = [span for span in trace.spans if self._fits(span)]
            spansets = [Spanset(fitting)] if fitting else []
        return trace._replace(spansets=spansets) if spansets else None

    @property
    def _is_of_span(self) -> bool:
        of_span = (self.service, self.name, self.span_min_ns, self.span_max_ns)
        return bool(self.tags) or any(each is not None for each in of_span)

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


def _is_attribute(key: str) -> bool:
    """Whether what is searched for by this name is always an attribute."""
    return key != "error" and key not in _SHOWN_AS_TAGS


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
    if not _may_exist(connection, workspace_id, request):
        return 0
    count, inspected, span_count = 0, 0, 0
    match = request.matcher()
    candidates = places(connection, workspace_id, request.criteria, request.window)
    with closing(candidates):
        for candidate in read_traces(connection, workspace_id, slug, islice(candidates, MAX_INSPECTED)):
            inspected += 1
            span_count += len(candidate.spans)
            matching = match(candidate)
            if matching is not None:
                take(matching)
                count += 1
            if count >= request.limit or span_count >= MAX_INSPECTED_SPANS:
                break
    return inspected


def _may_exist(connection: Connection, workspace_id: str, request: Search) -> bool:
    """Whether a span may have all of the tags that are searched for, as far as the index knows."""
    # A span of a trace may start after the range in which the trace started.
    days = Days(request.start_ns)
    return all(
        not _is_attribute(key) or key in UNIQUE
        or index.has_value(connection, workspace_id, key, text, days)
        for key, text in request.tags.items()
    )  # fmt: skip


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
            since <= START,
            until >= START,
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
    for place in islice(places(connection, workspace_id, request.criteria, request.window), _SAMPLED_TRACES):
        sample = trace(connection, workspace_id, slug, place.trace_id, min(left, MAX_NAMES)) if left > 0 else None
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
