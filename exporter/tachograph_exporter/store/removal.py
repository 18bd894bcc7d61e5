"""Removing a workflow with everything stored of it."""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, select

from tachograph_exporter.store import archive, locking
from tachograph_exporter.store.executions import IS_OPEN
from tachograph_exporter.store.rollups import rows as rollup_rows
from tachograph_exporter.store.schema import (
    workflow_definitions,
    workflow_executions,
    workflow_step_attempts,
    workflow_step_executions,
    workflow_step_reports,
)
from tachograph_exporter.store.series import rows as series_rows


def remove_workflow(connection: Connection, workspace_id: str, workflow_id: str) -> int:
    """Delete a workflow with its executions, rollups and archive entries, unless executions of it are open.

    Returns the number of open executions; if it is not 0, nothing was deleted.
    """
    locking.lock(connection)
    executions = workflow_executions.c
    of_workflow = (executions.workspace_id == workspace_id) & (executions.workflow_id == workflow_id)
    count = select(func.count()).select_from(workflow_executions).where(IS_OPEN, of_workflow)
    open_count = int(connection.execute(count).scalar_one())
    if open_count:
        return open_count
    ids = select(executions.execution_id).where(of_workflow)
    for table in (workflow_step_reports, workflow_step_attempts, workflow_step_executions):
        connection.execute(delete(table).where(table.c.execution_id.in_(ids)))
    connection.execute(delete(workflow_executions).where(of_workflow))
    rollup_rows.forget(connection, (workspace_id, workflow_id))
    series_rows.forget(connection, (workspace_id, workflow_id))
    archive.forget_workflow(connection, workspace_id, workflow_id)
    connection.execute(delete(workflow_definitions).where(workflow_definitions.c.id == workflow_id))
    return 0
