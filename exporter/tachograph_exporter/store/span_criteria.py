"""What is searched for in spans, as conditions on their rows and on those of their traces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, LargeBinary, and_, func, literal, literal_column, or_, true
from sqlalchemy.engine import Dialect

from tachograph_exporter.store.schema import span_resources, spans, traces
from tachograph_exporter.store.span_values import Value

INDEXED_NAME: Final = 100
"""Characters of a name that are in its index."""
LONGEST_NS: Final = 31 * 86_400 * 1_000_000_000
"""How long before a window executions and traces are looked for that reach into it."""
_ROOT_NAME: Final = 200
_spans = spans.c
_traces = traces.c
NAME_START: ColumnElement[str] = literal_column(f"substr(spans.name, 1, {INDEXED_NAME})")
"""A name as it is indexed."""


class SpanCriteria(NamedTuple):
    """What a span must have at least to match; None, False and (): anything. Durations are nanoseconds.

    ``root_name``, ``root_service`` and ``trace_min_ns`` are those of its trace. ``values``: of attributes of the span
    or its resource; found by what is noted of traces (see `span_values`). ``stored``: what must be in the span as it is
    stored (``span``), or in its resource (``resource``): all bytes of one of some groups.
    """

    service: str | None = None
    name: str | None = None
    status: int | None = None
    kind: int | None = None
    min_ns: int | None = None
    is_root: bool = False
    root_name: str | None = None
    root_service: str | None = None
    trace_min_ns: int | None = None
    values: tuple[Value, ...] = ()
    stored: tuple[tuple[str, tuple[tuple[bytes, ...], ...]], ...] = ()

    @property
    def least_ns(self) -> int | None:
        """How long its trace is at least."""
        lengths = [length for length in (self.min_ns, self.trace_min_ns) if length is not None]
        return max(lengths) if lengths else None


class Window(NamedTuple):
    """Unix nanoseconds, both inclusive; None: open."""

    start_ns: int | None = None
    end_ns: int | None = None


class Place(NamedTuple):
    """A trace that may match: ``start_ns`` is when it started, or when a span of it that may match did.

    ``execution_id``: of an execution recorded here; otherwise its spans arrived.
    """

    start_ns: int
    trace_id: str
    execution_id: str | None = None


def _is_named(name: str) -> ColumnElement[bool]:
    """A condition on the expression that is indexed: SQLite does not find the index beside one on the name itself."""
    begins = name[:INDEXED_NAME] == NAME_START
    return begins if len(name) < INDEXED_NAME else and_(begins, func.coalesce(_spans.name, "") == name)


def of_span(criteria: SpanCriteria, indexed: str = "") -> ColumnElement[bool]:
    """The condition on a span. ``indexed``: what it is found by.

    Conditions on what other indexes are of are written as expressions, or a database might choose those.
    """
    conditions: list[ColumnElement[bool]] = []
    if criteria.service is not None:
        service = _spans.service if indexed == "service" else func.coalesce(_spans.service, "")
        conditions.append(service == criteria.service)
    if criteria.name is not None:
        is_name = func.coalesce(_spans.name, "") == criteria.name
        conditions.append(_is_named(criteria.name) if indexed == "name" else is_name)
    if criteria.status is not None:
        conditions.append(or_(_spans.status == criteria.status, _spans.status.is_(None)))
    if criteria.kind is not None:
        conditions.append(or_(_spans.kind == criteria.kind, _spans.kind.is_(None)))
    if criteria.min_ns is not None:
        conditions.append(_spans.end_ns - _spans.start_ns >= criteria.min_ns)
    return and_(true(), *conditions)


def of_trace(criteria: SpanCriteria, *, is_indexed: bool = True) -> ColumnElement[bool]:
    """The condition on the trace of a span. ``is_indexed``: an index may be used for it."""

    def column(name: str) -> Any:
        return _traces[name] if is_indexed else func.coalesce(_traces[name], "")

    conditions: list[ColumnElement[bool]] = []
    if criteria.least_ns is not None:
        conditions.append(_traces.end_ns - _traces.start_ns >= criteria.least_ns)
    if criteria.root_name is not None:
        conditions.append(column("root_name") == criteria.root_name[:_ROOT_NAME])
    if criteria.root_service is not None:
        conditions.append(column("root_service") == criteria.root_service)
    return and_(true(), *conditions)


def is_stored(criteria: SpanCriteria, dialect: Dialect) -> ColumnElement[bool]:
    """The condition that what the criteria name is in a span, or in its resource, which is joined."""
    place = func.instr if dialect.name == "sqlite" else func.pg_catalog.position
    conditions: list[ColumnElement[bool]] = [true()]
    for scope, groups in criteria.stored:
        payload = _spans.payload if scope == "span" else span_resources.c.payload
        conditions.append(
            or_(*[and_(*[place(payload, literal(part, LargeBinary)) > 0 for part in group]) for group in groups])
        )
    return and_(*conditions)


def within(statement: Any, column: Any, window: Window) -> Any:
    """The statement, for a column in a window."""
    if window.start_ns is not None:
        statement = statement.where(column >= window.start_ns)
    if window.end_ns is not None:
        statement = statement.where(column <= window.end_ns)
    return statement


def least_of(criteria: Sequence[SpanCriteria]) -> int | None:
    """How long every trace takes at least that may match, if that is known."""
    least = [each.least_ns for each in criteria]
    known = [ns for ns in least if ns is not None]
    return min(known) if known and len(known) == len(least) else None


def once(rows: Iterable[Sequence[Any]]) -> Iterator[Place]:
    """The places of rows, each trace once."""
    given: set[str] = set()
    for row in rows:
        if row[1] not in given:
            given.add(row[1])
            yield Place(*row)
