"""What runs now, by workflow, from the rows: whoever runs it."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import Connection, func, select

from tachograph_exporter.store.executions import IS_OPEN
from tachograph_exporter.store.locking import look_up_by_key
from tachograph_exporter.store.merging import FIRST_TERMINAL_RANK
from tachograph_exporter.store.rollups.counting import Key
from tachograph_exporter.store.schema import series_unsettled, workflow_executions, workflow_step_executions
from tachograph_exporter.store.totals import decode_folded

_executions = workflow_executions.c
_steps = workflow_step_executions.c
_unsettled = series_unsettled.c


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


# Expressions that match no index, so that SQLite starts with the few that are open or unsettled, and looks up the rest.
# It would walk all executions, in the order of an index, to group those few; or all steps, to look up their executions.
_WORKFLOW: Final = (_executions.workspace_id.concat(""), _executions.workflow_id.concat(""))
_HAS_STARTED: Final = (_executions.started_ns + 0).is_not(None)

_EXECUTIONS: Final = (
    select(*_WORKFLOW, func.count(), func.min(_executions.started_ns)).where(IS_OPEN, _HAS_STARTED).group_by(*_WORKFLOW)
)
_STEPS: Final = (
    select(*_WORKFLOW, func.count())
    .join_from(
        workflow_executions, workflow_step_executions, _steps.execution_id == _executions.execution_id.concat("")
    )
    .where(IS_OPEN, _HAS_STARTED, _steps.status == "running", _steps.folded.is_(None))
    .group_by(*_WORKFLOW)
)
_FOLDED: Final = (
    select(*_WORKFLOW, _steps.folded)
    .join_from(
        workflow_executions, workflow_step_executions, _steps.execution_id == _executions.execution_id.concat("")
    )
    .where(IS_OPEN, _HAS_STARTED, _steps.status == "running", _steps.folded.is_not(None))
)
_UNSETTLED: Final = (
    select(*_WORKFLOW, func.count())
    .join_from(series_unsettled, workflow_executions, _executions.execution_id == _unsettled.execution_id.concat(""))
    .where(_executions.rank + 0 >= FIRST_TERMINAL_RANK, _HAS_STARTED)
    .group_by(*_WORKFLOW)
)


def running(connection: Connection) -> dict[Key, Running]:
    """What runs now, by workflow; without those of which nothing runs and nothing is unsettled."""
    look_up_by_key(connection)
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
