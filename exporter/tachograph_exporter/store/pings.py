"""Runs that pings report: which one a ping belongs to."""

from __future__ import annotations

import time
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, func, select

from tachograph.clock import NS
from tachograph_exporter.store.executions import EXECUTION_COLUMNS
from tachograph_exporter.store.recovery import PING_LEASE_SECONDS
from tachograph_exporter.store.schema import workflow_executions, workflow_step_reports

_executions = workflow_executions.c
_reports = workflow_step_reports.c
_NEWEST: Final = (
    select(*EXECUTION_COLUMNS)
    .where(
        _executions.workspace_id == bindparam("workspace"),
        _executions.workflow_id == bindparam("workflow"),
        _executions.created_ns >= bindparam("since"),
        _executions.process == bindparam("process"),
    )
    .order_by(_executions.created_ns.desc())
    .limit(1)
)
_LAST_REPORT: Final = select(func.max(_reports.sequence)).where(_reports.execution_id == bindparam("execution"))


def newest_run(connection: Connection, workspace: str, workflow_id: str, process: str) -> Row[Any] | None:
    """The newest run of a workflow that pings of this process reported within a lease. ``workspace`` is an id."""
    since = time.time_ns() - round(PING_LEASE_SECONDS * NS)
    parameters = {"workspace": workspace, "workflow": workflow_id, "process": process, "since": since}
    return connection.execute(_NEWEST, parameters).first()


def last_report(connection: Connection, execution_id: str) -> int:
    """The highest number that a report of a run has; 0 without any."""
    return int(connection.execute(_LAST_REPORT, {"execution": execution_id}).scalar() or 0)
