"""Searches for traces: by a TraceQL query, and by what one span of theirs has; and what viewers offer to search for.

A search looks at the traces that started in its time range, newest first, until it has enough, inspected
`MAX_INSPECTED`, or took `SECONDS`. What the database can look for (see `requirements`) it does not read in vain.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, func, select

from tachograph.errors import QueryTimeout
from tachograph_exporter.attribute_text import as_text
from tachograph_exporter.ingest.spans import SpanRecord, stored_record
from tachograph_exporter.store import span_index_reading as index
from tachograph_exporter.store.deadline import Deadline, limited
from tachograph_exporter.store.recorded_names import UNIQUE
from tachograph_exporter.store.recorded_search import recorded_in
from tachograph_exporter.store.schema import spans as spans_table
from tachograph_exporter.store.span_criteria import Place, SpanCriteria, Window
from tachograph_exporter.store.span_index_reading import ALWAYS, Days
from tachograph_exporter.store.span_search import START, spans_of_traces
from tachograph_exporter.traces.reading import (
    MAX_SEARCHED_SPANS,
    Trace,
    places,
    read_traces,
    record_of,
    spans_of_trace,
    trace,
)
from tachograph_exporter.traces.traceql.expressions import condition
from tachograph_exporter.traces.traceql.fields import Need, TraceView, need_of
from tachograph_exporter.traces.traceql.pipelines import Evaluate, Spanset, stage
from tachograph_exporter.traces.traceql.requirements import both, criteria_of, is_anything, of_condition
from tachograph_exporter.traces.traceql.syntax import EVERYTHING, Filter, Literal, Query

__all__ = ["MAX_SEARCHED_SPANS", "Search", "Trace", "record_of", "search", "spans_of_trace", "trace"]

MAX_TRACES: Final = 500
"""Traces one search returns at most."""
MAX_INSPECTED: Final = 5_000
"""Traces one search inspects at most."""
MAX_INSPECTED_SPANS: Final = 200_000
MAX_NAMES: Final = 1_000
SECONDS: Final = 4.0
"""How long one search looks; then it has what was found so far."""
_FIRST_CHUNK: Final = 8
_MOST_WHOLE: Final = 64
_MOST_CHECKED: Final = 512
"""Traces of which it is looked at once whether they have a span that matches, before they are read."""
_SAMPLED_TRACES: Final = 100
_LOOKBACK_NS: Final = 7 * 86_400 * 1_000_000_000
_ERROR: Final = 2

KINDS: Final = {0: "", 1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
"""Jaeger's names of span kinds."""

_TRUE: Final = Literal(True)
_NO_TRACE: Final = TraceView("", "", "", 0)

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

    def span_test(self) -> Callable[[SpanRecord], bool]:
        """What a span fulfils, beside one of the criteria, that every trace has which matches."""
        first = self.query.pipeline.stages[0] if self.query.pipeline.stages else None
        condition_of_first = first.condition if isinstance(first, Filter) else _TRUE
        if self._is_of_span:
            # Another span than the query's may be the one that has these.
            return self._fits if is_anything(criteria_of(self.query)) else lambda _: True
        if is_anything(of_condition(condition_of_first)) or need_of(condition_of_first) & ~Need.SPAN:
            return lambda _: True
        test = condition(condition_of_first)
        return lambda span: test(span, _NO_TRACE)

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


class Outcome(NamedTuple):
    """How many traces a search inspected. ``is_complete``: no other of its range matches, or it has as many as asked
    for.
    """

    inspected: int
    is_complete: bool = True


def search(
    connection: Connection, workspace_id: str, slug: str, request: Search, take: Callable[[Trace], object]
) -> Outcome:
    """Call ``take`` with each of the newest traces that match, one at a time.

    Of a trace with more than `MAX_SEARCHED_SPANS` spans, only the first ones are there.
    """
    looking = _Looking(connection, workspace_id, slug, request)
    is_complete = False
    try:
        with limited(connection, SECONDS) as limit:
            is_complete = looking.run(take, limit)
    except QueryTimeout:
        pass
    return Outcome(looking.inspected, is_complete)


class _Looking:
    """A search that goes on."""

    def __init__(self, connection: Connection, workspace_id: str, slug: str, request: Search) -> None:
        self._connection = connection
        self._workspace_id = workspace_id
        self._slug = slug
        self._request = request
        self._criteria = request.criteria
        self._test = request.span_test()
        self.inspected = 0
        self._matching = 0
        self._span_count = 0

    def run(self, take: Callable[[Trace], object], limit: Deadline) -> bool:
        """Whether all has been looked at, or enough. Raises `QueryTimeout`."""
        if not _may_exist(self._connection, self._workspace_id, self._request):
            return True
        match = self._request.matcher()
        candidates = places(self._connection, self._workspace_id, self._criteria, self._request.window)
        size = _FIRST_CHUNK
        with closing(candidates):
            while self.inspected < MAX_INSPECTED and self._span_count < MAX_INSPECTED_SPANS:
                # Where most match, to look at spans first would be to read them twice.
                is_checked = self._matching * 2 < self.inspected
                size = min(size, _MOST_CHECKED if is_checked else _MOST_WHOLE, MAX_INSPECTED - self.inspected)
                chunk = list(islice(candidates, size))
                if self._look_at(chunk, match, take, limit, is_checked=is_checked):
                    return True
                if len(chunk) < size:
                    return True
                size *= 2
        return False

    def _look_at(
        self,
        chunk: Sequence[Place],
        match: Callable[[Trace], Trace | None],
        take: Callable[[Trace], object],
        limit: Deadline,
        *,
        is_checked: bool,
    ) -> bool:
        """Whether it is enough."""
        limit.check()
        before = self.inspected
        number_of = {place.trace_id: before + number for number, place in enumerate(chunk, 1)}
        likely = self._likely(chunk) if is_checked else chunk
        for candidate in read_traces(self._connection, self._workspace_id, self._slug, likely):
            limit.check()
            self.inspected = number_of[candidate.trace_id]
            self._span_count += len(candidate.spans)
            matching = match(candidate)
            if matching is not None:
                take(matching)
                self._matching += 1
                if self._matching >= self._request.limit:
                    return True
        self.inspected = before + len(chunk)
        return False

    def _likely(self, chunk: Sequence[Place]) -> list[Place]:
        """Those that may have a span that matches, as far as their spans say, one by one."""
        if is_anything(self._criteria):
            return list(chunk)
        ids = [place.trace_id for place in chunk]
        likely = set(recorded_in(self._connection, self._workspace_id, ids))
        with closing(spans_of_traces(self._connection, self._workspace_id, self._criteria, ids)) as rows:
            for row in rows:
                if row[0] not in likely and self._test(stored_record(row[1], row[2], row[3])):
                    likely.add(row[0])
        return [place for place in chunk if place.trace_id in likely]


def _may_exist(connection: Connection, workspace_id: str, request: Search) -> bool:
    """Whether a span may have all of the tags that are searched for, as far as the index knows."""
    # A span of a trace may start after the range in which the trace started.
    days = Days(request.start_ns)
    return all(
        not _is_attribute(key) or key in UNIQUE
        or index.has_value(connection, workspace_id, key, text, days)
        for key, text in request.tags.items()
    ) and any(
        each.service is None or each.name is None
        or index.has_name(connection, workspace_id, each.service, each.name, days)
        for each in request.criteria
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
