"""A query over the spans of one trace: which of them match, and whether the trace does.

As in Tempo: an attribute without a scope is looked for on the span, then on its resource. Comparing an attribute that
is absent or of another type is false, for ``!=`` and ``!~`` too. Spansets joined by ``&&`` need a span each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from tachograph_exporter.ingest.spans import SpanRecord


class TraceSummary(NamedTuple):
    """What a query can ask of a span's trace. Durations are nanoseconds."""

    trace_id: str
    root_name: str
    root_service: str
    duration_ns: int


Test = Callable[[SpanRecord, TraceSummary], bool]
Field = Callable[[SpanRecord, TraceSummary], Any]


class SpanSet(NamedTuple):
    """``{ … }``: the spans that pass a test. ``required``: (field, value) pairs that every one of them has."""

    test: Test
    required: tuple[tuple[str, Any], ...]


class TraceQuery(NamedTuple):
    """Alternatives, each of spansets that must all have a span in a trace."""

    alternatives: tuple[tuple[SpanSet, ...], ...]

    def find(self, spans: Sequence[SpanRecord], trace: TraceSummary) -> list[SpanRecord] | None:
        """The spans of a trace that match, or None if the trace does not."""
        for spansets in self.alternatives:
            matches: dict[str, SpanRecord] = {}
            for spanset in spansets:
                fitting = [span for span in spans if spanset.test(span, trace)]
                if not fitting:
                    break
                matches |= {span.span_id: span for span in fitting}
            else:
                return list(matches.values())
        return None

    def only(self, field: str) -> Any:
        """The one value of a field that some span of every matching trace has, or None if there is no such value."""
        values = [
            {value for spanset in spansets for name, value in spanset.required if name == field}
            for spansets in self.alternatives
        ]
        first = values[0] if values else set()
        return next(iter(first)) if len(first) == 1 and all(others == first for others in values) else None


def every_span(_span: SpanRecord, _trace: TraceSummary) -> bool:
    """The test that all spans pass."""
    return True


def everything() -> TraceQuery:
    """The query ``{}``."""
    return TraceQuery(((SpanSet(every_span, ()),),))


STATUSES: Final = {0: "unset", 1: "ok", 2: "error"}
KINDS: Final = {0: "unspecified", 1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}


class Word(str):
    """A value without quotes: a status or a kind."""

    __slots__ = ()


def _status(span: SpanRecord, _trace: TraceSummary) -> Word:
    return Word(STATUSES.get(span.status_code, "unset"))


def _kind(span: SpanRecord, _trace: TraceSummary) -> Word:
    return Word(KINDS.get(span.kind, "unspecified"))


def _duration(span: SpanRecord, _trace: TraceSummary) -> int | None:
    return span.end_ns - span.start_ns if span.end_ns else None


INTRINSICS: Final[dict[str, Field]] = {
    "name": lambda span, _: span.name,
    "status": _status,
    "statusMessage": lambda span, _: span.status_message,
    "kind": _kind,
    "duration": _duration,
    "rootName": lambda _, trace: trace.root_name,
    "rootServiceName": lambda _, trace: trace.root_service,
    "traceDuration": lambda _, trace: trace.duration_ns,
    # Tempo numbers the spans of a trace as a nested set. Grafana asks only whether this number is negative: the root's.
    "nestedSetParent": lambda span, _: 1 if span.parent_span_id else -1,
    "span:id": lambda span, _: span.span_id,
    "span:parentID": lambda span, _: span.parent_span_id,
    "trace:id": lambda _, trace: trace.trace_id,
    "instrumentation:name": lambda span, _: span.scope,
}
"""What TraceQL knows of a span beside its attributes."""
ALIASES: Final = {
    "span:name": "name", "span:status": "status", "span:statusMessage": "statusMessage", "span:kind": "kind",
    "span:duration": "duration", "trace:rootName": "rootName", "trace:rootService": "rootServiceName",
    "trace:duration": "traceDuration",
}  # fmt: skip
"""Other names of intrinsics."""


def attribute(scope: str, name: str) -> Field:
    """An attribute of the span, of its resource, or (``scope`` empty) of the first of them that has it."""
    if scope == "span":
        return lambda span, _: span.attributes.get(name)
    if scope == "resource":
        return lambda span, _: span.resource_attributes.get(name)
    return lambda span, _: span.attributes.get(name, span.resource_attributes.get(name))


def comparison(field: Field, compare: Callable[[Any, Any], bool], value: Any) -> Test:
    """The test whether a field compares with a value of its type."""
    kind: tuple[type, ...] | type = str
    if isinstance(value, bool):
        kind = bool
    elif isinstance(value, int | float):
        kind = (int, float)
    is_word = isinstance(value, Word)

    def test(span: SpanRecord, trace: TraceSummary) -> bool:
        actual = field(span, trace)
        if not isinstance(actual, kind) or isinstance(actual, bool) is not (kind is bool):
            return False
        # A word matches words only; a quoted text matches both words and texts.
        return (not is_word or isinstance(actual, Word)) and compare(actual, value)

    return test


def match(field: Field, matches: Callable[[str], bool], *, expected: bool) -> Test:
    """The test whether a field is text that matches a pattern (or, not ``expected``, text that does not)."""

    def test(span: SpanRecord, trace: TraceSummary) -> bool:
        actual = field(span, trace)
        return isinstance(actual, str) and matches(actual) is expected

    return test


def presence(field: Field, *, expected: bool) -> Test:
    """The test whether a field has a value (or, not ``expected``, has none)."""
    return lambda span, trace: (field(span, trace) is not None) is expected
