"""The executions of a window of time, and the steps of others that called them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, Select, and_, or_, select, union_all

from tachograph_exporter.store.executions import IS_OPEN
from tachograph_exporter.store.schema import (
    archived_executions,
    workflow_definitions,
    workflow_executions,
    workflow_step_executions,
)

_COLUMNS: Final = ("execution_id", "workspace_id", "workflow_id", "created_ns", "started_ns", "finished_ns", "status",
                   "step_count", "trace_id", "span_id", "parent_span_id", "parent_execution_id",
                   "parent_step_id")  # fmt: skip
_executions = workflow_executions.c
_steps = workflow_step_executions.c
_CHUNK: Final = 300


class Caller(NamedTuple):
    """A step that may have called an execution. Times are unix nanoseconds."""

    execution_id: str
    step_id: str
    name: str
    span_id: str
    attempt: int
    finished_ns: int | None


def executions_within(
    connection: Connection, workspace_id: str, window_ns: tuple[int, int], limit: int
) -> tuple[list[Row[Any]], int | None]:
    """The executions of a workspace that a window of time has a part of, archived ones included, the oldest first.

    Of those that were created in it, the newest ``limit``. Returns also since when these are all: None if none was
    left out, else unix nanoseconds.
    """
    parts = [_created_within(table, workspace_id, window_ns, limit) for table in _tables(connection, workspace_id)]
    union = union_all(*(select(part.subquery()) for part in parts)).subquery()
    newest = select(union).order_by(union.c.created_ns.desc(), union.c.execution_id).limit(limit + 1)
    rows: list[Any] = list(connection.execute(newest).all())
    if len(rows) > limit:
        del rows[limit:]
        whole_since_ns = rows[-1].created_ns
        before: list[Any] = []
    else:
        whole_since_ns = None
        before = list(connection.execute(_ended_within(workspace_id, window_ns, limit)).all())
    before += connection.execute(_still_open(workspace_id, window_ns[0], limit)).all()
    unique = {row.execution_id: row for row in [*before, *rows]}
    return sorted(unique.values(), key=lambda row: (row.created_ns, row.execution_id)), whole_since_ns


def _tables(connection: Connection, workspace_id: str) -> list[Any]:
    archived = select(archived_executions.c.execution_id).where(archived_executions.c.workspace_id == workspace_id)
    has_archived = connection.execute(archived.limit(1)).first() is not None
    return [workflow_executions, archived_executions] if has_archived else [workflow_executions]


def _created_within(table: Any, workspace_id: str, window_ns: tuple[int, int], limit: int) -> Select[Any]:
    columns = table.c
    low, high = window_ns
    return (
        select(*(columns[name] for name in _COLUMNS))
        .where(columns.workspace_id == workspace_id, columns.created_ns >= low, columns.created_ns < high)
        .order_by(columns.created_ns.desc())
        .limit(limit + 1)
    )  # fmt: skip


def _ended_within(workspace_id: str, window_ns: tuple[int, int], limit: int) -> Select[Any]:
    """Those that were created before the window; found by workflow and end, as the index has them."""
    low, high = window_ns
    ids = select(workflow_definitions.c.id).where(workflow_definitions.c.workspace_id == workspace_id)
    return (
        select(*(_executions[name] for name in _COLUMNS))
        .where(
            _executions.workspace_id == workspace_id, _executions.workflow_id.in_(ids), _executions.finished_ns >= low,
            _executions.finished_ns < high, _executions.created_ns + 0 < low,
        )
        .limit(limit)
    )  # fmt: skip


def _still_open(workspace_id: str, low_ns: int, limit: int) -> Select[Any]:
    return (
        select(*(_executions[name] for name in _COLUMNS))
        .where(IS_OPEN, _executions.workspace_id.concat("") == workspace_id, _executions.created_ns + 0 < low_ns)
        .limit(limit)
    )


def callers(
    connection: Connection, step_ids: Sequence[tuple[str, str]], span_ids: Sequence[tuple[str, str]]
) -> Iterator[Caller]:
    """Steps by (execution id, step id), and by (execution id, span id): the step's span, or of one of its retries."""
    by_execution: dict[str, tuple[set[str], set[str]]] = {}
    for execution_id, step_id in step_ids:
        by_execution.setdefault(execution_id, (set(), set()))[0].add(step_id)
    for execution_id, span_id in span_ids:
        by_execution.setdefault(execution_id, (set(), set()))[1].add(span_id)
    items = list(by_execution.items())
    for i in range(0, len(items), _CHUNK):
        places = [
            and_(
                _steps.execution_id == execution_id,
                or_(_steps.step_id.in_(steps), _steps.span_id.in_(spans), *([_steps.attempt > 1] if spans else [])),
            )
            for execution_id, (steps, spans) in items[i : i + _CHUNK]
        ]
        columns = [_steps[name] for name in Caller._fields]
        for row in connection.execute(select(*columns).where(or_(*places))):
            yield Caller(*row)
