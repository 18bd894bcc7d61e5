"""Where to look for spans and traces: statements on an index, newest first, read as far as the reader wants.

Each gives what may match. Rows of earlier versions have no kind and status: they may always match.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    case,
    exists,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
    true,
)

from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import span_values
from tachograph_exporter.store.merging import INGESTED_PROCESS
from tachograph_exporter.store.schema import (
    FAILED_OR_UNKNOWN,
    IS_ROOT,
    IS_ROOTLESS,
    span_resources,
    spans,
    traces,
    workflow_executions,
    workflow_step_executions,
)
from tachograph_exporter.store.span_values import Value

_CHUNK: Final = 500
_FIRST: Final = 20
FIRST_SPANS: Final = 1_000
"""Spans that are looked for at first."""
_MOST_SPANS: Final = 16_000
"""Spans that are read at once, later."""
_ERROR: Final = 2
_INDEXED_NAME: Final = 100
"""Characters of a name that are in its index."""
_ROOT_NAME: Final = 200
_spans = spans.c
_traces = traces.c
_executions = workflow_executions.c
_steps = workflow_step_executions.c
START: ColumnElement[int] = _spans.start_ns + literal_column("0")
"""The start of spans as it is indexed by itself."""
_name_start: ColumnElement[str] = literal_column(f"substr(spans.name, 1, {_INDEXED_NAME})")
_IS_RECORDED: Final = func.coalesce(_executions.process, "") != INGESTED_PROCESS
LONGEST_NS: Final = 31 * 86_400 * 1_000_000_000
"""How long before a window executions and traces are looked for that reach into it."""
_LAST_NS: Final = (1 << 63) - 1
_STREAM: Final = {"yield_per": _CHUNK}


class SpanCriteria(NamedTuple):
    """What a span must have at least to match; None, False and (): anything. Durations are nanoseconds.

    ``root_name``, ``root_service`` and ``trace_min_ns`` are those of its trace. ``values``: of attributes of the span
    or its resource; found by what is noted of traces (see `span_values`), and not otherwise looked at here.
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


def arrived_traces(
    connection: Connection, workspace_id: str, criteria: Sequence[SpanCriteria], window: Window
) -> Generator[Place, None, None]:
    """Traces of spans that arrived, that started in the window and have a span with one of the criteria."""
    rows = _with_values(connection, workspace_id, criteria, window)
    if rows is None and (index := _by_index(criteria)) is not None:
        rows = _by_spans(connection, workspace_id, index, criteria, window)
    if rows is not None:
        yield from _of_spans(connection, workspace_id, rows, window)
        return
    statement = _within(
        select(_traces.start_ns, _traces.trace_id).where(_traces.workspace_id == workspace_id),
        _traces.start_ns, window,
    ).where(or_(*[_of_trace(each) for each in criteria])).order_by(_traces.start_ns.desc())  # fmt: skip
    for row in _newest_first(connection, statement, _traces.start_ns):
        yield Place(row[0], row[1])


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
            _spans.workspace_id == workspace_id, index.condition, or_(*[_of_span(each, index.of) for each in criteria])
        )
        .order_by(_spans.start_ns.desc())
    )
    # No span starts before its trace, nor very long after it.
    latest_ns = None if window.end_ns is None else window.end_ns + LONGEST_NS
    statement = _within(statement, _spans.start_ns, window._replace(end_ns=latest_ns))
    yield from _newest_first(connection, statement, _spans.start_ns)


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


def _newest_first(connection: Connection, statement: Any, start: Any) -> Generator[Any, None, None]:
    """Rows of a statement that orders them by ``start``, its first column; some of them twice.

    They are read with limits: PostgreSQL plans a statement without one for reading all of it, and sorts.
    """
    size, later = FIRST_SPANS, statement
    while True:
        rows = connection.execute(later.limit(size)).all()
        yield from rows
        if len(rows) < size:
            return
        # Of very many that start at the same moment, the next part has more.
        size = size * 4 if rows[0][0] == rows[-1][0] else min(size * 4, max(size, _MOST_SPANS))
        later = statement.where(start <= rows[-1][0])


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
    for column, field in ((_name_start, "name"), (_spans.service, "service")):
        values = {getattr(each, field) for each in criteria}
        if None not in values:
            cut = [value[:_INDEXED_NAME] if field == "name" else value for value in values]
            return _Index(column == cut[0] if len(cut) == 1 else column.in_(cut), field)
    return None


def _is_named(name: str) -> ColumnElement[bool]:
    """A condition on the expression that is indexed: SQLite does not find the index beside one on the name itself."""
    begins = _name_start == name[:_INDEXED_NAME]
    return begins if len(name) < _INDEXED_NAME else and_(begins, func.coalesce(_spans.name, "") == name)


def _of_span(criteria: SpanCriteria, indexed: str) -> ColumnElement[bool]:
    conditions: list[ColumnElement[bool]] = []
    if criteria.service is not None:
        service = _spans.service if indexed == "service" else func.coalesce(_spans.service, "")
        conditions.append(service == criteria.service)
    if criteria.name is not None:
        is_named = _is_named(criteria.name) if indexed == "name" else func.coalesce(_spans.name, "") == criteria.name
        conditions.append(is_named)
    if criteria.status is not None:
        conditions.append(or_(_spans.status == criteria.status, _spans.status.is_(None)))
    if criteria.kind is not None:
        conditions.append(or_(_spans.kind == criteria.kind, _spans.kind.is_(None)))
    if criteria.min_ns is not None:
        conditions.append(_spans.end_ns - _spans.start_ns >= criteria.min_ns)
    return and_(true(), *conditions)


def _of_trace(criteria: SpanCriteria) -> ColumnElement[bool]:
    conditions: list[ColumnElement[bool]] = []
    lengths = [length for length in (criteria.min_ns, criteria.trace_min_ns) if length is not None]
    if lengths:
        conditions.append(_traces.end_ns - _traces.start_ns >= max(lengths))
    if criteria.root_name is not None:
        conditions.append(_traces.root_name == criteria.root_name[:_ROOT_NAME])
    if criteria.root_service is not None:
        conditions.append(_traces.root_service == criteria.root_service)
    return and_(true(), *conditions)


def _within(statement: Any, column: Any, window: Window) -> Any:
    if window.start_ns is not None:
        statement = statement.where(column >= window.start_ns)
    if window.end_ns is not None:
        statement = statement.where(column <= window.end_ns)
    return statement


def recorded_traces(
    connection: Connection, workspace_id: str, criteria: Sequence[SpanCriteria], window: Window, run_name: str
) -> Generator[Place, None, None]:
    """Traces of executions recorded here that were created in the window and may have a span with one of the criteria.

    ``run_name``: the name of an execution's span before the name of its workflow.
    """
    statement = (
        select(_executions.created_ns, _executions.trace_id, _executions.execution_id)
        .where(
            _executions.workspace_id == workspace_id,
            _IS_RECORDED,
            or_(*[_of_execution(each, run_name) for each in criteria]),
        )
        .order_by(_executions.created_ns.desc())
    )
    with connection.execute(_within(statement, _executions.created_ns, window), execution_options=_STREAM) as rows:
        for row in rows:
            yield Place(row[0], row[1], row[2])


def _of_execution(criteria: SpanCriteria, run_name: str) -> ColumnElement[bool]:
    conditions: list[ColumnElement[bool]] = []
    if criteria.root_name is not None:
        conditions.append(_executions.workflow == criteria.root_name.removeprefix(run_name))
    if criteria.name is not None and not criteria.name.startswith(run_name) and " attempt " not in criteria.name:
        conditions.append(_has_step(_steps.name == criteria.name))
    if criteria.status == _ERROR:
        failed = or_(_steps.error_type.is_not(None), _steps.attempt > 1)
        conditions.append(or_(_executions.error_type.is_not(None), _has_step(failed)))
    return and_(true(), *conditions)


def _has_step(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(_steps.execution_id == _executions.execution_id, condition)


def recorded_in(connection: Connection, workspace: str, trace_ids: Sequence[str]) -> dict[str, int]:
    """How many steps the executions recorded here (not those read from spans) of these traces have, by trace id."""
    statement = (
        select(_executions.trace_id, func.sum(_executions.step_count + 1))
        .where(_recorded(workspace, trace_ids))
        .group_by(_executions.trace_id)
    )
    return {row[0]: row[1] for row in connection.execute(statement)}


def recorded_runs(connection: Connection, workspace: str, trace_ids: Sequence[str]) -> list[execution_rows.StoredRun]:
    """The executions recorded here of these traces, with all that is stored of them."""
    ids = connection.execute(select(_executions.execution_id).where(_recorded(workspace, trace_ids))).scalars().all()
    return execution_rows.runs(connection, workspace, ids) if ids else []


def _recorded(workspace: str, trace_ids: Sequence[str]) -> ColumnElement[bool]:
    return and_(
        _executions.trace_id.in_(trace_ids),
        # An expression, or SQLite would choose an index on the workspace.
        func.coalesce(_executions.workspace_id, "") == workspace,
        _IS_RECORDED,
    )


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
        conditions = [
            and_(_of_span(each, of), _of_trace(each)) if with_trace else _of_span(each, of) for each in criteria
        ]
        statement = select(*columns).select_from(joined).where(_spans.workspace_id == workspace_id, or_(*conditions))
        if index is not None:
            statement = statement.where(index.condition)
        if is_root:
            statement = statement.where(text(f"({IS_ROOT})"))
        if is_known is not None:
            statement = statement.where(_spans.status.is_not(None) if is_known else _spans.status.is_(None))
        if sample is not None:
            statement = statement.where(func.substr(_spans.trace_id, 31, 2) < sample)
        statement = _within(statement, START if index is None else _spans.start_ns, window)
        with connection.execute(statement, execution_options={"yield_per": 2_000}) as rows:
            yield from rows


def count_between(connection: Connection, workspace_id: str, window: Window, *, is_root: bool) -> int:
    """How many spans arrived that started in the window: all, or those without a parent."""
    statement = select(func.count()).select_from(spans).where(_spans.workspace_id == workspace_id)
    if is_root:
        statement = statement.where(text(f"({IS_ROOT})"))
    return int(connection.execute(_within(statement, _spans.start_ns if is_root else START, window)).scalar_one())


def traces_with_spans(connection: Connection, workspace_id: str, window: Window) -> Iterator[Place]:
    """Traces of which spans arrived that started in the window."""
    statement = _within(select(_spans.trace_id).where(_spans.workspace_id == workspace_id), START, window)
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


def traces_of_executions(connection: Connection, workspace_id: str, window: Window) -> Iterator[Place]:
    """Traces of executions recorded here that ran in the window (those that took more than `LONGEST_NS` left out)."""
    statement = select(_executions.trace_id).where(_executions.workspace_id == workspace_id, _IS_RECORDED)
    if window.start_ns is not None:
        statement = statement.where(
            _executions.created_ns >= window.start_ns - LONGEST_NS,
            or_(_executions.finished_ns.is_(None), _executions.finished_ns >= window.start_ns),
        )
    if window.end_ns is not None:
        statement = statement.where(_executions.created_ns <= window.end_ns)
    for row in connection.execute(statement.distinct()):
        yield Place(0, row[0])


def recorded_ids(
    connection: Connection, workspace_id: str, start_ns: int | None, end_ns: int | None, limit: int
) -> Sequence[str]:
    """Ids of the newest executions recorded here that were created in a range (unix nanoseconds, both inclusive)."""
    statement = _within(
        select(_executions.execution_id).where(_executions.workspace_id == workspace_id, _IS_RECORDED),
        _executions.created_ns, Window(start_ns, end_ns),
    ).order_by(_executions.created_ns.desc()).limit(limit)  # fmt: skip
    return connection.execute(statement).scalars().all()
