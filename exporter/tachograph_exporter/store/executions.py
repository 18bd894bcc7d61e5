"""Reading the store: plain functions of a connection, each a statement or two on an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    func,
    select,
    text,
)

from tachograph_exporter.store.rollups import read
from tachograph_exporter.store.schema import (
    workflow_definitions,
    workflow_executions,
    workflow_step_attempts,
    workflow_step_executions,
    workflow_step_reports,
    workspaces,
)
from tachograph_exporter.store.steps import StoredStep, steps_of

_definitions = workflow_definitions.c

_executions = workflow_executions.c
_steps = workflow_step_executions.c

EXECUTION_COLUMNS: Final = [
    column for column in workflow_executions.columns if column.name not in ("rank", "workspace_id", "critical_path")
]


# Built once: making a statement costs as much as reading a hundred rows.
_ONE_EXECUTION: Final = select(*EXECUTION_COLUMNS).where(
    _executions.execution_id == bindparam("id"), _executions.workspace_id == bindparam("workspace")
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


def execution(connection: Connection, workspace: str, execution_id: str) -> Row[Any] | None:
    """The row of one execution of a workspace (by its id), or None."""
    return connection.execute(_ONE_EXECUTION, {"id": execution_id, "workspace": workspace}).first()


def run(connection: Connection, workspace: str, execution_id: str) -> StoredRun | None:
    """One execution with its steps, attempts and reports, or None: four ranges of four indexes."""
    found = execution(connection, workspace, execution_id)
    if found is None:
        return None
    key = {"id": execution_id}
    return StoredRun(
        found,
        steps_of(connection, execution_id),
        connection.execute(_ATTEMPTS, key).all(),
        connection.execute(_REPORTS, key).all(),
    )


def open_counts(
    connection: Connection, workspace: str, workflow_id: str | None = None, from_ns: int | None = None
) -> dict[str, int]:
    """How many executions of a workflow are pending and running, by status."""
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


# As text, so that the planner sees the condition of the partial index; and the rest as expressions that no other index
# has, for the few open executions are all in that one.
IS_OPEN: Final = text("workflow_executions.status IN ('pending', 'running')")


def open_executions(connection: Connection) -> Sequence[Row[Any]]:
    """Executions not ended, of all workspaces, with their workspace's slug."""
    statement = (
        select(*EXECUTION_COLUMNS, workspaces.c.slug.label("workspace"))
        .join(workspaces, workspaces.c.id == _executions.workspace_id)
        .where(IS_OPEN)
    )
    return cast("Sequence[Row[Any]]", connection.execute(statement).all())


def last_successes(connection: Connection) -> list[tuple[str, str, int]]:
    """(workspace slug, workflow, unix ns) of each workflow's last completed execution."""
    names = select(_definitions.workspace_id, _definitions.id, _definitions.name, workspaces.c.slug).join(
        workspaces, workspaces.c.id == _definitions.workspace_id
    )
    by_workspace: dict[str, list[Any]] = {}
    for found_row in connection.execute(names):
        by_workspace.setdefault(found_row.workspace_id, []).append(found_row)
    found = []
    for workspace_id, rows in by_workspace.items():
        packs = read.totals(connection, workspace_id)
        for row in rows:
            totals = packs[row.id].executions.get("completed") if row.id in packs else None
            if totals is not None and totals.count:
                found.append((row.slug, row.name, totals.last_ns))
    return found
