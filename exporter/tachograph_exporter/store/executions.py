"""Reading executions: each function is a statement or two on an index."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, Final, NamedTuple, cast

from sqlalchemy import Connection, Row, bindparam, func, select, text

from tachograph_exporter.store import step_lines
from tachograph_exporter.store.failure_groups.reading import groups_in
from tachograph_exporter.store.schema import (
    workflow_definitions,
    workflow_executions,
    workflow_step_attempts,
    workflow_step_reports,
    workspaces,
)
from tachograph_exporter.store.step_lines import LineRow
from tachograph_exporter.store.steps import StoredStep, steps_of, steps_of_many

COMMAND: Final = "command"
"""The type of a step that is a command of ``tachograph exec``."""
_WARNING: Final = 13
_CHUNK: Final = 500
_definitions = workflow_definitions.c
_executions = workflow_executions.c

EXECUTION_COLUMNS: Final = [
    column for column in workflow_executions.columns if column.name not in ("rank", "critical_path")
]


# Statements are built once: building one costs as much as reading a hundred rows.
_EXECUTION_BY_ID: Final = select(*EXECUTION_COLUMNS).where(
    _executions.execution_id == bindparam("id"), _executions.workspace_id == bindparam("workspace")
)
_TRACES: Final = select(_executions.trace_id).where(
    _executions.execution_id.in_(bindparam("ids", expanding=True)), _executions.workspace_id == bindparam("workspace")
)
_ATTEMPTS: Final = (
    select(*[column for column in workflow_step_attempts.columns if column.name != "execution_id"])
    .where(workflow_step_attempts.c.execution_id == bindparam("id"))
    .order_by(workflow_step_attempts.c.step_id, workflow_step_attempts.c.attempt)
)
_REPORTS: Final = (
    select(*[column for column in workflow_step_reports.columns if column.name != "execution_id"])
    .where(workflow_step_reports.c.execution_id == bindparam("id"))
    .order_by(workflow_step_reports.c.step_id, workflow_step_reports.c.sequence)
)


class StoredRun(NamedTuple):
    """Everything stored of one execution."""

    execution: Row[Any]
    steps: Sequence[StoredStep]
    attempts: Sequence[Row[Any]]
    reports: Sequence[Row[Any]]
    failures: Mapping[tuple[str, int, int], str] = MappingProxyType({})
    """Failure groups, by step id ("": the execution), attempt and kind (see `failure_groups.failing`)."""
    lines: Sequence[LineRow] | None = None
    """Lines of its steps, of an archived one; None: they are in their table (see `step_lines`)."""


def execution(connection: Connection, workspace: str, execution_id: str) -> Row[Any] | None:
    """The row of an execution of a workspace (an id), or None."""
    return connection.execute(_EXECUTION_BY_ID, {"id": execution_id, "workspace": workspace}).first()


_FOREIGN_AMONG: Final = select(_executions.execution_id).where(
    _executions.execution_id.in_(bindparam("ids", expanding=True)), _executions.workspace_id != bindparam("workspace")
)


def foreign_among(connection: Connection, workspace: str, ids: Sequence[str]) -> set[str]:
    """Those of the executions that are stored as another workspace's. ``workspace`` is an id."""
    foreign: set[str] = set()
    for i in range(0, len(ids), _CHUNK):
        parameters = {"ids": ids[i : i + _CHUNK], "workspace": workspace}
        foreign |= set(connection.execute(_FOREIGN_AMONG, parameters).scalars())
    return foreign


_OWNERS: Final = select(_executions.execution_id, _executions.workspace_id, _executions.workflow_id).where(
    _executions.execution_id.in_(bindparam("ids", expanding=True))
)


def owners_of(connection: Connection, ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """The workspace and workflow (ids) of those of the executions that are stored."""
    ordered = sorted(ids)
    return {
        row[0]: (row[1], row[2])
        for i in range(0, len(ordered), _CHUNK)
        for row in connection.execute(_OWNERS, {"ids": ordered[i : i + _CHUNK]})
    }


def stored_among(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Those of the executions that are stored."""
    statement = select(_executions.execution_id).where(_executions.execution_id.in_(ids))
    return set(connection.execute(statement).scalars())


def step_count(connection: Connection, workspace: str, ids: Sequence[str]) -> int:
    """How many steps these executions of a workspace have, as far as they are in the tables."""
    statement = select(func.sum(_executions.step_count)).where(
        _executions.execution_id.in_(ids), _executions.workspace_id == workspace
    )
    return connection.execute(statement).scalar() or 0


def run(connection: Connection, workspace: str, execution_id: str) -> StoredRun | None:
    """An execution with its steps, attempts and reports, or None."""
    row = execution(connection, workspace, execution_id)
    if row is None:
        return None
    steps = steps_of(connection, execution_id)
    commands = [step.step_id for step in steps if step.step_type == COMMAND]
    output = step_lines.output_of(connection, execution_id, commands) if commands else []
    return StoredRun(
        row,
        steps,
        attempts(connection, execution_id),
        [*connection.execute(_REPORTS, {"id": execution_id}).all(), *reports_of_output(output)],
        groups_in(connection, [execution_id]).get(execution_id, {}),
    )


def reports_of_output(lines: Sequence[LineRow]) -> list[Row[Any]]:
    """What commands wrote, as reports of the steps that they are."""
    kept, _ = step_lines.kept_and_dropped(lines)
    reports = [
        SimpleNamespace(
            step_id=line.step_id, sequence=line.number, attempt=line.attempt, kind="log", time_ns=line.time_ns,
            name=line.message, unit="warning" if line.severity >= _WARNING else "info", value=0.0,
            tokens_in=0, tokens_out=0,
        )
        for line in kept
    ]  # fmt: skip
    return cast("list[Row[Any]]", reports)


def runs(connection: Connection, workspace: str, ids: Sequence[str]) -> list[StoredRun]:
    """Those of these executions that are in the tables, with their steps, attempts and reports."""
    rows = connection.execute(
        select(*EXECUTION_COLUMNS).where(_executions.execution_id.in_(ids), _executions.workspace_id == workspace)
    ).all()
    steps = steps_of_many(connection, ids)
    by_execution: dict[str, tuple[list[Row[Any]], list[Row[Any]]]] = {row.execution_id: ([], []) for row in rows}
    for kind, table, order in (
        (0, workflow_step_attempts, workflow_step_attempts.c.attempt),
        (1, workflow_step_reports, workflow_step_reports.c.sequence),
    ):
        statement = select(table).where(table.c.execution_id.in_(ids)).order_by(table.c.step_id, order)
        for row in connection.execute(statement):
            if row.execution_id in by_execution:
                by_execution[row.execution_id][kind].append(row)
    failures = groups_in(connection, by_execution)
    return [
        StoredRun(
            row,
            steps.get(row.execution_id, []),
            *by_execution[row.execution_id],
            failures.get(row.execution_id, {}),
        )
        for row in rows
    ]


def trace_of_any(connection: Connection, workspace: str, ids: Sequence[str]) -> str | None:
    """The trace of the first that is found of these executions of a workspace."""
    found: str | None = connection.execute(_TRACES, {"ids": ids, "workspace": workspace}).scalars().first()
    return found


def attempts(connection: Connection, execution_id: str) -> Sequence[Row[Any]]:
    """The stored attempts of an execution's steps, in order; only steps that were retried have any."""
    return connection.execute(_ATTEMPTS, {"id": execution_id}).all()


def open_counts(
    connection: Connection, workspace: str, workflow_id: str | None = None, from_ns: int | None = None
) -> dict[str, int]:
    """The number of open executions of a workspace or one of its workflows, by status."""
    statement = (
        select(_executions.status, func.count())
        .where(IS_OPEN, _executions.workspace_id.concat("") == workspace)
        .group_by(_executions.status)
    )
    if workflow_id is not None:
        statement = statement.where(_executions.workflow_id.concat("") == workflow_id)
    if from_ns is not None:
        statement = statement.where(_executions.created_ns + 0 >= from_ns)
    return {row[0]: row[1] for row in connection.execute(statement)}


def open_by_workflow(connection: Connection, workspace: str) -> list[tuple[str, str, str, int, int | None]]:
    """(workflow id, name, status, count, newest start ns) of a workspace's open executions."""
    statement = (
        select(
            _executions.workflow_id,
            func.max(_executions.workflow),
            _executions.status,
            func.count(),
            func.max(_executions.started_ns),
        )
        .where(IS_OPEN, _executions.workspace_id.concat("") == workspace)
        .group_by(_executions.workflow_id, _executions.status)
    )
    return [tuple(row) for row in connection.execute(statement)]


# As text, so that the planner recognises the condition of the partial index, which holds the few open executions. The
# other conditions are expressions that match no index, so that the planner chooses none of the larger ones.
IS_OPEN: Final = text("workflow_executions.status IN ('pending', 'running')")


def open_executions(connection: Connection) -> Sequence[Row[Any]]:
    """Executions that have not ended, of all workspaces, with their workspace's slug."""
    statement = (
        select(*EXECUTION_COLUMNS, workspaces.c.slug.label("workspace"))
        .join(workspaces, workspaces.c.id == _executions.workspace_id)
        .where(IS_OPEN)
    )
    return cast("Sequence[Row[Any]]", connection.execute(statement).all())
