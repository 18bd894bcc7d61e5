"""What a query can ask of a span: attributes by scope, and intrinsics. And what has to be read for it (`Need`).

As in Tempo, an attribute without a scope is looked for on the span, then on its resource, events, links and scope.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntFlag
from typing import Any, Final, NamedTuple, TypeAlias

from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from tachograph_exporter.ingest.spans import SpanRecord, attributes_of
from tachograph_exporter.traces.traceql.lexer import Duration
from tachograph_exporter.traces.traceql.syntax import Attribute, Expression, Field, Intrinsic, Kind, Status, fields_of

STATUSES: Final = {0: "unset", 1: "ok", 2: "error"}
KINDS: Final = {0: "unspecified", 1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
_STATUS_VALUES: Final = {code: Status(word) for code, word in STATUSES.items()}
_KIND_VALUES: Final = {code: Kind(word) for code, word in KINDS.items()}


class Need(IntFlag):
    """What has to be read to know a field."""

    COLUMNS = 0
    """The span's name, service, times, ids, kind and status."""
    SPAN = 1
    """The whole span."""
    SUMMARY = 2
    """Root and duration of its trace."""
    TREE = 4
    """The other spans of its trace."""


class Numbers(NamedTuple):
    """A span's place in the tree of its trace as a nested set: its descendants' numbers are between its own."""

    left: int
    right: int
    parent: int


class TraceView:
    """What a query can ask of a trace. ``spans``: all of them, or none if only the summary is known.

    Roots are the spans without a parent; if there are none, those whose parent is not in the trace.
    """

    __slots__ = ("_children", "_numbers", "duration_ns", "root_name", "root_service", "spans", "trace_id")

    def __init__(
        self, trace_id: str, root_name: str, root_service: str, duration_ns: int, spans: Sequence[SpanRecord] = ()
    ) -> None:
        self.trace_id = trace_id
        self.root_name = root_name
        self.root_service = root_service
        self.duration_ns = duration_ns
        self.spans = spans
        self._children: dict[str, list[str]] | None = None
        self._numbers: dict[str, Numbers] | None = None

    @property
    def children(self) -> Mapping[str, Sequence[str]]:
        """Ids of the spans of a parent, by its id."""
        if self._children is None:
            self._children = {}
            for span in self.spans:
                if span.parent_span_id:
                    self._children.setdefault(span.parent_span_id, []).append(span.span_id)
        return self._children

    @property
    def numbers(self) -> Mapping[str, Numbers]:
        """The nested set, by span id. ``parent`` is -1 for a root, and 0 where the parent is not known."""
        if self._numbers is None:
            self._numbers = _nested_set(self.spans, self.children)
        return self._numbers


def _nested_set(spans: Sequence[SpanRecord], children: Mapping[str, Sequence[str]]) -> dict[str, Numbers]:
    ids = {span.span_id for span in spans}
    parentless = [span.span_id for span in spans if not span.parent_span_id]
    orphans = [span.span_id for span in spans if span.parent_span_id and span.parent_span_id not in ids]
    numbers: dict[str, Numbers] = {}
    next_number = 1
    roots = [(span_id, -1) for span_id in parentless]
    roots += [(span_id, 0 if parentless else -1) for span_id in orphans]
    for start, root_parent in roots:
        # (span, its parent's number, its own; 0 before its descendants are numbered)
        pending = [(start, root_parent, 0)]
        while pending:
            span_id, parent, left = pending.pop()
            if left:
                numbers[span_id] = Numbers(left, next_number, parent)
                next_number += 1
            elif span_id in ids and span_id not in numbers:
                numbers[span_id] = Numbers(next_number, next_number, parent)
                pending.append((span_id, parent, next_number))
                pending += [(child, next_number, 0) for child in reversed(children.get(span_id, ()))]
                next_number += 1
    return numbers


Getter: TypeAlias = Callable[[SpanRecord, TraceView], Any]
"""Reads a field of a span. A field of events or links has `Several` values."""


class Several(tuple[Any, ...]):
    """Values of a span's events or links: a comparison with any of them counts."""

    __slots__ = ()


def _duration(span: SpanRecord, _view: TraceView) -> Duration | None:
    return Duration(span.end_ns - span.start_ns) if span.end_ns else None


def _number(index: int) -> Getter:
    def get(span: SpanRecord, view: TraceView) -> int:
        numbers = view.numbers.get(span.span_id)
        return numbers[index] if numbers is not None else 0

    return get


def message_of(span: SpanRecord) -> Span:
    """A span with its events and links."""
    return Span.FromString(span.payload)


@functools.lru_cache(maxsize=256)
def _scope(resource: bytes) -> tuple[str, str, Mapping[str, Any]]:
    scopes = ResourceSpans.FromString(resource).scope_spans
    scope = scopes[0].scope if scopes else None
    return (scope.name, scope.version, attributes_of(scope.attributes)) if scope is not None else ("", "", {})


def _event_names(span: SpanRecord, _view: TraceView) -> Several:
    return Several(event.name for event in message_of(span).events)


def _event_ages(span: SpanRecord, _view: TraceView) -> Several:
    return Several(Duration(event.time_unix_nano - span.start_ns) for event in message_of(span).events)


def _linked(name: str) -> Getter:
    return lambda span, _: Several(getattr(link, name).hex() for link in message_of(span).links)


INTRINSICS: Final[dict[str, tuple[Need, Getter]]] = {
    "name": (Need.COLUMNS, lambda span, _: span.name),
    "status": (Need.COLUMNS, lambda span, _: _STATUS_VALUES.get(span.status_code, _STATUS_VALUES[0])),
    "statusMessage": (Need.SPAN, lambda span, _: span.status_message),
    "kind": (Need.COLUMNS, lambda span, _: _KIND_VALUES.get(span.kind, _KIND_VALUES[0])),
    "duration": (Need.COLUMNS, _duration),
    "rootName": (Need.SUMMARY, lambda _, view: view.root_name),
    "rootServiceName": (Need.SUMMARY, lambda _, view: view.root_service),
    "traceDuration": (Need.SUMMARY, lambda _, view: Duration(view.duration_ns)),
    "nestedSetLeft": (Need.TREE, _number(0)),
    "nestedSetRight": (Need.TREE, _number(1)),
    "nestedSetParent": (Need.TREE, _number(2)),
    "trace:id": (Need.COLUMNS, lambda span, _: span.trace_id),
    "span:id": (Need.COLUMNS, lambda span, _: span.span_id),
    "span:parentID": (Need.COLUMNS, lambda span, _: span.parent_span_id),
    "span:childCount": (Need.TREE, lambda span, view: len(view.children.get(span.span_id, ()))),
    "event:name": (Need.SPAN, _event_names),
    "event:timeSinceStart": (Need.SPAN, _event_ages),
    "link:traceID": (Need.SPAN, _linked("trace_id")),
    "link:spanID": (Need.SPAN, _linked("span_id")),
    "instrumentation:name": (Need.SPAN, lambda span, _: _scope(span.resource)[0]),
    "instrumentation:version": (Need.SPAN, lambda span, _: _scope(span.resource)[1]),
}
"""What TraceQL knows of a span beside its attributes, and what has to be read for it."""
IS_ROOT: Final = Intrinsic("root")
"""Whether a span has no parent: what ``nestedSetParent < 0`` asks, for traces that have such spans."""
_IS_ROOT: Final[tuple[Need, Getter]] = (Need.COLUMNS, lambda span, _: not span.parent_span_id)
ALIASES: Final = {
    "span:name": "name", "span:status": "status", "span:statusMessage": "statusMessage", "span:kind": "kind",
    "span:duration": "duration", "trace:rootName": "rootName", "trace:rootService": "rootServiceName",
    "trace:duration": "traceDuration",
}  # fmt: skip
"""Other names of intrinsics."""


def need_of(expression: Expression) -> Need:
    """What has to be read to evaluate an expression."""
    need = Need.COLUMNS
    for field in fields_of(expression):
        if isinstance(field, Intrinsic):
            need |= INTRINSICS.get(field.name, _IS_ROOT)[0]
        elif field != SERVICE:
            need |= Need.SPAN
    return need


SERVICE: Final = Attribute("resource", "service.name")


def getter_of(field: Field) -> Getter:
    """The function that reads a field of a span; None where there is no such attribute."""
    if isinstance(field, Intrinsic):
        return INTRINSICS.get(field.name, _IS_ROOT)[1]
    if field == SERVICE:
        # The same as its column and as viewers show, also for a resource that does not say.
        return lambda span, _: span.service
    name = field.name
    match field.scope:
        case "span":
            return lambda span, _: span.attributes.get(name)
        case "resource":
            return lambda span, _: span.resource_attributes.get(name)
        case "event":
            return _of_events(name)
        case "link":
            return _of_links(name)
        case "instrumentation":
            return lambda span, _: _scope(span.resource)[2].get(name)
    return _anywhere(name)


def _values(name: str, parts: Iterable[Iterable[KeyValue]]) -> Several | None:
    values = [attributes_of([item])[name] for part in parts for item in part if item.key == name]
    return Several(values) if values else None


def _of_events(name: str) -> Getter:
    key = name.encode()

    def get(span: SpanRecord, _view: TraceView) -> Several | None:
        # Most spans do not have it: looking for its name is quicker than decoding them.
        if key not in span.payload:
            return None
        return _values(name, (event.attributes for event in message_of(span).events))

    return get


def _of_links(name: str) -> Getter:
    key = name.encode()

    def get(span: SpanRecord, _view: TraceView) -> Several | None:
        if key not in span.payload:
            return None
        return _values(name, (link.attributes for link in message_of(span).links))

    return get


def _anywhere(name: str) -> Getter:
    others = (_of_events(name), _of_links(name))

    def get(span: SpanRecord, view: TraceView) -> Any:
        value = span.attributes.get(name)
        if value is None:
            value = span.resource_attributes.get(name)
        if value is not None:
            return value
        for other in others:
            values = other(span, view)
            if values:
                return values
        return _scope(span.resource)[2].get(name)

    return get


def first(value: Any) -> Any:
    """The value that is shown of a field: of several, the first."""
    if isinstance(value, Several):
        return value[0] if value else None
    return value
