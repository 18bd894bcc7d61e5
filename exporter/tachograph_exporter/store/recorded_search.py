"""Where to look for the traces of executions recorded here, whose spans are made from rows: on indexes, newest first.

Each gives what may match.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from heapq import merge
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, func, or_, select, text, true

from tachograph.spans import semconv
from tachograph_exporter.store import executions as execution_rows
from tachograph_exporter.store import lengths, locking
from tachograph_exporter.store.merging import INGESTED_PROCESS
from tachograph_exporter.store.schema import (
    HAS_ERROR,
    HAS_FAILED,
    workflow_executions,
    workflow_step_executions,
)
from tachograph_exporter.store.span_criteria import (
    LONGEST_NS,
    Place,
    SpanCriteria,
    Window,
    least_of,
    once,
    within,
)

_ERROR: Final = 2
_CHUNK: Final = 1_000
_NAME_ID: Final = frozenset({semconv.EXECUTION_ID, semconv.PIPELINE_RUN_ID, semconv.TASK_RUN_ID})
"""Attributes whose value begins with the id of their execution."""
_executions = workflow_executions.c
_steps = workflow_step_executions.c
_IS_RECORDED: Final = func.coalesce(_executions.process, "") != INGESTED_PROCESS
_PLACES: Final = select(_executions.created_ns, _executions.trace_id, _executions.execution_id)


def recorded_traces(
    connection: Connection, workspace_id: str, criteria: Sequence[SpanCriteria], window: Window, run_name: str
) -> Generator[Place, None, None]:
    """Traces of executions recorded here that were created in the window and may have a span with one of the criteria.

    ``run_name``: the name of an execution's span before the name of its workflow.
    """
    statement = _PLACES.where(_IS_RECORDED, or_(*[_of_execution(each, run_name) for each in criteria]))
    newest = within(
        statement.where(_executions.workspace_id == workspace_id), _executions.created_ns, window
    ).order_by(_executions.created_ns.desc())  # fmt: skip
    by_ids = statement.where(func.coalesce(_executions.workspace_id, "") == workspace_id)
    rows: Iterable[Any]
    if (ids := _ids(criteria)) is not None:
        rows = _by_ids(connection, by_ids, ids, window)
    elif (least_ns := least_of(criteria)) is not None:
        # A step takes no longer than its execution.
        rows = lengths.long(connection, workspace_id, statement, lengths.EXECUTIONS, window, least_ns)
    elif all(each.status == _ERROR for each in criteria):
        failed = lengths.newest_first(connection, newest.where(text(f"({HAS_ERROR})")), _executions.created_ns)
        rows = merge(failed, _with_failed_steps(connection, by_ids, window), key=_newest)
    else:
        rows = lengths.newest_first(connection, newest, _executions.created_ns)
    yield from once(rows)


def _by_ids(connection: Connection, statement: Select[Any], ids: Sequence[str], window: Window) -> list[Any]:
    low, high = window.start_ns or 0, window.end_ns
    rows = connection.execute(statement.where(_executions.execution_id.in_(ids))).all()
    return sorted([row for row in rows if low <= row[0] and (high is None or row[0] <= high)], key=_newest)


def _newest(row: Any) -> int:
    return -int(row[0])


def _ids(criteria: Sequence[SpanCriteria]) -> list[str] | None:
    """The ids of the only executions that can match, if that is known."""
    ids = [
        next((value.partition("/")[0] for name, value in each.values if name in _NAME_ID), None) for each in criteria
    ]
    return [id_ for id_ in ids if id_ is not None] if ids and None not in ids else None


def _with_failed_steps(connection: Connection, statement: Select[Any], window: Window) -> Iterator[Any]:
    """Those executions that have a step with a failed attempt, by their ids, which sort by time."""
    failed = select(_steps.execution_id).where(text(f"({HAS_FAILED})")).distinct()
    before: str | None = None
    locking.look_up_by_key(connection)
    while True:
        later = failed if before is None else failed.where(_steps.execution_id < before)
        ids = connection.execute(later.order_by(_steps.execution_id.desc()).limit(_CHUNK)).scalars().all()
        if ids:
            yield from _by_ids(connection, statement, ids, window)
        if len(ids) < _CHUNK:
            return
        before = ids[-1]


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
    statement = within(
        select(_executions.execution_id).where(_executions.workspace_id == workspace_id, _IS_RECORDED),
        _executions.created_ns, Window(start_ns, end_ns),
    ).order_by(_executions.created_ns.desc()).limit(limit)  # fmt: skip
    return connection.execute(statement).scalars().all()
