"""Removing a workflow with everything stored of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, delete, func, select

from tachograph_exporter.store import archive, expectations, locking, notices, numbers
from tachograph_exporter.store.definitions import DEFINITION
from tachograph_exporter.store.executions import IS_OPEN
from tachograph_exporter.store.failure_groups import occurrences
from tachograph_exporter.store.rollups import rows as rollup_rows
from tachograph_exporter.store.schema import (
    stack_requests,
    step_stacks,
    workflow_definitions,
    workflow_executions,
    workflow_step_attempts,
    workflow_step_executions,
    workflow_step_lines,
    workflow_step_reports,
)
from tachograph_exporter.store.series import rows as series_rows

MAX_NAMED: Final = 20
"""Open executions that are named when a workflow is not deleted."""
_OWN_SOURCES: Final = (*expectations.TAKEN_OVER, expectations.CODE, DEFINITION, expectations.API)


class OpenExecutions(NamedTuple):
    """How many executions of a workflow are open (``total``), and the ids of some (`MAX_NAMED`), the oldest first."""

    total: int
    ids: Sequence[str]


def remove_workflow(connection: Connection, workspace_id: str, workflow_id: str) -> OpenExecutions:
    """Delete a workflow with its executions, rollups and archive entries, unless executions of it are open.

    Returns these; if there are any, nothing was deleted. A process that runs the workflow afterwards registers it
    again.
    """
    locking.lock(connection)
    executions = workflow_executions.c
    of_workflow = (executions.workspace_id == workspace_id) & (executions.workflow_id == workflow_id)
    # No condition and no order that fits another index than that of the few open ones.
    is_open = (
        IS_OPEN,
        executions.workspace_id.concat("") == workspace_id,
        executions.workflow_id.concat("") == workflow_id,
    )
    count = select(func.count()).select_from(workflow_executions).where(*is_open)
    open_count = int(connection.execute(count).scalar_one())
    if open_count:
        named = select(executions.execution_id).where(*is_open).order_by(executions.execution_id.concat(""))
        return OpenExecutions(open_count, connection.execute(named.limit(MAX_NAMED)).scalars().all())
    ids = select(executions.execution_id).where(of_workflow)
    for table in (
        step_stacks, stack_requests, workflow_step_lines, workflow_step_reports, workflow_step_attempts,
        workflow_step_executions,
    ):  # fmt: skip
        connection.execute(delete(table).where(table.c.execution_id.in_(ids)))
    connection.execute(delete(workflow_executions).where(of_workflow))
    occurrences.forget_workflow(connection, workspace_id, workflow_id)
    rollup_rows.forget(connection, (workspace_id, workflow_id))
    series_rows.forget(connection, (workspace_id, workflow_id))
    numbers.forget(connection, workflow_id)
    archive.forget_workflow(connection, workspace_id, workflow_id)
    name = connection.execute(
        select(workflow_definitions.c.name).where(workflow_definitions.c.id == workflow_id)
    ).scalar()
    if name is not None:
        expectations.forget(connection, workspace_id, name, _OWN_SOURCES)
        notices.forget_workflow(connection, workspace_id, name)
    connection.execute(delete(workflow_definitions).where(workflow_definitions.c.id == workflow_id))
    return OpenExecutions(0, ())
