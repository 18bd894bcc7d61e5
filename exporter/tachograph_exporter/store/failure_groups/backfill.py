"""Grouping what failed before there were groups: the newest executions first, a bounded part at a time."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, delete, select

from tachograph_exporter.store import locking, state
from tachograph_exporter.store.failure_groups.occurrences import rebuild
from tachograph_exporter.store.schema import store_state, workflow_executions

UNGROUPED: Final = "failures_ungrouped"
"""State: executions with lower ids are not grouped yet; "" for all of them. Without it, everything is."""
_EXECUTIONS: Final = 500
_STEPS: Final = 20_000
"""Executions, and about how many steps of them, that one transaction looks at; writers wait as long as that takes."""
_executions = workflow_executions.c


def is_complete(connection: Connection) -> bool:
    """Whether all executions are grouped."""
    return state.state_of(connection, UNGROUPED) is None


def group_some(connection: Connection) -> bool:
    """Group the failures of some executions. Returns whether there are more."""
    position = state.state_of(connection, UNGROUPED)
    if position is None:
        return False
    locking.lock(connection)
    position = state.state_of(connection, UNGROUPED)
    if position is None:
        return False
    statement = select(_executions.execution_id, _executions.step_count).order_by(_executions.execution_id.desc())
    if position:
        statement = statement.where(_executions.execution_id < position)
    rows = connection.execute(statement.limit(_EXECUTIONS)).all()
    ids: list[str] = []
    steps = 0
    for row in rows:
        if ids and steps + row.step_count > _STEPS:
            break
        ids.append(row.execution_id)
        steps += row.step_count
    if not ids:
        connection.execute(delete(store_state).where(store_state.c.name == UNGROUPED))
        return False
    rebuild(connection, ids)
    state.set_state(connection, UNGROUPED, ids[-1])
    return True
