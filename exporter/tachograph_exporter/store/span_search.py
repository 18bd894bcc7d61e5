"""Where to look for spans and traces: statements on an index, newest first, read as far as the reader wants.

Each gives what may match. Rows of earlier versions have no kind and status: they may always match.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    case,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
    true,
)

from tachograph_exporter.store import lengths, span_values
from tachograph_exporter.store.keyed import KEYS, keyed
from tachograph_exporter.store.schema import (
    FAILED_OR_UNKNOWN,
    IS_ROOT,
    IS_ROOTLESS,
    span_resources,
    spans,
    traces,
)
from tachograph_exporter.store.span_criteria import (
    INDEXED_NAME,
    LONGEST_NS,
    NAME_START,
    Place,
    SpanCriteria,
    Window,
    is_stored,
    least_of,
    of_span,
    of_trace,
    once,
    within,
)

_CHUNK: Final = 500
_FIRST: Final = 20
_FEW: Final = 2_000
"""Long traces that are rather looked at than what an index finds."""
_ERROR: Final = 2
_spans = spans.c
_traces = traces.c
START: ColumnElement[int] = _spans.start_ns + literal_column("0")
"""The start of spans as it is indexed by itself."""
_LAST_NS: Final = (1 << 63) - 1
_STREAM: Final = {"yield_per": _CHUNK}
_TRACES: Final = select(_traces.start_ns, _traces.trace_id)


def arrived_traces(
    connection: Connection, workspace_id: str, criteria: Sequence[SpanCriteria], window: Window
) -> Generator[Place, None, None]:
    """Traces of spans that arrived, that started in the window and may have a span with one of the criteria."""
    rows = _with_values(connection, workspace_id, criteria, window)
    index = _by_index(criteria)
    least_ns = least_of(criteria)
    if rows is None and least_ns is not None:
        statement = _TRACES.where(or_(*[of_trace(each, is_indexed=False) for each in criteria]))
        long = lengths.long(connection, workspace_id, statement, lengths.TRACES, window, least_ns)
        if index is None:
            yield from once(long)
            return
        # What takes so long may be rarer than what the index finds.
        some = list(islice(long, _FEW + 1))
        long.close()
        if len(some) <= _FEW:
            yield from once(some)
            return
    if rows is None and index is not None:
        rows = _by_spans(connection, workspace_id, index, criteria, window)
    if rows is not None:
        yield from _of_spans(connection, workspace_id, rows, window)
        return
    newest = within(_TRACES.where(_traces.workspace_id == workspace_id), _traces.start_ns, window)
    newest = newest.where(or_(*[of_trace(each) for each in criteria])).order_by(_traces.start_ns.desc())
    yield from once(lengths.newest_first(connection, newest, _traces.start_ns))


def spans_of_traces(
    connection: Connection, workspace_id: str, criteria: Sequence[SpanCriteria], trace_ids: Sequence[str]
) -> Generator[Any, None, None]:
    """Those spans of traces that arrived and may have one of the criteria, in no order: trace id, payload, resource,
    resource id.
    """
    dialect = connection.dialect
    statement = (
        select(_spans.trace_id, _spans.payload, span_resources.c.payload.label("resource"), _spans.resource_id)
        .select_from(spans.join(span_resources, span_resources.c.id == _spans.resource_id))
        .where(
            _spans.workspace_id == bindparam("workspace"),
            or_(*[and_(of_span(each), is_stored(each, dialect)) for each in criteria]),
        )
    )
    parameters = {"workspace": workspace_id, KEYS: trace_ids}
    with connection.execute(keyed(statement, spans.c.trace_id).of(dialect), parameters) as rows:
        yield from rows


def _with_values(
    connection: Connection, workspace_id: str, criteria: Sequence[SpanCriteria], window: Window
) -> Generator[tuple[int, str], None, None] | None:
    """(start, trace id) of spans by the values that are searched for, if these help."""
    if not all(each.values for each in criteria):
        return None
    latest_ns = _LAST_NS if window.end_ns is None else window.end_ns + LONGEST_NS
    return span_values.places(
        connection, workspace_id, [each.values for each in criteria], window.start_ns or 0, latest_ns
    )


def _by_spans(
    connection: Connection, workspace_id: str, index: _Index, criteria: Sequence[SpanCriteria], window: Window
) -> Generator[tuple[int, str], None, None]:
    """(start, trace id) of spans by an index."""
    statement = (
        select(_spans.start_ns, _spans.trace_id)
        .where(
            _spans.workspace_id == workspace_id, index.condition, or_(*[of_span(each, index.of) for each in criteria])
        )
        .order_by(_spans.start_ns.desc())
    )
    # No span starts before its trace, nor very long after it.
    latest_ns = None if window.end_ns is None else window.end_ns + LONGEST_NS
    statement = within(statement, _spans.start_ns, window._replace(end_ns=latest_ns))
    yield from lengths.newest_first(connection, statement, _spans.start_ns)


def _of_spans(
    connection: Connection, workspace_id: str, rows: Generator[Any, None, None], window: Window
) -> Generator[Place, None, None]:
    """The traces of spans, each once, that started in the window."""
    given: set[str] = set()
    size = _FIRST
    fresh: dict[str, Place] = {}
    with closing(rows):
        for start_ns, trace_id in rows:
            if trace_id in given:
                continue
            given.add(trace_id)
            fresh[trace_id] = Place(start_ns, trace_id)
            if len(fresh) >= size:
                yield from _begun(connection, workspace_id, fresh, window)
                fresh, size = {}, min(size * 2, _CHUNK)
    yield from _begun(connection, workspace_id, fresh, window)


def _begun(connection: Connection, workspace_id: str, places: Mapping[str, Place], window: Window) -> Sequence[Place]:
    """The places of the traces that started in the window."""
    if window.end_ns is None or not places:
        return list(places.values())
    # Not a part of the search: PostgreSQL would rather read all traces and sort.
    # Nor is the end of the window: SQLite would rather read all traces up to it.
    statement = select(_traces.trace_id, _traces.start_ns).where(
        _traces.workspace_id == workspace_id, _traces.trace_id.in_(list(places))
    )
    begun = {trace_id for trace_id, start_ns in connection.execute(statement) if start_ns <= window.end_ns}
    return [place for trace_id, place in places.items() if trace_id in begun]


class _Index(NamedTuple):
    """A condition by which an index finds spans, and what it is an index of.

    Conditions on what other indexes are of are written as expressions, or SQLite might choose those.
    """

    condition: Any
    of: str


def _by_index(criteria: Sequence[SpanCriteria]) -> _Index | None:
    """The index that finds the spans, or None if only those of traces help."""
    if all(each.status == _ERROR for each in criteria):
        return _Index(text(f"({FAILED_OR_UNKNOWN})"), "status")
    for column, field in ((NAME_START, "name"), (_spans.service, "service")):
        values = {getattr(each, field) for each in criteria}
        if None not in values:
            cut = [value[:INDEXED_NAME] if field == "name" else value for value in values]
            return _Index(column == cut[0] if len(cut) == 1 else column.in_(cut), field)
    return None


def spans_between(
    connection: Connection,
    workspace_id: str,
    criteria: Sequence[SpanCriteria],
    window: Window,
    *,
    with_payload: bool,
    with_trace: bool,
    with_name: bool,
    sample: str | None = None,
) -> Iterator[Row[Any]]:
    """Spans that arrived, that started in the window and may have one of the criteria, in no order.

    ``sample``: only of traces whose id ends with less than these two hexadecimal digits.

    A row has ``trace_id span_id parent_span_id name service start_ns end_ns kind status payload``, with
    ``with_payload`` also ``resource resource_id`` (without it, ``payload`` is there only if the status is not), with
    ``with_trace`` also ``root_name root_service trace_start_ns trace_end_ns`` of its trace. The name is empty unless
    ``with_name``.
    """
    index = _by_index(criteria)
    is_root = all(each.is_root for each in criteria)
    if is_root and (index is None or index.of == "service"):
        index = _Index(true(), "root")
    # What such an index has can be read without the rows, where the status is known.
    is_enough = index is not None and index.of in ("root", "name")
    for is_known in (True, False) if is_enough and not with_payload else (None,):
        columns: list[Any] = [
            _spans.trace_id, _spans.span_id, literal("").label("parent_span_id") if is_root else _spans.parent_span_id,
            _spans.name if with_name else literal("").label("name"), _spans.service, _spans.start_ns, _spans.end_ns,
            _spans.kind, _spans.status,
        ]  # fmt: skip
        joined: Any = spans
        if with_payload:
            columns += [_spans.payload, span_resources.c.payload.label("resource"), _spans.resource_id]
            joined = joined.join(span_resources, span_resources.c.id == _spans.resource_id)
        elif is_known:
            columns.append(null().label("payload"))
        else:
            columns.append(case((_spans.status.is_(None), _spans.payload)).label("payload"))
        if with_trace:
            columns += [_traces.root_name, _traces.root_service, _traces.start_ns.label("trace_start_ns"),
                        _traces.end_ns.label("trace_end_ns")]  # fmt: skip
            joined = joined.join(
                traces, and_(_traces.workspace_id == _spans.workspace_id, _traces.trace_id == _spans.trace_id)
            )
        of = index.of if index is not None else ""
        conditions = [and_(of_span(each, of), of_trace(each)) if with_trace else of_span(each, of) for each in criteria]
        statement = select(*columns).select_from(joined).where(_spans.workspace_id == workspace_id, or_(*conditions))
        if index is not None:
            statement = statement.where(index.condition)
        if is_root:
            statement = statement.where(text(f"({IS_ROOT})"))
        if is_known is not None:
            statement = statement.where(_spans.status.is_not(None) if is_known else _spans.status.is_(None))
        if sample is not None:
            statement = statement.where(func.substr(_spans.trace_id, 31, 2) < sample)
        statement = within(statement, START if index is None else _spans.start_ns, window)
        with connection.execute(statement, execution_options={"yield_per": 2_000}) as rows:
            yield from rows


def count_between(connection: Connection, workspace_id: str, window: Window, *, is_root: bool) -> int:
    """How many spans arrived that started in the window: all, or those without a parent."""
    statement = select(func.count()).select_from(spans).where(_spans.workspace_id == workspace_id)
    if is_root:
        statement = statement.where(text(f"({IS_ROOT})"))
    return int(connection.execute(within(statement, _spans.start_ns if is_root else START, window)).scalar_one())


def traces_with_spans(connection: Connection, workspace_id: str, window: Window) -> Iterator[Place]:
    """Traces of which spans arrived that started in the window."""
    statement = within(select(_spans.trace_id).where(_spans.workspace_id == workspace_id), START, window)
    for row in connection.execute(statement.distinct()):
        yield Place(0, row[0])


def rootless_traces(connection: Connection, workspace_id: str, window: Window) -> Iterator[Place]:
    """Traces around the window of whose spans all have a parent."""
    statement = select(_traces.trace_id).where(_traces.workspace_id == workspace_id, text(f"({IS_ROOTLESS})"))
    if window.start_ns is not None:
        statement = statement.where(_traces.start_ns >= window.start_ns - LONGEST_NS)
        statement = statement.where(_traces.end_ns >= window.start_ns)
    if window.end_ns is not None:
        statement = statement.where(_traces.start_ns <= window.end_ns)
    for row in connection.execute(statement):
        yield Place(0, row[0])
