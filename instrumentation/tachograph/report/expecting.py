"""Schedules of an engine, taken over as what is expected of its workflows."""

from __future__ import annotations

import time

from tachograph.events import WorkflowExpected
from tachograph.expectation import Expectation, expectation_of
from tachograph.identity import (
    ExecutionRef,
    Origin,
    derived_span_id,
    derived_trace_id,
    reported_execution_id,
)
from tachograph.identity import workflow_id as make_workflow_id
from tachograph.names import clean_name
from tachograph.recording.setup import default_workspace, get_recorder
from tachograph.report.safely import complain, name_of


def expect(
    workflow: str,
    schedule: str,
    *,
    timezone: str | None = None,
    grace: str | float | None = None,
    deadline: str | float | None = None,
    source: str = "engine",
    workspace: str | None = None,
) -> bool:
    """Say what an engine's own schedule expects of a workflow; it replaces what the same source said before.

    Args:
        workflow: the workflow's name.
        schedule: a cron expression of five fields, an alias (``@daily``) or ``every 15m``.
        timezone: the schedule's time zone, such as ``Europe/Berlin`` (default: UTC).
        grace: how late it may start, in seconds or such as ``10m``.
        deadline: how long it may take, likewise.
        source: who says so: ``airflow``, ``apscheduler``, ``celery beat``; any other is shown as ``engine``.
        workspace: slug of the workspace.

    What code, a definition, a file or the API says is stronger. Returns whether it was taken over: a schedule that
    cannot be is logged. Never raises.
    """
    try:
        expectation = expectation_of(schedule, timezone or "UTC", grace, deadline)
        _tell(workflow, expectation, source, workspace)
    except Exception as error:
        complain("expect", error)
        return False
    return True


def expect_no_more(workflow: str, *, source: str = "engine", workspace: str | None = None) -> None:
    """Take back what a source said of a workflow: its schedule is gone, or paused. Never raises."""
    try:
        _tell(workflow, None, source, workspace)
    except Exception as error:
        complain("expect_no_more", error)


def _tell(workflow: str, expects: Expectation | None, source: str, workspace: str | None) -> None:
    name = name_of(workflow, "expect()")
    slug = clean_name(workspace) if workspace else default_workspace()
    # It belongs to no execution; the id is that of none.
    execution_id = reported_execution_id(slug, name, "\0expected")
    ref = ExecutionRef(
        workspace=slug,
        workflow=name,
        workflow_id=make_workflow_id(slug, name),
        execution_id=execution_id,
        trace_id=derived_trace_id(execution_id),
        span_id=derived_span_id(execution_id),
        origin=Origin.REPORTED,
    )
    get_recorder()(WorkflowExpected(execution=ref, time_ns=time.time_ns(), source=source, expects=expects))
