"""The facts that expectations are held against, read from the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, Select, select

from tachograph.clock import NS
from tachograph_exporter.store.executions import IS_OPEN
from tachograph_exporter.store.rollups import read
from tachograph_exporter.store.rollups.counting import Key
from tachograph_exporter.store.rollups.periods import FIVE_MINUTES, HOUR, floor
from tachograph_exporter.store.schema import (
    archived_executions,
    rollup_heads,
    workflow_definitions,
    workflow_executions,
    workflow_step_executions,
)
from tachograph_exporter.store.totals import WorkflowTotals

NEWEST: Final = 60
"""So many of a workflow's newest executions are read."""
MAX_OPEN: Final = 20_000
MAX_OPEN_WITH_STEPS: Final = 50
"""Of so many open executions of a workflow the running steps are read."""
USUAL_NS: Final = 28 * 86_400 * NS

_executions = workflow_executions.c
_COLUMNS: Final = ("execution_id", "workspace_id", "workflow_id", "created_ns", "started_ns", "finished_ns", "status",
                   "step_count")  # fmt: skip


class WorkflowName(NamedTuple):
    """A workflow that has a row."""

    key: Key
    name: str


def workflow_names(connection: Connection, workspace_id: str | None = None) -> list[WorkflowName]:
    """All workflows, or those of a workspace."""
    columns = workflow_definitions.c
    statement = select(columns.workspace_id, columns.id, columns.name)
    if workspace_id is not None:
        statement = statement.where(columns.workspace_id == workspace_id)
    return [WorkflowName((row[0], row[1]), row[2]) for row in connection.execute(statement)]


def revisions(connection: Connection) -> dict[Key, int]:
    """A number by workflow that grows when executions of it end."""
    columns = rollup_heads.c
    statement = select(columns.workspace_id, columns.workflow_id, columns.revision)
    return {(row[0], row[1]): row[2] for row in connection.execute(statement)}


def open_executions(connection: Connection) -> dict[Key, list[Row[Any]]]:
    """Executions that have not ended, by workflow, the oldest first."""
    statement = select(*(_executions[name] for name in _COLUMNS)).where(IS_OPEN).limit(MAX_OPEN)
    by_workflow: dict[Key, list[Row[Any]]] = {}
    for row in connection.execute(statement):
        by_workflow.setdefault((row.workspace_id, row.workflow_id), []).append(row)
    for rows in by_workflow.values():
        rows.sort(key=lambda row: (row.created_ns, row.execution_id))
    return by_workflow


def newest_executions(connection: Connection, key: Key) -> list[Row[Any]]:
    """The newest executions of a workflow, archived ones included, in no order."""

    def newest(table: Any) -> Select[Any]:
        columns = table.c
        return (
            select(*(columns[name] for name in _COLUMNS))
            .where(columns.workspace_id == key[0], columns.workflow_id == key[1])
            .order_by(columns.created_ns.desc())
            .limit(NEWEST)
        )

    rows = list(connection.execute(newest(workflow_executions)).all())
    if len(rows) < NEWEST:
        seen = {row.execution_id for row in rows}
        archived = connection.execute(newest(archived_executions)).all()
        rows += [row for row in archived if row.execution_id not in seen][: NEWEST - len(rows)]
    return rows


def first_start_since(connection: Connection, key: Key, time_ns: int) -> dict[str, int]:
    """The start of a workflow's first execution that was created at or after a time, by its id; or nothing."""
    firsts: list[tuple[int, str]] = []
    for table in (workflow_executions, archived_executions):
        columns = table.c
        statement = (
            select(columns.started_ns, columns.execution_id)
            .where(
                columns.workspace_id == key[0], columns.workflow_id == key[1], columns.created_ns >= time_ns,
                columns.started_ns.is_not(None),
            )
            .order_by(columns.created_ns)
            .limit(1)
        )  # fmt: skip
        firsts += [(row[0], row[1]) for row in connection.execute(statement)]
    return {execution_id: started_ns for started_ns, execution_id in [min(firsts)]} if firsts else {}


def last_ended_ns(connection: Connection, key: Key) -> int | None:
    """About when an execution of a workflow last ended, also if it has been deleted since."""
    columns = rollup_heads.c
    statement = select(columns.head_s).where(columns.workspace_id == key[0], columns.workflow_id == key[1])
    head = connection.execute(statement).scalar()
    return head * NS if head is not None else None


def running_steps(connection: Connection, execution_ids: Sequence[str]) -> list[tuple[str, str, int]]:
    """(execution id, name, start) of the steps that run in some executions."""
    columns = workflow_step_executions.c
    statement = select(columns.execution_id, columns.name, columns.started_ns).where(
        columns.execution_id.in_(execution_ids[:MAX_OPEN_WITH_STEPS]),
        columns.status.in_(["running", "retrying"]),
        columns.started_ns.is_not(None),
        columns.folded.is_(None),
    )
    return [(row[0], row[1], row[2]) for row in connection.execute(statement)]


def long_steps(
    connection: Connection, execution_ids: Sequence[str], names: Sequence[str], min_ns: int
) -> list[tuple[str, str, int, int]]:
    """(execution id, name, start, end) of the steps with these names that took longer than so many nanoseconds."""
    columns = workflow_step_executions.c
    statement = select(columns.execution_id, columns.name, columns.started_ns, columns.finished_ns).where(
        columns.execution_id.in_(execution_ids),
        columns.name.in_(names),
        columns.finished_ns - columns.started_ns > min_ns,
        columns.folded.is_(None),
    )
    return [(row[0], row[1], row[2], row[3]) for row in connection.execute(statement)]


def ended(connection: Connection, execution_id: str, step: str = "") -> tuple[int, int, str] | None:
    """(start, end, status) of an execution, or of the first step of this name in it; None if it has not ended."""
    if step:
        columns = workflow_step_executions.c
        statement = (
            select(columns.started_ns, columns.finished_ns, columns.status)
            .where(columns.execution_id == execution_id, columns.name == step, columns.started_ns.is_not(None))
            .order_by(columns.started_ns)
            .limit(1)
        )
        rows = list(connection.execute(statement))
    else:
        rows = [
            row
            for table in (workflow_executions, archived_executions)
            for row in connection.execute(
                select(table.c.started_ns, table.c.finished_ns, table.c.status).where(
                    table.c.execution_id == execution_id
                )
            )
        ]
    return next(((row[0], row[1], row[2]) for row in rows if None not in (row[0], row[1])), None)


def usual_totals(connection: Connection, key: Key, now_ns: int, *, steps: bool = False) -> WorkflowTotals:
    """Totals of the executions of the last four weeks, and of their steps if asked for."""
    return read.read(connection, key, max(0, now_ns - USUAL_NS), steps=steps)


def five_minute_totals(connection: Connection, key: Key, now_ns: int, seconds: int) -> dict[int, WorkflowTotals]:
    """Totals of every five minutes of so many seconds up to now, by their start (unix seconds)."""
    high = floor(now_ns // NS, FIVE_MINUTES) + FIVE_MINUTES
    return read.series(connection, key, high - seconds, high, FIVE_MINUTES)


def hourly_totals(connection: Connection, key: Key, now_ns: int, hours: int) -> dict[int, WorkflowTotals]:
    """Totals of so many hours up to now, by their start (unix seconds)."""
    high = floor(now_ns // NS, HOUR) + HOUR
    return read.series(connection, key, high - hours * HOUR, high, HOUR)
