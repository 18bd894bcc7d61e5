"""What runs now, by workflow, from the rows: whoever runs it."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import Connection, func, select

from tachograph_exporter.store.executions import IS_OPEN
from tachograph_exporter.store.merging import FIRST_TERMINAL_RANK
from tachograph_exporter.store.rollups.counting import Key
from tachograph_exporter.store.schema import series_unsettled, workflow_executions, workflow_step_executions
from tachograph_exporter.store.totals import decode_folded

_executions = workflow_executions.c
_steps = workflow_step_executions.c


class Running(NamedTuple):
    """What runs of a workflow.

    Attributes:
        executions: how many run.
        steps: how many of their steps run.
        oldest_ns: when the execution that has run longest started (unix ns).
        unsettled: how many executions have started and ended, but are not in the series of ``/metrics`` yet.
    """

    executions: int
    steps: int
    oldest_ns: int
    unsettled: int = 0


_EXECUTIONS: Final = (
    select(_executions.workspace_id, _executions.workflow_id, func.count(), func.min(_executions.started_ns))
    .where(IS_OPEN, _executions.started_ns.is_not(None))
    .group_by(_executions.workspace_id, _executions.workflow_id)
)
_STEPS: Final = (
    select(_executions.workspace_id, _executions.workflow_id, func.count())
    .join_from(workflow_executions, workflow_step_executions, _steps.execution_id == _executions.execution_id)
    .where(IS_OPEN, _executions.started_ns.is_not(None), _steps.status == "running", _steps.folded.is_(None))
    .group_by(_executions.workspace_id, _executions.workflow_id)
)
_FOLDED: Final = (
    select(_executions.workspace_id, _executions.workflow_id, _steps.folded)
    .join_from(workflow_executions, workflow_step_executions, _steps.execution_id == _executions.execution_id)
    .where(IS_OPEN, _executions.started_ns.is_not(None), _steps.status == "running", _steps.folded.is_not(None))
)
_UNSETTLED: Final = (
    select(_executions.workspace_id, _executions.workflow_id, func.count())
    .join_from(series_unsettled, workflow_executions, _executions.execution_id == series_unsettled.c.execution_id)
    .where(_executions.rank >= FIRST_TERMINAL_RANK, _executions.started_ns.is_not(None))
    .group_by(_executions.workspace_id, _executions.workflow_id)
)


def running(connection: Connection) -> dict[Key, Running]:
    """What runs now, by workflow; without those of which nothing runs and nothing is unsettled."""
    by_workflow: dict[Key, Running] = {
        (workspace, workflow): Running(executions, 0, oldest_ns)
        for workspace, workflow, executions, oldest_ns in connection.execute(_EXECUTIONS)
    }
    if by_workflow:
        counts = [((row[0], row[1]), row[2]) for row in connection.execute(_STEPS)]
        counts += [((row[0], row[1]), decode_folded(row[2]).running) for row in connection.execute(_FOLDED)]
        for key, steps in counts:
            if (entry := by_workflow.get(key)) is not None:
                by_workflow[key] = entry._replace(steps=entry.steps + steps)
    for workspace, workflow, unsettled in connection.execute(_UNSETTLED):
        entry = by_workflow.get((workspace, workflow), Running(0, 0, 0))
        by_workflow[workspace, workflow] = entry._replace(unsettled=unsettled)
    return by_workflow
